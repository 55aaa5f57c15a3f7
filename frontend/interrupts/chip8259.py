"""One 8259A interrupt controller chip (Intel 8259A datasheet, order 231468), as the pair in `pic` uses it.

Bits are kept as the chip keeps them: `irr` latches requests, `isr` what is in service, `imr` the mask.
"""

from __future__ import annotations

from dataclasses import dataclass

SPURIOUS = 7


@dataclass(slots=True)
class ChipState:
    """Everything one chip holds. `lowest` is the input with the lowest priority (rotation)."""

    irr: int = 0  # latched edges
    lines: int = 0  # levels on the inputs
    isr: int = 0
    imr: int = 0
    level: int = 0  # ELCR: inputs that are level triggered
    base: int = 0  # vector of input 0
    lowest: int = 7
    init_step: int = 0  # 0 = ready, else the ICW expected next at A0 = 1
    icw4: bool = False
    single: bool = False
    auto_eoi: bool = False
    rotate_auto: bool = False
    nested: bool = False  # special fully nested mode
    special_mask: bool = False
    poll: bool = False
    read_isr: bool = False


class Chip8259:
    """The logic of one chip over its state.

    `may_level` is the set of inputs that the ELCR may make level triggered; `slaves` those with a slave behind.
    """

    def __init__(self, state: ChipState, may_level: int, slaves: int = 0) -> None:
        self.state = state
        self.may_level = may_level
        self.slaves = slaves

    def set_line(self, pin: int, level: bool) -> bool:
        """Drive an input; whether other inputs ask than before. An edge stays latched until it is acknowledged, even if the
        line falls first."""
        s, bit = self.state, 1 << pin
        before = s.irr | s.lines & s.level
        if level:
            if not s.lines & bit and not s.level & bit:
                s.irr |= bit
            s.lines |= bit
        else:
            s.lines &= ~bit
        return s.irr | s.lines & s.level != before

    def set_level(self, value: int) -> None:
        """Write the ELCR. An input that becomes level triggered forgets its latched edge."""
        self.state.level = value & self.may_level
        self.state.irr &= ~self.state.level

    def requests(self) -> int:
        """IRR as it reads: latched edges and live levels."""
        s = self.state
        return s.irr | s.lines & s.level

    def best(self) -> int:
        """The input that would be acknowledged now, or -1: none asks, or one as important is in service."""
        s = self.state
        asking = (s.irr | s.lines & s.level) & ~s.imr
        if not asking:
            return -1
        wanted = _first(asking, s.lowest)
        blocking = s.isr & ~s.imr if s.special_mask else s.isr
        if s.nested:
            blocking &= ~(self.slaves & 1 << wanted)  # the slave's own priorities decide among its inputs
        if not blocking:
            return wanted
        rank = wanted - s.lowest - 1 & 7
        return wanted if rank < (_first(blocking, s.lowest) - s.lowest - 1 & 7) else -1

    def acknowledge(self) -> int:
        """The first INTA pulse: the input now in service, or -1 when nothing asks any more (spurious)."""
        pin = self.best()
        if pin < 0:
            return -1
        s = self.state
        s.irr &= ~(1 << pin)
        if not s.auto_eoi:
            s.isr |= 1 << pin
        elif s.rotate_auto:
            s.lowest = pin
        return pin

    def read_command(self) -> int:
        """A0 = 0: IRR or ISR as OCW3 chose, or the poll word."""
        s = self.state
        if s.poll:
            return self._poll_word()
        return s.isr if s.read_isr else self.requests()

    def read_data(self) -> int:
        """A0 = 1: the mask, or the poll word."""
        return self._poll_word() if self.state.poll else self.state.imr

    def _poll_word(self) -> int:
        self.state.poll = False
        pin = self.acknowledge()
        return 0x80 | pin if pin >= 0 else 0

    def write_command(self, value: int) -> None:
        """A0 = 0: ICW1, OCW2 or OCW3."""
        if value & 0x10:
            self._icw1(value)
        elif value & 0x08:
            self._ocw3(value)
        else:
            self._ocw2(value)

    def write_data(self, value: int) -> None:
        """A0 = 1: ICW2 to ICW4 while being initialised, else the mask."""
        s = self.state
        if s.init_step == 0:
            s.imr = value
        elif s.init_step == 2:
            s.base = value & 0xF8
            s.init_step = 4 * s.icw4 if s.single else 3
        elif s.init_step == 3:
            s.init_step = 4 * s.icw4  # which inputs have slaves is wired, not configurable
        else:
            s.auto_eoi = bool(value & 0x02)
            s.nested = bool(value & 0x10)
            s.init_step = 0

    def _icw1(self, value: int) -> None:
        """Start of initialisation. LTIM is ignored: the PIIX has the ELCR instead."""
        s = self.state
        s.irr = s.isr = s.imr = 0
        s.lowest = 7
        s.auto_eoi = s.rotate_auto = s.nested = s.special_mask = s.poll = s.read_isr = False
        s.single = bool(value & 0x02)
        s.icw4 = bool(value & 0x01)
        s.init_step = 2

    def _ocw3(self, value: int) -> None:
        s = self.state
        if value & 0x40:
            s.special_mask = bool(value & 0x20)
        s.poll = bool(value & 0x04)
        if value & 0x02:
            s.read_isr = bool(value & 0x01)

    def _ocw2(self, value: int) -> None:
        s = self.state
        rotate, specific, eoi = value & 0x80, value & 0x40, value & 0x20
        pin = value & 7
        if not eoi:
            if specific and rotate:
                s.lowest = pin
            elif not specific:
                s.rotate_auto = bool(rotate)
            return
        if not specific:
            ending = s.isr & ~s.imr if s.special_mask else s.isr
            if not ending:
                return
            pin = _first(ending, s.lowest)
        s.isr &= ~(1 << pin)
        if rotate:
            s.lowest = pin


def _first(bits: int, lowest: int) -> int:
    """The bit with the highest priority of a non-empty set, when `lowest` has the lowest."""
    shift = lowest + 1 & 7
    turned = (bits | bits << 8) >> shift & 0xFF
    return (turned & -turned).bit_length() - 1 + shift & 7
