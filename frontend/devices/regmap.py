"""Register maps as tables, decoded separately for reads and for writes.

A device class holds one `RegMap` as a class attribute and marks its methods:

    class Scratch(Model):
        regs = RegMap(size=8)

        @regs.read(7, "SCR")
        def read_scr(self) -> int: ...

        @regs.write(7, "SCR")
        def write_scr(self, value: int) -> None: ...

An access that is exactly one register is one dictionary lookup. Any other is taken apart as a bus takes it apart:
wider accesses cover several registers, narrower ones see some bytes of a register (a narrow write merges with what
the register reads, as byte enables do). Bytes with no register read as ones and drop writes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

log = logging.getLogger(__name__)

Reader = Callable[[Any], int]
Writer = Callable[[Any, int], None]
ReadMethod = TypeVar("ReadMethod", bound=Callable[..., int])
WriteMethod = TypeVar("WriteMethod", bound=Callable[..., None])

MASKS = (0, 0xFF, 0xFFFF, 0xFFFFFF, 0xFFFFFFFF, 0, 0, 0, 0xFFFFFFFFFFFFFFFF)
"""All ones for an access of so many bytes."""


class Register(NamedTuple):
    """Where a register lies: first byte, name in the datasheet, bytes."""

    offset: int
    name: str
    size: int


class RegMap:
    """The registers of one device.

    `size` is the length of the decoded range in bytes. `blank` is what a byte without a register reads as (ones on
    an undriven bus; a device whose reserved registers read as zero says 0).
    """

    def __init__(self, size: int, blank: int = 0xFF) -> None:
        self.size = size
        self.blank = blank
        self.readers: dict[int, Reader] = {}  # keyed by offset << 4 | size: one lookup per access
        self.writers: dict[int, Writer] = {}
        self.readable: list[Register | None] = [None] * size
        self.writable: list[Register | None] = [None] * size
        self._told: set[tuple[str, int, bool]] = set()

    def read(self, offset: int, name: str, size: int = 1, count: int = 0) -> Callable[[ReadMethod], ReadMethod]:
        """Mark the method that reads a register; with `count`, an array of registers whose index is an argument."""

        def mark(method: ReadMethod) -> ReadMethod:
            for index in range(count or 1):
                register = Register(offset + index * size, f"{name}{index}" if count else name, size)
                self.readers[register.offset << 4 | size] = _indexed(method, index) if count else method
                _cover(self.readable, register)
            return method

        return mark

    def write(self, offset: int, name: str, size: int = 1, count: int = 0) -> Callable[[WriteMethod], WriteMethod]:
        """Mark the method that writes a register; with `count`, an array whose index comes before the value."""

        def mark(method: WriteMethod) -> WriteMethod:
            for index in range(count or 1):
                register = Register(offset + index * size, f"{name}{index}" if count else name, size)
                self.writers[register.offset << 4 | size] = _indexed_write(method, index) if count else method
                _cover(self.writable, register)
            return method

        return mark

    def read_apart(self, device: Any, offset: int, size: int) -> int:
        """Read an access that is not exactly one register, lowest byte first."""
        value, position, end = 0, offset, offset + size
        while position < end:
            register = self.readable[position] if 0 <= position < self.size else None
            if register is None:
                self._tell(device, position, writing=False)
                value |= self.blank << 8 * (position - offset)
                position += 1
                continue
            skip = position - register.offset
            taken = min(register.size - skip, end - position)
            whole = self.readers[register.offset << 4 | register.size](device)
            value |= (whole >> 8 * skip & MASKS[taken]) << 8 * (position - offset)
            position += taken
        return value

    def write_apart(self, device: Any, offset: int, size: int, value: int) -> None:
        """Write an access that is not exactly one register, lowest byte first."""
        position, end = offset, offset + size
        while position < end:
            register = self.writable[position] if 0 <= position < self.size else None
            if register is None:
                self._tell(device, position, writing=True)
                position += 1
                continue
            skip = position - register.offset
            taken = min(register.size - skip, end - position)
            part = value >> 8 * (position - offset) & MASKS[taken]
            if taken < register.size:
                part = self._merge(device, register, part << 8 * skip, MASKS[taken] << 8 * skip)
            self.writers[register.offset << 4 | register.size](device, part)
            position += taken

    def _merge(self, device: Any, register: Register, part: int, mask: int) -> int:
        """The register's value with only the enabled bytes replaced; one that cannot be read back counts as 0."""
        reader = self.readers.get(register.offset << 4 | register.size)
        return (reader(device) & ~mask if reader else 0) | part

    def _tell(self, device: Any, offset: int, writing: bool) -> None:
        """Trace an access to no register: once for each offset, since a guest may poll it for ever."""
        device.unmapped(offset, writing)
        key = (type(device).__name__, offset, writing)
        if key not in self._told and len(self._told) < 4096:  # a guest chooses the offsets: bounded
            self._told.add(key)
            log.debug("%s: no register to %s at offset %#x", key[0], "write" if writing else "read", offset)


def _cover(table: list[Register | None], register: Register) -> None:
    """Note which register each byte belongs to: the narrowest one, when accesses of several widths are decoded."""
    for position in range(register.offset, register.offset + register.size):
        there = table[position]
        if there is None or register.size < there.size:
            table[position] = register


def _indexed(method: Callable[..., int], index: int) -> Reader:
    return lambda device: method(device, index)


def _indexed_write(method: Callable[..., None], index: int) -> Writer:
    return lambda device, value: method(device, index, value)
