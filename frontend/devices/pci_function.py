"""The configuration space of one PCI function, type 0 header (PCI Local Bus Specification 2.2, chapter 6).

Three tables of 256 bytes say everything: the values, which bits a write changes, and which bits writing a one clears.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from miniguest.frontend.devices.device import Model
from miniguest.frontend.devices.regmap import RegMap

COMMAND, STATUS, BARS, ROM_BAR = 0x04, 0x06, 0x10, 0x30
DECODE_IO, DECODE_MEMORY, BUS_MASTER, INTX_OFF = 0x001, 0x002, 0x004, 0x400
ROM = 6  # the ROM BAR's index
IO_SPACE, MEMORY_SPACE = 1 << 16, 1 << 32


@dataclass(frozen=True, slots=True)
class Bar:
    """A base address register: index 0-5 (or ROM), kind "io" or "memory" or "rom", size in bytes (power of two)."""

    index: int
    kind: str
    size: int
    prefetchable: bool = False


@dataclass(frozen=True, slots=True)
class Identity:
    """What a function says it is. `device_class` is the 24-bit class, subclass and programming interface."""

    vendor: int
    device: int
    device_class: int
    revision: int = 0
    subsystem: tuple[int, int] = (0, 0)  # vendor, id
    multifunction: bool = False
    interrupt_pin: int = 0  # 1 = INTA#


MappingChanged = Callable[["PciFunction", int, str, "int | None", int], None]
"""mapping_changed(function, index, kind, base or None, size)."""


def unheard(function: PciFunction, index: int, kind: str, base: int | None, size: int) -> None:
    """The mapping callback of somebody who does not care."""


class PciFunction(Model):
    """Configuration space with BARs.

    `mapping_changed(function, index, kind, base, size)` is called when a BAR becomes decoded (base), moves, or stops
    being decoded (None). A BAR of zero, or one that reaches the end of its space (as while it is being sized), is not
    decoded. A subclass adds writable bits with `allow` and overrides `mappings` for ranges that are not BARs.
    """

    regs = RegMap(size=256)

    @dataclass(slots=True)
    class State:
        KIND: ClassVar = ("pci-function", 1)
        config: bytearray = field(default_factory=lambda: bytearray(256))

    state: State

    def __init__(
        self,
        identity: Identity,
        bars: tuple[Bar, ...] = (),
        command: int = DECODE_IO | DECODE_MEMORY | BUS_MASTER,
        mapping_changed: MappingChanged = unheard,
    ) -> None:
        """`command` is the set of command register bits that exist."""
        self.mapping_changed = mapping_changed
        self.bars = bars
        self.state = self.State()
        self.writable = bytearray(256)
        self.clearable = bytearray(256)
        self._mapped: dict[tuple[int, str], tuple[int | None, int]] = {}
        self._identify(identity)
        self.allow({COMMAND: command & 0xFF, COMMAND + 1: command >> 8, 0x0C: 0xFF, 0x0D: 0xFF})
        self.allow({0x3C: 0xFF if identity.interrupt_pin else 0})
        self.clearable[STATUS + 1] = 0xF9
        for bar in bars:
            self._add_bar(bar)

    def _identify(self, identity: Identity) -> None:
        config = self.state.config
        struct.pack_into("<HH", config, 0x00, identity.vendor, identity.device)
        struct.pack_into("<I", config, 0x08, identity.device_class << 8 | identity.revision)
        struct.pack_into("<HH", config, 0x2C, *identity.subsystem)
        config[0x0E] = 0x80 if identity.multifunction else 0
        config[0x3D] = identity.interrupt_pin

    def _add_bar(self, bar: Bar) -> None:
        at = _place(bar)
        flags = {"io": 1, "memory": 8 if bar.prefetchable else 0, "rom": 0}[bar.kind]
        struct.pack_into("<I", self.state.config, at, flags)
        mask = -bar.size & 0xFFFFFFFF | (1 if bar.kind == "rom" else 0)
        struct.pack_into("<I", self.writable, at, mask & ~flags & 0xFFFFFFFF if bar.kind != "rom" else mask)

    def allow(self, masks: Mapping[int, int]) -> None:
        """Make bits writable: offset to mask of that byte."""
        for offset, mask in masks.items():
            self.writable[offset] |= mask

    def preset(self, values: Mapping[int, int]) -> None:
        """Set bytes to their values after reset."""
        for offset, value in values.items():
            self.state.config[offset] = value

    # Accesses

    def read(self, offset: int, size: int) -> int:
        """Read configuration space; beyond its end, ones."""
        if offset >= 0 and offset + size <= 256:
            return int.from_bytes(self.state.config[offset : offset + size], "little")
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Write configuration space under the masks; beyond its end, dropped."""
        config = self.state.config
        for i in range(size):
            at, byte = offset + i, value >> 8 * i & 0xFF
            if 0 <= at < 256:
                mask = self.writable[at]
                config[at] = (config[at] & ~mask | byte & mask) & ~(byte & self.clearable[at])
        self.written(offset, size)
        self.remap()

    def written(self, offset: int, size: int) -> None:
        """Called after a write, before mappings are looked at."""

    def word(self, offset: int) -> int:
        """Two bytes of configuration space."""
        return int.from_bytes(self.state.config[offset : offset + 2], "little")

    def dword(self, offset: int) -> int:
        """Four bytes of configuration space."""
        return int.from_bytes(self.state.config[offset : offset + 4], "little")

    # What is decoded where

    def mappings(self) -> dict[tuple[int, str], tuple[int | None, int]]:
        """(index, kind) to (base or None, size) for everything that can be decoded."""
        return {(bar.index, bar.kind): (self._base(bar), bar.size) for bar in self.bars}

    def _base(self, bar: Bar) -> int | None:
        value, command = self.dword(_place(bar)), self.word(COMMAND)
        on = command & (DECODE_IO if bar.kind == "io" else DECODE_MEMORY)
        if not on or (bar.kind == "rom" and not value & 1):
            return None
        base = value & -bar.size & 0xFFFFFFFF
        limit = IO_SPACE if bar.kind == "io" else MEMORY_SPACE
        return base if base and base + bar.size < limit else None

    def remap(self) -> None:
        """Tell of every mapping that is not as it was last told."""
        now = self.mappings()
        if now == self._mapped:
            return
        before, self._mapped = self._mapped, now
        for (index, kind), (base, size) in now.items():
            if before.get((index, kind), (None, size))[0] != base:
                self.mapping_changed(self, index, kind, base, size)

    def restored(self) -> None:
        self.state.config = self.state.config[:256].ljust(256, b"\0")
        self.remap()


def _place(bar: Bar) -> int:
    return ROM_BAR if bar.index == ROM else BARS + 4 * bar.index
