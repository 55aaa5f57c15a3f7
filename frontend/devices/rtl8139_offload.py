"""RTL8139C+: checksums, large send and VLAN tags (datasheet 1.6, section 8.3 and 9; RFC 791, 768, 793 and 1071).

A frame is worked on when it is IPv4 right behind the Ethernet header; any other goes as it is. What a header claims
is believed no further than the frame reaches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from miniguest.frontend.devices.ethernet import VLAN
from miniguest.ring._core import checksum_sum

IPCS, UDPCS, TCPCS = 1 << 18, 1 << 17, 1 << 16  # transmit descriptor: compute these
PID_TCP, PID_UDP, PID_IP = 1 << 16, 2 << 16, 3 << 16  # receive descriptor: what it was
IPF, UDPF, TCPF = 1 << 15, 1 << 14, 1 << 13  # ... and which checksum is wrong
TAG = 1 << 17  # second double word of a transmit descriptor: insert the tag
TAG_AVAILABLE = 1 << 16  # ... of a receive descriptor: a tag was taken out
MSS_LEAST = 64  # a segment's payload, so that 64 KiB are a thousand frames and not 65,536

IPV4 = b"\x08\x00"
TCP, UDP = 6, 17
ETHERNET = 14  # bytes of header
FIN_PSH = 0x09


class Ip(NamedTuple):
    """Where an IPv4 packet's parts lie in its frame: first byte of the payload, end of the packet, protocol."""

    payload: int
    end: int
    protocol: int
    fragment: bool


def parse(frame: bytes | bytearray) -> Ip | None:
    """The IPv4 packet in a frame, if there is one."""
    if frame[12:14] != IPV4 or len(frame) < ETHERNET + 20 or frame[14] >> 4 != 4:
        return None
    payload = ETHERNET + 4 * (frame[14] & 15)
    end = ETHERNET + int.from_bytes(frame[16:18], "big")
    if payload < ETHERNET + 20 or end < payload or end > len(frame):
        return None
    return Ip(payload, end, frame[23], bool(int.from_bytes(frame[20:22], "big") & 0x3FFF))


def _transport_sum(frame: bytes | bytearray, ip: Ip) -> int:
    """The sum of a TCP or UDP packet with its pseudo-header; 0xFFFF when its checksum is right."""
    length = ip.end - ip.payload
    pseudo = frame[26:34] + bytes((0, ip.protocol)) + length.to_bytes(2, "big")
    return checksum_sum(frame[ip.payload : ip.end], checksum_sum(pseudo))


def _put(frame: bytearray, at: int, total: int) -> None:
    frame[at : at + 2] = (0xFFFF - total).to_bytes(2, "big")


def _fill_transport(frame: bytearray, ip: Ip) -> None:
    """Compute the checksum of TCP or UDP; a UDP checksum of zero is sent as its other form."""
    at = ip.payload + (16 if ip.protocol == TCP else 6)
    if ip.fragment or at + 2 > ip.end:
        return
    frame[at : at + 2] = b"\0\0"
    _put(frame, at, _transport_sum(frame, ip))
    if ip.protocol == UDP and frame[at : at + 2] == b"\0\0":
        frame[at : at + 2] = b"\xff\xff"


def _fill_header(frame: bytearray, ip: Ip) -> None:
    frame[24:26] = b"\0\0"
    _put(frame, 24, checksum_sum(frame[ETHERNET : ip.payload]))


def fill(frame: bytes, flags: int) -> bytes:
    """The frame with the checksums that a descriptor's flags ask for."""
    ip = parse(frame) if flags & (IPCS | UDPCS | TCPCS) else None
    if ip is None:
        return frame
    work = bytearray(frame)
    if flags & IPCS:
        _fill_header(work, ip)
    if (ip.protocol == TCP and flags & TCPCS) or (ip.protocol == UDP and flags & UDPCS):
        _fill_transport(work, ip)
    return bytes(work)


def segments(frame: bytes, mss: int) -> Iterator[bytes]:
    """Large send: one TCP packet as several of at most `mss` bytes each; anything but TCP is not sent."""
    ip = parse(frame)
    if ip is None or ip.protocol != TCP or ip.fragment or ip.end < ip.payload + 20:
        return
    start = ip.payload + 4 * (frame[ip.payload + 12] >> 4)
    if start < ip.payload + 20 or start > ip.end:
        return
    size = max(mss, MSS_LEAST)
    for number, at in enumerate(range(start, max(ip.end, start + 1), size)):
        yield _segment(frame, ip, start, at, min(at + size, ip.end), number)


def _segment(frame: bytes, ip: Ip, start: int, first: int, end: int, number: int) -> bytes:
    """The segment with bytes [first, end) of the frame. Identification and sequence number count on."""
    work = bytearray(frame[:start] + frame[first:end])
    work[16:18] = (len(work) - ETHERNET).to_bytes(2, "big")
    work[18:20] = (int.from_bytes(frame[18:20], "big") + number & 0xFFFF).to_bytes(2, "big")
    sequence = int.from_bytes(frame[ip.payload + 4 : ip.payload + 8], "big") + first - start
    work[ip.payload + 4 : ip.payload + 8] = (sequence & 0xFFFFFFFF).to_bytes(4, "big")
    if end != ip.end:
        work[ip.payload + 13] &= ~FIN_PSH
    piece = Ip(ip.payload, len(work), TCP, False)
    _fill_header(work, piece)
    _fill_transport(work, piece)
    return bytes(work)


def tagged(frame: bytes, second: int) -> bytes:
    """The frame with the tag that a transmit descriptor's second double word asks for, in wire order there."""
    if not second & TAG:
        return frame
    return frame[:12] + VLAN + (second & 0xFFFF).to_bytes(2, "little") + frame[12:]


def untagged(frame: bytes) -> tuple[bytes, int]:
    """The frame without its tag, and the second double word of the receive descriptor."""
    if frame[12:14] != VLAN:
        return frame, 0
    return frame[:12] + frame[16:], TAG_AVAILABLE | int.from_bytes(frame[14:16], "little")


def verdict(frame: bytes) -> int:
    """What a receive descriptor says of a frame's protocol and checksums."""
    ip = parse(frame)
    if ip is None:
        return 0
    bits = PID_IP
    if checksum_sum(frame[ETHERNET : ip.payload]) != 0xFFFF:
        bits |= IPF
    if ip.fragment or ip.protocol not in (TCP, UDP):
        return bits
    right = _transport_sum(frame, ip) == 0xFFFF
    if ip.protocol == TCP:
        return bits & ~PID_IP | PID_TCP | (0 if right else TCPF)
    absent = frame[ip.payload + 6 : ip.payload + 8] == b"\0\0"
    return bits & ~PID_IP | PID_UDP | (0 if right or absent else UDPF)
