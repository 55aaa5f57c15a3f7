"""A netfront that does as it is told, lies included: a domain, its vifs, and their rings as bare bytes."""
import itertools
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import peer
from peer import Device, Domain, Key, Ring

from miniguest.backend.netback import process as netback
from miniguest.backend.netback.links import LinkConfig
from miniguest.deploy.supervisor import Supervisor
from miniguest.ring.abi.xenbus import XenbusState
from miniguest.ring.events import Port
from miniguest.ring.process import Process
from miniguest.ring.statistics import read_vif_statistics, statistics_path
from miniguest.ring.xenbus import write_keys

PAGE = 4096
OKAY, ERROR, DROPPED, NULL = 0, -1, -2, 1
CSUM_BLANK, VALIDATED, MORE, EXTRA = 1, 2, 4, 8         # NETTXF_*
RX_VALIDATED, RX_BLANK, RX_MORE, RX_EXTRA = 1, 2, 4, 8  # NETRXF_*
GSO, MCAST_ADD, MCAST_DEL, HASH = 1, 2, 3, 4            # XEN_NETIF_EXTRA_TYPE_*
BROADCAST = b"\xff" * 6


def tx_slot(gref: int, offset: int, flags: int, id: int, size: int) -> bytes:
    """A netif_tx_request."""
    return struct.pack("<IHHHH", gref, offset, flags, id, size)


def extra_slot(kind: int, body: bytes = b"", more: bool = False) -> bytes:
    """A netif_extra_info in a transmit slot."""
    return (struct.pack("<BB", kind, more) + body).ljust(12, b"\0")


def gso_slot(size: int, kind: int = 1, more: bool = False) -> bytes:
    """The extra info of a GSO packet."""
    return extra_slot(GSO, struct.pack("<HBBH", size, kind, 0, 0), more)


class Received(bytes):
    """A frame that came in."""

    flags: int = 0
    gso: tuple[int, int] | None = None          # size, type
    hash: tuple[int, int, int] | None = None    # type, algorithm, value


