"""netfront's handshake: finds the backend through xenbus and connects its rings (the front half of netif.h's)."""
import logging
import re
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Final

from miniguest.frontend.frontend_device import FrontendDevice
from miniguest.frontend.netfront import Netfront, Queue
from miniguest.frontend.netfront_batch import Batch
from miniguest.frontend.netfront_control import Control, Kept
from miniguest.frontend.pages import Pages
from miniguest.ring import _core
from miniguest.ring.abi.netif import CTRL_REQUEST, CTRL_RESPONSE, RX_REQUEST, RX_RESPONSE, TX_REQUEST, TX_RESPONSE
from miniguest.ring.abi.xenbus import XenbusState
from miniguest.ring.errors import PeerError, RingError
from miniguest.ring.events import Port
from miniguest.ring.grants import Grants
from miniguest.ring.process import Process
from miniguest.ring.xenbus import Keys, switch_state
from miniguest.ring.xenstore import Xenstore

MTU: Final = 1500                       # bytes, where the backend names none
MOST_MTU: Final = 65535 - 14
_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.IGNORECASE)
log = logging.getLogger(__name__)


def parse_mac(mac: str, path: str) -> bytes:
    """The six bytes of `path`/mac. PeerError when it is another thing."""
    if not _MAC.fullmatch(mac):
        raise PeerError(f"{path}/mac is {mac[:32]!r}, not an Ethernet address")
    return bytes.fromhex(mac.replace(":", ""))


