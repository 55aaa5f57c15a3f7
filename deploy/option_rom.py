"""Option ROMs of network cards: iPXE's where distributions put them, or any file."""
from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from miniguest.deploy.errors import FirmwareError
from miniguest.ring.memory import FRAME_SIZE, ROM_FRAMES

# Debian and Ubuntu; Fedora; QEMU's own copy, on Arch and others; what was built by hand.
PLACES: Final = ("/usr/lib/ipxe/qemu", "/usr/share/ipxe/qemu", "/usr/share/ipxe", "/usr/share/qemu", "/usr/local/share/qemu")
ENVIRONMENT: Final = "MINIGUEST_ROMS"   # a directory where "auto" looks instead
MOST: Final = 16 << 20                  # bytes: what the length byte of the last image could not exceed by far
SIGNATURE: Final = b"\x55\xaa"          # PCI Local Bus Specification 2.2, 6.3.1.1
_CHECKSUM_AT: Final = 6                 # in iPXE's images; all bytes of an image add up to 0
_PCIR_AT: Final = 0x18
_PCIR: Final = struct.Struct("<4sHH")
_PCIR_SIZE: Final = 24                  # bytes of the whole structure (6.3.1.2)


def find(word: str, model: str, base: Path) -> Path | None:
    """The ROM of a `rom` key: "auto", "none", or a path relative to `base`. FirmwareError when it is no option ROM."""
    if word == "none":
        return None
    path = _shipped(model) if word == "auto" else base / word
    try:
        if path.exists() and not path.is_file():
            raise FirmwareError(f"{path}: is not a file")
        image = read(path)
    except OSError as error:
        raise FirmwareError(f"{path}: cannot be read: {error.strerror}") from None
    if trouble := _trouble(image):
        raise FirmwareError(f"{path}: {trouble}")
    return path


def read(path: Path) -> bytes:
    """The image."""
    with path.open("rb") as file:
        return file.read(MOST)


def fitted(image: bytes, vendor: int, device: int) -> bytes:
    """The image as card `vendor`:`device` carries it.

    A ROM made for no card in particular has zeros for both in its PCI data structure (Debian's for the ne2k_pci has):
    firmware would not take it for this card's. Both are filled in, and the checksum byte made good, as QEMU does.
    """
    at = int.from_bytes(image[_PCIR_AT : _PCIR_AT + 2], "little")
    if _PCIR.unpack_from(image, at) != (b"PCIR", 0, 0):
        return image
    made = bytearray(image)
    _PCIR.pack_into(made, at, b"PCIR", vendor, device)
    made[_CHECKSUM_AT] = (made[_CHECKSUM_AT] + sum(image) - sum(made)) & 0xFF
    return bytes(made)


def frames(image: bytes) -> int:
    """How many frames an image takes up: its BAR is a power of two."""
    return max(1, (1 << (len(image) - 1).bit_length()) // FRAME_SIZE)


def room_trouble(roms: Sequence[Path]) -> str:
    """Why a guest has no room for these images, or "" when it has."""
    needed = sum(frames(read(path)) for path in roms)
    if needed <= ROM_FRAMES:
        return ""
    room = f"{ROM_FRAMES * FRAME_SIZE >> 10} KiB there is room for"
    return f'{needed * FRAME_SIZE >> 10} KiB of option ROMs, of {room}: give one of them rom = "none"'


def _shipped(model: str) -> Path:
    places = (os.environ[ENVIRONMENT],) if ENVIRONMENT in os.environ else PLACES
    for place in places:
        if (path := Path(place) / f"pxe-{model}.rom").is_file():
            return path
    raise FirmwareError(f'no iPXE ROM for {model} on this machine: install the package ipxe-qemu, give a path, or rom = "none"')


def _trouble(image: bytes) -> str:
    if not image.startswith(SIGNATURE) or len(image) < 512:
        return "is no option ROM: it does not begin with 55 aa"
    at = int.from_bytes(image[_PCIR_AT : _PCIR_AT + 2], "little")
    if image[at : at + 4] != b"PCIR" or at + _PCIR_SIZE > len(image):
        return "is no PCI option ROM: it has no PCI data structure"
    return ""
