"""Realtek RTL8139C+, 10/100 Mb/s (Realtek RTL8139C+ datasheet 1.6, sections 5 and 6; RTL8139 programming guide V0.1).

Registers in 256 ports and the same in 256 bytes of memory. Transmission and reception each have two forms, chosen in
CPCR: four descriptors in registers and a receive ring as every RTL8139 has them (`rtl8139_ring`), or the C+'s
descriptor rings in memory (`rtl8139_cplus`).
"""

from __future__ import annotations

from typing import ClassVar

from miniguest.frontend.devices import rtl8139_registers as r
from miniguest.frontend.devices import rtl8139_ring as ring
from miniguest.frontend.devices.device import Device
from miniguest.frontend.devices.pci_function import Bar, Identity
from miniguest.frontend.devices.rtl8139_transmitter import Rtl8139Transmitter


class Rtl8139(Rtl8139Transmitter):
    """The card. mac: 6 bytes; memory: what it reads and writes by DMA; clock: ns."""

    IDENTITY: ClassVar[Identity] = Identity(0x10EC, 0x8139, 0x020000, 0x20, (0x10EC, 0x8139), interrupt_pin=1)
    BARS: ClassVar[tuple[Bar, ...]] = (Bar(0, "io", 256), Bar(1, "memory", 256))
    regs = Rtl8139Transmitter.regs

    def windows(self) -> dict[tuple[int, str], Device]:
        """Both BARs show the same registers."""
        return {(0, "io"): self, (1, "memory"): self}

    def irq(self) -> bool:
        """INTA#."""
        return bool(self.state.isr & self.state.imr)

    def tick(self) -> None:
        """Interrupt if TCTR has reached TimerInt."""
        s = self.state
        if s.timer_interrupt and self.clock() >= s.due:
            self._tell(r.TIMEOUT)
            self._arm()

    # Command and interrupts

    @regs.read(0x37, "CR")
    def read_cr(self) -> int:
        s = self.state
        empty = ring.empty(s)
        if empty and self._shown_empty:
            self.idle += 1
        self._shown_empty = empty and bool(s.command & r.RE)
        return s.command | (r.BUFE if empty else 0)

    @regs.write(0x37, "CR")
    def write_cr(self, value: int) -> None:
        s = self.state
        if value & r.RST:
            self._reset()
            return
        if value & ~s.command & r.RE:
            s.capr, s.cbr, s.rx_next = 0xFFF0, 0, 0
        starts = value & ~s.command & r.TE
        s.command = value & (r.RE | r.TE)
        if starts:
            for queue in s.queues:
                queue.index = queue.segment = 0
            self._transmit()

    def _reset(self) -> None:
        """Software reset: both directions off, buffers and interrupts forgotten; addresses and configuration stay."""
        new, old = r.Rtl8139State(), self.state
        for name in r.KEPT:
            setattr(new, name, getattr(old, name))
        new.epoch = self.clock()
        self.state = new
        self._shown, self._shown_empty = None, False

    @regs.read(0x3C, "IMR", 2)
    def read_imr(self) -> int:
        return self.state.imr

    @regs.write(0x3C, "IMR", 2)
    def write_imr(self, value: int) -> None:
        self.state.imr = value & r.INTERRUPTS

    @regs.read(0x3E, "ISR", 2)
    def read_isr(self) -> int:
        """Ones are cleared by writing them. Idle polling when it shows nothing, or nothing new."""
        value = self.state.isr
        if not value or value == self._shown:
            self.idle += 1
        self._shown = value
        return value

    @regs.write(0x3E, "ISR", 2)
    def write_isr(self, value: int) -> None:
        self.state.isr &= ~value
        self._shown = None

    @regs.write(0x3E, "ISR", count=2)
    def write_isr_byte(self, index: int, value: int) -> None:
        """The other byte's ones stay: it is not written back."""
        self.write_isr(value << 8 * index)

    @regs.read(0xE0, "CPCR", 2)
    def read_cpcr(self) -> int:
        return self.state.cpcr

    @regs.write(0xE0, "CPCR", 2)
    def write_cpcr(self, value: int) -> None:
        self.state.cpcr = value & r.CPCR_WRITABLE
