"""The 8254 interval timer and port 0x61 (Intel 8254 datasheet; NMI status and control of the 82371SB, section 2.8).

Register range: 0-2 counters, 3 control word (ports 0x40-0x43), 4 NMI status and control (port 0x61).

Counter 0's rising edges come out of `tick()`, at times computed from the clock and so without drift. An edge that
falls due while the owner is late is owed, up to QUEUE of them (older ones are lost, as they are on a machine whose
interrupts were off for long); owed edges come half a period apart. No two edges come closer than SPACING, so that a
guest that programs a count of 2 does not stop its own device model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from miniguest.frontend.devices.device import Clock, Model, Window, nothing
from miniguest.frontend.devices.regmap import RegMap
from miniguest.frontend.interrupts import counter8254 as counter
from miniguest.frontend.interrupts.counter8254 import CounterState

QUEUE = 8  # owed edges
SPACING = 20_000  # ns
REFRESH = 15_085  # ns between toggles of the refresh bit


def to_ticks(ns: int) -> int:
    """Whole ticks of 105/88 MHz in so many nanoseconds."""
    return ns * 105 // 88000


def to_ns(ticks: int) -> int:
    """The first nanosecond at which `to_ticks` gives `ticks`."""
    return -(-ticks * 88000 // 105)


class Pit(Model):
    """Three counters. `irq0` is called at each rising edge of counter 0's output."""

    regs = RegMap(size=5)

    @dataclass(slots=True)
    class State:
        KIND: ClassVar = ("i8254", 1)
        counters: list[CounterState] = field(default_factory=lambda: [CounterState() for _ in range(3)])
        port61: int = 0
        seen: int = 0  # tick up to which counter 0's edges were taken into account
        owed: int = 0
        last_edge: int = 0  # ns
        now: int = 0  # the clock when saved

    state: State

    def __init__(self, clock: Clock, irq0: Callable[[], None] = nothing) -> None:
        self.clock = clock
        self.irq0 = irq0
        self.state = self.State()
        self.state.counters[2].gate = False
        self.state.last_edge = clock() - SPACING
        self.ports = ((0x40, 4, Window(self, 0, 4)), (0x61, 1, Window(self, 4, 1)))

    @regs.read(0, "COUNTER", count=3)
    def read_counter(self, index: int) -> int:
        now = to_ticks(self.clock())
        self._settle(now)
        return counter.read_byte(self.state.counters[index], now)

    @regs.write(0, "COUNTER", count=3)
    def write_counter(self, index: int, value: int) -> None:
        now = to_ticks(self.clock())
        if index == 0:
            self._collect(now)
        counter.write_byte(self.state.counters[index], value, now)

    @regs.write(3, "CONTROL")
    def write_control(self, value: int) -> None:
        now = to_ticks(self.clock())
        self._settle(now)
        index = value >> 6
        if index == 3:
            self._read_back(value, now)
        elif value & 0x30 == 0:
            counter.latch_count(self.state.counters[index], now)
        else:
            if index == 0:
                self._reprogram(value, now)
            counter.write_control(self.state.counters[index], value)

    def _settle(self, now: int) -> None:
        """Count edges before a waiting count replaces the one they came from."""
        if self.state.counters[0].next_count:
            self._collect(now)

    def _reprogram(self, value: int, now: int) -> None:
        """Edges owed by the old programme are dropped; OUT rising because of the new mode is an edge too."""
        s = self.state
        rises = value >> 1 & 7 != 0 and not counter.out(s.counters[0], now)
        s.seen, s.owed = now, 0
        if rises:
            self._edge()

    def _read_back(self, value: int, now: int) -> None:
        for index in range(3):
            if value & 2 << index:
                if not value & 0x20:
                    counter.latch_count(self.state.counters[index], now)
                if not value & 0x10:
                    counter.latch_status(self.state.counters[index], now)

    @regs.read(4, "NMISC")
    def read_nmisc(self) -> int:
        now = self.clock()
        speaker = counter.out(self.state.counters[2], to_ticks(now))
        return self.state.port61 | (now // REFRESH & 1) << 4 | speaker << 5

    @regs.write(4, "NMISC")
    def write_nmisc(self, value: int) -> None:
        self.state.port61 = value & 0x0F
        counter.set_gate(self.state.counters[2], bool(value & 1), to_ticks(self.clock()))

    def deadline(self) -> int | None:
        """When `tick()` next has an edge to give, in ns, or None while counter 0 gives none."""
        s = self.state
        if s.owed:
            return s.last_edge + self._gap()
        rise = counter.next_rise(s.counters[0], s.seen)
        return None if rise is None else max(to_ns(rise), s.last_edge + SPACING)

    def tick(self) -> None:
        """Give at most one edge that is due."""
        now = self.clock()
        due = self.deadline()
        if due is None or now < due:
            return
        self._collect(to_ticks(now))
        if self.state.owed:
            self.state.owed -= 1
            self._edge()

    def _gap(self) -> int:
        return max(to_ns(self.state.counters[0].count) // 2, SPACING)

    def _edge(self) -> None:
        self.state.last_edge = self.clock()
        self.irq0()

    def _collect(self, now: int) -> None:
        """Count counter 0's rising edges up to tick `now` into `owed`."""
        s, c = self.state, self.state.counters[0]
        rise = counter.next_rise(c, s.seen)
        while rise is not None and rise <= now:
            s.owed = min(s.owed + 1, QUEUE)
            s.seen = rise
            if c.mode in (2, 3) and not c.next_count:
                more = (now - rise) // c.count  # the rest in one step: nobody knows how long we were away
                s.owed = min(s.owed + more, QUEUE)
                s.seen = rise + more * c.count
            rise = counter.next_rise(c, s.seen)
        s.seen = max(s.seen, now)

    def saving(self) -> None:
        self.state.now = self.clock()

    def restored(self) -> None:
        """Move every time to this clock, so that nothing happened in between."""
        s = self.state
        away = self.clock() - s.now
        ticks = to_ticks(self.clock()) - to_ticks(s.now)
        s.last_edge += away
        s.seen += ticks
        for c in s.counters:
            c.start += ticks
            c.next_at += ticks
            c.next_start += ticks
