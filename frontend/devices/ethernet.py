"""What every Ethernet card computes (IEEE 802.3, 3.2.9 and 4.1.2): the frame check sequence and the multicast hash."""

from __future__ import annotations

import zlib

BROADCAST = b"\xff" * 6
GROUP = 0x01  # in an address's first byte
VLAN = b"\x81\x00"  # IEEE 802.1Q tag protocol identifier


def fcs(frame: bytes) -> bytes:
    """The four bytes that follow a frame on the wire."""
    return zlib.crc32(frame).to_bytes(4, "little")


def multicast_hash(address: bytes) -> int:
    """An address's place, 0 to 63, in a filter of 64 bits: the CRC register's top six bits after the address.

    The register shifts left and is not complemented; zlib's is its mirror image, complemented.
    """
    low = ~zlib.crc32(address)
    return int(f"{low & 0x3F:06b}"[::-1], 2)


def in_filter(table: bytes | bytearray, address: bytes) -> bool:
    """Whether a filter of eight bytes, lowest first, has an address's bit."""
    place = multicast_hash(address)
    return bool(table[place >> 3] >> (place & 7) & 1)
