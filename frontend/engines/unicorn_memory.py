"""The guest's physical memory on Unicorn: RAM, the firmware, and holes whose accesses are exits."""
import ctypes
import mmap
from collections.abc import Iterator
from typing import Final

from unicorn import Uc, UcError
from unicorn import unicorn_const as uc_const
from unicorn.unicorn_py3.unicorn import uclib

from miniguest.frontend.engines._hooks import Watch

FOUR_GIB: Final = 1 << 32
VGA_HOLE: Final = (0xA0000, 0xC0000)

Piece = tuple[int, int, int]            # guest-physical address, offset in the shared mapping, size


def _pieces_and_gaps(pieces: list[Piece], start: int, end: int) -> Iterator[tuple[int, int]]:
    """(address, size) of every piece and of what is between them, from `start` to `end`."""
    for address, _, size in pieces:
        if start < address:
            yield start, address - start
        yield address, size
        start = address + size
    if start < end:
        yield start, end - start


class Ram:
    """RAM's mapping, of which `size` bytes are the guest's, and its address in this process."""

    def __init__(self, map: mmap.mmap, size: int) -> None:
        self.map, self.size = map, size
        self._anchor = (ctypes.c_char * len(map)).from_buffer(map)
        self.base = ctypes.addressof(self._anchor)


class UnicornMemory:
    """What `uc` sees at each physical address. firmware: the BIOS image, which ends at 4 GiB. Pieces of RAM's mapping may be
    shown in the hole above RAM, as ROM."""

    def __init__(self, uc: Uc, watch: Watch, ram: Ram, firmware: bytes) -> None:
        self._uc, self._watch, self._ram = uc, watch, ram
        rom = FOUR_GIB - len(firmware)
        self._hole = (ram.size, rom)
        self._pieces: list[Piece] = []          # what is to be shown
        self._shown: list[Piece] = []           # and what is
        self._rom_stores: list[tuple[int, bytes]] = []      # what stores to ROM since the last stop wrote over
        for start, end in ((0, VGA_HOLE[0]), (VGA_HOLE[1], ram.size)):
            uc.mem_map_ptr(start, end - start, uc_const.UC_PROT_ALL, ram.base + start)
        for start, end in (VGA_HOLE, self._hole):
            self._map_hole(start, end)
        uc.mem_map(rom, len(firmware), uc_const.UC_PROT_READ | uc_const.UC_PROT_EXEC)
        uc.mem_write(rom, firmware)

    def _map_hole(self, start: int, end: int) -> None:
        if start >= end:
            return
        callbacks = self._watch.callbacks
        load, store, region = (
            ctypes.c_void_p(address) for address in (callbacks["load"], callbacks["store"], self._watch.region(start))
        )
        status = uclib.uc_mmio_map(
            self._uc._uch, ctypes.c_uint64(start), ctypes.c_size_t(end - start), load, region, store, region
        )
        if status:
            raise UcError(status)

    def is_ram(self, start: int, size: int) -> bool:
        """Whether all `size` bytes at guest-physical `start` are RAM."""
        end = start + size
        return end <= VGA_HOLE[0] or (start >= VGA_HOLE[1] and end <= self._ram.size)

    # -- pieces
    def show(self, pieces: list[Piece]) -> bool:
        """Show these from the next `settle` on, but those that overlap something else; whether that is anything new."""
        shown: list[Piece] = []
        at, end = self._hole
        for address, offset, size in sorted(pieces):
            if at <= address and address + size <= end:
                shown.append((address, offset, size))
                at = address + size
        self._pieces = shown
        return shown != self._shown

    def settle(self) -> None:
        """The guest stands still. Make the hole anew with the pieces in it, if they are others than before: Unicorn would cut
        a region itself, but count its offsets anew."""
        if self._pieces == self._shown:
            return
        before, self._shown = self._shown, self._pieces
        at, end = self._hole
        for address, size in _pieces_and_gaps(before, at, end):
            self._uc.mem_unmap(address, size)
        for address, offset, size in self._pieces:
            self._map_hole(at, address)
            self._uc.mem_map_ptr(address, size, uc_const.UC_PROT_READ | uc_const.UC_PROT_EXEC, self._ram.base + offset)
            at = address + size
        self._map_hole(at, end)

    # -- stores to ROM
    def note_rom_store(self, address: int, size: int) -> None:
        """Unicorn is about to carry one out."""
        self._rom_stores.append((address, bytes(self._uc.mem_read(address, size))))

    def undo_rom_stores(self) -> None:
        """Write back what they wrote over."""
        while self._rom_stores:
            self._uc.mem_write(*self._rom_stores.pop())
