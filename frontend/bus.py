"""The mini-guest's device bus: ports and addresses to devices, device lines to interrupt lines, deadlines to timers.

Devices are registers and know none of this: after every access the wrapper here looks at their line and their deadline.
"""
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from miniguest.frontend.devices.device import Device, GuestMemory
from miniguest.ring.errors import HypercallError
from miniguest.ring.loop import Timer
from miniguest.ring.ranges import MEMORY, PORT

ONES: Final = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFFFFFF, 8: 0xFFFFFFFFFFFFFFFF}
log = logging.getLogger(__name__)


class Claims(Protocol):
    """Who is told what ranges this bus answers: the hypervisor, so that their exits come here.

    map: HypercallError when some of the range is another's. frame: the first frame that the guest reads there instead.
    """

    def map(self, kind: int, start: int, end: int, name: str, frame: int = 0) -> None: ...
    def unmap(self, kind: int, start: int, end: int) -> None: ...


class Timers(Protocol):
    """Who calls a device when its time comes: the loop, or StepTimers by the guest's own time."""

    def call_later(self, seconds: float, fn: Callable[[], None]) -> Timer: ...


@dataclass(slots=True, eq=False)
class Attached:
    """A device on the bus. `lines`: (interrupt line, its level now) for each line that it drives. `settled`: called after
    each access and change, for what the device does besides. `waiting`: whether a guest that reads could only learn that a
    disk has not answered yet."""

    name: str
    device: Device
    lines: tuple[tuple[int, Callable[[], bool]], ...] = ()
    deadline: Callable[[], int | None] | None = None
    tick: Callable[[], None] | None = None
    settled: Callable[[], None] | None = None
    waiting: Callable[[], bool] | None = None
    levels: list[bool] = field(default_factory=list)
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
        self._drivers: dict[int, set[object]] = {}

    def drive(self, line: int, driver: object, level: bool) -> None:
        """`driver` drives a line, or no longer does."""
        drivers = self._drivers.setdefault(line, set())
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
    device is read that waits for a disk; it may let time pass while `waiting()` is so."""

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
        attached = Attached(name, device, lines, deadline, tick, settled, waiting, [False] * len(lines))
        attached.inert = not lines and deadline is None and settled is None
        self._attached.append(attached)
        self._settle(attached)
        return attached

    def attach(self, kind: int, start: int, count: int, attached: Attached, window: Device | None = None, frame: int = 0) -> bool:
        """`attached` answers `count` ports or bytes from `start` on, through `window` when that is given.

        frame: where the guest may read the same without asking (see miniguest.ring.ranges).
        False when it cannot, for another device does: a guest may put a PCI function's range anywhere.
        """
        try:
            self._claims.map(kind, start, start + count - 1, attached.name, frame)
        except HypercallError as error:
            log.warning("%s", error)
            return False
        self._claimed.append((kind, start, count))
        device = window or attached.device
        if kind == PORT:
            self._ports.update((port, (start, attached, device)) for port in range(start, start + count))
        else:
            self._regions.append((start, start + count, attached, device))
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

    def read(self, kind: int, address: int, size: int) -> int:
        """`size` bytes; all ones where nothing answers."""
        found = self._ports.get(address) if kind == PORT else self._find(kind, address)
        if found is None:
            return ONES.get(size, 0)
        start, attached, device = found
        if attached.waiting is not None and attached.waiting():
            self._hold(attached.waiting)
        value = device.read(address - start, size)
        if not attached.inert:
            self._settle(attached)
        return value

    def write(self, kind: int, address: int, size: int, value: int) -> None:
        """Write `size` bytes; dropped where nothing answers."""
        found = self._find(kind, address)
        if found is not None:
            start, attached, device = found
            device.write(address - start, size, value)
            self._settle(attached)

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
        for index, (line, level) in enumerate(attached.lines):
            now = level()
            if now != attached.levels[index]:
                attached.levels[index] = now
                self._lines.drive(line, attached.name, now)
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
