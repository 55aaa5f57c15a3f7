"""A blkfront that does as it is told, lies included: a domain, its vbds, and the ring as bare bytes.

Nothing here is the project's frontend. Waiting is for events and xenstore watches, with a watchdog.
"""
import itertools
import mmap
import select
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from miniguest.backend.blkback import process as blkback
from miniguest.deploy.children import Child
from miniguest.deploy.supervisor import Supervisor
from miniguest.deploy.toolstack import VDEVS
from miniguest.deploy.topology import Disk
from miniguest.frontend.pages import Pages
from miniguest.ring.abi.xenbus import XenbusState
from miniguest.ring.events import Events, Port
from miniguest.ring.grants import Grants
from miniguest.ring.hypercalls import Hypercalls
from miniguest.ring.memory import Memory, domain_directory
from miniguest.ring.statistics import read_statistics, statistics_path
from miniguest.ring.xenbus import read_state, write_keys
from miniguest.ring.xenstore import Xenstore

WATCHDOG = 30.0                 # seconds; nothing here takes a thousandth of it
SECTOR = 512
READ, WRITE, BARRIER, FLUSH, RESERVED, DISCARD, INDIRECT = range(7)
OKAY, ERROR, EOPNOTSUPP = 0, -1, -2
GTF_IN_USE = 0x18               # GTF_reading | GTF_writing
REQUEST_SIZE = 112
_domids = itertools.count(11)


def wait_until(store: Xenstore, path: str, done: Callable[[], bool]) -> None:
    """Wait until `done`, looking whenever something below `path` changes."""
    changed = False

    def look(_: str) -> None:
        nonlocal changed
        changed = True

    watch = store.watch(path, look)
    deadline = time.monotonic() + WATCHDOG
    while True:
        store.dispatch()
        if changed:
            changed = False
            if done():
                break
            continue
        left = deadline - time.monotonic()
        assert left > 0, f"{path}: {dump(store, path)}"
        select.select([store.fileno()], [], [], left)
    watch.cancel()


def dump(store: Xenstore, path: str) -> dict[str, str]:
    return {name: store.read_text(f"{path}/{name}") for name in store.directory(path)} if store.exists(path) else {}


