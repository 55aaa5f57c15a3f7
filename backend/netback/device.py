"""One vif: the xenbus handshake of netif.h's backend."""
from contextlib import ExitStack
from typing import Final

from miniguest.backend.backend_device import BackendDevice
from miniguest.backend.netback.connection import MAX_QUEUES, Connection
from miniguest.backend.netback.link import Link
from miniguest.ring import _core
from miniguest.ring.abi.xenbus import XenbusState
from miniguest.ring.errors import PeerError
from miniguest.ring.process import Process
from miniguest.ring.statistics import statistics_path, vif_counters
from miniguest.ring.xenbus import Keys, watch_state
from miniguest.ring.xenstore import Xenstore
from miniguest.ring.xenstore.client import Value

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


class NetworkDevice(BackendDevice):
    """The backend of domain `domid`'s vif `device`, whose directory in the store is `path`."""

    def __init__(self, process: Process, store: Xenstore, domid: int, device: int, path: str, link: Link) -> None:
        super().__init__(process, store, domid, path)
        self._link = link
        self._connection: Connection | None = None
        self._rate = parse_rate(Keys(store, path).text("rate", ""), f"{path}/rate")
        self._counters = vif_counters(statistics_path(process.runtime, "vif", domid, device))
        self.publish({**OFFERED, "mtu": link.mtu})
        with ExitStack() as undo:
            multicast = store.watch(f"{self.frontend}/request-multicast-control", lambda _: self._filter_changed())
            undo.callback(multicast.cancel)
            watch = watch_state(store, self.frontend, self.frontend_changed)
            undo.callback(watch.cancel)
            self._watches = undo.pop_all()

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection."""
        return self._connection is not None

    def connect(self) -> None:
        """Take the frontend's rings, and join the link."""
        self._connection = Connection(
            self.process, self.store, self.domid, self.frontend, self._link, self._counters, self.disable
        )
        vif = self._connection.vif
        vif.limit(*self._rate, _core.now_ns())
        self.switch(XenbusState.Connected)
        self.log_connected(f"{self.path}: connected, {vif.nr_queues} queues")

    def _filter_changed(self) -> None:
        """feature-dynamic-multicast-control: the one key that counts while connected."""
        if self._connection and not self.closed:
            try:
                self._connection.vif.multicast_control = Keys(self.store, self.frontend).flag("request-multicast-control")
            except PeerError as error:
                self.disable(str(error))

    def disconnect(self) -> None:
        """Leave the link, and let go of the rings."""
        connection, self._connection = self._connection, None
        if connection:
            connection.close()

    def close(self) -> None:
        """The device goes away."""
        if not self.closed:
            self.closed = True
            self._watches.close()
            self.disconnect()


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
