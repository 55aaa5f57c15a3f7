"""One vif: the xenbus handshake of netif.h's backend."""
import logging
from contextlib import ExitStack
from typing import Final

from miniguest.backend.netback.connection import MAX_QUEUES, Connection
from miniguest.backend.netback.link import Link
from miniguest.backend.sparingly import SparingLog
from miniguest.ring import _core
from miniguest.ring.abi.xenbus import XenbusState
from miniguest.ring.errors import MiniguestError, PeerError, XenstoreError
from miniguest.ring.process import Process
from miniguest.ring.statistics import statistics_path, vif_counters
from miniguest.ring.xenbus import Keys, switch_state, watch_state, write_error, write_keys
from miniguest.ring.xenstore import Xenstore
from miniguest.ring.xenstore.client import Transaction, Value

log = logging.getLogger(__name__)
OFFERED: Final[dict[str, Value]] = {
    "feature-sg": 1,
    "feature-gso-tcpv4": 1,
    "feature-gso-tcpv6": 1,
    "feature-ipv6-csum-offload": 1,
    "feature-rx-copy": 1,
    "feature-rx-flip": 0,
    "feature-multicast-control": 1,
    "feature-dynamic-multicast-control": 1,
    "feature-split-event-channels": 1,
    "multi-queue-max-queues": MAX_QUEUES,
    "feature-ctrl-ring": 1,
}


class NetworkDevice:
    """The backend of domain `domid`'s vif `device`, whose directory in the store is `path`."""

    def __init__(self, process: Process, store: Xenstore, domid: int, device: int, path: str, link: Link) -> None:
        self._process = process
        self._store = store
        self._domid = domid
        self.path = path
        self._link = link
        self._connection: Connection | None = None
        self._over = False              # this connection ended: the frontend has to start from the beginning
        self._closed = False
        self._log_disabled = SparingLog(log, logging.ERROR)
        self._log_connected = SparingLog(log, logging.INFO)
        keys = Keys(store, path)
        self._frontend = keys.text("frontend")
        self._rate = parse_rate(keys.text("rate", ""), f"{path}/rate")
        self._counters = vif_counters(statistics_path(process.runtime, "vif", domid, device))
        self._publish({**OFFERED, "mtu": link.mtu})
        self._await_frontend()
        with ExitStack() as undo:
            multicast = store.watch(f"{self._frontend}/request-multicast-control", lambda _: self._filter_changed())
            undo.callback(multicast.cancel)
            watch = watch_state(store, self._frontend, self._frontend_changed)
            undo.callback(watch.cancel)
            self._watches = undo.pop_all()

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
        except (MiniguestError, OSError, ValueError) as error:
            self._disable(str(error))

    def _restart(self) -> None:
        """A frontend that starts (again): nothing of the last connection counts."""
        self._disconnect()
        self._over = False
        self._await_frontend()

    def _connect(self) -> None:
        if self._connection or self._over:
            return                      # keys written after Connected are ignored
        self._connection = Connection(
            self._process, self._store, self._domid, self._frontend, self._link, self._counters, self._disable
        )
        vif = self._connection.vif
        vif.limit(*self._rate, _core.now_ns())
        switch_state(self._store, self.path, XenbusState.Connected)
        self._log_connected(f"{self.path}: connected, {vif.nr_queues} queues")

    def _filter_changed(self) -> None:
        """feature-dynamic-multicast-control: the one key that counts while connected."""
        if self._connection and not self._closed:
            try:
                self._connection.vif.multicast_control = Keys(self._store, self._frontend).flag("request-multicast-control")
            except PeerError as error:
                self._disable(str(error))

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
        if self._connection or self._over:
            self._frontend_closed()
        self._process.forget(self._domid)

    def _disable(self, reason: str) -> None:
        """This device is done with; the process and its other devices live on."""
        self._log_disabled(f"{self.path}: disabled: {reason}")
        self._disconnect()
        self._over = True

        def leave_reason(nodes: Transaction) -> None:
            if nodes.exists(self.path):
                write_error(nodes, self.path, reason)

        try:
            self._store.retry(leave_reason)
            switch_state(self._store, self.path, XenbusState.Closing)
        except XenstoreError as error:
            log.error("%s: %s", self.path, error)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection:
            connection.close()

    def close(self) -> None:
        """The device goes away."""
        if not self._closed:
            self._closed = True
            self._watches.close()
            self._disconnect()


def parse_rate(text: str, where: str) -> tuple[int, int]:
    """(bytes, microseconds) of a `rate` node "BYTES,USECS"; (0, 0) without one. PeerError when it is another thing."""
    if not text:
        return 0, 0
    words = text.split(",")
    if len(words) != 2 or not all(word.isascii() and word.isdigit() and len(word) < 11 for word in words):
        raise PeerError(f"{where} is {text[:32]!r}, not BYTES,USECS")
    size, period = int(words[0]), int(words[1])
    if not (0 < size < 1 << 32 and 0 <= period < 1 << 32):
        raise PeerError(f"{where} is {text}: no bytes at all, or too many")
    return size, period