class NetfrontDevice(FrontendDevice):
    """One virtual network interface of the process's domain; `path` is its directory, such as "device/vif/0".

    ready(netfront): called when it is connected; `start` it when its `received` is set. lost(reason): when it cannot
    be, or is no longer. queues: how many pairs of rings at most. offload: take frames whose checksum is still to be
    computed, and large ones that are still to be cut. static_grants: let the backend keep all pages mapped, when it can;
    it may then write to those of the receive rings at any time, so they are not for who decides by what it reads there twice.
    """

    def __init__(
        self, process: Process, store: Xenstore, path: str, pages: Pages, grants: Grants,
        ready: Callable[[Netfront], None], lost: Callable[[str], None], queues: int = 1, offload: bool = False,
        static_grants: bool = False,
    ) -> None:
        super().__init__(process, store, path, pages, grants)
        self._ready = ready
        self._lost = lost
        self._wanted_queues = queues
        self._offload = offload
        self._static_grants = static_grants
        self._control: tuple[Control, Port] | None = None
        self._kept: list[tuple[int, list[int], bool, Kept]] = []        # queue, grefs, read-only: what is to stay mapped
        self._queues: list[Queue] = []
        self.netfront: Netfront | None = None
        self.start()

    # -- rings
    def offer(self) -> None:
        """Allocate and grant the rings and their buffers, and tell the backend of them."""
        keys = Keys(self.store, self.backend).fetch("multi-queue-max-queues", "feature-split-event-channels", "feature-sg")
        count = min(self._wanted_queues, keys.number("multi-queue-max-queues", 1, least=1))
        split, sg = keys.flag("feature-split-event-channels"), keys.flag("feature-sg")
        written: dict[str, int | str | bytes] = {
            "request-rx-copy": 1, "feature-rx-notify": 1, "feature-sg": 1,
            "feature-no-csum-offload": int(not self._offload), "feature-ipv6-csum-offload": int(self._offload),
            "feature-gso-tcpv4": int(self._offload), "feature-gso-tcpv6": int(self._offload),
        }
        if count > 1:
            written["multi-queue-num-queues"] = count
        for index in range(count):
            prefix = f"queue-{index}/" if count > 1 else ""
            written |= {prefix + name: value for name, value in self._make_queue(index, sg, split).items()}
        if self._static_grants and keys.flag("feature-ctrl-ring"):
            written |= self._make_control()
        self.tell(written)

    def _make_control(self) -> dict[str, int]:
        """The control ring; the keys that tell of it."""
        gref, frame = self.give_page()
        port = self.make_port()
        ring = _core.FrontRing(self.pages.memory.frame(frame), CTRL_REQUEST.size, CTRL_RESPONSE.size)
        self._control = Control(ring, port.notify), port
        return {"ctrl-ring-ref": gref, "event-channel-ctrl": port.number}

    def _make_queue(self, index: int, sg: bool, split: bool) -> dict[str, int]:
        """A pair of rings; the keys that tell of it."""
        transmit_gref, transmit_frame = self.give_page()
        receive_gref, receive_frame = self.give_page()
        memory = self.pages.memory
        ports = [self.make_port() for _ in range(2 if split else 1)]
        transmit_ring = _core.FrontRing(memory.frame(transmit_frame), TX_REQUEST.size, TX_RESPONSE.size)
        receive_ring = _core.FrontRing(memory.frame(receive_frame), RX_REQUEST.size, RX_RESPONSE.size)
        transmit = _core.NetTransmit(transmit_ring, self._net_pages(index, transmit_ring.slots, readonly=True)[0], sg)
        receive_pages, received = self._net_pages(index, receive_ring.slots, readonly=False)
        receive = _core.NetReceive(receive_ring, receive_pages)
        batch = partial(self._make_batch, index, transmit)
        self._queues.append(Queue(transmit, receive, ports[0], ports[-1], received, batch))
        keys = {"tx-ring-ref": transmit_gref, "rx-ring-ref": receive_gref}
        if split:
            return keys | {"event-channel-tx": ports[0].number, "event-channel-rx": ports[1].number}
        return keys | {"event-channel": ports[0].number}

    def _give_pages(self, count: int, readonly: bool) -> tuple[list[int], memoryview]:
        """Granted pages, which lie side by side: their grefs, and their bytes."""
        granted = sorted((self.give_page(readonly) for _ in range(count)), key=itemgetter(1))
        return [gref for gref, _ in granted], self.pages.memory.joined([frame for _, frame in granted])

    def _net_pages(self, queue: int, count: int, readonly: bool) -> tuple[_core.NetPages, memoryview]:
        grefs, view = self._give_pages(count, readonly)
        numbered = [(gref, number) for number, gref in enumerate(grefs)]
        pages = _core.NetPages(view, self.pages.memory.grant_entries, numbered)
        self._kept.append((queue, grefs, readonly, pages))
        return pages, view

    def _make_batch(self, queue: int, transmit: _core.NetTransmit, count: int) -> Batch:
        """See Queue. PeerError without so many pages; ValueError when there is one already."""
        if count > len(self.pages):
            raise PeerError(f"{len(self.pages)} pages are no {count}")
        grefs, view = self._give_pages(count, readonly=True)
        batch = Batch(transmit, self.pages.memory.grant_entries, grefs, view)
        self._keep_mapped(queue, grefs, True, batch.core)
        return batch

    def _keep_mapped(self, queue: int, grefs: list[int], readonly: bool, pages: Kept) -> None:
        if self._control:
            gref, frame = self.give_page()
            self._control[0].keep_mapped(queue, grefs, readonly, pages, gref, self.pages.memory.frame(frame))

    # -- states
    def connected(self) -> None:
        """Read the vif's properties; it is there from now on."""
        keys = Keys(self.store, self.path).fetch("mac", "mtu")
        mac = keys.text("mac", "") or Keys(self.store, self.backend).text("mac")
        mtu = keys.number("mtu", MTU, least=68, most=MOST_MTU)
        address = parse_mac(mac, self.path)
        self.netfront = Netfront(address, mtu, self._queues, self.broken, self.process.loop.call_soon)
        for index in range(len(self._queues)):
            self._listen(self.netfront, index)
        if self._control:
            self.listen(self._control[1], self._on_control)
        for kept in self._kept:
            self._keep_mapped(*kept)
        switch_state(self.store, self.path, XenbusState.Connected)
        log.info("%s: %s, %d queues", self.path, mac, len(self._queues))
        self._ready(self.netfront)

    def _listen(self, netfront: Netfront, index: int) -> None:
        queue = netfront.queues[index]
        if queue.transmit_port is queue.receive_port:
            self.listen(queue.receive_port, lambda: netfront.on_event(index, True, True))
        else:
            self.listen(queue.transmit_port, lambda: netfront.on_event(index, True, False))
            self.listen(queue.receive_port, lambda: netfront.on_event(index, False, True))

    def _on_control(self) -> bool:
        assert self._control
        try:
            return self._control[0].on_event()
        except RingError as error:
            self.broken(str(error))
            return True

    def abandon(self) -> None:
        """Nothing is received any more, and what is sent is dropped."""
        if self.netfront:
            self.netfront.abandon()

    def lost(self, reason: str) -> None:
        """Tell the vif's user."""
        self._lost(reason)
