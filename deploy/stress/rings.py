"""Two processes pass numbered requests through a ring: none lost, doubled, out of order or changed, and no wake missed.

The frontend grants the ring's pages, in no order, and numbers its requests; the backend checks every byte and answers
with the number and a sum over what it got, which the frontend checks. Both sleep as the waiting rule lets them: a wake
that is missed leaves both asleep, and the watchdog says so.
"""
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy
from numpy.typing import NDArray

from miniguest.deploy.stress.stirring import Stirring
from miniguest.deploy.stress.workers import StressError, workers
from miniguest.ring import _core
from miniguest.ring.grants import Grants
from miniguest.ring.process import Process

Words = NDArray[numpy.uint32]

FRONT: Final = 1
BACK: Final = 2
START: Final = 0xFFFFFFF0               # of all indices: they wrap at once


@dataclass(frozen=True, slots=True)
class Shape:
    """Bytes of a request and of a response, and pages of the ring."""

    req_size: int
    rsp_size: int
    pages: int


BLKIF: Final = Shape(112, 16, 1)
BLKIF_16: Final = Shape(112, 16, 16)
NETIF_TX: Final = Shape(12, 4, 1)
NETIF_RX: Final = Shape(8, 8, 1)


def requests_from(first: int, count: int, words: int) -> Words:
    """Requests `first` and on: the number, words made of it, and their sum."""
    numbers = numpy.arange(first, first + count, dtype=numpy.uint64)
    out = numpy.empty((count, words), numpy.uint32)
    out[:, 0] = numbers & 0xFFFFFFFF
    if words > 2:
        out[:, 1] = numbers >> numpy.uint64(32)
        out[:, 2:-1] = (out[:, 0] * numpy.uint32(0x9E3779B1))[:, None] + numpy.arange(words - 3, dtype=numpy.uint32)
    out[:, -1] = out[:, :-1].sum(axis=1, dtype=numpy.uint32) ^ numpy.uint32(0xFFFFFFFF)
    return out


def responses_to(requests: Words, words: int) -> Words:
    """The answers: number (where there is room for it) and a sum of what was received."""
    out = numpy.zeros((len(requests), words), numpy.uint32)
    out[:, 0] = requests[:, 0]
    weights = numpy.arange(1, requests.shape[1] + 1, dtype=numpy.uint32)
    out[:, -1] += (requests * weights).sum(axis=1, dtype=numpy.uint32)
    return out


