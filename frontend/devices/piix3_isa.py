"""The PIIX3's ISA bridge, 00:01.0 (Intel 290550, section 2.2): routes the PCI interrupt wires to ISA interrupts.

The edge/level registers at 0x4D0 are with the interrupt controllers, the reset control at 0xCF9 with the bus.
"""

from __future__ import annotations

from miniguest.frontend.devices.device import Line
from miniguest.frontend.devices.pci_function import Identity, PciFunction

PIRQRC = 0x60
ROUTE_OFF = 0x80
NEVER = frozenset((0, 1, 2, 8, 13))  # interrupts that cannot be routed to

_WRITABLE = {
    0x4C: 0x7F,  # IORT
    0x4E: 0xF7,  # XBCS
    0x4F: 0x01,
    **{PIRQRC + i: 0x8F for i in range(4)},
    0x69: 0xFE,  # TOM
    0x6A: 0x30,  # MSTAT
    0x70: 0xEF,  # MBIRQ0
    0x76: 0x87,  # MBDMA
    0x77: 0x87,
    0x80: 0x7F,  # APICBASE
    0x82: 0x0F,  # DLC
    0xA0: 0x1F,  # SMICNTL
    **{0xA2 + i: 0xFF for i in range(9)},  # SMIEN to FTMR
}


class Piix3Isa(PciFunction):
    """ISA bridge. `set_line(irq, level)` is called when the ISA interrupt behind a wire changes."""

    def __init__(self, set_line: Line = lambda number, level: None) -> None:
        super().__init__(Identity(0x8086, 0x7000, 0x060100, multifunction=True), command=0x108)
        self.set_line = set_line
        self.preset({0x04: 0x07, 0x07: 0x02, 0x4C: 0x4D, 0x4E: 0x03, 0x69: 0x02, 0x70: 0x80})
        self.preset({PIRQRC + i: ROUTE_OFF for i in range(4)} | {0x76: 0x0C, 0x77: 0x0C, 0xA0: 0x08})
        self.allow(_WRITABLE)
        self._asserted: list[set[object]] = [set() for _ in range(4)]
        self._driven: frozenset[int] = frozenset()

    def route(self, wire: int) -> int | None:
        """The ISA interrupt that PIRQ wire 0-3 (A to D) goes to, or None."""
        value = self.state.config[PIRQRC + wire]
        irq = value & 15
        return None if value & ROUTE_OFF or irq in NEVER else irq

    def set_pin(self, slot: int, pin: int, level: bool, function: int = 0) -> None:
        """A function's INTA#-INTD# (pin 1-4). Slots are wired one further each, slot 1 straight."""
        users = self._asserted[(slot - 1 + pin - 1) & 3]
        source = (slot, function, pin)
        if level:
            users.add(source)
        else:
            users.discard(source)
        self._drive()

    def written(self, offset: int, size: int) -> None:
        self._drive()

    def _drive(self) -> None:
        """Set the ISA interrupts to what the wires and the routing say now."""
        routed = (self.route(wire) for wire in range(4) if self._asserted[wire])
        now = frozenset(irq for irq in routed if irq is not None)
        before, self._driven = self._driven, now
        for irq in sorted(before ^ now):
            self.set_line(irq, irq in now)

    def restored(self) -> None:
        """The wires are not state: their owners drive them again."""
        super().restored()
        self._drive()
