"""blkfront's data path: block requests of any size over a blkif ring (xen/io/blkif.h). The handshake is `blkfront_xenbus`.

Requests are cut into ring requests of as many segments as the backend takes; what does not fit the ring waits. Nothing
is assumed of the order in which the backend serves them: whoever reads what he wrote waits for the write's end first.
Who has many requests at a time, and no need for copies, makes a batch (`blkfront_batch`).
"""
import logging
from collections import deque
from collections.abc import Callable
from typing import Final

from miniguest.frontend.blkfront_batch import Batch
from miniguest.frontend.blkfront_pieces import Features, Operation, Piece
from miniguest.frontend.pages import Pages
from miniguest.ring import _core
from miniguest.ring.abi.blkif import (
    BLKIF_MAX_SEGMENTS_PER_REQUEST,
    BLKIF_OP_DISCARD,
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_RSP_EOPNOTSUPP,
    BLKIF_RSP_OKAY,
    REQUEST_SEGMENT,
)
from miniguest.ring.errors import PeerError, RingError
from miniguest.ring.grants import Grants
from miniguest.ring.memory import FRAME_SIZE

SECTOR: Final = 512
PER_PAGE: Final = FRAME_SIZE // SECTOR
MOST_PAGES: Final = 768                 # that one device holds, batches apart: the domain's other devices need some, too

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
        # Pages that are granted for good, when grants are persistent, are spare there between requests.
        self._requests = _core.BlkRequests(ring, pages.memory.map, pages.memory.grant_entries, MOST_PAGES)
        self._out: dict[int, Piece] = {}
        self._queue: deque[Piece] = deque()
        self._stray: list[tuple[int, int]] = []  # (frame, gref): the backend may have them mapped still
        self._held = 0                          # pages in use, spare and stray
        self._batch: Batch | None = None
        most = max(features.indirect_segments, BLKIF_MAX_SEGMENTS_PER_REQUEST)
        self._piece_sectors = min(most, FRAME_SIZE // REQUEST_SEGMENT.size) * PER_PAGE

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
        step = self._piece_sectors
        operation = Operation(done, -(-count // step))
        for at in range(sector, sector + count, step):
            self._queue.append(Piece(operation, BLKIF_OP_READ, at, min(step, sector + count - at)))
        self._submit(operation)

    def write(self, sector: int, data: bytes, done: Callable[[bool], None]) -> None:
        """Write whole sectors; `done` gets whether they were."""
        step, count = self._piece_sectors, len(data) // SECTOR
        operation = Operation(lambda result: done(result is not None), -(-count // step))
        for at in range(0, count, step):
            self._queue.append(Piece(operation, BLKIF_OP_WRITE, sector + at, min(step, count - at), data, at * SECTOR))
        self._submit(operation)

    def flush(self, done: Callable[[bool], None]) -> None:
        """Everything written before is on the medium when `done` gets True."""
        self._one(BLKIF_OP_FLUSH_DISKCACHE, 0, 0, done, self._features.flush)

    def discard(self, sector: int, count: int, done: Callable[[bool], None]) -> None:
        """Tell the backend that these sectors' contents are not needed; nothing happens where it has no such thing."""
        self._one(BLKIF_OP_DISCARD, sector, count, done, self._features.discard)

    def _one(self, kind: int, sector: int, count: int, done: Callable[[bool], None], offered: bool) -> None:
        operation = Operation(lambda result: done(result is not None), int(offered))
        if offered:
            self._queue.append(Piece(operation, kind, sector, count))
        self._submit(operation)

    def batch(self, buffers: int, sectors: int) -> Batch:
        """Buffers of so many sectors each for requests without copies (see Batch). One a device.

        PeerError without pages enough, and ValueError for more sectors than the backend takes at a time.
        """
        if self._dead:
            raise PeerError("the block device is gone")
        if self._batch:
            raise PeerError("a block device has one batch")
        if not 0 < sectors <= self._piece_sectors:
            raise ValueError(f"buffers of {sectors} sectors: the backend takes {self._piece_sectors} at a time")
        self._batch = Batch(self._requests, self._pages, self._grants, self._domid, buffers, sectors, self._features.persistent)
        self._batch.push = self._push
        return self._batch

    def _submit(self, operation: Operation) -> None:
        if self._dead:
            self._queue.clear()
        if not operation.left or self._dead:
            operation.done(None if self._dead else b"")
            return
        self._fill()

    # -- the ring
    def _fill(self) -> None:
        """Put what waits into the ring, as far as there is room in it and in memory."""
        put = False
        while self._queue and self._ring.free:
            if self._start(self._queue[0]):
                self._queue.popleft()
                put = True
            elif self._out or (self._batch and self._batch.outstanding):
                break                           # the next response gives pages back, or ends a write
            else:
                self._no_memory(self._queue.popleft())
        if put:
            self._push()

    def _push(self) -> None:
        if self._ring.push():
            self._notify()

    def _start(self, piece: Piece) -> bool:
        """Put it into the ring if there are pages for it. A flush waits for the writes that it is to cover to be answered."""
        requests, kind = self._requests, piece.kind
        if kind == BLKIF_OP_FLUSH_DISKCACHE and requests.writes_out:
            return False
        if kind == BLKIF_OP_DISCARD:
            id_ = requests.start_discard(kind, piece.sector, piece.count)
        else:
            id_ = requests.start(kind, piece.sector, piece.count, piece.data, piece.offset)
            if not id_ and self._add_pages(piece):
                id_ = requests.start(kind, piece.sector, piece.count, piece.data, piece.offset)
        if id_:
            self._out[id_] = piece
        return id_ != 0

    def _add_pages(self, piece: Piece) -> bool:
        """Have as many spare pages as it takes, the indirect one included; False when there are too few."""
        need = -(-piece.count // PER_PAGE)
        need += need > BLKIF_MAX_SEGMENTS_PER_REQUEST
        need -= self._requests.nr_spare
        if need > min(len(self._pages), MOST_PAGES - self._held):
            return False
        # A persistent grant serves both directions, so it is never read-only.
        readonly = piece.kind == BLKIF_OP_WRITE and not self._features.persistent
        for _ in range(need):
            frame = self._pages.alloc()
            self._held += 1
            self._requests.add_page(frame, self._grants.give(self._domid, frame, readonly))
        return True

    def _no_memory(self, piece: Piece) -> None:
        log.error("block device: no pages for a request of %d sectors", piece.count)
        piece.operation.failed = True
        self._ended(piece.operation)

    def on_event(self) -> bool:
        """The backend notified: take its responses; whether there were any."""
        worked = False
        while not self._dead:
            try:
                count, answers = self._requests.take()
            except RingError as error:
                self._fail(str(error))
                break
            for id_, status in answers:
                self._response(id_, status)
            if lie := self._requests.lie:
                self._fail(lie)
            elif count:
                worked = True
                if self._queue:
                    self._fill()
                if self._batch:
                    self._batch.attend()
            if self._dead or not self._ring.final_check():
                break
        return worked

    def _response(self, id_: int, status: int) -> None:
        if self._dead:
            return                              # one before it in the same batch was a lie
        piece = self._out.pop(id_)
        operation = piece.operation
        good = status == BLKIF_RSP_OKAY
        data = self._requests.end(id_, good and piece.kind == BLKIF_OP_READ)
        if data is not None:
            operation.parts[piece.sector] = data
        elif not good and not self._is_optional(piece, status):
            operation.failed = True
        if not self._features.persistent and (mapped := self._take_back_spare()):
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
        if operation.left:
            return
        parts = operation.parts
        if operation.failed:
            operation.done(None)
        elif len(parts) == 1:
            operation.done(parts.popitem()[1])
        else:
            operation.done(b"".join(parts[sector] for sector in sorted(parts)))

    # -- the end
    def _take_back_spare(self) -> list[int]:
        """End the grants of the pages that no request has, and free them; the grefs of those that are still mapped."""
        mapped = []
        while page := self._requests.take_page():
            if not self._take_back(page):
                self._stray.append(page)
                mapped.append(page[1])
        return mapped

    def _take_back(self, page: tuple[int, int]) -> bool:
        """End a page's grant and free it; False when it is still mapped: somebody may go on writing to it."""
        frame, gref = page
        if not self._grants.end(gref):
            return False
        self._pages.free(frame)
        self._held -= 1
        return True

    def _fail(self, reason: str) -> None:
        if not self._dead:
            log.error("block device: %s", reason)
            self.abandon()
            self._failed(reason)

    def abandon(self) -> None:
        """The backend is gone for good: everything asked for fails."""
        self._dead = True
        pieces = [*self._out.values(), *self._queue]
        self._stray += self._requests.abandon()
        self._out.clear()
        self._queue.clear()
        for operation in {id(piece.operation): piece.operation for piece in pieces}.values():
            operation.done(None)
        if self._batch:
            self._batch.abandon()

    @property
    def outstanding(self) -> int:
        """Ring requests that are out or wait."""
        return len(self._out) + len(self._queue) + (self._batch.outstanding if self._batch else 0)

    def release(self) -> None:
        """The backend has disconnected: take back every page but those that it still has mapped."""
        stray, self._stray = self._stray, []
        self._take_back_spare()
        self._stray += [page for page in stray if not self._take_back(page)]
        if self._batch:
            self._batch.release()
