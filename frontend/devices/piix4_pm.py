"""The PIIX4's power management function, 00:01.3 (Intel 290562, section 7): where the ACPI registers are.

The SMBus host is not there: its base and enable bits keep what is written. Bit APMC_EN is set from the start, which
tells SeaBIOS that SMM was set up already.
"""

from __future__ import annotations

from miniguest.frontend.devices.pci_function import DECODE_IO, Identity, MappingChanged, PciFunction, unheard

PMBASE, DEVACTB_HIGH, PMREGMISC, SMBBASE, SMBHSTCFG = 0x40, 0x5B, 0x80, 0x90, 0xD2
APMC_EN = 0x02
PM_INDEX, PM_SIZE = 7, 64


class Piix4Pm(PciFunction):
    """Power management function. Mapping (7, "io") is the 64 ports of the ACPI registers (see `acpi_pm`)."""

    def __init__(self, mapping_changed: MappingChanged = unheard) -> None:
        super().__init__(
            Identity(0x8086, 0x7113, 0x068000, revision=3, interrupt_pin=1),
            command=DECODE_IO,
            mapping_changed=mapping_changed,
        )
        self.preset({0x06: 0x80, 0x07: 0x02, 0x3C: 9, PMBASE: 1, DEVACTB_HIGH: APMC_EN, SMBBASE: 1})
        self.allow({PMBASE: 0xC0, PMBASE + 1: 0xFF, PMREGMISC: 0x01, SMBBASE: 0xF0, SMBBASE + 1: 0xFF, SMBHSTCFG: 0x0F})
        self.allow(dict.fromkeys(range(68, 128), 255))  # timers, activity and decode of devices

    def mappings(self) -> dict[tuple[int, str], tuple[int | None, int]]:
        """The ACPI range needs PMREGMISC's enable bit, not the command register's."""
        base = self.word(PMBASE) & 0xFFC0
        on = self.state.config[PMREGMISC] & 1 and base
        return {(PM_INDEX, "io"): (base if on else None, PM_SIZE)}
