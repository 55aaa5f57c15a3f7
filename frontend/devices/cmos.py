"""MC146818 real-time clock and its RAM (Motorola MC146818 datasheet), ports 0x70 and 0x71.

The guest's time is the wall clock plus an offset that the guest sets; nothing runs. An update lasts until the second
turns, and UIP is set for the 2.2 ms before (244 us of warning and 1,984 us of update).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from miniguest.frontend.devices import rtc_time
from miniguest.frontend.devices.device import Clock, Model, WallClock
from miniguest.frontend.devices.regmap import RegMap

A, B, C, D = 0x0A, 0x0B, 0x0C, 0x0D
B_SET, B_PIE, B_AIE, B_UIE = 0x80, 0x40, 0x20, 0x10
C_IRQF, C_PF, C_AF, C_UF = 0x80, 0x40, 0x20, 0x10
UPDATE = 0.002228  # seconds that UIP is set
TIME = frozenset(rtc_time.FIELDS)


class Cmos(Model):
    """The clock and 128 bytes of RAM. `ram` gives initial contents by index (see `cmos_map`)."""

    regs = RegMap(size=2)

    @dataclass(slots=True)
    class State:
        KIND: ClassVar = ("mc146818", 1)
        index: int = 0
        ram: bytearray = field(default_factory=lambda: bytearray(128))
        offset: int = 0  # seconds that the guest's time is ahead of the wall clock
        weekday_shift: int = 0
        frozen: bytearray = field(default_factory=bytearray)  # the time registers while SET stops the clock
        flags: int = 0  # PF, AF and UF
        second: int = 0  # the guest's second up to which updates were noticed
        phase: int = 0  # ns at which the periodic divider began
        periods: int = 0  # periods noticed since
        now: int = 0  # the clock when saved

    state: State

    def __init__(self, clock: Clock, wall: WallClock, ram: dict[int, int] | None = None) -> None:
        self.clock = clock
        self.wall = wall
        self.state = self.State(second=int(wall()), phase=clock())
        self.state.ram[A], self.state.ram[B] = 0x26, rtc_time.MODE_24H
        for index, value in (ram or {}).items():
            self.state.ram[index] = value

    def irq(self) -> bool:
        """IRQ 8: a flag is set whose enable bit is."""
        return bool(self.state.flags & self.state.ram[B] & 0x70)

    def deadline(self) -> int | None:
        """When the next enabled interrupt comes, in ns, or None."""
        s, enables = self.state, self.state.ram[B]
        due: list[int] = []
        if enables & B_PIE and not s.flags & C_PF and (period := self._period()):
            due.append(s.phase - (-(s.periods + 1) * period // 32768))  # rounded up: not before it is due
        if self._running():
            if enables & B_UIE and not s.flags & C_UF:
                due.append(self._when(s.second + 1))
            if enables & B_AIE and not s.flags & C_AF and (wait := self._alarm(s.second)):
                due.append(self._when(s.second + wait))
        return min(due, default=None)

    def tick(self) -> None:
        """Set the flags of what has happened by now."""
        self._advance()

    # Inside

    def _running(self) -> bool:
        """The clock stops while SET is on or the divider is held in reset."""
        return not self.state.ram[B] & B_SET and self.state.ram[A] & 0x60 != 0x60

    def _seconds(self) -> int:
        return int(self.wall()) + self.state.offset

    def _when(self, second: int) -> int:
        """The clock's ns at which the guest's time reaches a second."""
        return self.clock() + max(int((second - self.state.offset - self.wall()) * 1e9) + 1, 0)

    def _alarm(self, second: int) -> int | None:
        ram = self.state.ram
        return rtc_time.next_match((ram[1], ram[3], ram[5]), second, ram[B])

    def _period(self) -> int:
        """The periodic interrupt's period in units of ns / 32768 (so that none is rounded), or 0 for none."""
        rate = self.state.ram[A] & 15
        if not rate:
            return 0
        return 1_000_000_000 << (rate + 6 if rate < 3 else rate - 1)

    def _advance(self) -> None:
        s = self.state
        period = self._period()
        if period:
            periods = (self.clock() - s.phase) * 32768 // period
            if periods > s.periods:
                s.periods = periods
                s.flags |= C_PF
        if self._running():
            self._advance_seconds()

    def _advance_seconds(self) -> None:
        s = self.state
        second = self._seconds()
        if second > s.second:
            s.flags |= C_UF
            wait = self._alarm(s.second)
            if wait is not None and s.second + wait <= second:
                s.flags |= C_AF
        s.second = second

    def _times(self) -> dict[int, int]:
        """The time registers as they read now."""
        s = self.state
        if s.frozen:
            return dict(zip(rtc_time.FIELDS, s.frozen, strict=True))
        return rtc_time.to_registers(self._seconds(), s.weekday_shift, s.ram[B])

    def _set_times(self, times: dict[int, int]) -> None:
        s = self.state
        if s.frozen:
            s.frozen = bytearray(times[index] for index in rtc_time.FIELDS)
            return
        seconds, s.weekday_shift = rtc_time.from_registers(times, s.ram[B])
        s.offset = seconds - int(self.wall())
        s.second = seconds

    def _write_control(self, index: int, value: int) -> None:
        """Registers A and B may stop the clock, start it, or change how it reads."""
        s = self.state
        times = self._times()
        if index == A:
            if (value ^ s.ram[A]) & 15:
                s.phase, s.periods = self.clock(), 0
            s.ram[A] = value & 0x7F
        else:
            s.ram[B] = value & ~B_UIE if value & B_SET else value
        if not self._running():
            s.frozen = bytearray(times[each] for each in rtc_time.FIELDS)
        elif s.frozen:
            s.frozen = bytearray()
            self._set_times(times)

    # Registers

    @regs.write(0, "INDEX")
    def write_index(self, value: int) -> None:
        self.state.index = value & 0x7F  # bit 7 masks NMI, of which there is none

    @regs.read(1, "DATA")
    def read_data(self) -> int:
        s, index = self.state, self.state.index
        if index > D and index != rtc_time.CENTURY:
            return s.ram[index]
        self._advance()
        if index in TIME:
            return self._times()[index]
        if index == A:
            return s.ram[A] | (0x80 if self._updating() else 0)
        if index == C:
            value = s.flags | (C_IRQF if self.irq() else 0)
            s.flags = 0
            return value
        return 0x80 if index == D else s.ram[index]  # D: valid RAM and time

    @regs.write(1, "DATA")
    def write_data(self, value: int) -> None:
        index = self.state.index
        self._advance()
        if index in TIME:
            self._set_times({**self._times(), index: value})
        elif index in (A, B):
            self._write_control(index, value)
        elif index not in (C, D):
            self.state.ram[index] = value

    def _updating(self) -> bool:
        return self._running() and self.wall() % 1 > 1 - UPDATE

    def saving(self) -> None:
        self._advance()
        self.state.now = self.clock()

    def restored(self) -> None:
        """The wall clock is the same everywhere; only the periodic divider moves to this clock."""
        if len(self.state.ram) != 128 or len(self.state.frozen) not in (0, len(rtc_time.FIELDS)):
            self.state.ram = self.state.ram[:128].ljust(128, b"\0")
            self.state.frozen = bytearray()
        self.state.phase += self.clock() - self.state.now


