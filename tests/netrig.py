"""A switch in this very process, with vifs whose domains are files and nothing else, and a clock that stands still."""
import itertools
from collections.abc import Callable
from pathlib import Path

from netpeer import NULL, Queue, Received

from miniguest.frontend.pages import Pages
from miniguest.ring import _core
from miniguest.ring.grants import GRANT_ENTRIES, TRACK_ENTRIES, Grants
from miniguest.ring.memory import Memory
from miniguest.ring.statistics import VIF_FIELDS
from miniguest.ring.words import map_words

SECOND = 1_000_000_000


class FakePort:
    """An event channel whose other end is a function."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.handler: Callable[[], None] = lambda: None

    def notify(self) -> None:
        self.handler()

    def close(self) -> None:
        self.handler = lambda: None


class FakeDomain:
    """A domain's memory and grants. Waiting for an event is letting the switch run."""

    def __init__(self, rig: "Rig", directory: Path, domid: int, memory: int = 8 << 20) -> None:
        self.rig, self.domid = rig, domid
        self.memory = Memory.create(directory / f"memory{domid}", memory // 4096)
        self.pages, self.grants = Pages(self.memory), Grants(self.memory)
        pins = map_words(directory / f"pins{domid}", GRANT_ENTRIES, create=True)
        self.table = _core.GrantTable(self.memory.grant_entries, pins, self.memory.nr_frames, domid)
        self.events = self
        self._ports = itertools.count(1)

    def alloc_unbound(self, _: int) -> FakePort:
        return FakePort(next(self._ports))

    def wait_for_event(self) -> None:
        notified = self.rig.notified
        assert self.rig.run() or self.rig.notified > notified, "nothing will ever happen"

    @property
    def in_use(self) -> list[int]:
        entries = self.memory.grant_entries
        return [at // 8 for at in range(0, len(entries), 8) if entries[at] & 0x18]


class RigVif:
    """A vif of the rig: the backend's half, which is what is tested, and a frontend's rings."""

    def __init__(self, rig: "Rig", number: int, queues: int, **features: bool) -> None:
        self.rig, self.number = rig, number
        self.mac = b"\x00\x16\x3e\x00\x01" + bytes([number])
        self.domain = FakeDomain(rig, rig.directory, number)
        self.counters = bytearray(8 * len(VIF_FIELDS))
        self.vif = _core.Vif(rig.mapper, self.domain.table, self.domain.memory.map, self.counters)
        self.vif.sg = self.vif.rx_notify = True
        for name, value in features.items():
            setattr(self.vif, name, value)
        self.queues = [self._queue() for _ in range(queues)]
        self.port = rig.switch.attach(self.vif)

    def _queue(self) -> Queue:
        queue = Queue(self.domain, True)                    # type: ignore[arg-type]
        tx, rx = _core.BackRing(queue.tx.bytes, 12, 4), _core.BackRing(queue.rx.bytes, 8, 8)
        mine = self.vif.add_queue(tx, rx, self.rig.notice, self.rig.notice)
        queue.tx_port.handler = lambda: self.rig.switch.tx_event(mine)      # type: ignore[attr-defined]
        queue.rx_port.handler = lambda: self.rig.switch.rx_event(mine)      # type: ignore[attr-defined]
        return queue

    @property
    def q(self) -> Queue:
        return self.queues[0]

    @property
    def back(self) -> _core.VifQueue:
        return self.vif.queues[0]

    @property
    def statistics(self) -> dict[str, int]:
        return {name: int.from_bytes(self.counters[8 * i : 8 * i + 8], "little") for i, name in enumerate(VIF_FIELDS)}

    def frame(self, to: "RigVif | bytes", body: bytes = b"", size: int = 60) -> bytes:
        target = to if isinstance(to, bytes) else to.mac
        return (target + self.mac + b"\x88\xb5" + body).ljust(size, b"\0")

    def announce(self) -> None:
        assert self.q.send(self.frame(self.mac)) == 0

    def put(self, frame: bytes, flags: int = 0, extras: list[bytes] | None = None) -> None:
        """Put a frame into the transmit ring without waiting for anything."""
        self.q.put(*self.q.slots_of(frame, flags, extras))

    def sent(self) -> list[int]:
        """The statuses of the transmit responses that are there."""
        return [status for status in self.q.statuses(self.q.tx.ready) if status != NULL]

    def received(self, queue: int = 0) -> list[Received]:
        """The frames that are there."""
        found = []
        while self.queues[queue].rx.ready:
            found.append(self.queues[queue].receive())
        return found


class Rig:
    """A switch and its vifs. `now` is in ns and moves only when told to."""

    def __init__(self, directory: Path, uplink: _core.Uplink | None = None, capture: _core.PcapWriter | None = None) -> None:
        self.directory = directory
        self.now = 1000 * SECOND
        self.notified = 0
        self.uplink = uplink
        self.switch = _core.Switch(uplink, capture)
        self.mapper = _core.Mapper(bytearray(TRACK_ENTRIES * 8), 0, 7)
        self.vifs: list[RigVif] = []

    def vif(self, queues: int = 1, **features: bool) -> RigVif:
        self.vifs.append(RigVif(self, len(self.vifs) + 1, queues, **features))
        return self.vifs[-1]

    def notice(self) -> None:
        """A frontend was notified."""
        self.notified += 1

    def run(self) -> bool:
        """One run of the switch; whether it wants another at once."""
        return self.switch.run(self.now)

    def settle(self) -> None:
        """Run until nothing more happens at this time."""
        for _ in range(10_000):
            if not self.run():
                return
        raise AssertionError("the switch never comes to rest")

    def pass_time(self, seconds: float) -> None:
        """Let time go by, calling the switch whenever it asked to be."""
        end = self.now + int(seconds * SECOND)
        while 0 <= self.switch.deadline <= end:
            assert self.switch.deadline > self.now, "a deadline that has passed"
            self.now = self.switch.deadline
            self.settle()
        self.now = end
        self.settle()

    def check_idle(self) -> None:
        """Nothing is mapped any more."""
        assert self.mapper.mapped == 0
