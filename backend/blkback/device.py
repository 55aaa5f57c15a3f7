"""One virtual block device: the xenbus handshake of blkif.h's backend, and its ring once connected."""
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from miniguest.backend.backend_device import BackendDevice
from miniguest.backend.blkback.formats import FORMATS, Format
from miniguest.backend.blkback.image import SECTOR, Image
from miniguest.backend.blkback.requests import MAX_INDIRECT_SEGMENTS, RareRequests
from miniguest.ring import _core
from miniguest.ring.abi.blkif import VDISK_READONLY
from miniguest.ring.abi.protocols import XEN_IO_PROTO_ABI_NATIVE
from miniguest.ring.abi.xenbus import XenbusState
from miniguest.ring.errors import HypercallError, MiniguestError, PeerError
from miniguest.ring.process import Process
from miniguest.ring.statistics import statistics_path, vbd_counters
from miniguest.ring.xenbus import Keys, watch_state
from miniguest.ring.xenstore import Xenstore

MAX_RING_PAGE_ORDER: Final = 4
TURN: Final = 16 << 20                  # bytes that one device moves before the others get their turn; 4096 a request on top
RSP_PROD: Final = slice(8, 12)          # io/ring.h, struct sring


class BlockDevice(BackendDevice):
    """The backend of domain `domid`'s device `device`, whose directory in the store is `path`."""

    def __init__(self, process: Process, store: Xenstore, domid: int, device: int, path: str) -> None:
        super().__init__(process, store, domid, path)
        self._undo = ExitStack()        # what the connection to the frontend holds
        self._server: _core.BlkServer | None = None     # while connected
        keys = Keys(store, path).fetch("params", "mode", "discard-enable")
        with ExitStack() as undo:
            self._image = Image(Path(keys.text("params")), keys.text("mode", "w") == "r")
            undo.callback(self._image.close)
            self._counters = vbd_counters(statistics_path(process.runtime, "vbd", domid, device))
            self._advertise(keys.text("discard-enable", "1") != "0")
            self._watch = watch_state(store, self.frontend, self.frontend_changed)
            undo.pop_all()

    def _advertise(self, discard: bool) -> None:
        """What this backend can do, for the frontend to choose from."""
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

    # -- the handshake
    @property
    def is_connected(self) -> bool:
        """Whether requests are served."""
        return self._server is not None

    def connect(self) -> None:
        """Map the frontend's ring, and serve it."""
        keys = Keys(self.store, self.frontend).fetch(
            "protocol", "ring-page-order", "num-ring-pages", "ring-ref", "feature-persistent", "event-channel"
        )
        protocol = keys.text("protocol", XEN_IO_PROTO_ABI_NATIVE)
        if protocol not in FORMATS:
            raise PeerError(f"{self.frontend}/protocol is {protocol[:32]!r}, not one of {', '.join(FORMATS)}")
        grefs = self._ring_refs(keys)
        server = self._map_ring(grefs, keys.flag("feature-persistent"), FORMATS[protocol])
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
        self.switch(XenbusState.Connected)
        server.channel = port.channel
        self._rare = RareRequests(server, self._image, FORMATS[protocol])
        self._server = server
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
        names = [f"ring-ref{index}" for index in range(pages)]
        keys.fetch(*names)
        return [keys.number(name) for name in names]

    def _map_ring(self, grefs: list[int], persistent: bool, format: Format) -> _core.BlkServer:
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
        return _core.BlkServer(self._ring, io, self._image.fd, self._image.sectors, self._image.read_only, self._counters)

    # -- the ring
    def _serve(self) -> None:
        """Serve what the frontend put in the ring; a ring that lies disables the device."""
        server = self._server
        if server is None:
            return
        server.left = TURN
        try:
            while (reason := server.serve(self.process.loop.upcall)) != _core.BLK_IDLE:
                if reason == _core.BLK_NOTIFY:
                    self._port.finish(server.woken)
                    server.channel = self._port.channel
                elif reason == _core.BLK_RARE:
                    self._rare.answer()
                else:
                    self.process.loop.call_soon(self._serve)
                    return
        except (MiniguestError, OSError) as error:
            self.disable(str(error))

    # -- the end
    def disconnect(self) -> None:
        """Let go of the ring, and of what was mapped."""
        self._server = None
        self._undo.close()

    def close(self) -> None:
        """The device goes away: disconnect, and close the image."""
        if not self.closed:
            self.closed = True
            self._watch.cancel()
            self.disconnect()
            self._image.close()
