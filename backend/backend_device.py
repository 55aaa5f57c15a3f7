"""The back half of a split device's handshake (xen/io/xenbus.h): what blkback and netback do the same way."""
import logging
from collections.abc import Callable
from typing import Final

from miniguest.backend.sparingly import SparingLog
from miniguest.ring.abi.xenbus import XenbusState
from miniguest.ring.errors import MiniguestError, PeerError, XenstoreError
from miniguest.ring.process import Process
from miniguest.ring.xenbus import Keys, find_state, forget_error, is_gone, read_state, step_state, write_error, write_keys
from miniguest.ring.xenstore import Nodes, Xenstore
from miniguest.ring.xenstore.client import Transaction, Value

log: Final = logging.getLogger(__name__)


class BackendDevice:
    """The backend of domain `domid`'s device whose directory in the store is `path`.

    A subclass advertises what it offers and has `frontend_changed` called with the frontend's states. It connects in
    `connect` and lets go of everything in `disconnect`; `is_connected` says which of them was last.

    The toolstack may make another device in the same place before anybody could look. Its state, Initialising, is what
    BackendDirectory knows it by, and no device but the one that is opened then may end that.
    """

    def __init__(self, process: Process, store: Xenstore, domid: int, path: str) -> None:
        self.process = process
        self.store = store
        self.domid = domid
        self.path = path
        self.over = False               # this connection ended: the frontend has to start from the beginning
        self.closed = False
        self._opened = False
        self._log_disabled = SparingLog(log, logging.ERROR)
        self.log_connected = SparingLog(log, logging.INFO)
        self.frontend = Keys(store, path).text("frontend")

    # -- what a subclass does
    @property
    def is_connected(self) -> bool:
        """Whether `connect` has been through."""
        raise AssertionError

    def connect(self) -> None:
        """The frontend has offered its rings: take them, and `switch` to Connected. What it raises disables the device."""
        raise AssertionError

    def disconnect(self) -> None:
        """Let go of what the connection holds, if there is one."""
        raise AssertionError

    # -- what it does that with
    def await_frontend(self, nodes: Transaction) -> None:
        """Ready for a frontend: InitWait, whatever was before. Once it is opened; then whenever the frontend starts over."""
        self._opened = True
        step_state(nodes, self.path, XenbusState.InitWait, anew=True)

    def switch(self, state: XenbusState) -> None:
        """Go to `state`, as switch_state has it."""
        self._change(lambda nodes: step_state(nodes, self.path, state))

    def publish(self, keys: dict[str, Value]) -> None:
        """Write nodes of our directory."""
        self._change(lambda nodes: write_keys(nodes, self.path, keys))

    def _change(self, change: Callable[[Transaction], object]) -> None:
        """Do it, unless the toolstack has removed our directory (writing would bring it back), or there is another device."""
        def guarded(nodes: Transaction) -> None:
            state = read_state(nodes, self.path)
            if not is_gone(nodes, self.path, state) and not (self._opened and state == XenbusState.Initialising):
                change(nodes)

        self.store.retry(guarded)

    def _is_replaced(self, nodes: Nodes) -> bool:
        """Whether another device was made in this one's place. Then the frontend's directory is the other one's, too."""
        return self._opened and read_state(nodes, self.path) == XenbusState.Initialising

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
        if handler is None or self.closed or self._is_replaced(self.store):
            return
        try:
            handler()
        except (MiniguestError, OSError, ValueError) as error:
            self.disable(str(error))

    def _restart(self) -> None:
        """A frontend that starts (again): nothing of the last connection counts."""
        self.disconnect()
        self.over = False
        self._change(self._forgive)

    def _forgive(self, nodes: Transaction) -> None:
        forget_error(nodes, self.path)
        self.await_frontend(nodes)

    def _connect(self) -> None:
        if not self.is_connected and not self.over:     # keys written after Connected are ignored
            self.connect()
            if self._is_replaced(self.store):           # the rings may be another device's, who is not to have our data
                self.disconnect()

    def _closing(self) -> None:
        self.disconnect()
        self.over = True
        self.switch(XenbusState.Closing)

    def _frontend_closed(self) -> None:
        self.disconnect()
        self.over = False
        self.switch(XenbusState.Closed)

    def _frontend_unknown(self) -> None:
        """The frontend's directory went with its domain; or its state is none."""
        state = find_state(self.store, self.frontend)
        if state is None:
            raise PeerError(f"{self.frontend}/state is none of xenbus.h")
        if state != XenbusState.Unknown:
            return                      # written meanwhile, of which the watch tells, too
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
            self._change(lambda nodes: write_error(nodes, self.path, reason))
            self.switch(XenbusState.Closing)
        except XenstoreError as error:
            log.error("%s: %s", self.path, error)
