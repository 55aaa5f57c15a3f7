"""A connected vif: the rings and ports that its frontend offered, mapped and bound, and its settings (xen/io/netif.h)."""
import logging
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

from miniguest.backend.netback.control import Control
from miniguest.backend.netback.link import Link
from miniguest.ring import _core
from miniguest.ring.abi.layout import Layout
from miniguest.ring.abi.netif import CTRL_REQUEST, CTRL_RESPONSE, RX_REQUEST, RX_RESPONSE, TX_REQUEST, TX_RESPONSE
from miniguest.ring.errors import HypercallError, PeerError, RingError
from miniguest.ring.events import Port
from miniguest.ring.process import Process
from miniguest.ring.xenbus import Keys
from miniguest.ring.xenstore import Nodes

MAX_QUEUES: Final = 8
RSP_PROD: Final = slice(8, 12)          # io/ring.h, struct sring
OFFERS: Final = (
    "request-rx-copy", "feature-sg", "feature-rx-notify", "feature-no-csum-offload", "feature-ipv6-csum-offload",
    "feature-gso-tcpv4", "feature-gso-tcpv6", "request-multicast-control", "multi-queue-num-queues", "ctrl-ring-ref",
)
RINGS: Final = ("tx-ring-ref", "rx-ring-ref", "event-channel-tx", "event-channel-rx")
log = logging.getLogger(__name__)


class Connection:
    """What a frontend's nodes below `frontend` lead to. PeerError for whatever makes no sense, and nothing is held then.

    counters: statistics.vif_counters. failed: called with the reason when the frontend breaks a rule later.
    """

    def __init__(
        self, process: Process, store: Nodes, domid: int, frontend: str, link: Link, counters: memoryview,
        failed: Callable[[str], None],
    ) -> None:
        self._process = process
        self._store = store
        self._domid = domid
        self._frontend = frontend
        self._link = link
        self._failed = failed
        process.forget(domid)           # what was mapped before may be another domain's that had this number
        try:
            self._memory, self._table = process.memory(domid), process.grant_table(domid)
        except OSError as error:
            raise PeerError(f"domain {domid} has no memory: {error.strerror}") from error
        with ExitStack() as undo:
            self._grants = ExitStack()
            undo.callback(self._grants.close)
            self._connect(Keys(store, frontend).fetch(*OFFERS, *RINGS), counters, undo)
            self._undo = undo.pop_all()

    def _connect(self, keys: Keys, counters: memoryview, undo: ExitStack) -> None:
        if not keys.flag("request-rx-copy"):
            raise PeerError(f"{self._frontend}/request-rx-copy is not 1: frames are copied, never flipped")
        vif = _core.Vif(self._process.mapper, self._table, self._memory.map, counters)
        vif.sg = keys.flag("feature-sg")
        vif.rx_notify = keys.flag("feature-rx-notify")
        vif.csum_v4 = not keys.flag("feature-no-csum-offload")
        vif.csum_v6 = keys.flag("feature-ipv6-csum-offload")
        vif.gso_v4 = vif.sg and keys.flag("feature-gso-tcpv4")
        vif.gso_v6 = vif.sg and keys.flag("feature-gso-tcpv6")
        vif.multicast_control = keys.flag("request-multicast-control")
        self.vif = vif
        count = keys.number("multi-queue-num-queues", 1, least=1, most=MAX_QUEUES)
        for index in range(count):
            self._add_queue(keys if count == 1 else Keys(self._store, f"{self._frontend}/queue-{index}").fetch(*RINGS), undo)
        if keys.text("ctrl-ring-ref", ""):
            self._add_control(keys, undo)
        self._link.attach(vif, self._failed)
        undo.callback(self._link.detach, vif)

    def _add_queue(self, keys: Keys, undo: ExitStack) -> None:
        tx = self._ring(keys.number("tx-ring-ref"), TX_REQUEST, TX_RESPONSE)
        rx = self._ring(keys.number("rx-ring-ref"), RX_REQUEST, RX_RESPONSE)
        if keys.text("event-channel-tx", ""):
            tx_port = self._bind(keys.number("event-channel-tx"), undo)
            rx_port = self._bind(keys.number("event-channel-rx"), undo)
        else:
            tx_port = rx_port = self._bind(keys.number("event-channel"), undo)
        # One and the same object when the port is: the queue then notifies once for both rings.
        notify_tx = tx_port.notify
        queue = self.vif.add_queue(tx, rx, notify_tx, notify_tx if rx_port is tx_port else rx_port.notify)
        switch, wake = self._link.switch, self._link.wake

        def on_tx() -> None:
            switch.tx_event(queue)
            wake()

        def on_rx() -> None:
            switch.rx_event(queue)
            wake()

        def on_both() -> None:
            switch.tx_event(queue)
            switch.rx_event(queue)
            wake()

        if tx_port is rx_port:
            self._process.loop.on_port(tx_port, on_both)
        else:
            self._process.loop.on_port(tx_port, on_tx)
            self._process.loop.on_port(rx_port, on_rx)

    def _add_control(self, keys: Keys, undo: ExitStack) -> None:
        ring = self._ring(keys.number("ctrl-ring-ref"), CTRL_REQUEST, CTRL_RESPONSE)
        port = self._bind(keys.number("event-channel-ctrl"), undo)
        control = Control(self.vif, ring, port.notify, self._copy_grant)
        connected = True

        def leave() -> None:
            nonlocal connected
            connected = False

        def serve() -> None:
            try:
                if connected and control.serve():       # a turn that was due when the ring was unmapped has nothing to do
                    self._process.loop.call_soon(serve)
            except RingError as error:
                self._failed(f"control ring: {error}")

        self._process.loop.on_port(port, serve)
        undo.callback(leave)
        for queue in self.vif.queues:
            undo.callback(queue.static_grants.clear)

    def _ring(self, gref: int, request: Layout, response: Layout) -> _core.BackRing:
        handle, frame = self._process.mapper.map(self._table, gref)
        if handle < 0:
            raise PeerError(f"ring grant {gref} cannot be mapped: status {handle}")
        self._grants.callback(self._process.mapper.unmap, self._table, handle)
        page = self._memory.frame(frame)
        # Not always 0: after a predecessor that was killed, what it had not answered yet is served (again).
        return _core.BackRing(page, request.size, response.size, int.from_bytes(page[RSP_PROD], "little"))

    def _bind(self, remote: int, undo: ExitStack) -> Port:
        try:
            port = self._process.bind_interdomain(self._domid, remote)
        except HypercallError as error:
            raise PeerError(f"{self._frontend}: event channel {remote}: {error}") from error
        undo.callback(port.close)
        undo.callback(self._process.loop.off_port, port)
        return port

    def _copy_grant(self, gref: int, buffer: bytearray, to_grant: bool = False) -> int:
        return _core.grant_copy(self._table, self._memory.map, gref, 0, buffer, to_grant, self._process.mapper)

    def close(self) -> None:
        """Leave the link, close the ports, unmap the rings."""
        self._undo.close()
