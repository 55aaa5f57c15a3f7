"""A driver for the 82540EM, as the manual says to write one (317453, chapter 14), and the card it drives."""

import struct
from typing import Any

from miniguest.frontend.devices.e1000 import E1000

MAC = bytes.fromhex("00163e123456")
RAM = 4 << 20
RX_RING, TX_RING, RX_BUFFERS, TX_BUFFERS = 0x1000, 0x9000, 0x100000, 0x280000
CTRL, STATUS, EECD, EERD, CTRL_EXT, MDIC, VET = 0x0, 0x8, 0x10, 0x14, 0x18, 0x20, 0x38
ICR, ITR, ICS, IMS, IMC, RCTL, TCTL = 0xC0, 0xC4, 0xC8, 0xD0, 0xD8, 0x100, 0x400
RDBAL, RDBAH, RDLEN, RDH, RDT, RDTR, RADV, RSRPD = 0x2800, 0x2804, 0x2808, 0x2810, 0x2818, 0x2820, 0x282C, 0x2C00
TDBAL, TDBAH, TDLEN, TDH, TDT, TIDV, TXDCTL, TADV = 0x3800, 0x3804, 0x3808, 0x3810, 0x3818, 0x3820, 0x3828, 0x382C
RXCSUM, MTA, RA, VFTA = 0x5000, 0x5200, 0x5400, 0x5600
TXDW, TXQE, LSC, RXDMT0, RXO, RXT0, MDAC, TXD_LOW, SRPD = 1, 2, 4, 0x10, 0x40, 0x80, 0x200, 0x8000, 0x10000
EN, UPE, MPE, LPE, BAM, VFE, BSEX, SECRC = 2, 8, 0x10, 0x20, 0x8000, 0x40000, 0x2000000, 0x4000000
VME = 1 << 30
EOP, IFCS, IC, TSE, RS, DEXT, VLE, IDE = 1, 2, 4, 4, 8, 0x20, 0x40, 0x80


class Memory:
    def __init__(self) -> None:
        self.data = bytearray(RAM)
        self.reads = 0

    def read(self, gpa: int, size: int) -> bytes:
        self.reads += 1
        return bytes(self.data[gpa : gpa + size]).ljust(size, b"\xff")

    def write(self, gpa: int, data: bytes | memoryview) -> None:
        part = bytes(data)[: max(RAM - gpa, 0)]
        self.data[gpa : gpa + len(part)] = part


class Wire:
    """Keeps what is sent; `space` is how many frames it still takes."""

    def __init__(self) -> None:
        self.space = 1 << 30
        self.frames: list[bytes] = []

    def room(self) -> bool:
        return self.space > 0

    def send(self, frame: bytes) -> None:
        assert self.space > 0
        assert 14 <= len(frame) <= 65535
        self.space -= 1
        self.frames.append(frame)


class Card:
    """The card with its memory, wire and clock, and a driver with rings of `count` descriptors."""

    def __init__(self, count: int = 8, rctl: int = EN | BAM | SECRC, buffer: int = 2048) -> None:
        self.now = 1_000_000
        self.memory = Memory()
        self.wire = Wire()
        self.nic = E1000(MAC, self.memory, self.wire, lambda: self.now)
        self.count = count
        self.buffer = buffer
        self.rx_next = self.tx_next = 0
        self.start(rctl)

    def put(self, register: int, value: int) -> None:
        self.nic.write(register, 4, value)

    def get(self, register: int) -> int:
        return self.nic.read(register, 4)

    def start(self, rctl: int) -> None:
        """Set both rings up; all but one of the receive descriptors are the card's."""
        for base, ring in ((RDBAL, RX_RING), (TDBAL, TX_RING)):
            self.put(base, ring)
            self.put(base + 4, 0)
            self.put(base + 8, self.count * 16)
            self.put(base + 0x10, 0)
            self.put(base + 0x18, 0)
        for index in range(self.count):
            self.arm(index)
        self.put(TCTL, EN | 8)
        self.put(RCTL, rctl)
        self.put(RDT, self.count - 1)

    def arm(self, index: int) -> None:
        """Give a receive descriptor its buffer."""
        where = RX_RING + 16 * index
        self.memory.data[where : where + 16] = struct.pack("<QQ", RX_BUFFERS + 0x4000 * (index % 64), 0)

    def descriptor(self, index: int) -> tuple[int, ...]:
        """A receive descriptor: address, length, checksum, status, errors, special."""
        return struct.unpack_from("<QHHBBH", self.memory.data, RX_RING + 16 * index)

    def receive_all(self) -> list[tuple[bytes, int, int, int, int]]:
        """(data, status, errors, special, checksum) of every packet that is there, and give the descriptors back."""
        packets, data = [], b""
        while self.descriptor(self.rx_next)[3] & 1:
            address, length, checksum, status, errors, special = self.descriptor(self.rx_next)
            data += self.memory.data[address : address + length]
            self.arm(self.rx_next)
            self.put(RDT, self.rx_next)
            self.rx_next = (self.rx_next + 1) % self.count
            if status & 2:
                packets.append((data, status, errors, special, checksum))
                data = b""
        assert data == b""
        return packets

    def describe(self, first: int, third: int, fourth: int) -> int:
        """Put a transmit descriptor at the driver's end of the ring; gives its index."""
        index = self.tx_next
        where = TX_RING + 16 * index
        self.memory.data[where : where + 16] = struct.pack("<QII", first, third, fourth)
        self.tx_next = (index + 1) % self.count
        return index

    def legacy(self, data: bytes, command: int = EOP | IFCS | RS, cso: int = 0, css: int = 0, special: int = 0) -> int:
        where = TX_BUFFERS + 0x4000 * (self.tx_next % 64)
        self.memory.data[where : where + len(data)] = data
        return self.describe(where, len(data) | cso << 16 | command << 24, css << 8 | special << 16)

    def extended(self, data: bytes, command: int, options: int = 0, special: int = 0, where: int = 0) -> int:
        """A data descriptor."""
        where = where or TX_BUFFERS + 0x4000 * (self.tx_next % 64)
        self.memory.data[where : where + len(data)] = data
        return self.describe(where, len(data) | 1 << 20 | (command | DEXT) << 24, options << 8 | special << 16)

    def context(
        self, ip: tuple[int, int, int], tu: tuple[int, int, int], command: int, payload: int = 0, header: int = 0, mss: int = 0
    ) -> int:
        """A context descriptor; `ip` and `tu` are start, offset, end."""
        first = ip[0] | ip[1] << 8 | ip[2] << 16 | tu[0] << 32 | tu[1] << 40 | tu[2] << 48
        return self.describe(first, payload | (command | DEXT) << 24, header << 8 | mss << 16)

    def go(self) -> list[bytes]:
        """Ring the bell; gives what was sent."""
        before = len(self.wire.frames)
        self.put(TDT, self.tx_next)
        return self.wire.frames[before:]

    def done(self, index: int) -> bool:
        """Whether a transmit descriptor has DD."""
        return bool(self.memory.data[TX_RING + 16 * index + 12] & 1)

    def tick_at(self, now: int) -> None:
        self.now = now
        self.nic.tick()


