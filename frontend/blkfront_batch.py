"""Many block requests at a time without a copy: their memory is the granted pages themselves, granted for good."""
from collections.abc import Callable
from typing import Final

import numpy
from numpy.typing import NDArray

from miniguest.frontend.pages import Pages
from miniguest.ring import _core
from miniguest.ring.abi.blkif import BLKIF_MAX_SEGMENTS_PER_REQUEST
from miniguest.ring.errors import PeerError
from miniguest.ring.grants import Grants
from miniguest.ring.memory import FRAME_SIZE

SECTOR: Final = 512

Sectors = NDArray[numpy.uint64]
Buffers = NDArray[numpy.uint32]
Statuses = NDArray[numpy.int16]


def nothing() -> None:
    """The callback of somebody who does not care."""


class Batch:
    """The buffers of one Blkfront, each of `sectors` sectors, and requests between them and the disk.

    A request moves one whole buffer. `read` and `write` take arrays of sectors and of buffers' numbers; `take` answers
    with those that are done. In between a buffer is the backend's: do not write to it, nor believe what is there.
    attend: called when some are done, or slots are free again; and when the disk is gone. kept: the backend keeps
    what it has mapped (feature-persistent).
    """

    def __init__(
        self, requests: _core.BlkRequests, pages: Pages, grants: Grants, domid: int, buffers: int, sectors: int, kept: bool
    ) -> None:
        self.buffers = buffers
        self.sectors = sectors
        self.attend: Callable[[], None] = nothing
        self.push: Callable[[], None] = nothing
        self._pages = pages
        self._grants = grants
        self._dead = False
        each = -(-sectors * SECTOR // FRAME_SIZE)
        indirect = buffers if each > BLKIF_MAX_SEGMENTS_PER_REQUEST else 0
        if len(pages) < buffers * each + indirect:
            raise PeerError(f"{len(pages)} pages are no {buffers} buffers of {sectors} sectors")
        # In order, so that most lie side by side in memory: one part of an I/O vector each.
        frames = sorted(pages.alloc() for _ in range(buffers * each + indirect))
        self._granted = [(frame, grants.give(domid, frame)) for frame in frames]
        data = self._granted[: buffers * each]
        self._core = _core.BlkBatch(requests, data, self._granted[buffers * each :], sectors, kept)
        self._stride = each * FRAME_SIZE
        self._view = pages.memory.joined(frames[: buffers * each])
        self._done: Buffers = numpy.zeros(buffers, numpy.uint32)
        self._status: Statuses = numpy.zeros(buffers, numpy.int16)

    def buffer(self, number: int) -> memoryview:
        """The bytes of a buffer: the pages that the backend reads into and writes from. IndexError when there is none."""
        if not 0 <= number < self.buffers:
            raise IndexError(f"buffer {number} of {self.buffers}")
        return self._view[number * self._stride : number * self._stride + self.sectors * SECTOR]

    def read(self, sectors: Sectors, buffers: Buffers) -> int:
        """Read from sectors[i] on into buffers[i], as far as the ring has slots; how many. ValueError for a busy buffer."""
        return self._ask(False, sectors, buffers)

    def write(self, sectors: Sectors, buffers: Buffers) -> int:
        """Write buffers[i] from sectors[i] on, as far as the ring has slots; how many. ValueError for a busy buffer."""
        return self._ask(True, sectors, buffers)

    def _ask(self, write: bool, sectors: Sectors, buffers: Buffers) -> int:
        if self._dead:
            raise PeerError("the block device is gone")
        count = self._core.put(write, sectors.data, buffers.data)
        if count:
            self.push()
        return count

    def take(self) -> tuple[Buffers, Statuses]:
        """The buffers whose requests are done, oldest first, and their BLKIF_RSP_ statuses; until the next call."""
        count = self._core.take(self._done.data, self._status.data)
        return self._done[:count], self._status[:count]

    @property
    def outstanding(self) -> int:
        """Requests that are out."""
        return self._core.nr_out

    def abandon(self) -> None:
        """The backend is gone for good: what was out is done, with BLKIF_RSP_ERROR."""
        if not self._dead:
            self._dead = True
            self.attend()

    def release(self) -> None:
        """The backend has disconnected: take back every page but those that it still has mapped."""
        still = []
        for frame, gref in self._granted:
            if self._grants.end(gref):
                self._pages.free(frame)
            else:
                still.append((frame, gref))
        self._granted = still
