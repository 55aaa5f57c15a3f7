"""blkfront's handshake: finds the backend through xenbus and connects a ring to it (the front half of blkif.h's diagrams)."""
import logging
from collections.abc import Callable
from typing import Final

from miniguest.frontend.blkfront import SECTOR, Blkfront
from miniguest.frontend.blkfront_pieces import Features
from miniguest.frontend.pages import Pages
from miniguest.ring import _core
from miniguest.ring.abi.blkif import REQUEST, RESPONSE, VDISK_READONLY
from miniguest.ring.abi.protocols import XEN_IO_PROTO_ABI_X86_64
from miniguest.ring.abi.xenbus import XenbusState
from miniguest.ring.errors import MiniguestError, PeerError, XenstoreError
from miniguest.ring.events import Port
from miniguest.ring.grants import Grants
from miniguest.ring.process import Process
from miniguest.ring.xenbus import Keys, switch_state, watch_state, write_error, write_keys
from miniguest.ring.xenstore import Watch, Xenstore

RING_PAGE_ORDER: Final = 2              # four pages, 128 slots, where the backend takes them
SEGMENTS: Final = 256                   # of one request, where the backend takes so many
MAX_INDIRECT: Final = 512               # what one indirect page holds
_GONE: Final = (XenbusState.Closed, XenbusState.Unknown)
_ENDS: Final = (XenbusState.Closing, *_GONE)
log = logging.getLogger(__name__)


class BlkfrontDevice:
    """One virtual block device of the process's domain; `path` is its directory, such as "device/vbd/768".

    ready(disk): called when it is connected. lost(reason): when it cannot be, or is no longer.
    """

    def __init__(
        self, process: Process, store: Xenstore, path: str, pages: Pages, grants: Grants,
        ready: Callable[[Blkfront], None], lost: Callable[[str], None],
    ) -> None:
        self._process = process
        self._store = store
        self._path = path
        self._pages = pages
        self._grants = grants
        self._ready = ready
        self._lost = lost
        self.disk: Blkfront | None = None
        self._ring: _core.FrontRing | None = None
        self._ring_pages: list[tuple[int, int]] = []    # (gref, frame)
        self._port: Port | None = None
        self._over = False                              # lost, once and for all
        self._watch: Watch | None = None
        keys = Keys(store, path)
        try:
            self._backend = keys.text("backend")
            if not self._backend.startswith("/"):
                raise PeerError(f"{path}/backend is {self._backend[:64]!r}, not a path")
            self._backend_domid = keys.number("backend-id", most=0x7FEF)
            # What a predecessor left in this directory is not ours: the backend is to start over as well.
            self._restarted = switch_state(store, path, XenbusState.Initialising, anew=True)
            self._watch = watch_state(store, self._backend, self._backend_changed)
        except MiniguestError as error:
            self._broken(str(error))

    def _backend_changed(self, state: XenbusState) -> None:
        try:
            if state in (XenbusState.InitWait, XenbusState.Initialised):
                if self._ring is None and not self._over:
                    self._offer_ring()
            elif state == XenbusState.Connected:
                if self.disk is None and self._ring is not None and not self._over:
                    self._connected()
            elif (state in _ENDS and self._ring is not None) or (state == XenbusState.Closing and not self._restarted):
                self._backend_closes()
            if state in _GONE and self._over:
                self._release()
        except (MiniguestError, OSError) as error:
            self._broken(str(error))

    def _offer_ring(self) -> None:
        """Allocate and grant the ring and an event channel, tell the backend of them, go to Initialised."""
        keys = Keys(self._store, self._backend)
        order = min(RING_PAGE_ORDER, keys.number("max-ring-page-order", 0))
        memory = self._process.memory(self._process.domid)
        for _ in range(1 << order):
            frame = self._pages.alloc()
            self._ring_pages.append((self._grants.give(self._backend_domid, frame), frame))
        buffer = memory.side_by_side([frame for _, frame in self._ring_pages])
        self._ring = _core.FrontRing(buffer, REQUEST.size, RESPONSE.size)
        self._port = self._process.alloc_unbound(self._backend_domid)
        refs: dict[str, int | str | bytes]
        if order:
            refs = {f"ring-ref{index}": gref for index, (gref, _) in enumerate(self._ring_pages)}
            refs |= {"ring-page-order": order, "num-ring-pages": 1 << order}
        else:
            refs = {"ring-ref": self._ring_pages[0][0]}
        write_keys(self._store, self._path, refs | {
            "event-channel": self._port.number,
            "protocol": XEN_IO_PROTO_ABI_X86_64,
            "feature-persistent": 1,
        })
        switch_state(self._store, self._path, XenbusState.Initialised)

    def _connected(self) -> None:
        keys = Keys(self._store, self._backend)
        # blkif.h: 512 for a frontend that does not ask for more (feature-large-sector-size).
        keys.number("sector-size", SECTOR, least=SECTOR, most=SECTOR)
        features = Features(
            sectors=keys.number("sectors", least=1, most=1 << 55),
            read_only=bool(keys.number("info", 0) & VDISK_READONLY),
            persistent=keys.flag("feature-persistent"),
            flush=keys.flag("feature-flush-cache"),
            discard=keys.flag("feature-discard"),
            indirect_segments=min(keys.number("feature-max-indirect-segments", 0), SEGMENTS, MAX_INDIRECT),
        )
        assert self._ring is not None and self._port is not None
        self.disk = Blkfront(
            self._ring, self._pages, self._grants, self._backend_domid, features, self._port.notify, self._broken
        )
        self._process.loop.on_port(self._port, self.disk.on_event)
        switch_state(self._store, self._path, XenbusState.Connected)
        log.info("%s: %d sectors over %d slots", self._path, features.sectors, self._ring.slots)
        self._ready(self.disk)

    def _broken(self, reason: str) -> None:
        """The backend broke the protocol: close, and leave the reason in the store."""
        try:
            write_error(self._store, self._path, reason)
            switch_state(self._store, self._path, XenbusState.Closing)
        except XenstoreError as error:
            log.error("%s: %s", self._path, error)
        self._end(reason)

    def _backend_closes(self) -> None:
        reason = "" if self._over else Keys(self._store, self._backend).text("error", "")
        switch_state(self._store, self._path, XenbusState.Closed)
        self._end("the backend closed the device" + (f": {reason}" if reason else ""))

    def _end(self, reason: str) -> None:
        """Whatever is out fails, and the user of the disk is told why."""
        if self._over:
            return
        self._over = True
        if self.disk:
            self.disk.abandon()
        self._lost(reason)

    def _release(self) -> None:
        """The backend has let go: take back the ring, its grants and the event channel."""
        if self.disk:
            self.disk.release()
        if self._port:
            self._process.loop.off_port(self._port)
            self._port.close()
            self._port = None
        self._ring = None
        for gref, frame in self._ring_pages:
            if self._grants.end(gref):          # else it is mapped still, and never used again
                self._pages.free(frame)
        self._ring_pages.clear()

    def close(self) -> None:
        """Tell the backend that we go, in an orderly way."""
        if self._watch:
            self._watch.cancel()
        switch_state(self._store, self._path, XenbusState.Closing)