def cmos_map(memory_bytes: int, vcpus: int = 1, boot: str = "cdn") -> dict[int, int]:
    """The CMOS bytes by which SeaBIOS learns about the machine.

    `boot` is the order of a (floppy), c (hard disk), d (CD-ROM) and n (network), three at most. RAM beyond 3 GiB is
    taken to continue at 4 GiB.
    """
    low = min(memory_bytes, 3 << 30)
    extended = min(max((low >> 10) - 1024, 0), 0xFFFF)  # KiB above 1 MiB
    above_16m = min(max(low - (16 << 20), 0) >> 16, 0xFFFF)  # 64 KiB above 16 MiB
    above_4g = max(memory_bytes - low, 0) >> 16
    devices = [{"a": 1, "c": 2, "d": 3, "n": 4}[letter] for letter in boot[:3]] + [0, 0, 0]
    ram = {0x14: 0x06}  # FPU and PS/2 mouse present
    ram |= {0x15: 640 & 0xFF, 0x16: 640 >> 8}
    ram |= {0x17: extended & 0xFF, 0x18: extended >> 8, 0x30: extended & 0xFF, 0x31: extended >> 8}
    ram |= {0x34: above_16m & 0xFF, 0x35: above_16m >> 8}
    ram |= {0x5B: above_4g & 0xFF, 0x5C: above_4g >> 8 & 0xFF, 0x5D: above_4g >> 16 & 0xFF}
    ram |= {0x3D: devices[0] | devices[1] << 4, 0x38: devices[2] << 4}
    ram |= {0x39: 0x55, 0x3A: 0x55}  # LBA translation for every disk
    ram |= {0x5F: vcpus - 1}
    checksum = sum(ram.get(index, 0) for index in range(0x10, 0x2E))
    return ram | {0x2E: checksum >> 8, 0x2F: checksum & 0xFF}
