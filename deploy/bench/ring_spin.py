"""A ring between two processes that both look at it all the time: Python has every batch in its hands."""
import mmap
import time
from dataclasses import dataclass
from typing import Any, Final

import numpy
from numpy.typing import NDArray

from miniguest.deploy.bench.pair import Drive, Flag, Serve
from miniguest.ring._core import BackRing, FrontRing
from miniguest.ring.abi import blkif, netif
from miniguest.ring.abi.layout import Layout
from miniguest.ring.abi.ring import PAGE_SIZE

SPIN: Final = 500_000                   # ns that a take looks for entries
LOOKS: Final = 16                       # one batch in so many is checked, and the clock looked at

Ids = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """A ring of Xen's. name: reference/ring.c's."""

    name: str
    request: Layout
    response: Layout
    pages: int
    id_type: str

    def request_ids(self, entries: bytearray) -> Ids:
        """The ids of private requests."""
        return self._ids(entries, self.request)

    def response_ids(self, entries: bytearray) -> Ids:
        """The ids of private responses."""
        return self._ids(entries, self.response)

    def _ids(self, entries: bytearray, layout: Layout) -> Ids:
        return numpy.ndarray(len(entries) // layout.size, self.id_type, entries, layout.offset["id"], layout.size)


BLKIF: Final = Kind("blkif", blkif.REQUEST, blkif.RESPONSE, 1, "<u8")
BLKIF_16: Final = Kind("blkif", blkif.REQUEST, blkif.RESPONSE, 16, "<u8")
NETIF: Final = Kind("netif", netif.TX_REQUEST, netif.TX_RESPONSE, 1, "<u2")


class SpinningRing:
    """Both ends of a ring in memory that is shared by fork. Each passes half of the ring at a time, so that one end works
    on one half while the other end does on the other."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._memory = mmap.mmap(-1, kind.pages * PAGE_SIZE)
        self._front = FrontRing(self._memory, kind.request.size, kind.response.size)

    def server(self) -> Serve:
        """Answers each batch: what Python does is to put the ids of the requests into the responses."""
        ring = BackRing(self._memory, self._kind.request.size, self._kind.response.size)
        half = ring.slots // 2
        requested, answers = self._kind.request_ids(ring.requests), self._kind.response_ids(ring.responses)
        half_requested, half_answers = requested[:half], answers[:half]
        exchange = ring.exchange

        def serve(over: Flag) -> None:
            count = 0
            while count or not over:
                count = exchange(count, SPIN, half, half)
                if count == half:
                    half_answers[...] = half_requested
                else:
                    answers[:count] = requested[:count]

        return serve

    def client(self) -> Drive:
        """Sends a batch of whole requests as soon as one has come back."""
        ring = self._front
        half = ring.slots // 2
        ids = numpy.arange(half, dtype=self._kind.id_type)
        batch = bytearray(half * self._kind.request.size)
        self._kind.request_ids(batch)[...] = ids
        size = len(batch)
        requests, answers = ring.requests, self._kind.response_ids(ring.responses)[:half]
        exchange, take, clock = ring.exchange, ring.take_within, time.perf_counter

        def drive(seconds: float) -> tuple[int, float]:
            done = 0
            start = now = clock()
            requests[:size] = batch
            ring.send(half)
            while now - start < seconds:
                for _ in range(LOOKS):
                    requests[:size] = batch
                    count = exchange(half, SPIN, half, half)
                    while count < half:         # somebody else had the other core
                        count += take(SPIN, half - count, half - count)
                done += LOOKS * half
                now = clock()
                if not numpy.array_equal(answers, ids):
                    raise ValueError(f"answers to {ids} are {answers}")
            while ring.outstanding:
                take(SPIN)
            return done, now - start

        return drive
