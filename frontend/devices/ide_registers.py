"""Names of ATA's registers and bits, and one drive's state (ATA/ATAPI-6, T13 1410D, section 7)."""

from __future__ import annotations

from dataclasses import dataclass, field

SECTOR = 512
CHUNK = 256  # sectors asked of the disk at once
MULTIPLE_MAX = 16  # sectors a DRQ block of READ MULTIPLE may have

# Status
ERR, DRQ, DSC, DF, DRDY, BSY = 0x01, 0x08, 0x10, 0x20, 0x40, 0x80
READY = DRDY | DSC
# Error
ABRT, IDNF, UNC, WP = 0x04, 0x10, 0x40, 0x40
DIAGNOSTIC_PASSED = 0x01
# Device
DEV, LBA = 0x10, 0x40
# Device control
NIEN, SRST, HOB = 0x02, 0x04, 0x80

# What a drive is doing
IDLE, DISK, DATA, DMA, DONE = "idle", "disk", "data", "dma", "done"
# ... for which kind of command
NONE, PIO_IN, PIO_OUT, DMA_IN, DMA_OUT, VERIFY, FLUSH, IDENTIFY = (
    "none",
    "pio-in",
    "pio-out",
    "dma-in",
    "dma-out",
    "verify",
    "flush",
    "identify",
)


@dataclass(slots=True)
class DriveState:
    """One drive. The task file's 16-bit registers hold the byte written last and above it the one before (HOB)."""

    feature: int = 0
    count: int = 1
    lba0: int = 1
    lba1: int = 0
    lba2: int = 0
    device: int = 0
    status: int = READY
    error: int = DIAGNOSTIC_PASSED
    interrupt: bool = False  # INTRQ is pending
    # settings
    multiple: int = 0
    heads: int = 16
    sectors_per_track: int = 63
    transfer_mode: int = 0x0C
    write_cache: bool = True
    look_ahead: bool = True
    power: int = 0xFF  # as CHECK POWER MODE answers
    asleep: bool = False
    # the command being carried out
    phase: str = IDLE
    task: str = NONE
    extended: bool = False
    block: int = 1  # sectors in a DRQ block
    next: int = 0  # first sector that was not yet fetched or stored
    left: int = 0  # sectors from there on
    buffer: bytearray = field(default_factory=bytearray)
    position: int = 0  # next byte of the buffer that moves
    end: int = 0  # where the open DRQ block ends
