"""The front half of a split device's handshake (xen/io/xenbus.h): what blkfront and netfront do the same way."""
import logging
import re
from collections.abc import Callable, Mapping
from typing import Final

from miniguest.frontend.pages import Pages
from miniguest.ring.abi.xenbus import XenbusState
from miniguest.ring.errors import MiniguestError, PeerError, XenstoreError
from miniguest.ring.events import Port
from miniguest.ring.grants import Grants
from miniguest.ring.late_eoi import LateEoi
from miniguest.ring.process import Process
from miniguest.ring.xenbus import Keys, switch_state, watch_state, write_error, write_keys
from miniguest.ring.xenstore import Watch, Xenstore
from miniguest.ring.xenstore.client import Value

_GONE: Final = (XenbusState.Closed, XenbusState.Unknown)
_ENDS: Final = (XenbusState.Closing, *_GONE)
# Nodes that tell of rings, in all the ways that there are (io/blkif.h, io/netif.h).
_RINGS: Final = re.compile(
    r"([tr]x-|ctrl-)?ring-ref\d*|ring-page-order|num-ring-pages|event-channel(-tx|-rx|-ctrl)?|multi-queue-num-queues|queue-\d+"
)
log = logging.getLogger(__name__)


class FrontendDevice:
    """One device of the process's domain; `path` is its directory, such as "device/vbd/768".

    A subclass offers its rings in `offer`, takes the device up in `connected`, fails what is out in `abandon`, tells its
    user in `lost` and takes back its pages in `release`; what any of them raises ends the device, with the reason in
    the store.
    """

    def __init__(self, process: Process, store: Xenstore, path: str, pages: Pages, grants: Grants) -> None:
        self.process = process
        self.store = store
        self.path = path
        self.pages = pages
        self.grants = grants
        self.backend = ""
        self.backend_domid = 0
        self.is_connected = False
        self._granted: list[tuple[int, int]] = []       # (gref, frame)
        self._ports: list[Port] = []
        self._listeners: list[LateEoi] = []
        self._offered = False
        self._over = False                              # lost, once and for all
        self._watch: Watch | None = None

    def start(self) -> None:
        """Begin the handshake."""
        try:
            keys = Keys(self.store, self.path).fetch("backend", "backend-id", "state")
            self.backend = keys.text("backend")
            if not self.backend.startswith("/"):
                raise PeerError(f"{self.path}/backend is {self.backend[:64]!r}, not a path")
            self.backend_domid = keys.number("backend-id", most=0x7FEF)
            # What a predecessor left in this directory is not ours: the backend is to start over as well.
            self._restarted = keys.text("state", "") != str(int(XenbusState.Initialising)) and switch_state(
                self.store, self.path, XenbusState.Initialising, anew=True
            )
            self._watch = watch_state(self.store, self.backend, self._backend_changed)
        except MiniguestError as error:
            self.broken(str(error))

    # -- what a subclass does
    def offer(self) -> None:
        """Make the rings and write of them into the store."""
        raise AssertionError

    def connected(self) -> None:
        """The backend is connected: read what it offers."""
        raise AssertionError

    def abandon(self) -> None:
        """The backend is gone for good."""

    def lost(self, reason: str) -> None:
        """Tell the device's user."""

    def release(self) -> None:
        """The backend has let go of everything: take back pages that are not the rings'."""

    # -- what it does that with
    def give_page(self, readonly: bool = False) -> tuple[int, int]:
        """A page granted to the backend, taken back when the backend has disconnected: (gref, frame)."""
        frame = self.pages.alloc()
        self._granted.append((self.grants.give(self.backend_domid, frame, readonly), frame))
        return self._granted[-1]

    def make_port(self) -> Port:
        """An event channel for the backend to bind to."""
        self._ports.append(self.process.alloc_unbound(self.backend_domid))
        return self._ports[-1]

    def tell(self, keys: Mapping[str, Value]) -> None:
        """Write of the rings into the store. What a predecessor wrote of its own goes, or the backend would take those."""
        for name in self.store.directory(self.path):
            if _RINGS.fullmatch(name):
                self.store.rm(f"{self.path}/{name}")
        write_keys(self.store, self.path, keys)

    def listen(self, port: Port, handler: Callable[[], bool]) -> None:
        """Call `handler` when the backend notifies; it answers whether there was anything to do."""
        self._listeners.append(LateEoi(self.process.loop, port, handler))

    # -- the handshake
    def _backend_changed(self, state: XenbusState) -> None:
        try:
            if state in (XenbusState.InitWait, XenbusState.Initialised):
                if not self._offered and not self._over:
                    self._offered = True
                    self.offer()
                    switch_state(self.store, self.path, XenbusState.Initialised)
            elif state == XenbusState.Connected:
                if not self.is_connected and self._offered and not self._over:
                    self.connected()
                    self.is_connected = True
            elif (state in _ENDS and self._offered) or (state == XenbusState.Closing and not self._restarted):
                self._backend_closes()
            if state in _GONE and self._over:
                self._release()
        except (MiniguestError, OSError) as error:
            self.broken(str(error))

    def broken(self, reason: str) -> None:
        """The backend broke the protocol: close, and leave the reason in the store."""
        try:
            write_error(self.store, self.path, reason)
            switch_state(self.store, self.path, XenbusState.Closing)
        except XenstoreError as error:
            log.error("%s: %s", self.path, error)
        self._end(reason)

    def _backend_closes(self) -> None:
        reason = "" if self._over else Keys(self.store, self.backend).text("error", "")
        switch_state(self.store, self.path, XenbusState.Closed)
        self._end("the backend closed the device" + (f": {reason}" if reason else ""))

    def _end(self, reason: str) -> None:
        """Whatever is out fails, and the device's user is told why."""
        if self._over:
            return
        self._over = True
        self.abandon()
        self.lost(reason)

    def _release(self) -> None:
        """The backend has let go: take back the rings, their grants and the event channels."""
        self.release()
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        for port in self._ports:
            port.close()
        self._ports.clear()
        self._offered = False
        for gref, frame in self._granted:
            if self.grants.end(gref):           # else it is mapped still, and never used again
                self.pages.free(frame)
        self._granted.clear()

    def close(self) -> None:
        """Tell the backend that we go, in an orderly way."""
        if self._watch:
            self._watch.cancel()
        switch_state(self.store, self.path, XenbusState.Closing)
