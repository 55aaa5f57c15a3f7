"""The PIIX3's IDE function, 00:01.1 (Intel 290550, section 2.3): legacy channels and bus master registers in BAR 4."""

from __future__ import annotations

from miniguest.frontend.devices.pci_function import (
    COMMAND,
    DECODE_IO,
    Bar,
    Identity,
    MappingChanged,
    PciFunction,
    unheard,
)

IDETIM = 0x40
IDE_DECODE = 0x80  # in the high byte
BUS_MASTER_BAR = 4
LEGACY = (0x1F0, 0x170)


class Piix3Ide(PciFunction):
    """IDE controller in legacy mode.

    Mappings: (4, "io") is the bus master range; (0, "ide") and (1, "ide") say whether a channel's legacy ports are
    decoded, which takes the command register's I/O bit and IDETIM's decode bit.
    """

    def __init__(self, mapping_changed: MappingChanged = unheard) -> None:
        super().__init__(
            Identity(0x8086, 0x7010, 0x010180),
            bars=(Bar(BUS_MASTER_BAR, "io", 16),),
            command=0x05,
            mapping_changed=mapping_changed,
        )
        self.preset({0x06: 0x80, 0x07: 0x02})
        self.allow({IDETIM: 0xFF, IDETIM + 1: 0xF3, IDETIM + 2: 0xFF, IDETIM + 3: 0xF3, 0x44: 0xFF})

    def enabled(self, channel: int) -> bool:
        """Whether a channel's legacy ports are decoded."""
        decode = self.state.config[IDETIM + 2 * channel + 1] & IDE_DECODE
        return bool(decode and self.word(COMMAND) & DECODE_IO)

    def mappings(self) -> dict[tuple[int, str], tuple[int | None, int]]:
        legacy = {(n, "ide"): (LEGACY[n] if self.enabled(n) else None, 8) for n in (0, 1)}
        return super().mappings() | legacy
