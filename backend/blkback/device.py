"""One virtual block device: the xenbus handshake of blkif.h's backend, and its ring once connected."""
import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from miniguest.backend.blkback.image import SECTOR, Image
from miniguest.backend.blkback.requests import MAX_INDIRECT_SEGMENTS, Executor
from miniguest.ring import _core
from miniguest.ring.abi.blkif import REQUEST, RESPONSE, VDISK_READONLY
from miniguest.ring.abi.protocols import XEN_IO_PROTO_ABI_X86_64
from miniguest.ring.abi.xenbus import XenbusState
from miniguest.ring.errors import HypercallError, MiniguestError, PeerError, XenstoreError
from miniguest.ring.process import Process
from miniguest.ring.statistics import Statistics, statistics_path
from miniguest.ring.xenbus import Keys, switch_state, watch_state, write_error, write_keys
from miniguest.ring.xenstore import Xenstore

MAX_RING_PAGE_ORDER: Final = 4
BATCHES: Final = 16                     # batches of one device before the others get their turn
log = logging.getLogger(__name__)


class BlockDevice:
    """The backend of domain `domid`'s device `device`, whose directory in the store is `path`."""

    def __init__(self, process: Process, store: Xenstore, domid: int, device: int, path: str) -> None:
        self._process = process
        self._store = store
        self._domid = domid
        self._device = device
        self.path = path
        self._undo = ExitStack()        # what the connection to the frontend holds
        self._closed = False
        keys = Keys(store, path)
        self._frontend = keys.text("frontend")
        self._image = Image(Path(keys.text("params")), keys.text("mode", "w") == "r")
        self._statistics = Statistics(statistics_path(process.runtime, "vbd", domid, device))
        self._advertise()
        self._watch = watch_state(store, self._frontend, self._frontend_changed)

    def _advertise(self) -> None:
        """What this backend can do, for the frontend to choose from; then InitWait."""
        write_keys(self._store, self.path, {
            "feature-flush-cache": 1,
            "feature-barrier": 0,
            "feature-discard": int(not self._image.read_only),
            "discard-granularity": 4096,
            "discard-alignment": 0,
            "discard-secure": 0,
            "feature-persistent": 1,
            "feature-max-indirect-segments": MAX_INDIRECT_SEGMENTS,
            "max-ring-page-order": MAX_RING_PAGE_ORDER,
            "max-ring-pages": 1 << MAX_RING_PAGE_ORDER,
        })
        switch_state(self._store, self.path, XenbusState.InitWait, anew=True)

    # -- the handshake
    def _frontend_changed(self, state: XenbusState) -> None:
        handler = {
            XenbusState.Initialising: self._restart,
            XenbusState.Initialised: self._connect,
            XenbusState.Connected: self._connect,
            XenbusState.Closing: self._closing,
            XenbusState.Closed: self._frontend_closed,
            XenbusState.Unknown: self._frontend_gone,
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
        switch_state(self._store, self.path, XenbusState.InitWait, anew=True)

    def _connect(self) -> None:
        if self._connected:
            return                      # keys written after Connected are ignored
        keys = Keys(self._store, self._frontend)
        protocol = keys.text("protocol", XEN_IO_PROTO_ABI_X86_64)
        if protocol != XEN_IO_PROTO_ABI_X86_64:
            raise PeerError(f"{self._frontend}/protocol is {protocol!r}; only {XEN_IO_PROTO_ABI_X86_64} is spoken")
        grefs = self._ring_refs(keys)
        self._map_ring(grefs, keys.flag("feature-persistent"))
        try:
            port = self._process.bind_interdomain(self._domid, keys.number("event-channel"))
        except HypercallError as error:
            raise PeerError(f"{self._frontend}/event-channel: {error}") from error
        self._undo.callback(port.close)
        self._undo.callback(self._process.loop.off_port, port)
        self._port = port
        self._process.loop.on_port(port, self._serve)
        write_keys(self._store, self.path, {
            "sectors": self._image.sectors,
            "sector-size": SECTOR,
            "physical-sector-size": SECTOR,
            "info": VDISK_READONLY if self._image.read_only else 0,
        })
        switch_state(self._store, self.path, XenbusState.Connected)
        log.info("%s: connected, %d slots", self.path, self._ring.slots)

    def _ring_refs(self, keys: Keys) -> list[int]:
        """The ring's grefs: `ring-ref`, or with `ring-page-order` (or the older `num-ring-pages`) `ring-refN`."""
        order = keys.number("ring-page-order", 0, most=MAX_RING_PAGE_ORDER)
        pages = keys.number("num-ring-pages", 1 << order, least=1, most=1 << MAX_RING_PAGE_ORDER)
        if pages & (pages - 1):
            raise PeerError(f"{self._frontend}/num-ring-pages is {pages}, not a power of two")
        if pages == 1 and keys.text("ring-ref", "") != "":
            return [keys.number("ring-ref")]
        return [keys.number(f"ring-ref{index}") for index in range(pages)]

    def _map_ring(self, grefs: list[int], persistent: bool) -> None:
        process = self._process
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
        self._ring = _core.BackRing(memory.side_by_side(frames), REQUEST.size, RESPONSE.size)
        io = _core.GrantedIO(process.mapper, table, memory.map, persistent)
        self._undo.callback(io.close)

        def copy_grant(gref: int, buffer: bytearray) -> int:
            return _core.grant_copy(table, memory.map, gref, 0, buffer, False, process.mapper)

        self._executor: Executor | None = Executor(self._image, io, copy_grant)

    @property
    def _connected(self) -> bool:
        return getattr(self, "_executor", None) is not None

    # -- the ring
    def _serve(self) -> None:
        """Serve what the frontend put in the ring; a ring that lies disables the device."""
        if self._executor is None:
            return
        try:
            for _ in range(BATCHES):
                count = self._ring.take()
                if count == 0 and not self._ring.final_check():
                    return
                if count:
                    self._answer(self._executor, count)
        except MiniguestError as error:
            self._disable(str(error))
            return
        self._process.loop.call_soon(self._serve)

    def _answer(self, executor: Executor, count: int) -> None:
        moved = executor.execute(self._ring.requests, count, self._ring.responses)
        self._ring.put(count)
        notify = self._ring.push()
        self._statistics.add(count, notify, moved.bytes_read, moved.bytes_written, moved.errors)
        if notify:
            self._port.notify()

    # -- the end
    def _closing(self) -> None:
        self._disconnect()
        switch_state(self._store, self.path, XenbusState.Closing)

    def _frontend_closed(self) -> None:
        self._disconnect()
        switch_state(self._store, self.path, XenbusState.Closed)

    def _frontend_gone(self) -> None:
        """The frontend's directory went with its domain."""
        self._disconnect()
        self._process.forget(self._domid)

    def _disable(self, reason: str) -> None:
        """This device is done with; the process and its other devices live on."""
        log.error("%s: disabled: %s", self.path, reason)
        self._disconnect()
        try:
            write_error(self._store, self.path, reason)
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
