"""The fw_cfg items and files that SeaBIOS wants on a PC (SeaBIOS docs/Runtime_config.md; QEMU docs/specs/fw_cfg)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from miniguest.frontend.devices import fw_cfg

LOW_RAM = 3 << 30  # RAM beyond this continues at 4 GiB
E820_RAM = 1


def pc_items(memory_bytes: int, vcpus: int = 1) -> dict[int, bytes]:
    """Items by key: RAM size, processors, no graphics, no boot menu; the timer is on the I/O APIC's pin 2."""
    return {
        fw_cfg.UUID: bytes(16),
        fw_cfg.RAM_SIZE: struct.pack("<Q", memory_bytes),
        fw_cfg.NOGRAPHIC: struct.pack("<H", 1),
        fw_cfg.NB_CPUS: struct.pack("<H", vcpus),
        fw_cfg.BOOT_MENU: struct.pack("<H", 0),
        fw_cfg.MAX_CPUS: struct.pack("<H", vcpus),
        fw_cfg.IRQ0_OVERRIDE: struct.pack("<I", 1),
    }


def pc_files(
    memory_bytes: int, serial_port: int = 0x3F8, boot_order: Sequence[str] = (), boot_menu: bool = False
) -> dict[str, bytes]:
    """Files by name.

    `serial_port` is where SeaBIOS sends the text of int 10h (0 for nowhere); `boot_order` holds Open Firmware paths,
    as `ide_path` and `nic_path` make them, most wanted first.
    """
    files = {"etc/e820": e820(memory_bytes), "etc/show-boot-menu": struct.pack("<Q", boot_menu)}
    if serial_port:
        files["etc/sercon-port"] = struct.pack("<Q", serial_port)
    if boot_order:
        files["bootorder"] = "\n".join(boot_order).encode() + b"\0"
    return files


def e820(memory_bytes: int) -> bytes:
    """RAM as e820 entries: address, length (u64 each) and type (u32), little endian."""
    low = min(memory_bytes, LOW_RAM)
    table = struct.pack("<QQI", 0, low, E820_RAM)
    if memory_bytes > low:
        table += struct.pack("<QQI", 1 << 32, memory_bytes - low, E820_RAM)
    return table


def ide_path(channel: int, drive: int) -> str:
    """The boot order's path of an IDE disk on the PIIX3 at 00:01.1."""
    return f"/pci@i0cf8/ide@1,1/drive@{channel}/disk@{drive}"


def nic_path(slot: int) -> str:
    """The boot order's path of the option ROM of a network card on PCI bus 0."""
    return f"/pci@i0cf8/ethernet@{slot:x}/ethernet-phy@0"
