"""Serving blkif requests: what each means, and what each lie gets (an error response; never an exception).

xen/io/blkif.h. A request is a private copy of its ring slot, so nothing in it can change while it is served.
"""
import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from miniguest.backend.blkback.formats import Format
from miniguest.backend.blkback.image import SECTOR, Image
from miniguest.backend.sparingly import SparingLog
from miniguest.ring import _core
from miniguest.ring.abi.blkif import (
    BLKIF_MAX_SEGMENTS_PER_REQUEST,
    BLKIF_OP_DISCARD,
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_INDIRECT,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_RSP_EOPNOTSUPP,
    BLKIF_RSP_ERROR,
    BLKIF_RSP_OKAY,
    REQUEST_SEGMENT,
)
from miniguest.ring.memory import FRAME_SIZE

MAX_INDIRECT_SEGMENTS: Final = 256      # offered in feature-max-indirect-segments: 1 MiB a request
assert FRAME_SIZE // REQUEST_SEGMENT.size >= MAX_INDIRECT_SEGMENTS      # they all fit the first indirect page
_NO_DISCARD: Final = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY)     # of a file system or device without it

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Moved:
    """What a batch of requests moved."""

    bytes_read: int = 0
    bytes_written: int = 0
    errors: int = 0


class Executor:
    """Executes requests of one device against its image. io: the frontend's granted frames. format: of its slots."""

    def __init__(
        self, image: Image, io: _core.GrantedIO, copy_grant: Callable[[int, bytearray], int], format: Format
    ) -> None:
        self._image = image
        self._io = io
        self._copy_grant = copy_grant   # (gref, buffer to fill) -> GNTST_ status
        self._format = format
        self._moved = Moved()
        self._log = SparingLog(log, logging.INFO)
        self._operations: dict[int, Callable[[memoryview], int]] = {
            BLKIF_OP_READ: self._read_or_write,
            BLKIF_OP_WRITE: self._read_or_write,
            BLKIF_OP_FLUSH_DISKCACHE: self._flush,
            BLKIF_OP_DISCARD: self._discard,
            BLKIF_OP_INDIRECT: self._indirect,
        }

    def execute(self, requests: bytearray, count: int, responses: bytearray) -> Moved:
        """Serve the first `count` slots of `requests`, and fill as many of `responses`."""
        self._moved = Moved()
        head, response, size = self._format.head, self._format.response, self._format.request_size
        with memoryview(requests) as view:
            for index in range(count):
                slot = view[index * size : (index + 1) * size]
                operation, _, _, id_, _ = head.unpack_from(slot)
                handler = self._operations.get(operation)
                status = handler(slot) if handler else BLKIF_RSP_EOPNOTSUPP
                self._moved.errors += status != BLKIF_RSP_OKAY
                response.pack_into(responses, index * response.size, id_, operation, status)
        return self._moved

    def _read_or_write(self, slot: memoryview) -> int:
        operation, nr_segments, _, _, sector = self._format.head.unpack_from(slot)
        if not 1 <= nr_segments <= BLKIF_MAX_SEGMENTS_PER_REQUEST:
            return self._refuse(f"{nr_segments} segments")
        return self._transfer(slot[self._format.head.size :], nr_segments, operation == BLKIF_OP_WRITE, sector)

    def _indirect(self, slot: memoryview) -> int:
        _, operation, nr_segments, _, sector, _, gref, *_ = self._format.indirect.unpack_from(slot)
        if operation not in (BLKIF_OP_READ, BLKIF_OP_WRITE):
            return self._refuse(f"indirect operation {operation}")
        if not 1 <= nr_segments <= MAX_INDIRECT_SEGMENTS:
            return self._refuse(f"{nr_segments} indirect segments")
        # One private copy, as of the slot: the frontend could change its page while the segments are looked at.
        segments = bytearray(nr_segments * REQUEST_SEGMENT.size)
        status = self._copy_grant(gref, segments)
        if status:
            return self._refuse(f"indirect grant {gref}: status {status}")
        return self._transfer(segments, nr_segments, operation == BLKIF_OP_WRITE, sector)

    def _transfer(self, segments: memoryview | bytearray, count: int, write: bool, sector: int) -> int:
        if write and self._image.read_only:
            return self._refuse("a write to a read-only disk")
        if sector >= self._image.sectors:
            return self._refuse(f"sector {sector} of {self._image.sectors}")
        limit = (self._image.sectors - sector) * SECTOR
        moved = self._io.transfer(segments, count, write, self._image.fd, sector * SECTOR, limit)
        if moved < 0:
            return self._refuse(f"{WHY[moved]} at sector {sector} (errno {self._io.error})")
        if write:
            self._moved.bytes_written += moved
        else:
            self._moved.bytes_read += moved
        return BLKIF_RSP_OKAY

    def _flush(self, slot: memoryview) -> int:
        _, nr_segments, _, _, sector = self._format.head.unpack_from(slot)
        try:
            self._image.flush()
        except OSError as error:
            return self._refuse(f"flush: {error.strerror}")
        if nr_segments == 0:
            return BLKIF_RSP_OKAY
        # With segments it is a write that must not pass those before it.
        if nr_segments > BLKIF_MAX_SEGMENTS_PER_REQUEST:
            return self._refuse(f"{nr_segments} segments")
        return self._transfer(slot[self._format.head.size :], nr_segments, True, sector)

    def _discard(self, slot: memoryview) -> int:
        _, _, _, _, sector, count = self._format.discard.unpack_from(slot)
        if self._image.read_only or count == 0 or sector + count > self._image.sectors:
            return self._refuse(f"discard of {count} sectors at {sector} of {self._image.sectors}")
        try:
            self._image.discard(sector, count)
        except OSError as error:
            self._refuse(f"discard: {error.strerror}")
            return BLKIF_RSP_EOPNOTSUPP if error.errno in _NO_DISCARD else BLKIF_RSP_ERROR
        return BLKIF_RSP_OKAY

    def _refuse(self, reason: str) -> int:
        self._log(f"{self._image.path}: {reason}")
        return BLKIF_RSP_ERROR


WHY: Final = {
    _core.IO_BAD_SEGMENT: "a segment beyond its page or the disk's end",
    _core.IO_BAD_GRANT: "a grant that cannot be mapped",
    _core.IO_FAILED: "I/O error",
}
