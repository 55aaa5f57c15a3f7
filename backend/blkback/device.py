"""One virtual block device: the xenbus handshake of blkif.h's backend, and its ring once connected."""
import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from miniguest.backend.blkback.formats import FORMATS, Format
from miniguest.backend.blkback.image import SECTOR, Image
from miniguest.backend.blkback.requests import MAX_INDIRECT_SEGMENTS, Executor
from miniguest.backend.sparingly import SparingLog
from miniguest.ring import _core
from miniguest.ring.abi.blkif import VDISK_READONLY
from miniguest.ring.abi.protocols import XEN_IO_PROTO_ABI_NATIVE
from miniguest.ring.abi.xenbus import XenbusState
from miniguest.ring.errors import HypercallError, MiniguestError, PeerError, XenstoreError
from miniguest.ring.memory import FRAME_SIZE
from miniguest.ring.process import Process
from miniguest.ring.statistics import Statistics, statistics_path
from miniguest.ring.xenbus import Keys, switch_state, watch_state, write_keys
from miniguest.ring.xenstore import Xenstore
from miniguest.ring.xenstore.client import Transaction, Value

MAX_RING_PAGE_ORDER: Final = 4
BATCH: Final = 32                       # requests that are answered together
TURN: Final = 16 << 20                  # bytes that one device moves before the others get their turn
MOST_REASON: Final = 1024               # bytes of the `error` node
RSP_PROD: Final = slice(8, 12)          # io/ring.h, struct sring
log = logging.getLogger(__name__)


