"""The mini-guest's bus: dispatch, shared lines, timers, and devices that come and go."""
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from miniguest.frontend.bus import MEMORY, MOST_KNOWN, PORT, Attached, Bus, InterruptLines, access_key
from miniguest.frontend.devices.device import Model, Window, reader_of, writer_of
from miniguest.frontend.devices.regmap import RegMap
from miniguest.ring.errors import HypercallError


@dataclass
class Register:
    """A device of one register at every offset, that keeps a list of what was done to it."""

    value: int = 0x5A
    seen: list[tuple[object, ...]] = field(default_factory=list)
    level: bool = False
    due: int | None = None
    ticks: int = 0

    def read(self, offset: int, size: int) -> int:
        self.seen.append(("read", offset, size))
        self.value += 1
        return self.value & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        self.seen.append(("write", offset, size, value))
        self.level = bool(value & 1)

    def tick(self) -> None:
        self.ticks += 1
        self.due = None


class Block(Register):
    """With a data port."""

    def read_string(self, offset: int, size: int, count: int) -> bytes:
        self.seen.append(("read_string", offset, size, count))
        return b"\x11" * (size * count)

    def write_string(self, offset: int, size: int, data: bytes) -> None:
        self.seen.append(("write_string", offset, size, data))


class Timer:
    def __init__(self, delay: float, fn: Callable[[], None]) -> None:
        self.delay, self.fn, self.cancelled = delay, fn, False

    def cancel(self) -> None:
        self.cancelled = True


class World:
    """What a bus is between: the hypervisor, the lines, the guest's memory, the loop and a clock, all by hand."""

    def __init__(self) -> None:
        self.claimed: list[tuple[int, int, int]] = []
        self.changes: list[tuple[int, bool]] = []
        self.memory = bytearray(256)
        self.timers: list[Timer] = []
        self.now = 1_000_000_000
        self.lines = InterruptLines(lambda line, level: self.changes.append((line, level)))
        self.bus = Bus(self, self.lines, self, self, lambda: self.now)      # type: ignore[arg-type]

    def map(self, kind: int, start: int, end: int, name: str, frame: int = 0, buffered: bool = False) -> None:
        if any(k == kind and start <= e and s <= end for k, s, e in self.claimed):
            raise HypercallError("EEXIST", "claimed")
        self.claimed.append((kind, start, end))

    def unmap(self, kind: int, start: int, end: int) -> None:
        self.claimed.remove((kind, start, end))

    def read(self, gpa: int, size: int) -> bytes:
        return bytes(self.memory[gpa : gpa + size])

    def write(self, gpa: int, data: bytes | memoryview) -> None:
        self.memory[gpa : gpa + len(data)] = data

    def call_later(self, seconds: float, fn: Callable[[], None]) -> Timer:
        self.timers.append(Timer(seconds, fn))
        return self.timers[-1]

    def add(self, name: str, device: Register, *lines: int, clockwork: bool = False) -> Attached:
        wired = tuple((line, lambda: device.level) for line in lines)
        if clockwork:
            return self.bus.add(name, device, *wired, deadline=lambda: device.due, tick=device.tick)
        return self.bus.add(name, device, *wired)

    @property
    def armed(self) -> list[Timer]:
        return [timer for timer in self.timers if not timer.cancelled]


@pytest.fixture
def world() -> World:
    return World()


def test_accesses_reach_the_device_with_its_own_offsets(world: World) -> None:
    ports, registers, window = Register(), Register(), Register(value=7)
    attached = world.add("a", ports)
    world.bus.attach(PORT, 0x10, 4, attached)
    world.bus.attach(PORT, 0x80, 1, attached, window)
    world.bus.attach(MEMORY, 0xFEB00000, 0x100, world.add("b", registers))
    assert world.bus.read(PORT, 0x13, 2) == 0x5B
    world.bus.write(PORT, 0x10, 4, 0x12345678)
    assert world.bus.read(PORT, 0x80, 1) == 8
    world.bus.write(MEMORY, 0xFEB000FC, 8, 1)
    assert ports.seen == [("read", 3, 2), ("write", 0, 4, 0x12345678)]
    assert (window.seen, registers.seen) == ([("read", 0, 1)], [("write", 0xFC, 8, 1)])


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_what_nobody_claims_reads_ones_and_drops_writes(world: World, size: int) -> None:
    world.bus.attach(MEMORY, 0x1000, 0x10, world.add("a", Register()))
    for address in (0xFFF, 0x1010, 0, 1 << 63, -8):
        assert world.bus.read(MEMORY, address, size) == (1 << 8 * size) - 1
        world.bus.write(MEMORY, address, size, 0)
    assert world.bus.read(PORT, 0x1000, size) == (1 << 8 * size) - 1


