"""The back half of a split device's handshake (xen/io/xenbus.h): what blkback and netback do the same way."""
import logging
from typing import Final

from miniguest.backend.sparingly import SparingLog
from miniguest.ring.abi.xenbus import XenbusState
from miniguest.ring.errors import MiniguestError, PeerError, XenstoreError
from miniguest.ring.process import Process
from miniguest.ring.xenbus import Keys, switch_state, write_error, write_keys
from miniguest.ring.xenstore import Xenstore
from miniguest.ring.xenstore.client import Transaction, Value

log: Final = logging.getLogger(__name__)


class BackendDevice:
    """The backend of domain `domid`'s device whose directory in the store is `path`.

    A subclass advertises what it offers, calls `await_frontend` and has `frontend_changed` called with the frontend's
    states. It connects in `connect` and lets go of everything in `disconnect`; `is_connected` says which of them was last.
    """

    def __init__(self, process: Process, store: Xenstore, domid: int, path: str) -> None:
        self.process = process
        self.store = store
        self.domid = domid
        self.path = path
        self.over = False               # this connection ended: the frontend has to start from the beginning
        self.closed = False
        self._log_disabled = SparingLog(log, logging.ERROR)
        self.log_connected = SparingLog(log, logging.INFO)
        self.frontend = Keys(store, path).text("frontend")

    # -- what a subclass does
    @property
    def is_connected(self) -> bool:
        """Whether `connect` has been through."""
        raise AssertionError

    def connect(self) -> None:
        """The frontend has offered its rings: take them, and go to Connected. What it raises disables the device."""
        raise AssertionError

    def disconnect(self) -> None:
        """Let go of what the connection holds, if there is one."""
        raise AssertionError

    # -- what it does that with
    def await_frontend(self) -> None:
        """Ready for a frontend: InitWait, whatever was before."""
        if self.store.exists(f"{self.path}/error"):
            self.store.rm(f"{self.path}/error")
        switch_state(self.store, self.path, XenbusState.InitWait, anew=True)

    def publish(self, keys: dict[str, Value]) -> None:
        """Write nodes of our directory, unless the toolstack has removed it: writing would bring it back."""
        def write(nodes: Transaction) -> None:
            if nodes.exists(self.path):
                write_keys(nodes, self.path, keys)

        self.store.retry(write)

    # -- the handshake
    def frontend_changed(self, state: XenbusState) -> None:
        """The frontend's state is another one."""
        handler = {
            XenbusState.Initialising: self._restart,
            XenbusState.Initialised: self._connect,
            XenbusState.Connected: self._connect,
            XenbusState.Closing: self._closing,
            XenbusState.Closed: self._frontend_closed,
            XenbusState.Unknown: self._frontend_unknown,
        }.get(state)
        if handler is None or self.closed:
            return
        try:
            handler()
        except (MiniguestError, OSError, ValueError) as error:
            self.disable(str(error))

    def _restart(self) -> None:
        """A frontend that starts (again): nothing of the last connection counts."""
        self.disconnect()
        self.over = False
        self.await_frontend()

    def _connect(self) -> None:
        if not self.is_connected and not self.over:     # keys written after Connected are ignored
            self.connect()

    def _closing(self) -> None:
        self.disconnect()
        self.over = True
        switch_state(self.store, self.path, XenbusState.Closing)

    def _frontend_closed(self) -> None:
        self.disconnect()
        self.over = False
        switch_state(self.store, self.path, XenbusState.Closed)

    def _frontend_unknown(self) -> None:
        """The frontend's directory went with its domain; or its state is none."""
        if self.store.exists(f"{self.frontend}/state"):
            raise PeerError(f"{self.frontend}/state is none of xenbus.h")
        if self.is_connected or self.over:
            self._frontend_closed()
        self.process.forget(self.domid)

    # -- the end
    def disable(self, reason: str) -> None:
        """This device is done with; the process and its other devices live on."""
        self._log_disabled(f"{self.path}: disabled: {reason}")
        self.disconnect()
        self.over = True
        try:
            self.store.retry(lambda nodes: write_error(nodes, self.path, reason))
            switch_state(self.store, self.path, XenbusState.Closing)
        except XenstoreError as error:
            log.error("%s: %s", self.path, error)
