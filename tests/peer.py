"""What a frontend that does as it is told is made of: a domain, its devices' nodes, a ring as bare bytes, and a dom0 to try.

Nothing here is the project's frontend. Waiting is for events and xenstore watches, with a watchdog.
"""
import itertools
import select
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from miniguest.deploy.children import Child
from miniguest.deploy.supervisor import Supervisor
from miniguest.frontend.pages import Pages
from miniguest.ring.abi.xenbus import XenbusState
from miniguest.ring.events import Events
from miniguest.ring.grants import Grants
from miniguest.ring.hypercalls import Hypercalls
from miniguest.ring.memory import Memory, domain_directory
from miniguest.ring.process import Process
from miniguest.ring.xenbus import read_state, write_keys
from miniguest.ring.xenstore import Xenstore

Key = str | int | bytes | None
WATCHDOG = 30.0                 # seconds; nothing here takes a thousandth of it
GTF_IN_USE = 0x18               # GTF_reading | GTF_writing
HEADER = 64                     # bytes before a ring's first slot
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
        backends = (f"/local/domain/0/backend/{kind}/{self.domid}" for kind in ("vbd", "vif"))
        for path in (*backends, f"/local/domain/{self.domid}"):
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


class Ring:
    """A shared ring of 2**order pages as bare bytes, the frontend's end; `slot` is a slot's size."""

    def __init__(self, domain: Domain, slot: int, order: int = 0) -> None:
        self.domain, self.slot = domain, slot
        self.frames = [domain.pages.alloc() for _ in range(1 << order)]
        self.grefs = [domain.grants.give(0, frame) for frame in self.frames]
        self.bytes = memoryview(domain.memory.side_by_side(self.frames))
        self.bytes[:HEADER] = bytes(HEADER)
        self.slots = 1 << ((len(self.bytes) - HEADER) // slot).bit_length() - 1
        self.set_index(req_event=1, rsp_event=1)
        self.req_prod = self.rsp_cons = 0

    @property
    def gref(self) -> int:
        """The first page's."""
        return self.grefs[0]

    def set_index(self, **values: int) -> None:
        for name, value in values.items():
            at = ("req_prod", "req_event", "rsp_prod", "rsp_event").index(name) * 4
            self.bytes[at : at + 4] = (value & 0xFFFFFFFF).to_bytes(4, "little")

    def index(self, name: str) -> int:
        at = ("req_prod", "req_event", "rsp_prod", "rsp_event").index(name) * 4
        return int.from_bytes(self.bytes[at : at + 4], "little")

    def put(self, slot: bytes) -> None:
        """Put a request at req_prod."""
        at = HEADER + self.req_prod % self.slots * self.slot
        self.bytes[at : at + len(slot)] = slot
        self.req_prod += 1

    def push(self) -> None:
        """Show what was put."""
        self.set_index(req_prod=self.req_prod)

    @property
    def ready(self) -> int:
        """Responses that are there and were not taken."""
        return (self.index("rsp_prod") - self.rsp_cons) & 0xFFFFFFFF

    def wait(self, count: int) -> None:
        """Until so many responses are there."""
        while self.ready < count:
            self.set_index(rsp_event=self.rsp_cons + count)
            if self.ready < count:
                self.domain.wait_for_event()

    def take(self, size: int) -> bytes:
        """The next response."""
        at = HEADER + self.rsp_cons % self.slots * self.slot
        self.rsp_cons += 1
        return bytes(self.bytes[at : at + size])

    def drop(self) -> None:
        """Take the pages back; fails when the backend has one mapped."""
        for gref, frame in zip(self.grefs, self.frames, strict=True):
            assert self.domain.grants.end(gref), "a ring page is still mapped"
            self.domain.pages.free(frame)


class Device(ABC):
    """A device: its nodes, both halves'."""

    def __init__(self, domain: Domain, kind: str, number: int) -> None:
        self.domain, self.store = domain, domain.store
        self.front = f"/local/domain/{domain.domid}/device/{kind}/{number}"
        self.back = f"/local/domain/0/backend/{kind}/{domain.domid}/{number}"

    def wait_state(self, *states: int) -> XenbusState:
        """Wait for the backend to be in one of these states."""
        wait_until(self.store, f"{self.back}/state", lambda: read_state(self.store, self.back) in states)
        return read_state(self.store, self.back)

    def wait_connected(self) -> None:
        """Wait for the backend to connect; fails with its reason when it does not want to."""
        assert self.wait_state(XenbusState.Connected, XenbusState.Closing) == XenbusState.Connected, self.error

    @property
    def state(self) -> int:
        return read_state(self.store, self.back)

    @property
    def error(self) -> str:
        return self.store.read_text(f"{self.back}/error")

    def switch(self, state: int) -> None:
        self.store.write(f"{self.front}/state", int(state))

    def write_front(self, offered: Mapping[str, Key], **changes: Key) -> None:
        """Write the frontend's keys; `changes` (dashes as underscores, a slash as __) replace some, None leaves out."""
        wanted: dict[str, Any] = {**offered}
        wanted |= {name.replace("__", "/").replace("_", "-"): value for name, value in changes.items()}
        write_keys(self.store, self.front, {name: value for name, value in wanted.items() if value is not None})

    @abstractmethod
    def connect(self) -> Any:
        """The whole handshake."""

    @abstractmethod
    def works(self) -> None:
        """Do something that only a backend that serves this device can answer."""


class World(ABC):
    """A running dom0 with a backend to try, domains that come and go, and some that stay and work all the time."""

    BACKEND: ClassVar[str]
    VCPU: ClassVar[int]             # of dom0, the backend's
    _canary: Device                 # its handshake shows that the backend has caught up

    def __init__(self, supervisor: Supervisor, runtime: Path) -> None:
        self.supervisor, self.runtime, self.store = supervisor, runtime, supervisor.store
        self._domains: list[Domain] = []
        self._lasting = 0           # how many of them stay

    @abstractmethod
    def main(self, process: Process) -> None:
        """The backend."""

    @abstractmethod
    def others_work(self) -> None:
        """Whoever stays is served."""

    @property
    def backend(self) -> Child:
        return [child for child in self.supervisor._children.all if child.name == self.BACKEND][-1]

    def start_backend(self) -> None:
        """Start one, once the hypervisor has buried the one before."""
        deadline = time.monotonic() + WATCHDOG
        while self.VCPU in self.supervisor._hypercalls.call("domain_info", domid=0)["vcpus"]:
            assert time.monotonic() < deadline, f"{self.BACKEND} is still registered"
        self.supervisor._spawn(self.BACKEND, 0, self.VCPU, self.main)

    def lives(self) -> None:
        """The backend has not died."""
        poll = select.poll()
        poll.register(self.backend.pidfd, select.POLLIN)
        assert not poll.poll(0), f"{self.BACKEND} died"

    def catch_up(self) -> None:
        """Return once the backend has seen whatever was written in xenstore before: it takes events in order."""
        for front, back in ((XenbusState.Closed, XenbusState.Closed), (XenbusState.Initialising, XenbusState.InitWait)):
            self._canary.switch(front)
            self._canary.wait_state(back)

    def is_disabled(self, device: Device, reason: str) -> None:
        """It is, for that reason, holds none of its domain's grants, and stays so whatever the frontend says; others work."""
        device.wait_state(XenbusState.Closing)
        assert reason in device.error
        assert device.domain.in_use == []
        for state in (XenbusState.Connected, XenbusState.Initialised):
            device.switch(state)
        self.catch_up()
        assert device.state == XenbusState.Closing
        assert device.domain.in_use == []
        self.others_work()

    def comes_back(self, device: Device) -> None:
        """The frontend closes, starts over honestly, and is served."""
        device.switch(XenbusState.Closed)
        device.wait_state(XenbusState.Closed)
        device.switch(XenbusState.Initialising)
        device.connect()
        device.works()
        assert not device.store.exists(f"{device.back}/error")

    def end_of_test(self) -> None:
        """The backend lives, everybody is still served, and the test's domains go."""
        self.lives()
        self.others_work()
        self.lives()
        self.destroy_domains(self._lasting)

    def destroy_domains(self, left: int = 0) -> None:
        """Destroy all but the first `left`."""
        while len(self._domains) > left:
            domain = self._domains.pop()
            if not domain.destroyed:
                domain.destroy()

    def close(self) -> None:
        self.destroy_domains()
