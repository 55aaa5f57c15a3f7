"""QEMU's firmware configuration device (QEMU docs/specs/fw_cfg), port range 0x510 to 0x51B.

Register range: 0 selector (16 bits), 1 data (8 bits), 4 and 8 the halves of the DMA address (big endian). Items are
read-only: a DMA write ends with the error bit.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from miniguest.frontend.devices.device import GuestMemory, Model
from miniguest.frontend.devices.regmap import RegMap

SIGNATURE, ID, UUID, RAM_SIZE, NOGRAPHIC, NB_CPUS, BOOT_MENU, MAX_CPUS, DIRECTORY = 0, 1, 2, 3, 4, 5, 0xE, 0xF, 0x19
FIRST_FILE = 0x20
IRQ0_OVERRIDE = 0x8002  # of the x86's own items
DMA_ERROR, DMA_READ, DMA_SKIP, DMA_SELECT, DMA_WRITE = 1, 2, 4, 8, 16
ID_TRADITIONAL, ID_DMA = 1, 2
CHUNK = 1 << 16
LONGEST = 64 << 20  # a transfer longer than this is an error: no item is, and the guest names the length


class FwCfg(Model):
    """Items by key, and files by name through the directory. `memory` is where DMA goes."""

    regs = RegMap(size=12)

    @dataclass(slots=True)
    class State:
        KIND: ClassVar = ("fw-cfg", 1)
        key: int = 0
        offset: int = 0
        address_high: int = 0

    state: State

    def __init__(self, memory: GuestMemory, files: Mapping[str, bytes], items: Mapping[int, bytes]) -> None:
        self.memory = memory
        self.items = {SIGNATURE: b"QEMU", ID: struct.pack("<I", ID_TRADITIONAL | ID_DMA), **items}
        self.items[DIRECTORY] = self._directory(files)
        self.state = self.State()
        self.ports = ((0x510, 12, self),)

    def _directory(self, files: Mapping[str, bytes]) -> bytes:
        """Number the files by name and list them: count, then size, key, and name in 56 bytes, big endian."""
        entries = [struct.pack(">I", len(files))]
        for key, name in enumerate(sorted(files), start=FIRST_FILE):
            if len(name.encode()) > 55:
                raise ValueError(f"fw_cfg file name of more than 55 bytes: {name!r}")
            self.items[key] = files[name]
            entries.append(struct.pack(">IHH56s", len(files[name]), key, 0, name.encode()))
        return b"".join(entries)

    def _take(self, size: int) -> bytes:
        """The next bytes of the selected item; beyond its end, zeros."""
        s = self.state
        item = self.items.get(s.key & 0xBFFF, b"")  # bit 14 asks for write access, which is ignored
        part = item[s.offset : s.offset + size]
        s.offset = min(s.offset + size, 1 << 32)
        return part.ljust(size, b"\0")

    @regs.write(0, "SELECTOR", size=2)
    def write_selector(self, value: int) -> None:
        self.state.key, self.state.offset = value, 0

    @regs.read(1, "DATA")
    def read_data(self) -> int:
        return self._take(1)[0]

    def read_string(self, offset: int, size: int, count: int) -> bytes:
        """The next `count` bytes when it is the data port; else what so many reads give."""
        if (offset, size) == (1, 1):
            return self._take(count)
        return b"".join(self.read(offset, size).to_bytes(size, "little") for _ in range(count))

    def write_string(self, offset: int, size: int, data: bytes) -> None:
        for i in range(0, len(data), size):
            self.write(offset, size, int.from_bytes(data[i : i + size], "little"))

    @regs.read(4, "DMA_HIGH", size=4)
    def read_dma_high(self) -> int:
        return int.from_bytes(b"QEMU", "little")

    @regs.read(8, "DMA_LOW", size=4)
    def read_dma_low(self) -> int:
        return int.from_bytes(b" CFG", "little")

    @regs.write(4, "DMA_HIGH", size=4)
    def write_dma_high(self, value: int) -> None:
        self.state.address_high = _swap(value)

    @regs.write(8, "DMA_LOW", size=4)
    def write_dma_low(self, value: int) -> None:
        address = self.state.address_high << 32 | _swap(value)
        self.state.address_high = 0
        control, length, target = struct.unpack(">IIQ", self.memory.read(address, 16))
        if control & DMA_SELECT:
            self.write_selector(control >> 16)
        failed = not self._transfer(control, length, target)
        self.memory.write(address, struct.pack(">I", DMA_ERROR if failed else 0))

    def _transfer(self, control: int, length: int, target: int) -> bool:
        """Carry out one DMA request; whether it could be."""
        if length > LONGEST and control & DMA_READ:
            return False
        if control & DMA_READ:
            for done in range(0, length, CHUNK):
                self.memory.write(target + done, self._take(min(CHUNK, length - done)))
            return True
        if control & DMA_SKIP:
            self.state.offset = min(self.state.offset + length, 1 << 32)
            return True
        return not control & DMA_WRITE


def _swap(value: int) -> int:
    return int.from_bytes(value.to_bytes(4, "little"), "big")