def words_of(buffer: bytearray, size: int) -> Words:
    """A ring's private slots as rows of u32."""
    return numpy.frombuffer(buffer, numpy.uint32).reshape(-1, size // 4)


class _End:
    """What both ends do: pass `total`, stirred or not."""

    def __init__(self, process: Process, total: int, seed: int, stir: bool) -> None:
        self.process = process
        self.total = total
        self.stirring = Stirring(process, seed, stir)
        self.random = self.stirring.random
        self.done = 0

    def same(self, what: str, got: Words, wanted: Words) -> None:
        """StressError unless both are equal."""
        if not numpy.array_equal(got, wanted):
            row = int((got != wanted).any(axis=1).argmax())
            raise StressError(f"{what} {self.done + row}: {got[row].tolist()}, should be {wanted[row].tolist()}")


class Front(_End):
    """The frontend: puts what fits, now and then less, and takes what came back."""

    def __init__(
        self, process: Process, shape: Shape, total: int, seed: int, stir: bool, window: int, tell: Callable[[Any], None]
    ) -> None:
        super().__init__(process, total, seed, stir)
        self.window = window
        memory = process.memory(FRONT)
        frames = self.random.sample(range(1, memory.ram_frames), shape.pages)
        self.ring = _core.FrontRing(memory.side_by_side(frames), shape.req_size, shape.rsp_size, index=START)
        self.requests = words_of(self.ring.requests, shape.req_size)
        self.responses = words_of(self.ring.responses, shape.rsp_size)
        self.port = process.alloc_unbound(BACK)
        process.loop.on_port(self.port, self.on_event)
        grants = Grants(memory)
        tell([self.port.number, [grants.give(BACK, frame) for frame in frames]])
        self.made = 0

    def on_event(self) -> None:
        """Go on until there is nothing to put and nothing to take."""
        self.stirring.stirred()
        while True:
            moved = self.take() + self.put()
            if self.done == self.total:
                self.process.loop.stop()
                return
            if not moved:
                self.stirring.pause()
                if not self.ring.final_check():
                    return

    def put(self) -> int:
        """Put a batch; its size."""
        count = min(self.ring.free, self.total - self.made, self.window - self.ring.outstanding)
        count = self.stirring.part(count)
        if count:
            self.requests[:count] = requests_from(self.made, count, self.requests.shape[1])
            self.ring.put(count)
            self.made += count
            if self.ring.push():
                self.port.notify()
        return count

    def take(self) -> int:
        """Take and check what came back; how much."""
        count = self.ring.take()
        if count:
            sent = requests_from(self.done, count, self.requests.shape[1])
            self.same("response", self.responses[:count], responses_to(sent, self.responses.shape[1]))
            self.done += count
        return count


class Back(_End):
    """The backend: takes a batch, checks it, answers it, all or in two parts."""

    def __init__(self, process: Process, shape: Shape, total: int, seed: int, stir: bool, told: Any) -> None:
        super().__init__(process, total, seed, stir)
        remote_port, grefs = told
        table = process.grant_table(FRONT)
        mapped = [process.mapper.map(table, gref) for gref in grefs]
        if any(handle < 0 for handle, _ in mapped):
            raise StressError(f"the ring cannot be mapped: {mapped}")
        pages = process.memory(FRONT).side_by_side([frame for _, frame in mapped])
        self.ring = _core.BackRing(pages, shape.req_size, shape.rsp_size, index=START)
        self.requests = words_of(self.ring.requests, shape.req_size)
        self.responses = words_of(self.ring.responses, shape.rsp_size)
        self.port = process.bind_interdomain(FRONT, remote_port)
        process.loop.on_port(self.port, self.on_event)

    def on_event(self) -> None:
        """Serve until the ring is empty."""
        self.stirring.stirred()
        while self.done < self.total:
            limit = self.stirring.part(self.ring.slots)
            count = self.ring.take(limit)
            if count:
                self.answer(count)
            else:
                self.stirring.pause()
                if not self.ring.final_check():
                    return
        self.process.loop.stop()

    def answer(self, count: int) -> None:
        """Check `count` requests and answer them."""
        self.same("request", self.requests[:count], requests_from(self.done, count, self.requests.shape[1]))
        answers = responses_to(self.requests[:count], self.responses.shape[1])
        first = self.random.randint(0, count) if self.stirring.on else count
        for part in (answers[:first], answers[first:]):
            if len(part):
                self.responses[: len(part)] = part
                self.ring.put(len(part))
                if self.ring.push():
                    self.port.notify()
        self.done += count


def pass_requests(
    total: int, shape: Shape, doorbell: str = "zmq", seed: int = 1, stir: bool = False, window: int = 1 << 20,
    seconds: float = 120.0,
) -> float:
    """Pass `total` requests between two processes; requests per second. StressError when anything is not as it should be.

    stir: batches of random size, answers in parts, pauses, waits that spin for a random time or not at all. window:
    requests under way at most; with one, every wake counts. seconds: the watchdog's.
    """
    with workers(doorbell) as ground:
        reader, writer = os.pipe()

        def front(process: Process) -> None:
            end = Front(process, shape, total, seed, stir, window, lambda what: _say(writer, what))
            end.on_event()
            process.loop.run()

        def back(process: Process) -> None:
            Back(process, shape, total, seed + 1, stir, _hear(reader))
            process.loop.run()

        start = time.monotonic()
        ground.start("front", FRONT, 0, front)
        ground.start("back", BACK, 0, back)
        os.close(reader)
        os.close(writer)
        ground.finish(seconds)
        return total / (time.monotonic() - start)


def _say(writer: int, what: Any) -> None:
    os.write(writer, json.dumps(what).encode())
    os.close(writer)


def _hear(reader: int) -> Any:
    return json.loads(os.read(reader, 65536))
