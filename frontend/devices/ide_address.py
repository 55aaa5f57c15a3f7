"""Sector addresses in the task file: CHS, 28-bit and 48-bit LBA (ATA/ATAPI-6, section 6.2)."""

from __future__ import annotations

from miniguest.frontend.devices.ide_identify import cylinders
from miniguest.frontend.devices.ide_registers import LBA, DriveState


def read_sector(s: DriveState, sectors: int) -> int | None:
    """The sector the task file names, or None when its cylinder, head or sector does not exist on the disk."""
    low = s.lba0 & 0xFF | (s.lba1 & 0xFF) << 8 | (s.lba2 & 0xFF) << 16
    if s.extended:
        return low | (s.lba0 >> 8) << 24 | (s.lba1 >> 8) << 32 | (s.lba2 >> 8) << 40
    if s.device & LBA:
        return low | (s.device & 15) << 24
    number, cylinder, head = s.lba0 & 0xFF, low >> 8, s.device & 15
    if not 1 <= number <= s.sectors_per_track or head >= s.heads:
        return None
    if cylinder >= max(cylinders(sectors, s.heads, s.sectors_per_track), 1):
        return None
    return (cylinder * s.heads + head) * s.sectors_per_track + number - 1


def write_sector(s: DriveState, sector: int) -> None:
    """Write a sector's address into the task file, in the form the command used."""
    if s.extended:
        s.lba0 = (sector >> 24 & 0xFF) << 8 | sector & 0xFF
        s.lba1 = (sector >> 32 & 0xFF) << 8 | sector >> 8 & 0xFF
        s.lba2 = (sector >> 40 & 0xFF) << 8 | sector >> 16 & 0xFF
    elif s.device & LBA:
        s.device = s.device & 0xF0 | sector >> 24 & 15
        s.lba0, s.lba1, s.lba2 = sector & 0xFF, sector >> 8 & 0xFF, sector >> 16 & 0xFF
    else:
        track, number = divmod(sector, s.sectors_per_track)
        cylinder, head = divmod(track, s.heads)
        s.device = s.device & 0xF0 | head
        s.lba0, s.lba1, s.lba2 = number + 1, cylinder & 0xFF, cylinder >> 8 & 0xFF
