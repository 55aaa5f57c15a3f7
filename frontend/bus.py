"""The mini-guest's device bus: ports and addresses to devices, device lines to interrupt lines, deadlines to timers.

Devices are registers and know none of this: after every access the wrapper here looks at their line and their deadline.
"""
import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from miniguest.frontend.devices.device import Device, GuestMemory, reader_of, writer_of
from miniguest.ring.errors import HypercallError
from miniguest.ring.loop import Timer
from miniguest.ring.ranges import MEMORY, PORT

ONES: Final = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFFFFFF, 8: 0xFFFFFFFFFFFFFFFF}
MOST_KNOWN: Final = 8192                # accesses whose way is remembered: a guest chooses how many there are
log = logging.getLogger(__name__)


Reader = Callable[[], int]
Writer = Callable[[int], None]


def access_key(kind: int, address: int, size: int) -> int:
    """One access of `size` bytes, 1 to 8, as a key of Bus.readers and Bus.writers, and of _core.IoreqServer's."""
    return address << 5 | kind << 4 | size


class Claims(Protocol):
    """Who is told what ranges this bus answers: the hypervisor, so that their exits come here.

    map: HypercallError when some of the range is another's. frame: the first frame that the guest reads there instead.
    buffered: the guest does not wait for its writes there.
    """

    def map(self, kind: int, start: int, end: int, name: str, frame: int = 0, buffered: bool = False) -> None: ...
    def unmap(self, kind: int, start: int, end: int) -> None: ...


class Timers(Protocol):
    """Who calls a device when its time comes: the loop, or StepTimers by the guest's own time."""

    def call_later(self, seconds: float, fn: Callable[[], None]) -> Timer: ...


@dataclass(slots=True, eq=False)
class Line:
    """An interrupt line that a device drives. level(): what it is now; up: what the others were told."""

    number: int
    level: Callable[[], bool]
    up: bool = False


@dataclass(slots=True, eq=False)
class Attached:
    """A device on the bus. `settled`: called after each access and change, for what the device does besides. `waiting`:
    whether a guest that reads could only learn that a disk has not answered yet."""

    name: str
    device: Device
    lines: tuple[Line, ...] = ()
    deadline: Callable[[], int | None] | None = None
    tick: Callable[[], None] | None = None
    settled: Callable[[], None] | None = None
    waiting: Callable[[], bool] | None = None
    inert: bool = False                 # nothing is to be looked at after an access
    gone: bool = False                  # it was on the bus before a reset
    timer: Timer | None = None
    due: int | None = None


class InterruptLines:
    """Interrupt lines that several devices may share: a line is up while any of them drives it.

    set_line(line, level): called when a line changes.
    """

    def __init__(self, set_line: Callable[[int, bool], None]) -> None:
        self._set_line = set_line
        self._drivers: defaultdict[int, set[object]] = defaultdict(set)

    def drive(self, line: int, driver: object, level: bool) -> None:
        """`driver` drives a line, or no longer does."""
        drivers = self._drivers[line]
        before = bool(drivers)
        if level:
            drivers.add(driver)
        else:
            drivers.discard(driver)
        if before != bool(drivers):
            self._set_line(line, bool(drivers))

    def clear(self) -> None:
        """Nobody drives any line."""
        for line, drivers in self._drivers.items():
            if drivers:
                drivers.clear()
                self._set_line(line, False)


