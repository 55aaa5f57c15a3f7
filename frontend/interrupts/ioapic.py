"""The I/O APIC (Intel 82093AA datasheet, order 290566; MultiProcessor Specification 1.4, section 3.6).

Register range: IOREGSEL at 0x00 names the register that IOWIN at 0x10 shows: ID, VERSION, ARBITRATION, and from 0x10 on
24 redirection entries of two words, low one first. Other indexes and offsets read as zero and drop writes.

There is one local APIC and no bus to wait for: a message is accepted at once or never, so the delivery status is always
idle. An edge that nobody accepts is lost; a level is tried again when its entry is written or its line changes.
Polarity is kept and means nothing, as in Xen's model: who drives a line says whether it is asserted, not its voltage.
NMI, SMI and INIT are not delivered.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from miniguest.frontend.devices.device import Model
from miniguest.frontend.devices.regmap import RegMap
from miniguest.frontend.interrupts.lapic_core import EXTINT, FIXED, LEVEL, LOWEST, MASKED, REMOTE_IRR, LapicCore

PAGE = 4096
PINS = 24
VERSION = 0x00170011  # the last entry is 23, version 11h: no EOI register
ID, VER, ARB, ENTRIES = 0, 1, 2, 0x10
MODE, LOGICAL = 0x700, 0x800
LOW_WRITABLE = 0x1AFFF  # delivery status and remote IRR are not
HIGH_WRITABLE = 0xFF000000
EXTINT_PIN = 0


class IoApic(Model):
    """24 pins in, messages to one local APIC out. Its `broadcast_eoi` is to be our `end`."""

    regs = RegMap(size=PAGE, blank=0)

    @dataclass(slots=True)
    class State:
        KIND: ClassVar = ("ioapic", 1)
        id: int = 0
        select: int = 0
        lines: int = 0  # levels on the pins
        entries: list[int] = field(default_factory=lambda: [MASKED] * PINS)  # 64 bits each

    state: State

    def __init__(self, lapic: LapicCore) -> None:
        self.lapic = lapic
        self.state = self.State()

    # The pins

    def set_pin(self, pin: int, level: bool) -> None:
        """Drive pin `pin` (0-23). A rising edge asks, or the level does for as long as it lasts."""
        s, bit = self.state, 1 << pin
        if not level:
            s.lines &= ~bit
        elif not s.lines & bit:
            s.lines |= bit
            self._send(pin)

    def pulse(self, pin: int) -> None:
        """A rising edge on `pin`, for sources that only tick."""
        self.set_pin(pin, False)
        self.set_pin(pin, True)
        self.set_pin(pin, False)

    def passes_extint(self) -> bool:
        """Whether the 8259A's INTR, wired to pin 0, reaches the processor that way."""
        entry = self.state.entries[EXTINT_PIN]
        return entry & (MASKED | MODE) == EXTINT << 8 and self._meant(entry)

    def end(self, vector: int) -> None:
        """The local APIC tells that a level triggered interrupt ended: a pin that is still asserted asks again."""
        for pin, entry in enumerate(self.state.entries):
            if entry & REMOTE_IRR and entry & 0xFF == vector:
                self.state.entries[pin] = entry & ~REMOTE_IRR
                self._ask_again(pin)

    # The registers

    @regs.read(0x00, "IOREGSEL", 4)
    def read_select(self) -> int:
        return self.state.select

    @regs.write(0x00, "IOREGSEL", 4)
    def write_select(self, value: int) -> None:
        self.state.select = value & 0xFF

    @regs.read(0x10, "IOWIN", 4)
    def read_window(self) -> int:
        s = self.state
        if ENTRIES <= s.select < ENTRIES + 2 * PINS:
            pin, high = divmod(s.select - ENTRIES, 2)
            return s.entries[pin] >> 32 * high & 0xFFFFFFFF
        if s.select in (ID, ARB):  # the arbitration ID is loaded whenever the ID is
            return s.id << 24
        return VERSION if s.select == VER else 0

    @regs.write(0x10, "IOWIN", 4)
    def write_window(self, value: int) -> None:
        s = self.state
        if ENTRIES <= s.select < ENTRIES + 2 * PINS:
            pin, high = divmod(s.select - ENTRIES, 2)
            if high:
                s.entries[pin] = s.entries[pin] & 0xFFFFFFFF | (value & HIGH_WRITABLE) << 32
            else:
                self._write_low(pin, value)
            self._ask_again(pin)
        elif s.select == ID:
            s.id = value >> 24 & 0xF

    def _write_low(self, pin: int, value: int) -> None:
        """An entry that becomes edge triggered forgets its remote IRR: so software ends what this version has no
        EOI register for."""
        entry = self.state.entries[pin]
        kept = entry & REMOTE_IRR if value & LEVEL else 0
        self.state.entries[pin] = entry >> 32 << 32 | value & LOW_WRITABLE | kept

    # Messages

    def _ask_again(self, pin: int) -> None:
        if self.state.entries[pin] & LEVEL and self.state.lines >> pin & 1:
            self._send(pin)

    def _send(self, pin: int) -> None:
        """A pin asks through its entry. An edge is lost while masked; a level waits for the end of the last one."""
        entry = self.state.entries[pin]
        if entry & (MASKED | REMOTE_IRR) or entry >> 8 & 7 not in (FIXED, LOWEST) or not self._meant(entry):
            return
        level = bool(entry & LEVEL)
        if self.lapic.deliver(entry & 0xFF, level) and level:
            self.state.entries[pin] = entry | REMOTE_IRR

    def _meant(self, entry: int) -> bool:
        return self.lapic.is_meant(entry >> 56, bool(entry & LOGICAL))
