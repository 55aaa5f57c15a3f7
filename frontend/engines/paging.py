"""The processor's own walk of the guest's page tables, at supervisor level: what delivery reads and writes is never the user's.

Unicorn translates at the level that the guest runs at, where an IDT or a ring 0 stack is out of reach, and a failed look
changes CR2. Intel SDM volume 3, sections 4.3 (32-bit) and 4.4 (PAE). Accessed and dirty bits are left as they are.
"""
from collections.abc import Callable
from typing import Final

PRESENT: Final = 1
WRITABLE: Final = 1 << 1
LARGE: Final = 1 << 7
CR4_PSE: Final = 1 << 4
CR4_PAE: Final = 1 << 5
ADDRESS: Final = 0x000F_FFFF_FFFF_F000

ReadEntry = Callable[[int, int], int]       # (guest-physical address, bytes) -> value


def walk(read: ReadEntry, cr3: int, cr4: int, linear: int, write: bool) -> int | None:
    """The guest-physical address of a linear one, None when it is not present. write: read-only pages do not count."""
    if cr4 & CR4_PAE:
        pointers = read((cr3 & 0xFFFFFFE0) + (linear >> 30) * 8, 8)
        if not pointers & PRESENT:
            return None
        return _two_levels(read, pointers & ADDRESS, linear, 8, 21, True, write)
    return _two_levels(read, cr3 & 0xFFFFF000, linear, 4, 22, bool(cr4 & CR4_PSE), write)


def _two_levels(read: ReadEntry, table: int, linear: int, size: int, shift: int, large: bool, write: bool) -> int | None:
    """A page directory and a page table of entries of `size` bytes; a directory entry maps 1 << shift bytes."""
    entries = 4096 // size
    needed = PRESENT | (WRITABLE if write else 0)
    entry = read(table + (linear >> shift) % entries * size, size)
    if entry & needed != needed:
        return None
    if large and entry & LARGE:
        base = entry & ADDRESS | ((entry >> 13 & 0xFF) << 32 if size == 4 else 0)
        return base & -(1 << shift) | linear & (1 << shift) - 1
    entry = read((entry & ADDRESS) + (linear >> 12) % entries * size, size)
    return entry & ADDRESS | linear & 4095 if entry & needed == needed else None