class Bus:
    """Dispatches accesses to the devices attached. clock: nanoseconds, the devices' own. hold(waiting): called before a
    device is read that waits for a disk; it may let time pass while `waiting()` is so.

    `readers` and `writers` are the accesses that took place since a range changed, by `access_key`: whoever finds one there
    may call it instead of `read` or `write`.
    """

    def __init__(
        self, claims: Claims, lines: InterruptLines, memory: GuestMemory, timers: Timers, clock: Callable[[], int],
        hold: Callable[[Callable[[], bool]], None] = lambda waiting: None,
    ) -> None:
        self._claims = claims
        self._lines = lines
        self._memory = memory
        self._timers = timers
        self._clock = clock
        self._hold = hold
        self.readers: dict[int, Reader] = {}
        self.writers: dict[int, Writer] = {}
        self._ports: dict[int, tuple[int, Attached, Device]] = {}
        self._regions: list[tuple[int, int, Attached, Device]] = []
        self._claimed: list[tuple[int, int, int]] = []
        self._attached: list[Attached] = []

    def add(
        self, name: str, device: Device, *lines: tuple[int, Callable[[], bool]],
        deadline: Callable[[], int | None] | None = None, tick: Callable[[], None] | None = None,
        settled: Callable[[], None] | None = None, waiting: Callable[[], bool] | None = None,
    ) -> Attached:
        """A device with its interrupt lines and its clockwork; where it answers is said by `attach`."""
        driven = tuple(Line(number, level) for number, level in lines)
        attached = Attached(name, device, driven, deadline, tick, settled, waiting)
        attached.inert = not lines and deadline is None and settled is None
        self._attached.append(attached)
        self._settle(attached)
        return attached

    def attach(
        self, kind: int, start: int, count: int, attached: Attached, window: Device | None = None, frame: int = 0,
        buffered: bool = False,
    ) -> bool:
        """`attached` answers `count` ports or bytes from `start` on, through `window` when that is given.

        frame: where the guest may read the same without asking; buffered: it does not wait for its writes (see
        miniguest.ring.ranges).
        False when it cannot, for another device does: a guest may put a PCI function's range anywhere.
        """
        try:
            self._claims.map(kind, start, start + count - 1, attached.name, frame, buffered)
        except HypercallError as error:
            log.warning("%s", error)
            return False
        self._claimed.append((kind, start, count))
        device = window or attached.device
        if kind == PORT:
            self._ports.update((port, (start, attached, device)) for port in range(start, start + count))
        else:
            self._regions.append((start, start + count, attached, device))
        self._forget()
        return True

    def detach(self, kind: int, start: int, count: int) -> None:
        """Nobody answers there any more."""
        self._claims.unmap(kind, start, start + count - 1)
        self._claimed.remove((kind, start, count))
        if kind == PORT:
            for port in range(start, start + count):
                self._ports.pop(port, None)
        else:
            self._regions[:] = [item for item in self._regions if item[:2] != (start, start + count)]
        self._forget()

    def clear(self) -> None:
        """Every device off the bus, as when the machine is reset and made anew."""
        for kind, start, count in list(self._claimed):
            self.detach(kind, start, count)
        for attached in self._attached:
            attached.gone = True
            if attached.timer:
                attached.timer.cancel()
        self._attached.clear()
        self._lines.clear()

    def changed(self, attached: Attached) -> None:
        """A device changed state on its own."""
        self._settle(attached)

    # -- accesses
    def _find(self, kind: int, address: int) -> tuple[int, Attached, Device] | None:
        if kind == PORT:
            return self._ports.get(address)
        for start, end, attached, device in self._regions:
            if start <= address < end:
                return start, attached, device
        return None

    def _forget(self) -> None:
        self.readers.clear()
        self.writers.clear()

    def read(self, kind: int, address: int, size: int) -> int:
        """`size` bytes; all ones where nothing answers."""
        key = access_key(kind, address, size)
        reader = self.readers.get(key)
        if reader is None:
            if len(self.readers) == MOST_KNOWN:
                self.readers.clear()
            reader = self.readers[key] = self._make_reader(kind, address, size)
        return reader()

    def write(self, kind: int, address: int, size: int, value: int) -> None:
        """Write the low `size` bytes of `value`; dropped where nothing answers."""
        key = access_key(kind, address, size)
        writer = self.writers.get(key)
        if writer is None:
            if len(self.writers) == MOST_KNOWN:
                self.writers.clear()
            writer = self.writers[key] = self._make_writer(kind, address, size)
        writer(value)

    def _make_reader(self, kind: int, address: int, size: int) -> Reader:
        found = self._find(kind, address)
        if found is None:
            ones = ONES.get(size, 0)
            return lambda: ones
        start, attached, device = found
        read, settle, waiting = reader_of(device, address - start, size), self._settle, attached.waiting
        if attached.inert and waiting is None:
            return read

        def read_and_settle() -> int:
            if waiting is not None and waiting():
                self._hold(waiting)
            value = read()
            settle(attached)
            return value

        return read_and_settle

    def _make_writer(self, kind: int, address: int, size: int) -> Writer:
        found = self._find(kind, address)
        if found is None:
            return lambda value: None
        start, attached, device = found
        write, settle = writer_of(device, address - start, size), self._settle
        if attached.inert:
            return write

        def write_and_settle(value: int) -> None:
            write(value)
            settle(attached)

        return write_and_settle

    def read_string(self, port: int, size: int, count: int, gpa: int) -> None:
        """`count` elements from a port into guest memory at `gpa`."""
        found = self._find(PORT, port)
        if found is None:
            self._memory.write(gpa, b"\xff" * (size * count))
            return
        start, attached, device = found
        block = getattr(device, "read_string", None)
        if block:
            data = block(port - start, size, count)
        else:
            data = b"".join(device.read(port - start, size).to_bytes(size, "little") for _ in range(count))
        self._memory.write(gpa, data)
        self._settle(attached)

    def write_string(self, port: int, size: int, count: int, gpa: int) -> None:
        """`count` elements from guest memory at `gpa` to a port."""
        found = self._find(PORT, port)
        if found is None:
            return
        start, attached, device = found
        data = self._memory.read(gpa, size * count)
        block = getattr(device, "write_string", None)
        if block:
            block(port - start, size, data)
        else:
            for index in range(0, len(data), size):
                device.write(port - start, size, int.from_bytes(data[index : index + size], "little"))
        self._settle(attached)

    # -- lines and deadlines
    def _settle(self, attached: Attached) -> None:
        if attached.gone:
            return
        for line in attached.lines:
            if line.level() != line.up:
                line.up = not line.up
                self._lines.drive(line.number, attached.name, line.up)
        if attached.settled:
            attached.settled()
        if attached.deadline is None:
            return
        due = attached.deadline()
        if due != attached.due:
            attached.due = due
            if attached.timer:
                attached.timer.cancel()
            attached.timer = None
            if due is not None:
                delay = max(0.0, (due - self._clock()) / 1e9)
                attached.timer = self._timers.call_later(delay, lambda: self._tick(attached))

    def _tick(self, attached: Attached) -> None:
        attached.due = attached.timer = None
        if attached.tick:
            attached.tick()
        self._settle(attached)


__all__ = ["MEMORY", "PORT", "Attached", "Bus", "Claims", "InterruptLines"]