class BlockDevice:
    """The backend of domain `domid`'s device `device`, whose directory in the store is `path`."""

    def __init__(self, process: Process, store: Xenstore, domid: int, device: int, path: str) -> None:
        self._process = process
        self._store = store
        self._domid = domid
        self.path = path
        self._undo = ExitStack()        # what the connection to the frontend holds
        self._executor: Executor | None = None          # while connected
        self._over = False              # this connection ended: the frontend has to start from the beginning
        self._closed = False
        self._log_disabled = SparingLog(log, logging.ERROR)
        self._log_connected = SparingLog(log, logging.INFO)
        keys = Keys(store, path)
        self._frontend = keys.text("frontend")
        with ExitStack() as undo:
            self._image = Image(Path(keys.text("params")), keys.text("mode", "w") == "r")
            undo.callback(self._image.close)
            self._statistics = Statistics(statistics_path(process.runtime, "vbd", domid, device))
            self._advertise(keys.text("discard-enable", "1") != "0")
            self._watch = watch_state(store, self._frontend, self._frontend_changed)
            undo.pop_all()

    def _advertise(self, discard: bool) -> None:
        """What this backend can do, for the frontend to choose from; then InitWait."""
        self._publish({
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
        self._await_frontend()

    def _await_frontend(self) -> None:
        if self._store.exists(f"{self.path}/error"):
            self._store.rm(f"{self.path}/error")
        switch_state(self._store, self.path, XenbusState.InitWait, anew=True)

    def _publish(self, keys: dict[str, Value]) -> None:
        """Write nodes of our directory, unless the toolstack has removed it: writing would bring it back."""
        def write(nodes: Transaction) -> None:
            if nodes.exists(self.path):
                write_keys(nodes, self.path, keys)

        self._store.retry(write)

    # -- the handshake
    def _frontend_changed(self, state: XenbusState) -> None:
        handler = {
            XenbusState.Initialising: self._restart,
            XenbusState.Initialised: self._connect,
            XenbusState.Connected: self._connect,
            XenbusState.Closing: self._closing,
            XenbusState.Closed: self._frontend_closed,
            XenbusState.Unknown: self._frontend_unknown,
        }.get(state)
        if handler is None or self._closed:
            return
        try:
            handler()
        except (MiniguestError, OSError) as error:
            self._disable(str(error))

    def _restart(self) -> None:
        """A frontend that starts (again): nothing of the last connection counts."""
        self._disconnect()
        self._over = False
        self._await_frontend()

    def _connect(self) -> None:
        if self._executor or self._over:
            return                      # keys written after Connected are ignored
        keys = Keys(self._store, self._frontend)
        protocol = keys.text("protocol", XEN_IO_PROTO_ABI_NATIVE)
        if protocol not in FORMATS:
            raise PeerError(f"{self._frontend}/protocol is {protocol[:32]!r}, not one of {', '.join(FORMATS)}")
        grefs = self._ring_refs(keys)
        executor = self._map_ring(grefs, keys.flag("feature-persistent"), FORMATS[protocol])
        try:
            port = self._process.bind_interdomain(self._domid, keys.number("event-channel"))
        except HypercallError as error:
            raise PeerError(f"{self._frontend}/event-channel: {error}") from error
        self._undo.callback(port.close)
        self._undo.callback(self._process.loop.off_port, port)
        self._port = port
        self._publish({
            "sectors": self._image.sectors,
            "sector-size": SECTOR,
            "physical-sector-size": SECTOR,
            "info": VDISK_READONLY if self._image.read_only else 0,
        })
        switch_state(self._store, self.path, XenbusState.Connected)
        self._executor = executor
        self._process.loop.on_port(port, self._serve)
        self._log_connected(f"{self.path}: connected, {self._ring.slots} slots")

    def _ring_refs(self, keys: Keys) -> list[int]:
        """The ring's grefs: `ring-ref`, or with `ring-page-order` (or the older `num-ring-pages`) `ring-refN`."""
        order = keys.number("ring-page-order", 0, most=MAX_RING_PAGE_ORDER)
        ordered = keys.text("ring-page-order", "") != ""
        pages = keys.number("num-ring-pages", 1 << order, least=1, most=1 << MAX_RING_PAGE_ORDER)
        if pages & (pages - 1) or (ordered and pages != 1 << order):
            raise PeerError(f"{self._frontend}/num-ring-pages is {pages}, with a ring-page-order of {order}")
        if pages == 1 and keys.text("ring-ref", "") != "":
            return [keys.number("ring-ref")]
        return [keys.number(f"ring-ref{index}") for index in range(pages)]

    def _map_ring(self, grefs: list[int], persistent: bool, format: Format) -> Executor:
        process = self._process
        process.forget(self._domid)     # what was mapped before may be another domain's that had this number
        try:
            memory, table = process.memory(self._domid), process.grant_table(self._domid)
        except OSError as error:
            raise PeerError(f"domain {self._domid} has no memory: {error.strerror}") from error
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
            self._disable(str(error))
            return
        self._process.loop.call_soon(self._serve)

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
    def _closing(self) -> None:
        self._disconnect()
        self._over = True
        switch_state(self._store, self.path, XenbusState.Closing)

    def _frontend_closed(self) -> None:
        self._disconnect()
        self._over = False
        switch_state(self._store, self.path, XenbusState.Closed)

    def _frontend_unknown(self) -> None:
        """The frontend's directory went with its domain; or its state is none."""
        if self._store.exists(f"{self._frontend}/state"):
            raise PeerError(f"{self._frontend}/state is none of xenbus.h")
        if self._executor or self._over:
            self._frontend_closed()
        self._process.forget(self._domid)

    def _disable(self, reason: str) -> None:
        """This device is done with; the process and its other devices live on."""
        self._log_disabled(f"{self.path}: disabled: {reason}")
        self._disconnect()
        self._over = True
        try:
            self._publish({"error": reason[:MOST_REASON]})
            switch_state(self._store, self.path, XenbusState.Closing)
        except XenstoreError as error:
            log.error("%s: %s", self.path, error)

    def _disconnect(self) -> None:
        self._executor = None
        self._undo.close()

    def close(self) -> None:
        """The device goes away: disconnect, and close the image."""
        if not self._closed:
            self._closed = True
            self._watch.cancel()
            self._disconnect()
            self._image.close()