class Queue:
    """A pair of rings, their ports, and the pages posted."""

    def __init__(self, domain: Domain, split: bool) -> None:
        self.domain = domain
        self.tx, self.rx = Ring(domain, 12), Ring(domain, 8)
        self.tx_port: Port = domain.events.alloc_unbound(0)
        self.rx_port: Port = domain.events.alloc_unbound(0) if split else self.tx_port
        self.split = split
        self.posted: dict[int, tuple[int, int]] = {}        # slot -> gref, frame
        self.sending: list[tuple[int, int]] = []
        self.ids = itertools.count()

    def keys(self) -> dict[str, Key]:
        ports: dict[str, Key] = {"event-channel": self.tx_port.number}
        if self.split:
            ports = {"event-channel-tx": self.tx_port.number, "event-channel-rx": self.rx_port.number}
        return {"tx-ring-ref": self.tx.gref, "rx-ring-ref": self.rx.gref, **ports}

    # -- receive
    def post(self, count: int = 1, notify: bool = True) -> None:
        """Post buffers."""
        for _ in range(count):
            frame = self.domain.pages.alloc()
            gref = self.domain.grants.give(0, frame)
            self.posted[self.rx.req_prod % self.rx.slots] = gref, frame
            self.rx.put(struct.pack("<HHI", self.rx.req_prod % self.rx.slots, 0, gref))
        self.rx.push()
        if notify:
            self.rx_port.notify()

    def receive(self) -> Received:
        """The next frame; waits for it. Every response is checked to be where and what netif.h says."""
        data, first, extra, more, head_flags = b"", True, False, True, 0
        gso: tuple[int, int] | None = None
        hash_: tuple[int, int, int] | None = None
        while more or extra:
            self.rx.wait(1)
            slot = self.rx.rsp_cons % self.rx.slots
            response = self.rx.take(8)
            gref, frame = self.posted.pop(slot)
            assert self.domain.grants.end(gref), "a receive buffer is still mapped"
            if extra:
                kind, flags = response[0], response[1]
                extra = bool(flags & 1)
                if kind == GSO:
                    size, gso_type = struct.unpack_from("<HB", response, 2)
                    gso = (size, gso_type)
                else:
                    assert kind == HASH
                    hash_ = struct.unpack_from("<BBI", response, 2)
                self.domain.pages.free(frame)
                continue
            id_, offset, flags, status = struct.unpack("<HHHh", response)
            assert id_ == slot, "a response is not in its request's slot"
            if first:
                head_flags = flags
                extra = bool(flags & RX_EXTRA)
            more, first = bool(flags & RX_MORE), False
            assert status >= 0, status
            data += bytes(self.domain.memory.frame(frame)[offset : offset + status])
            self.domain.pages.free(frame)
        result = Received(data)
        result.flags, result.gso, result.hash = head_flags & 3, gso, hash_
        return result

    # -- transmit
    def slots_of(
        self, frame: bytes, flags: int = 0, extras: list[bytes] | None = None, sizes: list[int] | None = None
    ) -> list[bytes]:
        """The slots of a frame whose pieces lie in pages of their own; sizes: of the pieces."""
        sizes = sizes or [min(PAGE, len(frame) - at) for at in range(0, len(frame), PAGE)] or [0]
        slots, at = [], 0
        for index, size in enumerate(sizes):
            number = self.domain.pages.alloc()
            offset = PAGE - size if index % 2 else 0
            self.domain.memory.frame(number)[offset : offset + size] = frame[at : at + size]
            gref = self.domain.grants.give(0, number, readonly=True)
            self.sending.append((gref, number))
            mine = (MORE if index < len(sizes) - 1 else 0) | (flags | (EXTRA if extras else 0) if index == 0 else 0)
            slots.append(tx_slot(gref, offset, mine, next(self.ids) & 0xFFFF, size if index else len(frame)))
            at += size
        return slots[:1] + (extras or []) + slots[1:]

    def put(self, *slots: bytes) -> None:
        """Put slots, push and notify."""
        for slot in slots:
            self.tx.put(slot)
        self.tx.push()
        self.tx_port.notify()

    def statuses(self, count: int) -> list[int]:
        """The statuses of the next `count` transmit responses; the pages of what was sent are taken back with the last."""
        self.tx.wait(count)
        found = [struct.unpack("<Hh", self.tx.take(4))[1] for _ in range(count)]
        if self.tx.rsp_cons == self.tx.req_prod:
            for gref, frame in self.sending:
                assert self.domain.grants.end(gref), "a transmit page is still mapped after its response"
                self.domain.pages.free(frame)
            self.sending = []
        return found

    def send(self, frame: bytes, flags: int = 0, extras: list[bytes] | None = None, sizes: list[int] | None = None) -> int:
        """Send a frame and wait for its responses; the status of its first slot. The others' are checked."""
        slots = self.slots_of(frame, flags, extras, sizes)
        self.put(*slots)
        statuses = self.statuses(len(slots))
        assert statuses[1 : 1 + len(extras or [])] == [NULL] * len(extras or [])
        assert {statuses[0], *statuses[1 + len(extras or []) :]} == {statuses[0]}
        return statuses[0]

    def drop(self) -> None:
        """Take everything back."""
        self.tx.drop()
        self.rx.drop()
        for gref, frame in [*self.posted.values(), *self.sending]:
            assert self.domain.grants.end(gref)
            self.domain.pages.free(frame)
        self.tx_port.close()
        self.rx_port.close()