class Domain:
    """A domain without any process; this one sends and receives its events."""

    def __init__(self, supervisor: Supervisor, runtime: Path, memory: int = 4 << 20, domid: int = 0) -> None:
        self.supervisor, self.runtime, self.store = supervisor, runtime, supervisor.store
        self.domid = domid or next(_domids)
        supervisor.toolstack.create_domain(self.store, self.domid, f"d{self.domid}", memory)
        self.memory = Memory(domain_directory(runtime, self.domid) / "memory")
        self.pages = Pages(self.memory)
        self.grants = Grants(self.memory)
        self.hypercalls = Hypercalls(runtime)
        self.events = Events(runtime, self.domid, 0, self.memory, self.hypercalls, "fifo")
        self.upcall = self.events.upcall(-1)
        self._closed = self.destroyed = False

    def add_disk(self, image: Path, vdev: str = "hda", access: str = "rw") -> "Vbd":
        """A vbd of this domain; its backend has it before long."""
        disk = Disk(image=image, vdev=vdev, access=access)     # type: ignore[arg-type]
        self.supervisor.toolstack.add_disk(self.store, self.domid, disk)
        return Vbd(self, VDEVS[vdev], image)

    def wait_for_event(self) -> None:
        """Block until any port of this domain was notified."""
        assert self.upcall.wait(int(WATCHDOG * 1e9)), "no event"
        self.events.doorbell.drain()
        self.upcall.take()

    @property
    def in_use(self) -> list[int]:
        """The grefs that somebody has mapped."""
        entries = self.memory.grant_entries
        return [at // 8 for at in range(0, len(entries), 8) if entries[at] & GTF_IN_USE]

    def grant_entry(self, gref: int) -> tuple[int, int, int]:
        """(flags, domid, frame)."""
        entry: tuple[int, int, int] = struct.unpack_from("<HHI", self.memory.grant_entries, gref * 8)
        return entry

    def destroy(self) -> None:
        """As a toolstack does it: nodes first, then the domain."""
        for path in (f"/local/domain/0/backend/vbd/{self.domid}", f"/local/domain/{self.domid}"):
            if self.store.exists(path):
                self.store.rm(path)
        self.store.release(self.domid)
        self.close()
        self.hypercalls.call("destroy_domain", domid=self.domid)
        self.hypercalls.close()
        self.destroyed = True

    def close(self) -> None:
        """This process lets go of the domain's events."""
        if not self._closed:
            self._closed = True
            self.events.close()


class Vbd:
    """One vbd: its nodes, and once offered its ring and port."""

    def __init__(self, domain: Domain, device: int, image: Path) -> None:
        self.domain, self.store, self.image, self.device = domain, domain.store, image, device
        self.front = f"/local/domain/{domain.domid}/device/vbd/{device}"
        self.back = f"/local/domain/0/backend/vbd/{domain.domid}/{device}"
        self.port: Port | None = None
        self.persistent = False

    # -- xenbus
    def wait_state(self, *states: int) -> XenbusState:
        """Wait for the backend to be in one of these states."""
        wait_until(self.store, f"{self.back}/state", lambda: read_state(self.store, self.back) in states)
        return read_state(self.store, self.back)

    @property
    def state(self) -> int:
        return read_state(self.store, self.back)

    def switch(self, state: int) -> None:
        self.store.write(f"{self.front}/state", int(state))

    @property
    def error(self) -> str:
        return self.store.read_text(f"{self.back}/error")

    def make_ring(self, order: int = 0) -> dict[str, str | int | bytes]:
        """Allocate and initialise a ring and a port; the keys that offer them."""
        domain = self.domain
        self.frames = [domain.pages.alloc() for _ in range(1 << order)]
        self.ring_refs = [domain.grants.give(0, frame) for frame in self.frames]
        self.ring = memoryview(domain.memory.side_by_side(self.frames))
        self.ring[:64] = bytes(64)
        self.slots = 1
        while self.slots * 2 <= (len(self.ring) - 64) // REQUEST_SIZE:
            self.slots *= 2
        self.set_index(req_event=1, rsp_event=1)
        self.req_prod = self.rsp_cons = 0
        self.port = domain.events.alloc_unbound(0)
        refs: dict[str, str | int | bytes] = {"ring-ref": self.ring_refs[0], "ring-page-order": 0}
        if order:
            refs = {f"ring-ref{index}": gref for index, gref in enumerate(self.ring_refs)} | {"ring-page-order": order}
        return refs | {"event-channel": self.port.number, "protocol": "x86_64-abi"}

    def offer(self, order: int = 0, **keys: str | int | bytes | None) -> None:
        """Offer a ring; `keys` (dashes as underscores) replace what is written, None leaves out. Then Initialised."""
        wanted: dict[str, Any] = self.make_ring(order) | {name.replace("_", "-"): value for name, value in keys.items()}
        write_keys(self.store, self.front, {name: value for name, value in wanted.items() if value is not None})
        self.switch(XenbusState.Initialised)

    def connect(self, order: int = 0, **keys: str | int | bytes | None) -> "Vbd":
        """The whole handshake."""
        self.wait_state(XenbusState.InitWait)
        self.persistent = keys.get("feature_persistent") == 1
        self.offer(order, **keys)
        assert self.wait_state(XenbusState.Connected, XenbusState.Closing) == XenbusState.Connected, self.error
        self.switch(XenbusState.Connected)
        return self

    def drop_ring(self) -> None:
        """End the ring's grants; fails when the backend has one mapped."""
        assert self.port is not None
        assert all(self.domain.grants.end(gref) for gref in self.ring_refs)
        for frame in self.frames:
            self.domain.pages.free(frame)
        self.port.close()

    # -- the ring
    def set_index(self, **values: int) -> None:
        for name, value in values.items():
            offset = ("req_prod", "req_event", "rsp_prod", "rsp_event").index(name) * 4
            self.ring[offset : offset + 4] = (value & 0xFFFFFFFF).to_bytes(4, "little")

    def index(self, name: str) -> int:
        offset = ("req_prod", "req_event", "rsp_prod", "rsp_event").index(name) * 4
        return int.from_bytes(self.ring[offset : offset + 4], "little")

    def put(self, slot: bytes) -> None:
        """Put a request at req_prod."""
        at = 64 + self.req_prod % self.slots * REQUEST_SIZE
        self.ring[at : at + len(slot)] = slot
        self.req_prod += 1

    def push(self) -> None:
        """Show what was put, and notify whether asked to or not."""
        self.set_index(req_prod=self.req_prod)
        self.notify()

    def notify(self) -> None:
        assert self.port is not None
        self.port.notify()

    def responses(self, count: int) -> list[tuple[int, int, int]]:
        """The next `count` responses: (id, operation, status)."""
        while (self.index("rsp_prod") - self.rsp_cons) & 0xFFFFFFFF < count:
            self.set_index(rsp_event=self.rsp_cons + count)
            if (self.index("rsp_prod") - self.rsp_cons) & 0xFFFFFFFF < count:
                self.domain.wait_for_event()
        found = []
        for _ in range(count):
            found.append(struct.unpack_from("<QBxh", self.ring, 64 + self.rsp_cons % self.slots * REQUEST_SIZE))
            self.rsp_cons += 1
        return found

    def ask(self, *slots: bytes) -> list[int]:
        """Put requests, push and wait for as many responses; their statuses."""
        for slot in slots:
            self.put(slot)
        self.push()
        return [status for _, _, status in self.responses(len(slots))]

    # -- honest requests
    def page(self, data: bytes = b"", readonly: bool = False) -> tuple[int, int]:
        """A granted frame with `data` in it: (gref, frame)."""
        frame = self.domain.pages.alloc()
        self.domain.memory.frame(frame)[: len(data)] = data
        return self.domain.grants.give(0, frame, readonly), frame

    def read(self, sector: int, count: int) -> bytes:
        """Read up to 8 sectors."""
        gref, frame = self.page()
        assert self.ask(request(READ, sector, [(gref, 0, count - 1)])) == [OKAY]
        self._take_back(gref, frame)
        return bytes(self.domain.memory.frame(frame)[: count * SECTOR])

    def write(self, sector: int, data: bytes) -> None:
        """Write up to 8 sectors."""
        gref, frame = self.page(data, readonly=True)
        assert self.ask(request(WRITE, sector, [(gref, 0, len(data) // SECTOR - 1)])) == [OKAY]
        self._take_back(gref, frame)

    def _take_back(self, gref: int, frame: int) -> None:
        if not self.persistent:
            assert self.domain.grants.end(gref), "still mapped"
            self.domain.pages.free(frame)

    def works(self) -> None:
        """Do some I/O and look whether it was done, in the image as well."""
        data = struct.pack("<Q", time.monotonic_ns()) * 128
        self.write(3, data)
        assert self.read(3, 2) == data
        with open(self.image, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            assert view[3 * SECTOR : 5 * SECTOR] == data

    @property
    def statistics(self) -> dict[str, int]:
        return read_statistics(statistics_path(self.domain.runtime, "vbd", self.domain.domid, self.device))


def request(
    operation: int, sector: int, segments: list[tuple[int, int, int]], nr_segments: int | None = None, id: int = 7
) -> bytes:
    """A blkif_request; a segment is (gref, first_sect, last_sect)."""
    count = len(segments) if nr_segments is None else nr_segments
    body = b"".join(struct.pack("<IBBH", *segment, 0) for segment in segments)
    return (struct.pack("<BBHIQQ", operation, count, 0, 0, id, sector) + body).ljust(REQUEST_SIZE, b"\0")


def discard_request(sector: int, count: int, flag: int = 0) -> bytes:
    """A blkif_request_discard."""
    return struct.pack("<BBHIQQQ", DISCARD, flag, 0, 0, 7, sector, count).ljust(REQUEST_SIZE, b"\0")


def indirect_request(operation: int, sector: int, nr_segments: int, grefs: list[int]) -> bytes:
    """A blkif_request_indirect."""
    head = struct.pack("<BBHIQQHH", INDIRECT, operation, nr_segments, 0, 7, sector, 0, 0)
    return (head + struct.pack(f"<{len(grefs)}I", *grefs)).ljust(REQUEST_SIZE, b"\0")


def packed_segments(segments: list[tuple[int, int, int]]) -> bytes:
    """What an indirect page holds."""
    return b"".join(struct.pack("<IBBH", *segment, 0) for segment in segments)


class World:
    """A running dom0, a device that works in it all the time, and one whose handshake shows that blkback has caught up."""

    def __init__(self, supervisor: Supervisor, runtime: Path) -> None:
        self.supervisor, self.runtime, self.store = supervisor, runtime, supervisor.store
        self._images = itertools.count()
        self._domains: list[Domain] = []
        self.neighbour = self.domain().add_disk(self.image()).connect()
        self._canary = self.domain().add_disk(self.image())
        self._lasting = len(self._domains)

    def image(self, size: int = 1 << 20) -> Path:
        """A new image whose sectors begin with their number."""
        path = self.runtime / f"disk{next(self._images)}.img"
        path.write_bytes(b"".join(sector.to_bytes(8, "little").ljust(SECTOR, b"\x5a") for sector in range(size // SECTOR)))
        return path

    def domain(self, memory: int = 4 << 20, domid: int = 0) -> Domain:
        """A new domain, which lasts until the end of the test."""
        self._domains.append(Domain(self.supervisor, self.runtime, memory, domid))
        return self._domains[-1]

    def vbd(self, access: str = "rw", size: int = 1 << 20) -> Vbd:
        """A new domain's only vbd, not connected."""
        return self.domain().add_disk(self.image(size), access=access)

    def catch_up(self) -> None:
        """Return once blkback has seen whatever was written in xenstore before: it takes events in order."""
        for front, back in ((XenbusState.Closed, XenbusState.Closed), (XenbusState.Initialising, XenbusState.InitWait)):
            self._canary.switch(front)
            self._canary.wait_state(back)

    def is_disabled(self, vbd: Vbd, reason: str) -> None:
        """It is, for that reason, holds none of its domain's grants, and stays so whatever the frontend says; others work."""
        vbd.wait_state(XenbusState.Closing)
        assert reason in vbd.error
        assert vbd.domain.in_use == []
        for state in (XenbusState.Connected, XenbusState.Initialised):
            vbd.switch(state)
        self.catch_up()
        assert vbd.state == XenbusState.Closing
        assert vbd.domain.in_use == []
        self.neighbour.works()

    def comes_back(self, vbd: Vbd) -> None:
        """The frontend closes, starts over honestly, and is served."""
        vbd.switch(XenbusState.Closed)
        vbd.wait_state(XenbusState.Closed)
        vbd.switch(XenbusState.Initialising)
        vbd.connect().works()
        assert not vbd.store.exists(f"{vbd.back}/error")

    @property
    def blkback(self) -> Child:
        return [child for child in self.supervisor._children.all if child.name == "blkback"][-1]

    def start_blkback(self) -> None:
        """Another one, once the hypervisor has buried the one before."""
        hypercalls = self.neighbour.domain.hypercalls
        deadline = time.monotonic() + WATCHDOG
        while 1 in hypercalls.call("domain_info", domid=0)["vcpus"]:
            assert time.monotonic() < deadline, "blkback is still registered"
        self.supervisor._spawn("blkback", 0, 1, blkback.main)

    def end_of_test(self) -> None:
        """Everybody is still served, and the test's domains go."""
        self.neighbour.works()
        poll = select.poll()
        poll.register(self.blkback.pidfd, select.POLLIN)
        assert not poll.poll(0), "blkback died"
        self.destroy_domains(self._lasting)

    def destroy_domains(self, left: int = 0) -> None:
        """Destroy all but the first `left`."""
        while len(self._domains) > left:
            domain = self._domains.pop()
            if not domain.destroyed:
                domain.destroy()
