"""What devices read of a guest's RAM while they handled a request: noted by the device model, for whoever records the run.

A file beside the domain's memory: u64 guest-physical address, u32 bytes, the bytes, and so on. It is there when somebody
records. The device model writes before it answers a request, and the vCPU, which waits for that, takes all that is
there and empties the file: so neither sees the other at work.
"""
import os
import struct
from pathlib import Path
from typing import Final

from miniguest.ring.memory import domain_directory

_HEAD: Final = struct.Struct("<QI")

Noted = tuple[int, bytes]               # guest-physical address, bytes


def notes_path(runtime: Path, domid: int) -> Path:
    """Where the notes about a domain's RAM are."""
    return domain_directory(runtime, domid) / "reads"


class NoteWriter:
    """The device model's end. FileNotFoundError when nobody records."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._parts: list[bytes] = []

    def note(self, gpa: int, data: bytes) -> None:
        """A device read these bytes."""
        self._parts += (_HEAD.pack(gpa, len(data)), data)

    def flush(self) -> None:
        """Let the vCPU see them. To be called before the request that led to them is answered."""
        if self._parts:
            left = memoryview(b"".join(self._parts))
            self._parts.clear()
            while left:
                left = left[os.write(self._fd, left) :]


class NoteReader:
    """The vCPU's end, which makes the file."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self) -> list[Noted]:
        """What was noted since the last call, in order."""
        size = os.fstat(self._fd).st_size
        if not size:
            return []
        raw = os.pread(self._fd, size, 0)
        os.ftruncate(self._fd, 0)
        notes, at = [], 0
        while at < len(raw):
            gpa, length = _HEAD.unpack_from(raw, at)
            at += _HEAD.size + length
            notes.append((gpa, raw[at - length : at]))
        return notes

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._fd)
