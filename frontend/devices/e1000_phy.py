"""The 82540EM's PHY, an M88E1011 at address 1 behind MDIC (section 13.4.6 and chapter 8, 13.5 of the manual)."""

from __future__ import annotations

from dataclasses import dataclass, field

from miniguest.frontend.devices import e1000_registers as r

ADDRESS = 1
PCTRL, PSTATUS, ID1, ID2, ANA, LPA, ANE, NPT, LPN, GCON, GSTATUS = range(11)
ESTATUS, PSCON, PSSTAT, PINTE, PINTS, EPSCON, RXERR, LEDCON = 15, 16, 17, 18, 19, 20, 21, 24
READ_ONLY = {PSTATUS, ID1, ID2, LPA, ANE, LPN, GSTATUS, 11, 12, 13, 14, ESTATUS, PSSTAT, PINTS, RXERR}

RESET, LOOPBACK, AUTONEGOTIATE, POWER_DOWN, RESTART, FULL_DUPLEX = 0x8000, 0x4000, 0x1000, 0x0800, 0x0200, 0x0100
NEGOTIATED, LINK = 0x0020, 0x0004
LINK_CHANGED, NEGOTIATION_DONE = 0x0400, 0x0800
INITIAL = {
    PCTRL: 0x1140, PSTATUS: 0x7949, ID1: 0x0141, ID2: 0x0C20, ANA: 0x0DE1, NPT: 0x2001, GCON: 0x0300,
    ESTATUS: 0x3000, PSCON: 0x0068, EPSCON: 0x0D60, LEDCON: 0x4100,
}
MDIC_KEPT = 0x3FFFFFFF
PARTNER, PARTNER_GIGABIT = 0x41E1, 0x3C00   # everything up to 1000BASE-T full duplex, no pause


def initial() -> list[int]:
    """The registers after a reset."""
    return [INITIAL.get(number, 0) for number in range(32)]


@dataclass(slots=True)
class PhyState:
    registers: list[int] = field(default_factory=initial)
    cable: bool = True
    lost: bool = False                  # the link went down since PSTATUS was read
    mdic: int = r.MDIC_READY


class Phy:
    """Negotiates with a partner that can do everything, in no time."""

    def __init__(self, state: PhyState) -> None:
        self.state = state

    @property
    def link(self) -> bool:
        s = self.state
        return s.cable and not s.registers[PCTRL] & POWER_DOWN

    @property
    def loopback(self) -> bool:
        return bool(self.state.registers[PCTRL] & LOOPBACK)

    def speed(self) -> int:
        """As STATUS has it: 0 = 10 Mb/s, 1 = 100, 2 = 1000; negotiated or forced."""
        registers = self.state.registers
        control = registers[PCTRL]
        if not control & AUTONEGOTIATE:
            return min(control >> 13 & 1 | control >> 5 & 2, 2)
        if registers[GCON] & 0x0300:
            return 2
        return 1 if registers[ANA] & 0x0180 else 0

    def full_duplex(self) -> bool:
        registers = self.state.registers
        if not registers[PCTRL] & AUTONEGOTIATE:
            return bool(registers[PCTRL] & FULL_DUPLEX)
        full = (registers[ANA] & 0x40, registers[ANA] & 0x100, registers[GCON] & 0x200)
        return bool(full[self.speed()])

    def set_cable(self, there: bool) -> bool:
        """The cable is plugged or pulled; whether that changed the link."""
        s, before = self.state, self.link
        s.cable = there
        return self._moved(before)

    def _moved(self, before: bool) -> bool:
        if self.link == before:
            return False
        self.state.lost |= before
        self.state.registers[PINTS] |= LINK_CHANGED
        return True

    def command(self, value: int) -> bool:
        """A write to MDIC; whether it changed the link or negotiated it anew. Another address has nobody."""
        s = self.state
        number, negotiated = value >> 16 & 31, False
        s.mdic = value & MDIC_KEPT | r.MDIC_READY
        if value >> 21 & 31 != ADDRESS:
            s.mdic |= r.MDIC_ERROR
        elif value & r.MDIC_READ:
            s.mdic = s.mdic & ~0xFFFF | self.read(number)
        elif value & r.MDIC_WRITE:
            negotiated = self.write(number, value & 0xFFFF)
        return negotiated

    def read(self, number: int) -> int:
        s = self.state
        done = self.link and s.registers[PCTRL] & AUTONEGOTIATE
        if number == PSTATUS:
            up = self.link and not s.lost   # a link that was lost is told of once
            s.lost = False
            return s.registers[PSTATUS] | (LINK if up else 0) | (NEGOTIATED if done else 0)
        if number == PINTS:
            value, s.registers[PINTS] = s.registers[PINTS], 0
            return value
        if number == PSSTAT:
            return self._specific_status()
        if number in (LPA, ANE, GSTATUS):
            return {LPA: PARTNER, ANE: 0x0007, GSTATUS: PARTNER_GIGABIT}[number] if done else 0
        return s.registers[number]

    def _specific_status(self) -> int:
        """PSSTAT: speed, duplex, resolved, link, a cable of 50 to 80 m."""
        if not self.link:
            return 0
        return self.speed() << 14 | self.full_duplex() << 13 | 0x0C80

    def reset(self) -> bool:
        """The reset pin: everything as at first, and negotiated anew."""
        before = self.link
        self.state.registers[:] = initial()
        return self._negotiate(before)

    def _negotiate(self, before: bool) -> bool:
        if self.link:
            self.state.registers[PINTS] |= NEGOTIATION_DONE
        self._moved(before)
        return True

    def write(self, number: int, value: int) -> bool:
        """Whether the link changed or was negotiated anew. PCTRL's reset bit makes what was written take effect, which
        here it has anyway."""
        registers, before = self.state.registers, self.link
        if number == PCTRL:
            registers[PCTRL] = value & ~(RESET | RESTART)
            again = value & RESET or (value & RESTART and value & AUTONEGOTIATE)
            return self._negotiate(before) if again else self._moved(before)
        if number not in READ_ONLY:
            registers[number] = value
        return False
