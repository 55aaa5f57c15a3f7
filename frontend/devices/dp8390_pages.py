"""DP8390: registers of pages 0, 1 and 2 (DP8390D datasheet, section 10; RTL8029AS datasheet, section 5.1)."""

from __future__ import annotations

from miniguest.frontend.devices import dp8390_registers as d
from miniguest.frontend.devices import dp8390_ring as ring
from miniguest.frontend.devices.dp8390 import PAGE0, PAGE1, PAGE2, Dp8390


class Dp8390Pages(Dp8390):
    """The controller with all its registers. Those that a page does not have read as ones."""

    # Page 0

    @PAGE0.read(1, "CLDA0")
    def read_clda0(self) -> int:
        return 0  # local DMA is always at a page's start: nothing is seen half done

    @PAGE0.read(2, "CLDA1")
    def read_clda1(self) -> int:
        return self.state.curr

    @PAGE0.write(1, "PSTART")
    def write_pstart(self, value: int) -> None:
        self.polls.work()
        self.state.pstart = value

    @PAGE0.write(2, "PSTOP")
    def write_pstop(self, value: int) -> None:
        self.polls.work()
        self.state.pstop = value

    @PAGE0.read(3, "BNRY")
    def read_bnry(self) -> int:
        self.polls.step()
        return self.state.bnry

    @PAGE0.write(3, "BNRY")
    def write_bnry(self, value: int) -> None:
        """Pages were read: the ring has not overflowed any more."""
        self.polls.work()
        s = self.state
        s.bnry = value
        if not s.command & d.STP:
            s.isr &= ~d.RST

    @PAGE0.read(4, "TSR")
    def read_tsr(self) -> int:
        if self.state.command & d.TXP:
            self.polls.waits()
        return self.state.tsr

    @PAGE0.write(4, "TPSR")
    def write_tpsr(self, value: int) -> None:
        self.polls.work()
        self.state.tpsr = value

    @PAGE0.read(5, "NCR")
    def read_ncr(self) -> int:
        return 0  # no collisions

    @PAGE0.write(5, "TBCR0")
    def write_tbcr0(self, value: int) -> None:
        self.state.tbcr = self.state.tbcr & 0xFF00 | value

    @PAGE0.read(6, "FIFO")
    def read_fifo(self) -> int:
        """What a loopback left, a byte at a time."""
        s = self.state
        value = s.fifo[s.fifo_next & 7]
        s.fifo_next = s.fifo_next + 1 & 7
        return value

    @PAGE0.write(6, "TBCR1")
    def write_tbcr1(self, value: int) -> None:
        self.state.tbcr = self.state.tbcr & 0xFF | value << 8

    @PAGE0.read(7, "ISR")
    def read_isr(self) -> int:
        if self.state.command & d.TXP:
            self.polls.waits()
        else:
            self.polls.status(self.state.isr)
        return self.state.isr

    @PAGE0.write(7, "ISR")
    def write_isr(self, value: int) -> None:
        """Ones clear; RST follows the controller."""
        self.polls.work()
        s = self.state
        s.isr &= ~value | d.RST
        if max(s.tally) >= d.TALLY_INTERRUPT:
            s.isr |= d.CNT

    @PAGE0.read(8, "CRDA0")
    def read_crda0(self) -> int:
        return self.state.rsar & 0xFF

    @PAGE0.read(9, "CRDA1")
    def read_crda1(self) -> int:
        return self.state.rsar >> 8

    @PAGE0.write(8, "RSAR0")
    def write_rsar0(self, value: int) -> None:
        self.state.rsar = self.state.rsar & 0xFF00 | value

    @PAGE0.write(9, "RSAR1")
    def write_rsar1(self, value: int) -> None:
        self.state.rsar = self.state.rsar & 0xFF | value << 8

    @PAGE0.write(10, "RBCR0")
    def write_rbcr0(self, value: int) -> None:
        self.state.rbcr = self.state.rbcr & 0xFF00 | value

    @PAGE0.write(11, "RBCR1")
    def write_rbcr1(self, value: int) -> None:
        self.state.rbcr = self.state.rbcr & 0xFF | value << 8

    @PAGE0.read(12, "RSR")
    def read_rsr(self) -> int:
        """A driver that finds no frame received since the start looks no further."""
        self.polls.step()
        if not self.state.rsr & d.RSR_PRX:
            self.polls.empty()
        return self.state.rsr

    @PAGE0.write(12, "RCR")
    def write_rcr(self, value: int) -> None:
        self.polls.work()
        self.state.rcr = value & 0x3F

    @PAGE0.read(13, "CNTR", count=3)
    def read_tally(self, index: int) -> int:
        """Reading clears."""
        s = self.state
        value, s.tally[index] = s.tally[index], 0
        return value

    @PAGE0.write(13, "TCR")
    def write_tcr(self, value: int) -> None:
        self.polls.work()
        self.state.tcr = value & 0x1F

    @PAGE0.write(14, "DCR")
    def write_dcr(self, value: int) -> None:
        self.polls.work()
        self.state.dcr = value & 0x7F

    @PAGE0.write(15, "IMR")
    def write_imr(self, value: int) -> None:
        self.polls.work()
        self.state.imr = value & 0x7F

    # Page 1

    @PAGE1.read(1, "PAR", count=6)
    def read_par(self, index: int) -> int:
        return self.state.par[index]

    @PAGE1.write(1, "PAR", count=6)
    def write_par(self, index: int, value: int) -> None:
        self.polls.work()
        self.state.par[index] = value

    @PAGE1.read(7, "CURR")
    def read_curr(self) -> int:
        if ring.empty(self.state):
            self.polls.ring_empty()
        else:
            self.polls.work()
        return self.state.curr

    @PAGE1.write(7, "CURR")
    def write_curr(self, value: int) -> None:
        """Written when the ring is made: nobody waits for room in the old one."""
        self.polls.work()
        self.state.curr = value
        self.state.refused = False

    @PAGE1.read(8, "MAR", count=8)
    def read_mar(self, index: int) -> int:
        return self.state.mar[index]

    @PAGE1.write(8, "MAR", count=8)
    def write_mar(self, index: int, value: int) -> None:
        self.polls.work()
        self.state.mar[index] = value

    # Page 2: what page 0 writes, for diagnosis

    @PAGE2.read(1, "PSTART")
    def read_pstart(self) -> int:
        return self.state.pstart

    @PAGE2.read(2, "PSTOP")
    def read_pstop(self) -> int:
        return self.state.pstop

    @PAGE2.read(4, "TPSR")
    def read_tpsr(self) -> int:
        return self.state.tpsr

    @PAGE2.read(12, "RCR")
    def read_rcr(self) -> int:
        return self.state.rcr | 0xC0

    @PAGE2.read(13, "TCR")
    def read_tcr(self) -> int:
        return self.state.tcr | 0xE0

    @PAGE2.read(14, "DCR")
    def read_dcr(self) -> int:
        return self.state.dcr | 0x80

    @PAGE2.read(15, "IMR")
    def read_imr(self) -> int:
        return self.state.imr
