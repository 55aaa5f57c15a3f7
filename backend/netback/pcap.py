"""Packets of a capture file (the classic pcap format: pcap-savefile(5)), one after the other."""
import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

LINKTYPE_ETHERNET: Final = 1
LEAST: Final = 14                       # bytes of a frame that a link can carry
MOST: Final = 65535
_MAGICS: Final = {                      # byte order, and nanoseconds of a unit of the fraction
    b"\xd4\xc3\xb2\xa1": ("<", 1000), b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1), b"\xa1\xb2\x3c\x4d": (">", 1),
}


class PcapError(Exception):
    """A file is no capture that could be replayed: one line that says where."""


def packets(path: Path) -> Iterator[tuple[int, bytes]]:
    """(time in ns, frame) of every packet. PcapError, which names the packet, where the file goes wrong."""
    try:
        with path.open("rb") as file:
            yield from _packets(path, file)
    except OSError as error:
        raise PcapError(f"{path}: {error.strerror}") from None


def _packets(path: Path, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    header = file.read(24)
    if header[:4] == b"\x0a\x0d\x0d\x0a":
        raise PcapError(f"{path}: a pcapng file: convert it with editcap -F pcap")
    if len(header) < 24 or header[:4] not in _MAGICS:
        raise PcapError(f"{path}: not a pcap file")
    order, unit = _MAGICS[header[:4]]
    linktype = struct.unpack_from(order + "I", header, 20)[0] & 0xFFFF
    if linktype != LINKTYPE_ETHERNET:
        raise PcapError(f"{path}: its link type is {linktype}, not Ethernet ({LINKTYPE_ETHERNET})")
    number = 0
    while record := file.read(16):
        number += 1
        seconds, fraction, captured, length = struct.unpack(order + "4I", record) if len(record) == 16 else (0, 0, 0, 0)
        if len(record) < 16:
            raise PcapError(f"{path}: ends within the header of packet {number}")
        if captured != length or not LEAST <= length <= MOST:
            raise PcapError(f"{path}: packet {number} has {captured} of {length} bytes, not all of {LEAST} to {MOST}")
        frame = file.read(captured)
        if len(frame) < captured:
            raise PcapError(f"{path}: ends within packet {number}")
        yield seconds * 1_000_000_000 + fraction * unit, frame


def whole_packets(path: Path) -> int:
    """How many bytes of a file are a capture with nothing missing: 0 when it is none, or not there."""
    size = 0
    with contextlib.suppress(PcapError):
        for _, frame in packets(path):
            size = (size or 24) + 16 + len(frame)
    return size