def test_strings_without_block_access_go_element_by_element(world: World) -> None:
    device = Register(value=0)
    world.bus.attach(PORT, 0x10, 4, world.add("a", device))
    world.bus.read_string(0x11, 2, 3, 0x20)
    assert world.memory[0x20:0x28] == b"\1\0\2\0\3\0\0\0"
    world.memory[0x40:0x46] = b"abcdef"
    world.bus.write_string(0x12, 2, 3, 0x40)
    written = [("write", 2, 2, int.from_bytes(pair, "little")) for pair in (b"ab", b"cd", b"ef")]
    assert device.seen == [("read", 1, 2)] * 3 + written


def test_strings_of_a_data_port_and_of_nobody(world: World) -> None:
    device = Block()
    world.bus.attach(PORT, 0x10, 4, world.add("a", device))
    world.bus.read_string(0x11, 2, 3, 0x20)
    world.bus.write_string(0x10, 4, 2, 0x20)
    assert device.seen == [("read_string", 1, 2, 3), ("write_string", 0, 4, b"\x11" * 6 + b"\0\0")]
    world.bus.read_string(0x99, 2, 3, 0x80)
    world.bus.write_string(0x99, 2, 3, 0x80)
    assert world.memory[0x80:0x87] == b"\xff" * 6 + b"\0"


# -- lines
def test_a_line_is_up_while_any_device_drives_it(world: World) -> None:
    one, two = Register(), Register()
    world.bus.attach(PORT, 0x10, 1, world.add("one", one, 5))
    world.bus.attach(PORT, 0x20, 1, world.add("two", two, 5, 6))
    for port, value in ((0x10, 1), (0x20, 1), (0x10, 0), (0x10, 0), (0x20, 0)):
        world.bus.write(PORT, port, 1, value)
    assert world.changes == [(5, True), (6, True), (5, False), (6, False)]


def test_a_device_that_changes_on_its_own(world: World) -> None:
    device = Register()
    attached = world.add("a", device, 4)
    device.level = True
    world.bus.changed(attached)
    world.bus.changed(attached)
    assert world.changes == [(4, True)]


# -- clockwork
def test_timers_follow_the_devices_deadline(world: World) -> None:
    device = Register()
    attached = world.add("a", device, clockwork=True)
    assert world.armed == []
    device.due = world.now + 2_000_000_000
    world.bus.changed(attached)
    world.bus.changed(attached)                 # the same deadline arms nothing anew
    assert [timer.delay for timer in world.timers] == [2.0]
    device.due = world.now + 500_000_000
    world.bus.changed(attached)
    assert [timer.delay for timer in world.armed] == [0.5]
    device.due = None
    world.bus.changed(attached)
    assert world.armed == []
    device.due = world.now - 5
    world.bus.changed(attached)
    assert [timer.delay for timer in world.armed] == [0.0]


def test_a_timer_that_comes_early_is_armed_again(world: World) -> None:
    device = Register(due=world.now + 10)
    device.tick = lambda: None                  # type: ignore[method-assign]
    world.add("a", device, clockwork=True)
    first = world.armed[0]
    first.fn()
    assert len(world.timers) == 2


def test_a_tick_settles_the_line(world: World) -> None:
    device = Register(due=world.now)
    attached = world.add("a", device, 8, clockwork=True)
    device.level = True
    world.armed[0].fn()
    assert (device.ticks, world.changes, attached.due) == (1, [(8, True)], None)


# -- coming and going
def test_detached_ranges_answer_no_more(world: World) -> None:
    attached = world.add("a", Register())
    world.bus.attach(PORT, 0x10, 4, attached)
    world.bus.attach(MEMORY, 0x10, 4, attached)
    world.bus.detach(PORT, 0x10, 4)
    assert (world.bus.read(PORT, 0x10, 1), world.bus.read(MEMORY, 0x10, 1)) == (0xFF, 0x5B)
    world.bus.detach(MEMORY, 0x10, 4)
    assert world.claimed == []


