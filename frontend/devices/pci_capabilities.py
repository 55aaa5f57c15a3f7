"""Entries of a PCI function's capabilities list (PCI Local Bus Specification 2.2, section 6.7).

Each puts its registers into the function's tables and then only looks at them: the configuration space is the state.
"""

from __future__ import annotations

from miniguest.frontend.devices.pci_function import STATUS, PciFunction

LIST = 0x10                             # in the status register
POINTER = 0x34
POWER_MANAGEMENT, MSI, PCI_X = 0x01, 0x05, 0x07
MSI_ENABLE, MSI_64BIT = 0x0001, 0x80


def add(function: PciFunction, kind: int, offset: int, following: int = 0) -> None:
    """Put an entry's two bytes at `offset`; `following` is the next one's. The first one added is the list's head."""
    status = function.state.config[STATUS]
    if not status & LIST:
        function.preset({STATUS: status | LIST, POINTER: offset})
    function.preset({offset: kind, offset + 1: following})


class PowerManagement:
    """Power management registers (PCI Bus Power Management Interface Specification 1.1, section 3.2), 8 bytes.

    `abilities` is PMC. The power state is kept and has no effect.
    """

    def __init__(self, function: PciFunction, offset: int, following: int = 0, abilities: int = 0x0002) -> None:
        add(function, POWER_MANAGEMENT, offset, following)
        function.preset({offset + 2: abilities & 0xFF, offset + 3: abilities >> 8})
        function.allow({offset + 4: 0x03, offset + 5: 0x1F})
        function.clearable[offset + 5] |= 0x80
        self.function = function
        self.offset = offset

    @property
    def power_state(self) -> int:
        """0-3: D0 to D3hot."""
        return self.function.state.config[self.offset + 4] & 3


class PciXCapability:
    """PCI-X registers (PCI-X Addendum 1.0a, section 7.2), 8 bytes, of a function on a conventional bus: the
    command register keeps what is written, the status is 0."""

    def __init__(self, function: PciFunction, offset: int, following: int = 0) -> None:
        add(function, PCI_X, offset, following)
        function.preset({offset + 2: 0x02})
        function.allow({offset + 2: 0x7F})


class MsiCapability:
    """Message signaled interrupts, one message, 64-bit address (PCI 2.2, section 6.8.1), 14 bytes."""

    def __init__(self, function: PciFunction, offset: int, following: int = 0) -> None:
        add(function, MSI, offset, following)
        function.preset({offset + 2: MSI_64BIT})
        function.allow({offset + 2: 0x71, offset + 4: 0xFC})
        function.allow(dict.fromkeys(range(offset + 5, offset + 14), 0xFF))
        self.function = function
        self.offset = offset

    @property
    def enabled(self) -> bool:
        """Whether interrupts are messages and INTx# stays quiet."""
        return bool(self.function.state.config[self.offset + 2] & MSI_ENABLE)

    @property
    def address(self) -> int:
        """Guest-physical address that the message is written to."""
        return self.function.dword(self.offset + 4) | self.function.dword(self.offset + 8) << 32

    @property
    def data(self) -> int:
        """The message's low 16 bits; the upper ones are 0."""
        return self.function.word(self.offset + 12)
