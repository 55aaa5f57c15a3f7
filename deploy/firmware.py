"""Firmware: SeaBIOS where distributions put it, or any file."""
from __future__ import annotations

import os
from pathlib import Path

from miniguest.deploy.errors import FirmwareError

# Debian and Ubuntu; Fedora and openSUSE; Arch; Alpine and others with QEMU's own copy; what was built by hand.
PLACES = (
    "/usr/share/seabios/bios-256k.bin",
    "/usr/share/qemu/bios-256k.bin",
    "/usr/share/qemu-kvm/bios-256k.bin",
    "/usr/share/kvm/bios-256k.bin",
    "/usr/local/share/seabios/bios-256k.bin",
    "/usr/local/share/qemu/bios-256k.bin",
    "/usr/share/seabios/bios.bin",
)
ENVIRONMENT = "MINIGUEST_FIRMWARE"      # a file that is "seabios" on this machine
SIZES = tuple(1 << order for order in range(16, 25))    # bytes: 64 KiB to 16 MiB below 4 GiB


def find(word: str, base: Path) -> Path:
    """The file of a topology's `firmware`: "seabios", or a path relative to `base`.

    Raises FirmwareError when there is none or when it cannot be firmware by its size.
    """
    path = seabios() if word == "seabios" else base / word
    try:
        if not path.is_file() and path.exists():
            raise FirmwareError(f"{path}: is not a file")
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
    except OSError as error:
        raise FirmwareError(f"{path}: cannot be read: {error.strerror}") from None
    if size not in SIZES:
        raise FirmwareError(f"{path}: has {size} bytes: firmware is a power of two from 64 KiB to 16 MiB")
    return path


def seabios() -> Path:
    """The SeaBIOS of this machine. Raises FirmwareError when none is installed."""
    if named := os.environ.get(ENVIRONMENT):
        return Path(named).absolute()
    for place in PLACES:
        if (path := Path(place)).is_file():
            return path
    raise FirmwareError("no SeaBIOS on this machine: install the package seabios, or give the path of a firmware file")
