"""Many frames at a time without a copy: what is sent lies in the granted pages, what is received is looked at in them."""
from collections.abc import Sequence
from typing import Any, Final

import numpy
from numpy.typing import NDArray

from miniguest.ring import _core
from miniguest.ring.memory import FRAME_SIZE

PART: Final = numpy.dtype([("page", "<u2"), ("offset", "<u2"), ("length", "<u2"), ("frame", "<u2")])    # of NetReceive.parts

Bytes = NDArray[numpy.uint8]
Firsts = NDArray[numpy.uint32]
Lengths = NDArray[numpy.uint32]
Statuses = NDArray[numpy.int16]


class Batch:
    """Granted pages of one transmit ring, side by side in `bytes`. A frame begins with a page and takes those behind it.

    `place` finds pages for frames, or their user has a plan of its own; `put` shows them to the backend with the ring's
    next push; when the ring's `take` has found the responses, `take` answers with those whose frames may be written to
    again, or put again as they are. In between do not write: the backend sends what it finds when it looks.
    """

    def __init__(self, transmit: _core.NetTransmit, entries: memoryview, grefs: Sequence[int], memory: memoryview) -> None:
        self.bytes: Bytes = numpy.frombuffer(memory, numpy.uint8)
        self.core = _core.NetBatch(transmit, entries, grefs)
        self._firsts: Firsts = numpy.zeros(len(grefs), numpy.uint32)
        self._done: Firsts = numpy.zeros(len(grefs), numpy.uint32)
        self._statuses: Statuses = numpy.zeros(len(grefs), numpy.int16)

    def frame(self, first: int, length: int) -> Bytes:
        """The memory of a frame of so many bytes that begins with page `first`."""
        return self.bytes[first * FRAME_SIZE : first * FRAME_SIZE + length]

    def place(self, lengths: Lengths, start: int = 0) -> Firsts:
        """The first pages of as many frames, from lengths[start] on, as there is room for. ValueError for one of no bytes,
        or more than all pages have."""
        room = self._firsts[: min(len(lengths) - start, len(self._firsts))]
        return room[: self.core.place(lengths[start:].data, room.data)].copy()

    def put(self, firsts: Firsts, lengths: Lengths, start: int = 0, flags: int = 0) -> int:
        """Put frames, from the one that begins with page firsts[start] on, as far as the ring has slots; how many.

        flags: NETTXF_csum_blank and _data_validated. ValueError for a frame that the backend does not take, or whose pages
        are out.
        """
        return self.core.put(firsts.data, lengths.data, start, flags)

    def take(self) -> tuple[Firsts, Statuses]:
        """The first pages of frames that were answered, oldest first, and their NETIF_RSP_ statuses; until the next call."""
        count = self.core.take(self._done.data, self._statuses.data)
        return self._done[:count], self._statuses[:count]

    @property
    def outstanding(self) -> int:
        """Frames that are out."""
        return self.core.nr_out


class Looking:
    """Frames received by one ring, where they are. memory: its pages side by side.

    What is seen may change while it is looked at: the pages stay granted to the backend, and a hostile one writes when it
    likes. Read once what something is decided by, or copy it first.
    """

    def __init__(self, receive: _core.NetReceive, memory: memoryview) -> None:
        self.bytes: Bytes = numpy.frombuffer(memory, numpy.uint8)
        self._receive = receive
        self._parts: NDArray[Any] = numpy.frombuffer(receive.parts, PART)
        self._pages = self._parts["page"]

    def look(self) -> int:
        """Find the frames that have come; how many. NetReceive.info has what is known of each. RingError for a lie."""
        return self._receive.look()

    @property
    def parts(self) -> NDArray[Any]:
        """Where the frames are that the last `look` found: PART each, frame by frame; until the next one."""
        return self._parts[: self._receive.nr_parts]

    def copy(self) -> Bytes:
        """The frames that the last `look` found, end to end."""
        parts = self.parts
        starts = parts["page"].astype(numpy.int64) * FRAME_SIZE + parts["offset"]
        pieces = [self.bytes[start:end] for start, end in zip(starts.tolist(), (starts + parts["length"]).tolist(), strict=True)]
        return numpy.concatenate(pieces) if pieces else self.bytes[:0]

    def give_back(self) -> None:
        """All that the last `look` found has been looked at: its pages may be posted again."""
        self._receive.give_back(self._pages[: self._receive.nr_parts].data)
