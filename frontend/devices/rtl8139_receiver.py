"""RTL8139C+: reception, into the classic ring or into descriptors (datasheet 1.6, sections 5.6, 6.7, 6.9 and 8.3)."""

from __future__ import annotations

from miniguest.frontend.devices import rtl8139_cplus as cplus
from miniguest.frontend.devices import rtl8139_registers as r
from miniguest.frontend.devices import rtl8139_ring as ring
from miniguest.frontend.devices.device import Clock, GuestMemory
from miniguest.frontend.devices.ethernet import BROADCAST, GROUP, in_filter
from miniguest.frontend.devices.nic import MIN_FRAME
from miniguest.frontend.devices.rtl8139_settings import Rtl8139Settings

COUNTED = {r.PAM: r.RECEIVED_MINE, r.BAR: r.RECEIVED_BROADCAST, r.MAR: r.RECEIVED_MULTICAST}


class Rtl8139Receiver(Rtl8139Settings):
    """The receiving half."""

    regs = Rtl8139Settings.regs

    def __init__(self, mac: bytes, memory: GuestMemory, clock: Clock) -> None:
        super().__init__(mac, clock)
        self.memory = memory
        self.idle = 0
        self._shown: int | None = None  # ISR as last read, when nothing has happened since
        self._shown_empty = False  # CR was last read with BUFE set, and nothing has come since

    def _tell(self, bits: int) -> None:
        """Something happened."""
        self.state.isr |= bits
        self._shown = None

    def _count(self, what: int) -> None:
        self.state.counters[what] += 1

    def _loops(self) -> bool:
        """Whether the card is cut off the wire and hears itself."""
        return self.state.tcr & r.TCR_LOOPBACK == r.TCR_LOOPBACK

    def receive(self, frame: bytes) -> bool:
        """A frame comes in. False while the receiver has no room for it."""
        s = self.state
        if not s.command & r.RE or self._loops():
            return True
        before = s.isr
        taken = self._take(frame)
        if s.isr != before:
            self.changed()
        return taken

    def _kind(self, frame: bytes) -> int:
        """BAR, MAR or PAM when the filters accept the frame's address; -1 when they do not."""
        s = self.state
        address = frame[:6]
        if address == BROADCAST:
            return r.BAR if s.rcr & r.AB else -1
        if address[0] & GROUP:
            return r.MAR if s.rcr & r.AM and in_filter(s.mar, address) else -1
        if address == s.idr[:6]:
            return r.PAM if s.rcr & (r.APM | r.AAP) else -1
        return 0 if s.rcr & r.AAP else -1

    def _take(self, frame: bytes) -> bool:
        s = self.state
        kind = self._kind(frame)
        if kind < 0:
            return True
        frame = frame.ljust(MIN_FRAME, b"\0")
        if s.cpcr & r.CPRX:
            base = s.rdsar[1] << 32 | s.rdsar[0]
            s.rx_next, outcome = cplus.receive(self.memory, base, s.rx_next, frame, kind, s.cpcr)
        else:
            outcome = ring.receive(self.memory, s, frame, kind)
        if not outcome:
            self._refuse()
            return False
        s.refused = self._shown_empty = False
        self._tell(outcome)
        self._tally(outcome, kind)
        return True

    def _refuse(self) -> None:
        """No room: told once for each frame, not again each time it is offered."""
        s = self.state
        if not s.refused:
            s.refused = True
            s.mpc = s.mpc + 1 & 0xFFFFFF
            self._tell(r.RXOVW | r.FOVW if s.cpcr & r.CPRX else r.RXOVW)

    def _tally(self, outcome: int, kind: int) -> None:
        if outcome == r.RER:
            self._count(r.RX_ERRORS)
            return
        self._count(r.RECEIVED)
        if kind:
            self._count(COUNTED[kind])

    # Registers

    @regs.read(0x30, "RBSTART", 4)
    def read_rbstart(self) -> int:
        return self.state.rbstart

    @regs.write(0x30, "RBSTART", 4)
    def write_rbstart(self, value: int) -> None:
        self.state.rbstart = value

    @regs.read(0x38, "CAPR", 2)
    def read_capr(self) -> int:
        return self.state.capr

    @regs.write(0x38, "CAPR", 2)
    def write_capr(self, value: int) -> None:
        self.state.capr = value
        self._shown, self._shown_empty = None, False

    @regs.read(0x3A, "CBR", 2)
    def read_cbr(self) -> int:
        return self.state.cbr

    @regs.read(0x44, "RCR", 4)
    def read_rcr(self) -> int:
        return self.state.rcr

    @regs.write(0x44, "RCR", 4)
    def write_rcr(self, value: int) -> None:
        self.state.rcr = value & r.RCR_WRITABLE

    @regs.read(0x4C, "MPC", 4)
    def read_mpc(self) -> int:
        return self.state.mpc

    @regs.write(0x4C, "MPC", 4)
    def write_mpc(self, value: int) -> None:
        """Any write clears it."""
        self.state.mpc = 0

    @regs.read(0xE4, "RDSAR", 4, count=2)
    def read_rdsar(self, index: int) -> int:
        return self.state.rdsar[index]

    @regs.write(0xE4, "RDSAR", 4, count=2)
    def write_rdsar(self, index: int, value: int) -> None:
        self.state.rdsar[index] = value
        self.state.rx_next = 0
