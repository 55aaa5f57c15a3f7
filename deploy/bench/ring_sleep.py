"""A ring between two processes that sleep on real event channels, as event suppression lets them."""
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from miniguest.deploy.bench.machine import cores, pinned
from miniguest.deploy.bench.pair import PairError, Pipe
from miniguest.deploy.bench.ring_spin import Kind
from miniguest.deploy.stress.workers import workers
from miniguest.ring._core import BackRing, FrontRing
from miniguest.ring.process import Process

FRONT: Final = 1
BACK: Final = 2
FRAME: Final = 1                        # of the front's memory: the ring


class _Front:
    """Keeps the ring full until the window is over."""

    def __init__(self, process: Process, kind: Kind, orders: Pipe, answers: Pipe, tell: Callable[[int], None]) -> None:
        ring = process.memory(FRONT).frames(FRAME, kind.pages)
        self._ring = FrontRing(ring, kind.request.size, kind.response.size)
        self._ids = kind.request_ids(self._ring.requests)
        self._numbers = self._ids.copy()
        self._numbers[...] = range(len(self._numbers))
        self._orders, self._answers = orders, answers
        self._done = 0
        self._start = self._end = 0.0
        self._port = process.alloc_unbound(BACK)
        process.loop.on_port(self._port, self.on_event)
        process.loop.on_fd(orders.reader, self.on_order)
        tell(self._port.number)

    def on_order(self) -> None:
        """A window begins."""
        seconds = self._orders.hear()[0] / 1e9
        self._done = 0
        self._start = time.perf_counter()
        self._end = self._start + seconds
        self.on_event()

    def on_event(self) -> None:
        """Take and put while there is anything to."""
        ring = self._ring
        while True:
            count = ring.take()
            self._done += count
            put = 0
            if self._end and time.perf_counter() < self._end:
                put = self._put()
            elif self._end and not ring.outstanding:
                self._answers.say(self._done, int((time.perf_counter() - self._start) * 1e9))
                self._end = 0.0
            if not (count or put) and not ring.final_check():
                return

    def _put(self) -> int:
        free = self._ring.free
        if free:
            self._ids[:free] = self._numbers[:free]
            if self._ring.send(free):
                self._port.notify()
        return free


class _Back:
    """Answers whatever is there."""

    def __init__(self, process: Process, kind: Kind, remote_port: int) -> None:
        ring = process.memory(FRONT).frames(FRAME, kind.pages)
        self._ring = BackRing(ring, kind.request.size, kind.response.size)
        self._requested, self._answers = kind.request_ids(self._ring.requests), kind.response_ids(self._ring.responses)
        self._port = process.bind_interdomain(FRONT, remote_port)
        process.loop.on_port(self._port, self.on_event)

    def on_event(self) -> None:
        """Serve until the ring is empty."""
        ring = self._ring
        while True:
            count = ring.take()
            if count:
                self._answers[:count] = self._requested[:count]
                if ring.respond(count):
                    self._port.notify()
            elif not ring.final_check():
                return


class SleepingRing:
    """Windows of such a pair."""

    def __init__(self, orders: Pipe, answers: Pipe, died: Callable[[], None]) -> None:
        self._orders, self._answers, self._died = orders, answers, died

    def window(self, seconds: float) -> float:
        """Pairs a second."""
        self._orders.say(int(seconds * 1e9))
        try:
            done, taken = self._answers.answer()
        except PairError:
            self._died()                        # says who has died, or that they hang
            raise
        return done / (taken / 1e9)


@contextmanager
def sleeping_ring(kind: Kind, doorbell: str, spin: bool) -> Iterator[SleepingRing]:
    """A pair of processes. spin: they wait as all processes do, spinning first; else they sleep at once."""
    first, second = cores()
    orders, answers = Pipe(), Pipe()
    reader, writer = os.pipe()

    def prepare(process: Process) -> None:
        if not spin:
            process.loop.upcall.spin_ns = 0

    def front(process: Process) -> None:
        prepare(process)
        _Front(process, kind, orders, answers, lambda port: _say(writer, port))
        process.loop.run()

    def back(process: Process) -> None:
        prepare(process)
        _Back(process, kind, json.loads(os.read(reader, 64)))
        process.loop.run()

    with workers(doorbell) as ground:
        # Pinned from before its start: zmq's thread of a process is then on the core of the process, and passes a wake on
        # without one of its own.
        with pinned(first):
            ground.start("front", FRONT, 0, front)
        with pinned(second):
            ground.start("back", BACK, 0, back)
        os.close(reader)
        os.close(writer)
        yield SleepingRing(orders, answers, lambda: ground.finish(0))


def _say(writer: int, port: int) -> None:
    os.write(writer, json.dumps(port).encode())
