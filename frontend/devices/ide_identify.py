"""The answer to IDENTIFY DEVICE (ATA/ATAPI-6, section 8.15)."""

from __future__ import annotations

import struct

from miniguest.frontend.devices.ide_registers import MULTIPLE_MAX, DriveState

HEADS, SECTORS_PER_TRACK, CYLINDERS_MAX = 16, 63, 16383
LBA28_MAX = (1 << 28) - 1
DMA_WORD, UDMA_BASE = 0x20, 0x40  # transfer modes of SET FEATURES


def cylinders(sectors: int, heads: int, sectors_per_track: int) -> int:
    """How many cylinders a disk has in a translation; the registers reach no further than 65,535."""
    return min(sectors // (heads * sectors_per_track), 65535)


def identify(s: DriveState, sectors: int, serial: str, dma: bool) -> bytes:
    """512 bytes about a disk of so many sectors; `dma` says whether there is a bus master."""
    words = [0] * 256
    words[0] = 0x0040  # fixed disk
    words[1] = max(min(cylinders(sectors, HEADS, SECTORS_PER_TRACK), CYLINDERS_MAX), 1)
    words[3], words[6] = HEADS, SECTORS_PER_TRACK
    _text(words, 10, 10, serial)
    _text(words, 23, 4, "1")
    _text(words, 27, 20, "miniguest disk")
    words[47] = 0x8000 | MULTIPLE_MAX
    words[48] = 1  # 32-bit data transfers
    words[49] = 0x0A00 | (0x0100 if dma else 0)  # IORDY, LBA, DMA
    words[50] = 0x4000
    words[51] = 0x0200
    words[53] = 0x0007
    _translation(words, s, sectors)
    words[59] = 0x0100 | s.multiple if s.multiple else 0
    words[60], words[61] = _halves(min(sectors, LBA28_MAX))
    words[64] = 0x0003  # PIO 3 and 4
    words[65:69] = [120] * 4  # ns
    words[80] = 0x007E  # ATA-1 to ATA/ATAPI-6
    words[82], words[83], words[84] = 0x4068, 0x7400, 0x4000  # NOP, caches, power; flushes and 48 bits
    words[85] = 0x4008 | s.write_cache << 5 | s.look_ahead << 6
    words[86], words[87] = 0x3400, 0x4000
    words[93] = 0x6100 if s.device & 0x10 else 0x6001
    if dma:
        mode = s.transfer_mode
        words[63] = 0x0007 | (0x0100 << (mode & 7) if mode & 0xF8 == DMA_WORD else 0)
        words[88] = 0x003F | (0x0100 << (mode & 7) if mode & 0xF8 == UDMA_BASE else 0)
    for i in range(4):
        words[100 + i] = sectors >> 16 * i & 0xFFFF
    data = struct.pack("<255H", *words[:255]) + b"\xa5"
    return data + bytes((-sum(data) & 0xFF,))


def _translation(words: list[int], s: DriveState, sectors: int) -> None:
    count = cylinders(sectors, s.heads, s.sectors_per_track)
    words[54], words[55], words[56] = count, s.heads, s.sectors_per_track
    words[57], words[58] = _halves(count * s.heads * s.sectors_per_track)


def _halves(number: int) -> tuple[int, int]:
    return number & 0xFFFF, number >> 16


def _text(words: list[int], first: int, count: int, text: str) -> None:
    """ATA strings: padded with spaces, the first character of a pair in the high byte."""
    raw = text.encode("ascii", "replace").ljust(2 * count)[: 2 * count]
    words[first : first + count] = struct.unpack(f">{count}H", raw)
