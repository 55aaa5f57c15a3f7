"""Frames of RAM that a device model wrote to, in a frame of the domain: XEN_DMOP_modified_memory's task.

An engine that caches translated code must drop what it holds of such frames. Layout: u64 entries written so far, then
a ring of 510 u64: first byte address (bits 0-31: page number) and number of pages (bits 32-63). One writer; a reader
that fell behind by more than the ring is told that anything may have changed.
"""
from typing import Final

from miniguest.ring import _core
from miniguest.ring.memory import FRAME_SIZE

_FIRST: Final = 2
CAPACITY: Final = FRAME_SIZE // 8 - _FIRST


class ModifiedWriter:
    """The device model's end."""

    def __init__(self, page: memoryview) -> None:
        self._page = page
        self._written = _core.load64(page, 0)

    def note(self, gpa: int, size: int) -> None:
        """`size` bytes from guest-physical `gpa` on were written. To be called after writing them."""
        if size <= 0:
            return
        first = gpa // FRAME_SIZE
        pages = (gpa + size - 1) // FRAME_SIZE - first + 1
        _core.store64(self._page, _FIRST + self._written % CAPACITY, pages << 32 | first)
        self._written += 1
        _core.store64(self._page, 0, self._written)


class ModifiedReader:
    """The vCPU's end."""

    def __init__(self, page: memoryview) -> None:
        self._page = page
        self._read = _core.load64(page, 0)

    def take(self) -> list[tuple[int, int]] | None:
        """(first frame, frames) written since the last call; None when too much was to tell."""
        written = _core.load64(self._page, 0)
        if written == self._read:
            return []
        first, self._read = self._read, written
        news = range(max(first, written - CAPACITY), written)
        entries = [_core.load64(self._page, _FIRST + index % CAPACITY) for index in news]
        # An entry may have been overwritten while we read: only what the writer has not reached since is sure. It
        # writes an entry before it counts it, so the one that is CAPACITY behind its count may be half gone.
        if _core.load64(self._page, 0) - first >= CAPACITY:
            return None
        return [(entry & 0xFFFFFFFF, entry >> 32) for entry in entries]
