"""The blkif requests that are not common: flushes, discards, what nobody knows, and what is refused (xen/io/blkif.h).

Reads and writes never come here: _core.BlkServer serves them. Each lie gets an error response, never an exception.
"""
import errno
import logging
from collections.abc import Callable
from typing import Final

from miniguest.backend.blkback.formats import Format
from miniguest.backend.blkback.image import Image
from miniguest.backend.sparingly import SparingLog
from miniguest.ring import _core
from miniguest.ring.abi.blkif import (
    BLKIF_OP_DISCARD,
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_RSP_EOPNOTSUPP,
    BLKIF_RSP_ERROR,
    BLKIF_RSP_OKAY,
    REQUEST_SEGMENT,
)
from miniguest.ring.memory import FRAME_SIZE

MAX_INDIRECT_SEGMENTS: Final = _core.BLK_MAX_SEGMENTS   # offered in feature-max-indirect-segments: 1 MiB a request
assert FRAME_SIZE // REQUEST_SEGMENT.size >= MAX_INDIRECT_SEGMENTS      # they all fit the first indirect page
_NO_DISCARD: Final = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY)     # of a file system or device without it

WHY: Final = {
    _core.BLK_BAD_COUNT: "{detail} segments",
    _core.BLK_BAD_NESTED: "indirect operation {detail}",
    _core.BLK_BAD_INDIRECT: "indirect grant {detail} cannot be mapped",
    _core.BLK_READ_ONLY: "a write to a read-only disk",
    _core.BLK_BAD_SECTOR: "sector {detail} of {sectors}",
    _core.BLK_BAD_SEGMENT: "a segment beyond its page or the disk's end at sector {detail}",
    _core.BLK_BAD_GRANT: "a grant that cannot be mapped at sector {detail}",
    _core.BLK_FAILED: "I/O error at sector {detail} (errno {error})",
}
log = logging.getLogger(__name__)


class RareRequests:
    """Answers what `server` leaves to its caller. format: of its slots. image: what it serves from."""

    def __init__(self, server: _core.BlkServer, image: Image, format: Format) -> None:
        self._server = server
        self._image = image
        self._format = format
        self._log = SparingLog(log, logging.INFO)
        self._operations: dict[int, Callable[[bytes], int]] = {
            BLKIF_OP_FLUSH_DISKCACHE: self._flush,
            BLKIF_OP_DISCARD: self._discard,
        }

    def answer(self) -> None:
        """Deal with the request that the server stopped at."""
        if self._server.problem == _core.BLK_OTHER:
            slot = self._server.slot
            handler = self._operations.get(slot[0])
            self._server.answer(handler(slot) if handler else BLKIF_RSP_EOPNOTSUPP)
        else:
            self._server.answer(self._refused())

    def _refused(self) -> int:
        server = self._server
        why = WHY[server.problem]
        return self._refuse(why.format(detail=server.detail, sectors=self._image.sectors, error=server.error))

    def _flush(self, slot: bytes) -> int:
        _, nr_segments, _, _, _ = self._format.head.unpack_from(slot)
        try:
            self._image.flush()
        except OSError as error:
            return self._refuse(f"flush: {error.strerror}")
        # With segments it is a write that must not pass those before it.
        if nr_segments == 0 or self._server.transfer():
            return BLKIF_RSP_OKAY
        return self._refused()

    def _discard(self, slot: bytes) -> int:
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
