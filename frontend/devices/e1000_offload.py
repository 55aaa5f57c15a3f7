"""What the 82540EM computes for the stack: checksums in and out, and segments of large packets.

Sections 3.2.9 (receive checksums), 3.3.3, 3.5, 3.6 (transmit) of the manual that `e1000_registers` names. Every offset
is the guest's: one that lies outside the packet has no effect.
"""

from __future__ import annotations

from dataclasses import dataclass

from miniguest.frontend.devices import e1000_registers as r
from miniguest.ring._core import checksum_sum

IPV4, IPV6, VLAN_HEADER, SNAP = b"\x08\x00", b"\x86\xdd", 4, b"\xaa\xaa\x03\0\0\0"
TCP, UDP = 6, 17
MAX_LENGTH_FIELD = 1500                 # larger ones are EtherTypes
FIN_PSH = 0x09


@dataclass(slots=True)
class Context:
    """A TCP/IP context descriptor (3.3.6). Ends are inclusive, 0 = the packet's end.

    PAYLEN is left out: a block ends with the descriptor that says so, which is where software says PAYLEN ends.
    """

    ipcss: int = 0
    ipcso: int = 0
    ipcse: int = 0
    tucss: int = 0
    tucso: int = 0
    tucse: int = 0
    command: int = 0                    # TUCMD_ bits
    hdrlen: int = 0
    mss: int = 0


def context(first: int, lower: int, upper: int) -> Context:
    """Decode a context descriptor: its first quadword and the two dwords behind."""
    return Context(
        first & 0xFF, first >> 8 & 0xFF, first >> 16 & 0xFFFF, first >> 32 & 0xFF, first >> 40 & 0xFF, first >> 48,
        lower & (r.TUCMD_TCP | r.TUCMD_IP | r.TUCMD_TSE), upper >> 8 & 0xFF, upper >> 16)


def insert_checksum(frame: bytearray, start: int, end: int, at: int, initial: int = 0, ones_for_zero: bool = False) -> None:
    """Put the checksum of frame[start:end + 1] (end 0: all of it) at `at`; in UDP zero would mean that there is none."""
    if start >= len(frame) or at + 2 > len(frame):
        return
    value = ~checksum_sum(frame[start : end + 1] if end else frame[start:], initial) & 0xFFFF
    frame[at : at + 2] = (value or (0xFFFF if ones_for_zero else 0)).to_bytes(2, "big")


def finish(frame: bytearray, c: Context, options: int, initial: int = 0) -> None:
    """Insert the checksums that POPTS asks for. The header's field counts in the sum: software left its part there."""
    if options & r.POPTS_IXSM:
        insert_checksum(frame, c.ipcss, c.ipcse, c.ipcso)
    if options & r.POPTS_TXSM:
        insert_checksum(frame, c.tucss, c.tucse, c.tucso, initial, not c.command & r.TUCMD_TCP)


def segment(packet: bytearray, c: Context, position: int, options: int) -> bytearray:
    """The frame with payload from `position` on: a copy of the header brought up to date, and at most MSS bytes."""
    start = c.hdrlen + position
    frame = packet[: c.hdrlen] + packet[start : start + c.mss]
    size = len(frame)
    length = int.from_bytes(frame[12:14], "big")
    if length <= MAX_LENGTH_FIELD:
        _put(frame, c.hdrlen, 12, size - 14)
    version6 = not c.command & r.TUCMD_IP and (c.command & r.TUCMD_TCP or frame[max(c.ipcss - 2, 0) : c.ipcss] == IPV6)
    if c.command & r.TUCMD_IP:
        _put(frame, c.hdrlen, c.ipcss + 2, size - c.ipcss)
        _add(frame, c.hdrlen, c.ipcss + 4, 2, position // c.mss)
    elif version6:
        _put(frame, c.hdrlen, c.ipcss + 4, size - c.ipcss - 40)
    if c.command & r.TUCMD_TCP:
        _add(frame, c.hdrlen, c.tucss + 4, 4, position)
        if start + c.mss < len(packet) and c.tucss + 14 <= c.hdrlen:
            frame[c.tucss + 13] &= ~FIN_PSH
    elif c.command & r.TUCMD_IP or version6:
        _put(frame, c.hdrlen, c.tucss + 4, size - c.tucss)
    # The pseudo header's length is of this frame, which software could not know. A block without IP has none.
    finish(frame, c, options, max(size - c.tucss, 0) if c.command & r.TUCMD_IP or version6 else 0)
    return frame


def _put(frame: bytearray, limit: int, at: int, value: int) -> None:
    if at + 2 <= limit:
        frame[at : at + 2] = (value & 0xFFFF).to_bytes(2, "big")


def _add(frame: bytearray, limit: int, at: int, size: int, value: int) -> None:
    if at + size <= limit:
        total = int.from_bytes(frame[at : at + size], "big") + value & (1 << 8 * size) - 1
        frame[at : at + size] = total.to_bytes(size, "big")


def verify(frame: bytes, enabled: int, tagged: bool) -> tuple[int, int]:
    """Status and error bits of a received frame; `enabled` is RXCSUM, `tagged` says that a VLAN tag is in the frame."""
    at = 14 + VLAN_HEADER if tagged else 14
    kind = frame[at - 2 : at]
    if frame[at : at + 6] == SNAP and int.from_bytes(kind, "big") <= MAX_LENGTH_FIELD:
        at += 8
        kind = frame[at - 2 : at]
    status = errors = 0
    if kind == IPV4:
        status, errors = _verify4(frame, at, enabled)
    elif kind == IPV6 and enabled & r.RXCSUM_TUOFL and len(frame) >= at + 40 and frame[at] >> 4 == 6:
        size = int.from_bytes(frame[at + 4 : at + 6], "big")
        status, errors = _verify_payload(frame[at + 8 : at + 40], frame[at + 6], frame[at + 40 : at + 40 + size], size)
    return status or r.RXD_IXSM, errors


def _verify4(frame: bytes, at: int, enabled: int) -> tuple[int, int]:
    """An IPv4 header that makes no sense is left to software; a fragment's payload is not looked at."""
    header = (frame[at] & 15) * 4 if len(frame) > at else 0
    size = int.from_bytes(frame[at + 2 : at + 4], "big")
    if header < 20 or frame[at] >> 4 != 4 or size < header or at + size > len(frame):
        return 0, 0
    status = errors = 0
    if enabled & r.RXCSUM_IPOFL:
        status = r.RXD_IPCS
        errors = 0 if checksum_sum(frame[at : at + header]) == 0xFFFF else r.RXD_IPE
    fragment = int.from_bytes(frame[at + 6 : at + 8], "big") & 0x3FFF
    if enabled & r.RXCSUM_TUOFL and not fragment:
        payload = frame[at + header : at + size]
        more, wrong = _verify_payload(frame[at + 12 : at + 20], frame[at + 9], payload, size - header)
        status, errors = status | more, errors | wrong
    return status, errors


def _verify_payload(addresses: bytes, protocol: int, payload: bytes, size: int) -> tuple[int, int]:
    """TCP or UDP with its pseudo header; a UDP checksum of zero is none."""
    if len(payload) != size or size < {TCP: 20, UDP: 8}.get(protocol, size + 1):
        return 0, 0
    if protocol == UDP and payload[6:8] == b"\0\0":
        return 0, 0
    total = checksum_sum(payload, checksum_sum(addresses, protocol + size))
    return r.RXD_TCPCS, 0 if total == 0xFFFF else r.RXD_TCPE