def test_a_range_that_is_another_devices_stays_so(world: World) -> None:
    mine, other = Register(value=1), Register(value=0x10)
    assert world.bus.attach(PORT, 0x1F0, 8, world.add("mine", mine))
    assert not world.bus.attach(PORT, 0x1F7, 8, world.add("other", other))
    assert world.bus.read(PORT, 0x1F7, 1) == 2
    assert world.bus.read(PORT, 0x1F8, 1) == 0xFF
    world.bus.clear()
    assert world.claimed == []


def test_clear_lets_go_of_everything(world: World) -> None:
    device = Register(due=world.now + 9, level=True)
    attached = world.add("a", device, 3, clockwork=True)
    world.bus.attach(PORT, 0x10, 4, attached)
    world.lines.drive(11, "pci", True)
    world.bus.clear()
    assert (world.claimed, world.armed) == ([], [])
    assert world.changes == [(3, True), (11, True), (3, False), (11, False)]
    world.bus.changed(attached)                 # a completion that comes too late
    assert (world.changes[4:], world.armed) == ([], [])
    again = Register()
    world.bus.attach(PORT, 0x10, 4, world.add("a", again, 3))
    assert world.bus.read(PORT, 0x10, 1) == 0x5B


class Scratch(Model):
    """Two registers, of two bytes and of one."""

    regs = RegMap(size=4)

    def __init__(self) -> None:
        self.words = [0x1234, 0x56]

    @regs.read(0, "WORD", 2)
    def read_word(self) -> int:
        return self.words[0]

    @regs.write(0, "WORD", 2)
    def write_word(self, value: int) -> None:
        self.words[0] = value

    @regs.read(2, "BYTES", 1, count=2)
    def read_byte(self, index: int) -> int:
        return self.words[1] + index

    @regs.write(2, "BYTES", 1, count=2)
    def write_byte(self, index: int, value: int) -> None:
        self.words[1] = value - index & 0xFF


class Strange(Scratch):
    """One that has its own way to be read and written."""

    def read(self, offset: int, size: int) -> int:
        return offset * 16 + size

    def write(self, offset: int, size: int, value: int) -> None:
        self.words = [offset, value]


@pytest.mark.parametrize("make", [Scratch, Strange, lambda: Window(Scratch(), 1, 2), lambda: Window(Strange(), 0, 4)])
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("offset", [-1, 0, 1, 2, 3, 4])
def test_the_short_way_to_a_register_does_what_the_long_one_does(
    make: Callable[[], Scratch | Window], size: int, offset: int
) -> None:
    long, short = make(), make()
    assert reader_of(short, offset, size)() == long.read(offset, size)
    value = 0x89ABCDEF & (1 << 8 * size) - 1
    long.write(offset, size, value)
    writer_of(short, offset, size)(value)
    words = [each.words if isinstance(each, Scratch) else each.model.words for each in (long, short)]  # type: ignore[attr-defined]
    assert words[0] == words[1]


def test_who_answers_is_asked_for_anew_when_ranges_change(world: World) -> None:
    first, second = Register(), Register(value=0x10)
    a, b = world.add("a", first), world.add("b", second)
    key = access_key(PORT, 0x10, 1)
    world.bus.attach(PORT, 0x10, 1, a)
    assert world.bus.read(PORT, 0x10, 1) == 0x5B and world.bus.readers[key]() == 0x5C
    world.bus.write(PORT, 0x10, 1, 0)
    world.bus.detach(PORT, 0x10, 1)
    assert not world.bus.readers and not world.bus.writers
    assert world.bus.read(PORT, 0x10, 1) == 0xFF
    world.bus.attach(PORT, 0x10, 1, b)
    assert world.bus.read(PORT, 0x10, 1) == 0x11
    world.bus.clear()
    assert world.bus.read(PORT, 0x10, 1) == 0xFF
    assert len(first.seen) == 3


def test_a_guest_that_reads_everywhere_is_not_remembered_for_ever(world: World) -> None:
    for address in range(MOST_KNOWN + 10):
        world.bus.read(MEMORY, address, 1)
        world.bus.write(MEMORY, address, 1, 0)
    assert len(world.bus.readers) == len(world.bus.writers) == 10