def frame_to(destination: bytes, size: int = 60, kind: int = 0x88B5, fill: int = 0) -> bytes:
    """A frame of `size` bytes, each payload byte another than its neighbour."""
    header = destination + bytes.fromhex("525400000001") + kind.to_bytes(2, "big")
    return header + bytes((fill + i) % 251 for i in range(size - 14))


def ones_sum(data: bytes) -> int:
    """The ones' complement sum by its definition (RFC 1071), not the one under test."""
    data += bytes(len(data) % 2)
    total = sum(int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def packet(version: int, protocol: int, payload: bytes, complete: bool = True, **fields: Any) -> bytes:
    """An Ethernet frame with IPv4 or IPv6 and TCP (20 bytes) or UDP; incomplete ones lack checksums, as a driver leaves
    them to the card: the sum of the pseudo header (its length only where it is known) in the checksum field."""
    if protocol == 6:
        flags = fields.get("flags", 0x18)
        upper = struct.pack(">HHIIBBHHH", 1234, 80, fields.get("sequence", 7), 99, 0x50, flags, 4096, 0, 0)
        at = 16
    else:
        upper = struct.pack(">HHHH", 1234, 53, 8 + len(payload), 0)
        at = 6
    size = len(upper) + len(payload)
    if version == 4:
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + size, fields.get("ident", 5), 0x4000, 64, protocol, 0)
        ip += bytes((10, 0, 0, 1, 10, 0, 0, 2))
        if complete:
            ip = ip[:10] + (~ones_sum(ip) & 0xFFFF).to_bytes(2, "big") + ip[12:]
        pseudo = ip[12:20]
    else:
        ip = struct.pack(">IHBB", 0x60000000, size, protocol, 64) + bytes(range(32))
        pseudo = ip[8:40]
    known = size if complete or fields.get("length_known", True) else 0
    pseudo += struct.pack(">II", known, protocol)
    partial = ones_sum(pseudo)
    value = ~ones_sum(partial.to_bytes(2, "big") + upper + payload) & 0xFFFF if complete else partial
    if complete and protocol == 17 and not value:
        value = 0xFFFF
    upper = upper[:at] + value.to_bytes(2, "big") + upper[at + 2 :]
    kind = b"\x08\x00" if version == 4 else b"\x86\xdd"
    return MAC + bytes.fromhex("525400000001") + kind + ip + upper + payload


def checksums_hold(frame: bytes) -> bool:
    """Whether IPv4's header checksum and TCP's or UDP's are right, by the fields of the frame alone."""
    ip = frame[14:]
    if frame[12:14] == b"\x08\x00":
        if ones_sum(ip[:20]) != 0xFFFF:
            return False
        upper, pseudo, protocol = ip[20 : int.from_bytes(ip[2:4], "big")], ip[12:20], ip[9]
    else:
        upper, pseudo, protocol = ip[40 : 40 + int.from_bytes(ip[4:6], "big")], ip[8:40], ip[6]
    return ones_sum(pseudo + struct.pack(">II", len(upper), protocol) + upper) == 0xFFFF
