"""One virtual block device: the xenbus handshake of blkif.h's backend, and its ring once connected."""
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from miniguest.backend.backend_device import BackendDevice
from miniguest.backend.blkback.formats import FORMATS, Format
from miniguest.backend.blkback.image import SECTOR, Image
from miniguest.backend.blkback.requests import MAX_INDIRECT_SEGMENTS, Executor
from miniguest.ring import _core
from miniguest.ring.abi.blkif import VDISK_READONLY
from miniguest.ring.abi.protocols import XEN_IO_PROTO_ABI_NATIVE
from miniguest.ring.abi.xenbus import XenbusState
from miniguest.ring.errors import HypercallError, MiniguestError, PeerError
from miniguest.ring.memory import FRAME_SIZE
from miniguest.ring.process import Process
from miniguest.ring.statistics import Statistics, statistics_path
from miniguest.ring.xenbus import Keys, switch_state, watch_state
from miniguest.ring.xenstore import Xenstore

MAX_RING_PAGE_ORDER: Final = 4
BATCH: Final = 32                       # requests that are answered together
TURN: Final = 16 << 20                  # bytes that one device moves before the others get their turn
RSP_PROD: Final = slice(8, 12)          # io/ring.h, struct sring


class BlockDevice(BackendDevice):
    """The backend of domain `domid`'s device `device`, whose directory in the store is `path`."""

    def __init__(self, process: Process, store: Xenstore, domid: int, device: int, path: str) -> None:
        super().__init__(process, store, domid, path)
        self._undo = ExitStack()        # what the connection to the frontend holds
        self._executor: Executor | None = None          # while connected
        keys = Keys(store, path)
        with ExitStack() as undo:
            self._image = Image(Path(keys.text("params")), keys.text("mode", "w") == "r")
            undo.callback(self._image.close)
            self._statistics = Statistics(statistics_path(process.runtime, "vbd", domid, device))
            self._advertise(keys.text("discard-enable", "1") != "0")
            self._watch = watch_state(store, self.frontend, self.frontend_changed)
            undo.pop_all()

    def _advertise(self, discard: bool) -> None:
        """What this backend can do, for the frontend to choose from; then InitWait."""
        self.publish({
            "feature-flush-cache": 1,
            "feature-barrier": 0,
            "feature-discard": int(discard and not self._image.read_only),
            "discard-granularity": 4096,
            "discard-alignment": 0,
            "discard-secure": 0,
            "feature-persistent": 1,
            "feature-max-indirect-segments": MAX_INDIRECT_SEGMENTS,
            "max-ring-page-order": MAX_RING_PAGE_ORDER,
            "max-ring-pages": 1 << MAX_RING_PAGE_ORDER,
        })
        self.await_frontend()

    # -- the handshake
    @property
    def is_connected(self) -> bool:
        """Whether requests are served."""
        return self._executor is not None

    def connect(self) -> None:
        """Map the frontend's ring, and serve it."""
        keys = Keys(self.store, self.frontend)
        protocol = keys.text("protocol", XEN_IO_PROTO_ABI_NATIVE)
        if protocol not in FORMATS:
            raise PeerError(f"{self.frontend}/protocol is {protocol[:32]!r}, not one of {', '.join(FORMATS)}")
        grefs = self._ring_refs(keys)
        executor = self._map_ring(grefs, keys.flag("feature-persistent"), FORMATS[protocol])
        try:
            port = self.process.bind_interdomain(self.domid, keys.number("event-channel"))
        except HypercallError as error:
            raise PeerError(f"{self.frontend}/event-channel: {error}") from error
        self._undo.callback(port.close)
        self._undo.callback(self.process.loop.off_port, port)
        self._port = port
        self.publish({
            "sectors": self._image.sectors,
            "sector-size": SECTOR,
            "physical-sector-size": SECTOR,
            "info": VDISK_READONLY if self._image.read_only else 0,
        })
        switch_state(self.store, self.path, XenbusState.Connected)
        self._executor = executor
        self.process.loop.on_port(port, self._serve)
        self.log_connected(f"{self.path}: connected, {self._ring.slots} slots")

    def _ring_refs(self, keys: Keys) -> list[int]:
        """The ring's grefs: `ring-ref`, or with `ring-page-order` (or the older `num-ring-pages`) `ring-refN`."""
        order = keys.number("ring-page-order", 0, most=MAX_RING_PAGE_ORDER)
        ordered = keys.text("ring-page-order", "") != ""
        pages = keys.number("num-ring-pages", 1 << order, least=1, most=1 << MAX_RING_PAGE_ORDER)
        if pages & (pages - 1) or (ordered and pages != 1 << order):
            raise PeerError(f"{self.frontend}/num-ring-pages is {pages}, with a ring-page-order of {order}")
        if pages == 1 and keys.text("ring-ref", "") != "":
            return [keys.number("ring-ref")]
        return [keys.number(f"ring-ref{index}") for index in range(pages)]

    def _map_ring(self, grefs: list[int], persistent: bool, format: Format) -> Executor:
        process = self.process
        process.forget(self.domid)     # what was mapped before may be another domain's that had this number
        try:
            memory, table = process.memory(self.domid), process.grant_table(self.domid)
        except OSError as error:
            raise PeerError(f"domain {self.domid} has no memory: {error.strerror}") from error
        frames = []
        for gref in grefs:
            handle, frame = process.mapper.map(table, gref)
            if handle < 0:
                raise PeerError(f"ring grant {gref} cannot be mapped: status {handle}")
            self._undo.callback(process.mapper.unmap, table, handle)
            frames.append(frame)
        buffer = memory.side_by_side(frames)
        # Not always 0: after a predecessor that was killed, what it had not answered yet is served (again).
        index = int.from_bytes(memoryview(buffer)[RSP_PROD], "little")
        self._ring = _core.BackRing(buffer, format.request_size, format.response.size, index)
        io = _core.GrantedIO(process.mapper, table, memory.map, persistent)
        self._undo.callback(io.close)

        def copy_grant(gref: int, buffer: bytearray) -> int:
            return _core.grant_copy(table, memory.map, gref, 0, buffer, False, process.mapper)

        return Executor(self._image, io, copy_grant, format)

    # -- the ring
    def _serve(self) -> None:
        """Serve what the frontend put in the ring; a ring that lies disables the device."""
        left = TURN
        try:
            while self._executor and left > 0:
                count = self._ring.take(BATCH)
                if count:
                    left -= self._answer(self._executor, count)
                elif not self._ring.final_check():
                    return
        except (MiniguestError, OSError) as error:
            self.disable(str(error))
            return
        self.process.loop.call_soon(self._serve)

    def _answer(self, executor: Executor, count: int) -> int:
        """Execute and answer the requests taken; about how many bytes of work that was."""
        moved = executor.execute(self._ring.requests, count, self._ring.responses)
        self._ring.put(count)
        notify = self._ring.push()
        self._statistics.add(count, notify, moved.bytes_read, moved.bytes_written, moved.errors)
        if notify:
            self._port.notify()
        return moved.bytes_read + moved.bytes_written + count * FRAME_SIZE

    # -- the end
    def disconnect(self) -> None:
        """Let go of the ring, and of what was mapped."""
        self._executor = None
        self._undo.close()

    def close(self) -> None:
        """The device goes away: disconnect, and close the image."""
        if not self.closed:
            self.closed = True
            self._watch.cancel()
            self.disconnect()
            self._image.close()
