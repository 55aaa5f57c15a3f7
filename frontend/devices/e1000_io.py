"""The 82540EM's registers through two ports (section 13.2.2 of the manual that `e1000_registers` names).

IOADDR at 0 says which register IODATA at 4 is. IOADDR is written as a dword or not at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from miniguest.frontend.devices.e1000_registers import WINDOW
from miniguest.frontend.devices.regmap import MASKS

if TYPE_CHECKING:
    from miniguest.frontend.devices.e1000 import E1000

ADDRESS_BITS = 0xFFFFF
IODATA = 4


class IoWindow:
    """Eight ports. What IOADDR selects beyond the registers (the flash, which is not there) reads as 0."""

    def __init__(self, model: E1000) -> None:
        self.model = model

    def read(self, offset: int, size: int) -> int:
        if 0 <= offset < IODATA:
            return self.model.state.io_address >> 8 * offset & MASKS[size]
        address = self._selected(offset, size)
        return self.model.read(address, size) if address is not None else 0

    def write(self, offset: int, size: int, value: int) -> None:
        if (offset, size) == (0, 4):
            self.model.state.io_address = value & ADDRESS_BITS
        address = self._selected(offset, size)
        if address is not None:
            self.model.write(address, size, value)

    def _selected(self, offset: int, size: int) -> int | None:
        """Where in the registers an access to IODATA goes, if it is one."""
        address = (self.model.state.io_address & ~3) + offset - IODATA
        inside = offset >= IODATA and offset + size <= 2 * IODATA and address + size <= WINDOW
        return address if inside else None
