"""blkfront's data path: block requests of any size over a blkif ring (xen/io/blkif.h). The handshake is `blkfront_xenbus`.

Requests are cut into ring requests of as many segments as the backend takes; what does not fit the ring waits. Nothing
is assumed of the order in which the backend serves them: whoever reads what he wrote waits for the write's end first.
"""
import logging
import struct
from collections import deque
from collections.abc import Callable
from typing import Final

from miniguest.frontend.blkfront_pieces import Features, Operation, Page, Piece
from miniguest.frontend.pages import Pages
from miniguest.ring import _core
from miniguest.ring.abi.blkif import (
    BLKIF_MAX_SEGMENTS_PER_REQUEST,
    BLKIF_OP_DISCARD,
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_INDIRECT,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_RSP_EOPNOTSUPP,
    BLKIF_RSP_OKAY,
    REQUEST,
    RESPONSE,
)
from miniguest.ring.errors import RingError
from miniguest.ring.grants import Grants
from miniguest.ring.memory import FRAME_SIZE

SECTOR: Final = 512
PER_PAGE: Final = FRAME_SIZE // SECTOR
MOST_PAGES: Final = 768                 # that one device holds: the domain's other devices need some, too
_HEAD: Final = struct.Struct("<BBHxxxxQQ")
_DISCARD: Final = struct.Struct("<BBHxxxxQQQ")
_INDIRECT: Final = struct.Struct("<BBHxxxxQQHxx")
_SEGMENT: Final = struct.Struct("<IBBxx")
_RESPONSE: Final = struct.Struct("<QBxhxxxx")
_SEGMENTS_AT: Final = REQUEST.offset["seg"]

log = logging.getLogger(__name__)