class Vif(Device):
    """One vif: its nodes, and once offered its queues."""

    def __init__(self, domain: Domain, handle: int, mac: bytes) -> None:
        super().__init__(domain, "vif", handle)
        self.handle, self.mac = handle, mac
        self.queues: list[Queue] = []

    @property
    def q(self) -> Queue:
        return self.queues[0]

    def make_queues(self, count: int = 1, split: bool = False) -> dict[str, Key]:
        """Allocate rings and ports; the keys that offer them."""
        self.queues = [Queue(self.domain, split) for _ in range(count)]
        keys: dict[str, Key] = {"request-rx-copy": 1, "feature-rx-notify": 1, "feature-sg": 1}
        if count == 1:
            return keys | self.q.keys()
        keys["multi-queue-num-queues"] = count
        for index, queue in enumerate(self.queues):
            keys |= {f"queue-{index}/{name}": value for name, value in queue.keys().items()}
        return keys

    def offer(self, queues: int = 1, split: bool = False, **keys: Key) -> None:
        """Offer rings, with `keys` as Device.write_front has them. Then Connected, as netfronts do it."""
        self.write_front(self.make_queues(queues, split), **keys)
        self.switch(XenbusState.Connected)

    def connect(self, queues: int = 1, split: bool = False, buffers: int = 64, **keys: Key) -> "Vif":
        """The whole handshake, and some buffers."""
        self.wait_state(XenbusState.InitWait)
        self.offer(queues, split, **keys)
        self.wait_connected()
        if buffers:
            for queue in self.queues:
                queue.post(buffers)
        return self

    def drop_rings(self) -> None:
        for queue in self.queues:
            queue.drop()
        self.queues = []

    def frame(self, to: "Vif | bytes", body: bytes = b"", size: int = 60) -> bytes:
        """An Ethernet frame of a private type."""
        target = to if isinstance(to, bytes) else to.mac
        return (target + self.mac + b"\x88\xb5" + body).ljust(size, b"\0")

    def announce(self) -> None:
        """Let the switch know where we are, and nobody else: to an address of our own."""
        assert self.q.send(self.frame(self.mac)) == OKAY

    def works(self) -> None:
        self.announce()

    def receive(self) -> Received:
        """The next frame in any queue."""
        while True:
            for queue in self.queues:
                queue.rx.set_index(rsp_event=queue.rx.rsp_cons + 1)
                if queue.rx.ready:
                    return queue.receive()
            self.domain.wait_for_event()

    def reaches(self, other: "Vif") -> None:
        """A frame there and one back."""
        for one, two in ((self, other), (other, self)):
            one.announce()
            two.announce()
            for queue in two.queues:
                queue.post(1)
            wanted = one.frame(two, struct.pack("<Q", time.monotonic_ns()), 100)
            assert one.q.send(wanted) == OKAY
            while two.receive() != wanted:              # what was flooded before
                pass

    @property
    def statistics(self) -> dict[str, int]:
        return read_vif_statistics(statistics_path(self.domain.runtime, "vif", self.domain.domid, self.handle))


class World(peer.World):
    """A running dom0 with netback, and two vifs that work all the time."""

    BACKEND, VCPU = "netback", 3

    def __init__(
        self, supervisor: Supervisor, runtime: Path, links: Mapping[str, LinkConfig] | None = None,
        enter: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(supervisor, runtime)
        self._enter = enter             # what netback's process does before anything else
        self.links = {"lan": LinkConfig(), "quiet": LinkConfig(), **(links or {})}
        self._macs = itertools.count(1)
        self.start_backend()
        self.neighbours = [self.vif("quiet").connect(), self.vif("quiet").connect()]
        self._canary = self.vif("quiet")
        self._lasting = len(self._domains)

    def main(self, process: Process) -> None:
        self._enter()
        netback.main(process, self.links)

    def others_work(self) -> None:
        self.neighbours[0].reaches(self.neighbours[1])

    def domain(self, memory: int = 8 << 20, domid: int = 0) -> Domain:
        """A new domain, which lasts until the end of the test."""
        made = Domain(self.supervisor, self.runtime, memory, domid)
        self._domains.append(made)
        return made

    def vif(self, link: str = "lan", domain: Domain | None = None, rate: str = "", memory: int = 8 << 20) -> Vif:
        """A vif, of a new domain unless one is given; not connected."""
        domain = domain or self.domain(memory)
        number = next(self._macs)
        mac = b"\x00\x16\x3e" + number.to_bytes(3, "big")
        handle = 0
        while self.store.exists(f"/local/domain/{domain.domid}/device/vif/{handle}"):
            handle += 1
        self.add_vif(domain.domid, handle, mac, link, rate)
        return Vif(domain, handle, mac)

    def add_vif(self, domid: int, handle: int, mac: bytes, link: str, rate: str = "") -> None:
        """As the toolstack does it."""
        front, back = f"/local/domain/{domid}/device/vif/{handle}", f"/local/domain/0/backend/vif/{domid}/{handle}"
        text = ":".join(f"{byte:02x}" for byte in mac)
        with self.store.transaction() as t:
            for path, perms in ((front, [f"n{domid}", "r0"]), (back, ["n0", f"r{domid}"])):
                t.write(path, "")
                t.set_perms(path, perms)
            write_keys(t, front, {"backend": back, "backend-id": 0, "handle": handle, "mac": text, "state": 1})
            write_keys(t, back, {
                "frontend": front, "frontend-id": domid, "online": 1, "handle": handle, "mac": text, "bridge": link,
                "mtu": 1500, "type": "vif", "state": 1, **({"rate": rate} if rate else {}),
            })
