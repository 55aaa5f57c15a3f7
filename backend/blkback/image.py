"""What a virtual disk is made of: a raw file or a block device."""
import ctypes
import fcntl
import os
import stat
import struct
from pathlib import Path
from typing import Final

from miniguest.ring.errors import UserError

SECTOR: Final = 512
BLKGETSIZE64: Final = 0x80081272        # linux/fs.h
BLKDISCARD: Final = 0x1277
FALLOC_FL_KEEP_SIZE: Final = 1          # linux/falloc.h
FALLOC_FL_PUNCH_HOLE: Final = 2
_libc: Final = ctypes.CDLL(None, use_errno=True)        # Python has no fallocate(2) that punches holes


class Image:
    """An open image of `sectors` sectors of 512 bytes. UserError when it cannot be one."""

    def __init__(self, path: Path, read_only: bool) -> None:
        self.path = path
        self.read_only = read_only
        try:
            # Not blocking: what is a FIFO, and so no image, would hold up every other device.
            self.fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        try:
            self.sectors = self._size() // SECTOR
        except BaseException:
            os.close(self.fd)
            raise

    def _size(self) -> int:
        mode = os.fstat(self.fd)
        self.is_block = stat.S_ISBLK(mode.st_mode)
        if not self.is_block and not stat.S_ISREG(mode.st_mode):
            raise UserError(f"{self.path}: not a disk image: neither a file nor a block device")
        size = mode.st_size
        if self.is_block:
            size = struct.unpack("Q", fcntl.ioctl(self.fd, BLKGETSIZE64, bytes(8)))[0]
        if size == 0 or size % SECTOR:
            raise UserError(f"{self.path}: not a disk image: {size} bytes are no whole number of sectors of {SECTOR}")
        return size

    def flush(self) -> None:
        """Everything written is on the medium when this returns. OSError when it cannot be."""
        os.fdatasync(self.fd)

    def discard(self, sector: int, count: int) -> None:
        """The contents of these sectors are not needed any more. OSError when the medium cannot say so."""
        offset, length = sector * SECTOR, count * SECTOR
        if self.is_block:
            fcntl.ioctl(self.fd, BLKDISCARD, struct.pack("QQ", offset, length))
            return
        mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
        if _libc.fallocate(self.fd, mode, ctypes.c_long(offset), ctypes.c_long(length)):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)