class Blkfront:
    """A connected block device, as a Disk (miniguest.frontend.devices.device): read, write and flush call back when done.

    ring: this end of the ring. domid: the backend's domain. notify: rings the backend's event channel.
    failed: called once with the reason when the backend breaks the protocol; every request then fails.
    """

    def __init__(
        self, ring: _core.FrontRing, pages: Pages, grants: Grants, domid: int, features: Features,
        notify: Callable[[], None], failed: Callable[[str], None],
    ) -> None:
        self._ring = ring
        self._pages = pages
        self._grants = grants
        self._domid = domid
        self._features = features
        self._notify = notify
        self._failed = failed
        self._dead = False
        self._out: dict[int, Piece] = {}
        self._queue: deque[Piece] = deque()
        self._spare: list[Page] = []            # granted for good, when grants are persistent
        self._stray: list[Page] = []            # of requests that were never answered
        self._held = 0                          # pages in use, spare and stray
        self._next_id = 0
        most = max(features.indirect_segments, BLKIF_MAX_SEGMENTS_PER_REQUEST)
        self._piece_sectors = min(most, FRAME_SIZE // _SEGMENT.size) * PER_PAGE

    @property
    def sectors(self) -> int:
        """Sectors of 512 bytes."""
        return self._features.sectors

    @property
    def read_only(self) -> bool:
        """Whether writes fail."""
        return self._features.read_only

    # -- what users call
    def read(self, sector: int, count: int, done: Callable[[bytes | None], None]) -> None:
        """Read `count` sectors; `done` gets the bytes, or None after an error."""
        operation = Operation(done)
        self._submit(operation, [Piece(operation, BLKIF_OP_READ, at, n) for at, n in self._cut(sector, count)])

    def write(self, sector: int, data: bytes, done: Callable[[bool], None]) -> None:
        """Write whole sectors; `done` gets whether they were."""
        operation = Operation(lambda result: done(result is not None))
        pieces = []
        for at, n in self._cut(sector, len(data) // SECTOR):
            start = (at - sector) * SECTOR
            pieces.append(Piece(operation, BLKIF_OP_WRITE, at, n, data[start : start + n * SECTOR]))
        self._submit(operation, pieces)

    def flush(self, done: Callable[[bool], None]) -> None:
        """Everything written before is on the medium when `done` gets True."""
        operation = Operation(lambda result: done(result is not None))
        self._submit(operation, [Piece(operation, BLKIF_OP_FLUSH_DISKCACHE, 0, 0)] if self._features.flush else [])

    def discard(self, sector: int, count: int, done: Callable[[bool], None]) -> None:
        """Tell the backend that these sectors' contents are not needed; nothing happens where it has no such thing."""
        operation = Operation(lambda result: done(result is not None))
        self._submit(operation, [Piece(operation, BLKIF_OP_DISCARD, sector, count)] if self._features.discard else [])

    def _cut(self, sector: int, count: int) -> list[tuple[int, int]]:
        step = self._piece_sectors
        return [(at, min(step, sector + count - at)) for at in range(sector, sector + count, step)]

    def _submit(self, operation: Operation, pieces: list[Piece]) -> None:
        operation.left = len(pieces)
        if not pieces or self._dead:
            operation.done(None if self._dead else b"")
            return
        self._queue.extend(pieces)
        self._fill()

    # -- the ring
    def _fill(self) -> None:
        """Put what waits into the ring, as far as there is room in it and in memory."""
        put = 0
        while self._queue and self._ring.free:
            if self._may_start(self._queue[0]):
                self._encode(self._queue.popleft())
                put += self._ring.put(1)
            elif self._out:
                break                           # the next response gives pages back, or ends a write
            else:
                self._no_memory(self._queue.popleft())
        if put and self._ring.push():
            self._notify()

    def _may_start(self, piece: Piece) -> bool:
        """Whether there are pages for it. A flush waits for the writes that it is to cover to be answered."""
        if piece.kind == BLKIF_OP_FLUSH_DISKCACHE:
            return not any(other.kind == BLKIF_OP_WRITE for other in self._out.values())
        need = -(-piece.count // PER_PAGE) + 1 if piece.kind != BLKIF_OP_DISCARD else 0
        return need <= len(self._spare) + min(len(self._pages), MOST_PAGES - self._held)

    def _no_memory(self, piece: Piece) -> None:
        log.error("block device: no pages for a request of %d sectors", piece.count)
        piece.operation.failed = True
        self._ended(piece.operation)

    def _encode(self, piece: Piece) -> None:
        self._next_id += 1
        self._out[self._next_id] = piece
        slot = self._ring.requests
        if piece.kind == BLKIF_OP_DISCARD:
            _DISCARD.pack_into(slot, 0, piece.kind, 0, 0, self._next_id, piece.sector, piece.count)
            return
        segments = self._segments(piece)
        if len(piece.pages) <= BLKIF_MAX_SEGMENTS_PER_REQUEST:
            _HEAD.pack_into(slot, 0, piece.kind, len(piece.pages), 0, self._next_id, piece.sector)
            slot[_SEGMENTS_AT : _SEGMENTS_AT + len(segments)] = segments
            return
        piece.indirect = self._take_page(readonly=True)
        self._pages.memory.frame(piece.indirect.frame)[: len(segments)] = segments
        _INDIRECT.pack_into(slot, 0, BLKIF_OP_INDIRECT, piece.kind, len(piece.pages), self._next_id, piece.sector, 0)
        struct.pack_into("<I", slot, _INDIRECT.size, piece.indirect.gref)

    def _segments(self, piece: Piece) -> bytes:
        """Pages for a piece, filled with what it writes; their blkif_request_segments."""
        readonly = piece.kind == BLKIF_OP_WRITE
        packed = []
        for start in range(0, piece.count, PER_PAGE):
            page = self._take_page(readonly)
            piece.pages.append(page)
            sectors = min(PER_PAGE, piece.count - start)
            if readonly:
                self._pages.memory.frame(page.frame)[: sectors * SECTOR] = piece.data[start * SECTOR : (start + sectors) * SECTOR]
            packed.append(_SEGMENT.pack(page.gref, 0, sectors - 1))
        return b"".join(packed)

    def _take_page(self, readonly: bool) -> Page:
        if self._spare:
            return self._spare.pop()
        frame = self._pages.alloc()
        self._held += 1
        # A persistent grant serves both directions, so it is never read-only.
        return Page(frame, self._grants.give(self._domid, frame, readonly and not self._features.persistent))

    def _take_back(self, page: Page) -> bool:
        """End a page's grant and free it; False when it is still mapped: somebody may go on writing to it."""
        if not self._grants.end(page.gref):
            return False
        self._pages.free(page.frame)
        self._held -= 1
        return True

    def on_event(self) -> bool:
        """The backend notified: take its responses; whether there were any."""
        worked = False
        while not self._dead:
            try:
                count = self._ring.take()
            except RingError as error:
                self._fail(str(error))
                break
            for index in range(count):
                self._response(*_RESPONSE.unpack_from(self._ring.responses, index * RESPONSE.size))
            if count:
                worked = True
                self._fill()
            elif not self._ring.final_check():
                break
        return worked

    def _response(self, id_: int, kind: int, status: int) -> None:
        if self._dead:
            return                              # one before it in the same batch was a lie
        piece = self._out.pop(id_, None)
        if piece is None:
            self._fail(f"a response to request {id_}, which is not out")
            return
        operation = piece.operation
        if status != BLKIF_RSP_OKAY and not self._is_optional(piece, status):
            operation.failed = True
        elif piece.kind == BLKIF_OP_READ:
            operation.parts[piece.sector] = self._collect(piece)
        if self._features.persistent:
            self._spare += piece.all_pages
        elif mapped := [page.gref for page in piece.all_pages if not self._take_back(page)]:
            # The backend could go on writing to these pages, so they are never used again.
            operation.failed = True
            self._fail(f"grants {mapped} are still mapped after their request was answered")
        self._ended(operation)

    def _is_optional(self, piece: Piece, status: int) -> bool:
        """Whether the backend says that it has no such thing after all, which blkif.h lets it say at any time."""
        if status == BLKIF_RSP_EOPNOTSUPP and piece.kind == BLKIF_OP_FLUSH_DISKCACHE:
            self._features.flush = False
        elif status == BLKIF_RSP_EOPNOTSUPP and piece.kind == BLKIF_OP_DISCARD:
            self._features.discard = False
        else:
            return False
        return True

    def _ended(self, operation: Operation) -> None:
        """One ring request less of an operation; its end when it was the last."""
        operation.left -= 1
        if operation.left == 0:
            self._finish(operation)

    def _collect(self, piece: Piece) -> bytes:
        frame = self._pages.memory.frame
        data = b"".join(bytes(frame(page.frame)) for page in piece.pages)
        return data[: piece.count * SECTOR]

    def _finish(self, operation: Operation) -> None:
        parts = [operation.parts[sector] for sector in sorted(operation.parts)]
        operation.done(None if operation.failed else b"".join(parts))

    def _fail(self, reason: str) -> None:
        if not self._dead:
            log.error("block device: %s", reason)
            self.abandon()
            self._failed(reason)

    def abandon(self) -> None:
        """The backend is gone for good: everything asked for fails."""
        self._dead = True
        pieces = [*self._out.values(), *self._queue]
        self._stray += [page for piece in self._out.values() for page in piece.all_pages]
        self._out.clear()
        self._queue.clear()
        for operation in {id(piece.operation): piece.operation for piece in pieces}.values():
            operation.done(None)

    @property
    def outstanding(self) -> int:
        """Ring requests that are out or wait."""
        return len(self._out) + len(self._queue)

    def release(self) -> None:
        """The backend has disconnected: take back every page but those that it still has mapped."""
        self._stray = [page for page in [*self._spare, *self._stray] if not self._take_back(page)]
        self._spare.clear()
