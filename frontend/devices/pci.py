"""The PCI host's configuration mechanism 1 (PCI Local Bus Specification 2.2, section 3.2.2.3.2), ports 0xCF8-0xCFF.

Register range: 0-3 CONFIG_ADDRESS (as a dword only), 4-7 CONFIG_DATA, and inside the first the PIIX's reset control
register at 1 (port 0xCF9, as a byte only). One bus; functions that are not there read as ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from miniguest.frontend.devices.device import Model, nothing
from miniguest.frontend.devices.pci_function import PciFunction
from miniguest.frontend.devices.regmap import MASKS, RegMap

ENABLE = 0x80000000
ADDRESS_BITS = 0x80FFFFFC
RESET_CPU, RESET_HARD = 4, 2


class PciBus(Model):
    """Configuration accesses to the functions that were attached. `reset` is called through port 0xCF9."""

    regs = RegMap(size=8)

    @dataclass(slots=True)
    class State:
        KIND: ClassVar = ("pci-bus", 1)
        address: int = 0
        reset_control: int = 0

    state: State

    def __init__(self, reset: Callable[[], None] = nothing) -> None:
        self.reset = reset
        self.functions: dict[int, PciFunction] = {}  # by slot << 3 | function
        self.state = self.State()
        self.ports = ((0xCF8, 8, self),)

    def attach(self, slot: int, number: int, function: PciFunction) -> None:
        """Put a function at a slot (0-31) and function number (0-7). Raises ValueError if one is there."""
        where = slot << 3 | number
        if where in self.functions:
            raise ValueError(f"PCI {slot:02x}.{number} is taken")
        self.functions[where] = function

    def _selected(self) -> PciFunction | None:
        address = self.state.address
        if not address & ENABLE or address & 0x00FF0000:  # there is no bus but 0
            return None
        return self.functions.get(address >> 8 & 0xFF)

    @regs.read(0, "CONFIG_ADDRESS", size=4)
    def read_address(self) -> int:
        return self.state.address

    @regs.write(0, "CONFIG_ADDRESS", size=4)
    def write_address(self, value: int) -> None:
        self.state.address = value & ADDRESS_BITS

    @regs.read(1, "RESET_CONTROL")
    def read_reset_control(self) -> int:
        return self.state.reset_control

    @regs.write(1, "RESET_CONTROL")
    def write_reset_control(self, value: int) -> None:
        """Bit 2 going from 0 to 1 resets the machine (bit 1 says how hard, which is all one here)."""
        starts = value & ~self.state.reset_control & RESET_CPU
        self.state.reset_control = value & RESET_HARD
        if starts:
            self.reset()

    def read(self, offset: int, size: int) -> int:
        """A data access goes whole to the function; an address access of another width than its register's is not
        the host's, and finds nothing behind it."""
        if offset >= 4 and offset + size <= 8:
            function = self._selected()
            if function is None:
                return MASKS[size]
            return function.read(self.state.address & 0xFC | offset & 3, size)
        reader = self.regs.readers.get(offset << 4 | size)
        return reader(self) if reader is not None else MASKS[size]

    def write(self, offset: int, size: int, value: int) -> None:
        if offset >= 4 and offset + size <= 8:
            function = self._selected()
            if function is not None:
                function.write(self.state.address & 0xFC | offset & 3, size, value & MASKS[size])
            return
        writer = self.regs.writers.get(offset << 4 | size)
        if writer is not None:
            writer(self, value & MASKS[size])
