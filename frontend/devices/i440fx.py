"""The 82441FX host bridge, 00:00.0 (Intel 290549, "PMC", section 3). Subsystem 1af4:1100 is how QEMU's PC says so.

The PAM registers and the DRAM registers keep what is written and do nothing: memory from 0xC0000 to 0xFFFFF is RAM
whatever they say.
"""

from __future__ import annotations

from miniguest.frontend.devices.pci_function import DECODE_MEMORY, Identity, PciFunction

PAM = 0x59

_WRITABLE = {
    0x50: 0x7F,  # PMCCFG
    0x51: 0xC0,
    0x57: 0x3F,  # DRAMC
    0x58: 0xFF,  # DRAMT
    **{PAM + i: 0x33 for i in range(1, 7)},
    PAM: 0x30,
    **{0x60 + i: 0xFF for i in range(8)},  # DRB
    0x68: 0xC0,  # FDHC
    0x70: 0xF8,  # MTT
    0x71: 0x1F,  # CLT
    0x72: 0x78,  # SMRAM: its base is fixed and the lock bit is not taken
    0x90: 0xFF,  # ERRCMD
    0x93: 0x0E,  # TRC: its reset bit is the reset control port's business
}


class I440fx(PciFunction):
    """Host bridge. Memory access and bus mastering are always on and cannot be turned off."""

    def __init__(self) -> None:
        super().__init__(Identity(0x8086, 0x1237, 0x060000, revision=2, subsystem=(0x1AF4, 0x1100)), command=0x140)
        self.preset({0x04: DECODE_MEMORY | 0x04, 0x06: 0x80, 0x07: 0x02, 0x72: 0x02})
        self.allow(_WRITABLE)
