"""The firmware configuration device against QEMU's specification of it, and the two small output ports."""

import struct

import pytest

from miniguest.frontend.devices.debug_port import LONGEST, DebugPort
from miniguest.frontend.devices.fw_cfg import FwCfg
from miniguest.frontend.devices.fw_cfg_files import e820, ide_path, pc_files, pc_items

SELECTOR, DATA, DMA_HIGH, DMA_LOW = 0, 1, 4, 8


class Memory:
    def __init__(self) -> None:
        self.data = bytearray(0x20000)

    def read(self, gpa: int, size: int) -> bytes:
        return bytes(self.data[gpa : gpa + size]).ljust(size, b"\xff")

    def write(self, gpa: int, data: bytes | memoryview) -> None:
        part = bytes(data)[: max(len(self.data) - gpa, 0)]
        self.data[gpa : gpa + len(part)] = part


class Firmware:
    def __init__(self) -> None:
        self.memory = Memory()
        files = pc_files(64 << 20, boot_order=[ide_path(0, 1), ide_path(1, 0)])
        self.device = FwCfg(self.memory, files, pc_items(64 << 20, vcpus=2))

    def item(self, key: int, size: int) -> bytes:
        self.device.write(SELECTOR, 2, key)
        return bytes(self.device.read(DATA, 1) for _ in range(size))

    def dma(self, control: int, length: int = 0, target: int = 0, at: int = 0x100) -> int:
        """One DMA request; gives the control word after it."""
        struct.pack_into(">IIQ", self.memory.data, at, control, length, target)
        self.device.write(DMA_HIGH, 4, 0)
        self.device.write(DMA_LOW, 4, int.from_bytes(at.to_bytes(4, "big"), "little"))
        return int.from_bytes(self.memory.data[at : at + 4], "big")

    def directory(self) -> dict[str, tuple[int, int]]:
        count = int.from_bytes(self.item(0x19, 4), "big")
        raw = self.item(0x19, 4 + 64 * count)[4:]
        entries = [struct.unpack_from(">IHH56s", raw, 64 * i) for i in range(count)]
        return {name.rstrip(b"\0").decode(): (key, size) for size, key, _, name in entries}


def test_items() -> None:
    firmware = Firmware()
    assert firmware.item(0, 6) == b"QEMU\0\0"  # zeros beyond the end
    assert firmware.item(1, 4) == b"\x03\0\0\0"
    assert firmware.item(3, 8) == struct.pack("<Q", 64 << 20)
    assert firmware.item(5, 2) == firmware.item(0x0F, 2) == b"\x02\0"
    assert firmware.item(0x4000 | 5, 2) == b"\x02\0"
    assert firmware.item(0x1234, 4) == bytes(4)
    firmware.device.write(DATA, 1, 7)  # dropped
    assert firmware.item(5, 2) == b"\x02\0"


def test_directory_is_sorted_and_says_the_truth() -> None:
    firmware = Firmware()
    names = firmware.directory()
    assert list(names) == ["bootorder", "etc/e820", "etc/sercon-port", "etc/show-boot-menu"]
    key, size = names["bootorder"]
    assert firmware.item(key, size) == b"/pci@i0cf8/ide@1,1/drive@0/disk@1\n/pci@i0cf8/ide@1,1/drive@1/disk@0\0"
    key, size = names["etc/sercon-port"]
    assert firmware.item(key, size) == struct.pack("<Q", 0x3F8)
    with pytest.raises(ValueError, match="55"):
        FwCfg(Memory(), {"x" * 56: b""}, {})


def test_e820_splits_at_4_gib() -> None:
    assert e820(64 << 20) == struct.pack("<QQI", 0, 64 << 20, 1)
    assert e820(5 << 30) == struct.pack("<QQIQQI", 0, 3 << 30, 1, 4 << 30, 2 << 30, 1)


def test_dma_reads_skips_and_selects() -> None:
    firmware = Firmware()
    assert struct.pack("<II", firmware.device.read(DMA_HIGH, 4), firmware.device.read(DMA_LOW, 4)) == b"QEMU CFG"
    assert firmware.dma(0x0008 | 2, 6, 0x1000) == 0
    assert firmware.memory.data[0x1000:0x1006] == b"QEMU\0\0"
    assert firmware.dma(0x0008 | 4, 2) == 0
    assert firmware.dma(2, 2, 0x2000) == 0
    assert firmware.memory.data[0x2000:0x2002] == b"MU"


def test_dma_errors() -> None:
    firmware = Firmware()
    assert firmware.dma(16, 4, 0x1000) == 1  # items cannot be written
    assert firmware.dma(0x0008 | 2, 0xFFFFFFFF, 0x1000) == 1
    assert firmware.dma(0x0008 | 2, 0x30000, 0x1F000) == 0  # out of memory: dropped
    assert firmware.dma(0, 4) == 0
    firmware.device.write(DMA_LOW, 4, 0xFFFFFFF0)  # a descriptor that is nowhere


def test_debug_port_gives_lines() -> None:
    lines: list[bytes] = []
    port = DebugPort(lines.append)
    assert port.read(0, 1) == 0xE9
    port.write_string(0, 1, b"one\ntwo\n\nthr")
    assert lines == [b"one", b"two", b""]
    port.flush()
    assert lines[3:] == [b"thr"]
    port.write_string(0, 1, b"x" * (LONGEST + 5) + b"\n")
    assert lines[4:] == [b"x" * LONGEST, b"x" * 5]
    assert port.read_string(0, 1, 3) == b"\xe9" * 3
