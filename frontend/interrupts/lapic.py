"""The local APIC of one vCPU, xAPIC mode: its registers (Intel SDM volume 3, chapter 11).

One 4 KiB page of 32-bit registers, 16 bytes apart, at the address in IA32_APIC_BASE. Reserved registers read as zero
and set ESR bit 7. IPIs to other processors are dropped: there is one vCPU. There is no x2APIC and no TSC deadline.
"""

from __future__ import annotations

from miniguest.frontend.devices.regmap import RegMap
from miniguest.frontend.interrupts import lapic_timer as timer
from miniguest.frontend.interrupts.lapic_core import LEVEL, MASKED, REMOTE_IRR, SVR_ENABLE, LapicCore

PAGE = 4096
VERSION = 0x00050014  # six LVT entries, version 14h
LVT_MASKS = (0x310FF, 0x117FF, 0x117FF, 0x1B7FF, 0x1B7FF, 0x110FF)  # writable bits: DS and remote IRR are not


class Lapic(LapicCore):
    """The register page. What the vCPU calls (`pending`, `acknowledge`, `deliver`, `tick`, ...) is in `LapicCore`."""

    regs = RegMap(size=PAGE, blank=0)

    @regs.read(0x20, "ID", 4)
    def read_id(self) -> int:
        return self.state.id << 24

    @regs.write(0x20, "ID", 4)
    def write_id(self, value: int) -> None:
        self.state.id = value >> 24

    @regs.read(0x30, "VERSION", 4)
    def read_version(self) -> int:
        return VERSION

    @regs.read(0x80, "TPR", 4)
    def read_tpr(self) -> int:
        return self.state.tpr

    @regs.write(0x80, "TPR", 4)
    def write_tpr(self, value: int) -> None:
        self.state.tpr = value & 0xFF

    @regs.read(0x90, "APR", 4)
    def read_apr(self) -> int:
        return self.ppr()

    @regs.read(0xA0, "PPR", 4)
    def read_ppr(self) -> int:
        return self.ppr()

    @regs.write(0xB0, "EOI", 4)
    def write_eoi(self, value: int) -> None:
        s = self.state
        if not s.isr:
            return
        vector = s.isr.bit_length() - 1
        s.isr &= ~(1 << vector)
        if s.tmr >> vector & 1:
            self._end_level(vector)

    @regs.read(0xC0, "RRD", 4)
    def read_rrd(self) -> int:
        return 0

    @regs.read(0xD0, "LDR", 4)
    def read_ldr(self) -> int:
        return self.state.ldr

    @regs.write(0xD0, "LDR", 4)
    def write_ldr(self, value: int) -> None:
        self.state.ldr = value & 0xFF000000

    @regs.read(0xE0, "DFR", 4)
    def read_dfr(self) -> int:
        return self.state.dfr

    @regs.write(0xE0, "DFR", 4)
    def write_dfr(self, value: int) -> None:
        self.state.dfr = value | 0x0FFFFFFF

    @regs.read(0xF0, "SVR", 4)
    def read_svr(self) -> int:
        return self.state.svr

    @regs.write(0xF0, "SVR", 4)
    def write_svr(self, value: int) -> None:
        self.state.svr = value & 0x3FF
        if not value & SVR_ENABLE:
            self.state.lvt = [entry | MASKED for entry in self.state.lvt]

    @regs.read(0x280, "ESR", 4)
    def read_esr(self) -> int:
        return self.state.esr

    @regs.write(0x280, "ESR", 4)
    def write_esr(self, value: int) -> None:
        self.state.esr, self.state.errors = self.state.errors, 0

    @regs.read(0x300, "ICR_LOW", 4)
    def read_icr_low(self) -> int:
        return self.state.icr_low

    @regs.write(0x300, "ICR_LOW", 4)
    def write_icr_low(self, value: int) -> None:
        self.state.icr_low = value & 0xCCFFF  # delivery status stays idle: an IPI arrives or is dropped at once
        self._send()

    @regs.read(0x310, "ICR_HIGH", 4)
    def read_icr_high(self) -> int:
        return self.state.icr_high

    @regs.write(0x310, "ICR_HIGH", 4)
    def write_icr_high(self, value: int) -> None:
        self.state.icr_high = value & 0xFF000000

    @regs.read(0x380, "TIMER_INITIAL", 4)
    def read_initial(self) -> int:
        return self.state.timer.initial

    @regs.write(0x380, "TIMER_INITIAL", 4)
    def write_initial(self, value: int) -> None:
        timer.set_initial(self.state.timer, value, self.clock())

    @regs.read(0x390, "TIMER_CURRENT", 4)
    def read_current(self) -> int:
        return timer.current(self.state.timer, self._periodic(), self.clock())

    @regs.read(0x3E0, "TIMER_DIVIDE", 4)
    def read_divide(self) -> int:
        return self.state.timer.divide

    @regs.write(0x3E0, "TIMER_DIVIDE", 4)
    def write_divide(self, value: int) -> None:
        timer.set_divide(self.state.timer, value, self._periodic(), self.clock())

    def _write_lvt(self, index: int, value: int) -> None:
        masked = 0 if self.state.svr & SVR_ENABLE else MASKED
        kept = self.state.lvt[index] & REMOTE_IRR if value & LEVEL else 0
        self.state.lvt[index] = value & LVT_MASKS[index] | masked | kept


def _bank(offset: int, name: str, field_name: str) -> None:
    """Eight registers 16 bytes apart that show 256 bits."""
    for word in range(8):

        def read(device: Lapic, shift: int = 32 * word) -> int:
            bits: int = getattr(device.state, field_name)
            return bits >> shift & 0xFFFFFFFF

        Lapic.regs.read(offset + 16 * word, f"{name}{word}", 4)(read)


def _lvt(index: int, offset: int, name: str) -> None:
    """One local vector table register."""

    def read(device: Lapic) -> int:
        return device.state.lvt[index]

    def write(device: Lapic, value: int) -> None:
        device._write_lvt(index, value)

    Lapic.regs.read(offset, name, 4)(read)
    Lapic.regs.write(offset, name, 4)(write)


_bank(0x100, "ISR", "isr")
_bank(0x180, "TMR", "tmr")
_bank(0x200, "IRR", "irr")
for _index, _name in enumerate(("LVT_TIMER", "LVT_THERMAL", "LVT_PERF", "LVT_LINT0", "LVT_LINT1", "LVT_ERROR")):
    _lvt(_index, 0x320 + 16 * _index, _name)
