"""The RTL8139's C+ mode: descriptor rings, checksums, large send and VLAN tags, against headers made by hand."""

import struct
import zlib

import pytest
from cards import BROADCAST, MAC, PEER, Bench, frame, internet_checksum
from hypothesis import given, settings
from hypothesis import strategies as st

from miniguest.frontend.devices.rtl8139 import Rtl8139

DTCCR, TNPDS, THPDS, CR, IMR, ISR, TCR, RCR, MPC, TPPOLL, CPCR, RDSAR = (
    0x10, 0x20, 0x28, 0x37, 0x3C, 0x3E, 0x40, 0x44, 0x4C, 0xD9, 0xE0, 0xE4
)  # fmt: skip
RE, TE = 8, 4
ROK, RER, TOK, TER, RDU, FOVW, TDU, SWINT = 1, 2, 4, 8, 16, 64, 128, 256
OWN, EOR, FS, LS, LGSEN = 1 << 31, 1 << 30, 1 << 29, 1 << 28, 1 << 27
IPCS, UDPCS, TCPCS, TAGC, TAVA = 1 << 18, 1 << 17, 1 << 16, 1 << 17, 1 << 16
RXVLAN, RXCHKSUM, MULRW, CPRX, CPTX = 0x40, 0x20, 8, 2, 1
RX_RING, TX_RING, HIGH_RING, BUFFERS, OUTGOING = 0x2000, 0x3000, 0x4000, 0x10000, 0x80000


class Driver(Bench):
    """Fills a receive ring and polls it; sends through either transmit ring."""

    def __init__(self, descriptors: int = 4, buffer: int = 1536, offload: int = 0) -> None:
        super().__init__(Rtl8139)
        self.descriptors, self.buffer = descriptors, buffer
        self.put(CR, 0x10)
        self.put(CPCR, MULRW | CPRX | CPTX | offload, 2)
        for register, address in ((RDSAR, RX_RING), (TNPDS, TX_RING), (THPDS, HIGH_RING)):
            self.put(register, address, 4)
            self.put(register + 4, 0, 4)
        self.put(CR, RE | TE)
        self.put(RCR, 0xE70A, 4)
        self.put(IMR, 0xFFFF, 2)
        self.next = 0
        self.tail = {TX_RING: 0, HIGH_RING: 0}
        self.out = OUTGOING
        for index in range(descriptors):
            self.refill(index)

    def refill(self, index: int) -> None:
        end = EOR if index == self.descriptors - 1 else 0
        self.descriptor(RX_RING, index, OWN | end | self.buffer, 0, BUFFERS + self.buffer * index)

    def descriptor(self, ring: int, index: int, command: int, tag: int, buffer: int) -> None:
        self.memory.write(ring + 16 * index, struct.pack("<IIQ", command, tag, buffer))

    def status(self, ring: int, index: int) -> tuple[int, int]:
        first, second = struct.unpack("<II", self.memory.read(ring + 16 * index, 8))
        return first, second

    def take(self) -> tuple[bytes, int, int] | None:
        """The next frame with FCS, first and second double word of the last descriptor of it."""
        data = b""
        while True:
            first, second = self.status(RX_RING, self.next)
            if first & OWN:
                assert not data  # one that is begun is complete
                return None
            assert bool(first & FS) == (not data)
            assert bool(first & EOR) == (self.next == self.descriptors - 1)
            length = (first & 0x1FFF) - len(data) if first & LS else self.buffer
            data += self.memory.read(BUFFERS + self.buffer * self.next, length)
            self.refill(self.next)
            self.next = (self.next + 1) % self.descriptors
            if first & LS:
                return data, first, second

    def queue(self, data: bytes, flags: int = 0, tag: int = 0, ring: int = TX_RING, pieces: int = 1, end: int = 8) -> None:
        """A frame in several descriptors, the first one given last."""
        cuts = [len(data) * i // pieces for i in range(pieces + 1)]
        for piece in reversed(range(pieces)):
            part = data[cuts[piece] : cuts[piece + 1]]
            index = (self.tail[ring] + piece) % end
            self.memory.write(self.out, part)
            command = OWN | flags | len(part) | (EOR if index == end - 1 else 0)
            command |= (FS if piece == 0 else 0) | (LS if piece == pieces - 1 else 0)
            self.descriptor(ring, index, command, tag, self.out)
            self.out += len(part)
        self.tail[ring] = (self.tail[ring] + pieces) % end

    def send(self, data: bytes, flags: int = 0, tag: int = 0, pieces: int = 1) -> list[bytes]:
        """What goes on the wire when this is sent."""
        before = len(self.wire.sent)
        self.queue(data, flags, tag, pieces=pieces)
        self.put(TPPOLL, 0x40)
        return self.wire.sent[before:]


def ip_packet(protocol: int, payload: bytes, header: bytes = b"", good: bool = True, fragment: int = 0) -> bytes:
    """An IPv4 frame from 10.0.0.1 to 10.0.0.2 with options `header`, checksum right or not."""
    total = 20 + len(header) + len(payload)
    ip = bytearray(struct.pack(">BBHHHBBH", 0x45 + len(header) // 4, 0, total, 0x1234, fragment, 64, protocol, 0))
    ip += bytes((10, 0, 0, 1, 10, 0, 0, 2)) + header
    ip[10:12] = (internet_checksum(bytes(ip)) ^ (not good)).to_bytes(2, "big")
    return MAC + PEER + b"\x08\x00" + bytes(ip) + payload


def with_checksum(protocol: int, payload: bytes, at: int) -> bytes:
    """A TCP or UDP packet with its checksum filled in."""
    pseudo = bytes((10, 0, 0, 1, 10, 0, 0, 2, 0, protocol)) + len(payload).to_bytes(2, "big")
    blank = payload[:at] + b"\0\0" + payload[at + 2 :]
    value = internet_checksum(pseudo + blank)
    if protocol == 17 and not value:
        value = 0xFFFF
    return blank[:at] + value.to_bytes(2, "big") + blank[at + 2 :]


def tcp(data: bytes, sequence: int = 1000, flags: int = 0x18, options: bytes = b"") -> bytes:
    return struct.pack(">HHIIBBHHH", 80, 1024, sequence, 7, 0x50 + len(options) * 4, flags, 5000, 0, 0) + options + data


def udp(data: bytes) -> bytes:
    return struct.pack(">HHHH", 53, 1024, 8 + len(data), 0) + data


def tcp_frame(data: bytes) -> bytes:
    return ip_packet(6, with_checksum(6, tcp(data), 16))


def udp_frame(data: bytes) -> bytes:
    return ip_packet(17, with_checksum(17, udp(data), 6))


# Reception


def test_receive() -> None:
    driver = Driver()
    assert driver.take() is None
    assert driver.card.receive(frame(100))
    assert driver.card.irq()
    assert driver.get(ISR, 2) == ROK
    found = driver.take()
    assert found is not None
    data, first, second = found
    assert zlib.crc32(data) == 0x2144DF1C
    assert data[:-4] == frame(100)
    assert (first, second) == (FS | LS | 1 << 25 | 104, 0)
    assert driver.card.receive(frame(20, BROADCAST))
    found = driver.take()
    assert found is not None
    assert found[0][:-4] == frame(20, BROADCAST).ljust(60, b"\0")
    assert found[1] & 7 << 24 == 1 << 24


def test_no_descriptor_and_recovery() -> None:
    driver = Driver()
    for i in range(4):
        assert driver.card.receive(frame(200, fill=i))
    driver.put(ISR, 0xFFFF, 2)
    assert not driver.card.receive(frame(200, fill=4))
    assert driver.get(ISR, 2) == RDU | FOVW
    assert driver.get(MPC, 4) == 1
    driver.put(ISR, RDU | FOVW, 2)
    assert not driver.card.receive(frame(200, fill=4))
    assert driver.get(ISR, 2) == 0
    driver.move_house()
    for i in range(3):
        found = driver.take()
        assert found is not None
        assert found[0][:-4] == frame(200, fill=i)
    assert driver.card.receive(frame(200, fill=4))
    assert driver.get(ISR, 2) == ROK


@settings(deadline=None)
@given(
    descriptors=st.integers(1, 64), buffer=st.integers(30, 1536), sizes=st.lists(st.integers(14, 4092), min_size=1, max_size=30)
)
def test_frames_of_any_size_over_buffers_of_any_size(descriptors: int, buffer: int, sizes: list[int]) -> None:
    driver = Driver(descriptors, buffer)
    waiting: list[bytes] = []

    def take_one() -> None:
        found = driver.take()
        assert found is not None
        assert found[0][:-4] == waiting.pop(0)
        assert found[1] & 0x1FFF == len(found[0])

    for number, size in enumerate(sizes):
        incoming = frame(size, fill=number)
        while not driver.card.receive(incoming):
            take_one()
        if len(incoming.ljust(60)) + 4 <= descriptors * buffer:
            waiting.append(incoming.ljust(60, b"\0"))
    while waiting:
        take_one()
    assert driver.take() is None


def test_frames_too_long_for_the_part_or_the_ring() -> None:
    driver = Driver(64)
    assert driver.card.receive(frame(5000))
    assert driver.get(ISR, 2) == RER
    found = driver.take()
    assert found is not None
    assert found[1] & (1 << 21 | 1 << 20) == 1 << 21 | 1 << 20
    for size in (8188, 65535):
        assert driver.card.receive(frame(size))
    assert driver.take() is None
    empty = Driver(4, 0)
    assert empty.card.receive(frame())


def test_a_frame_that_fills_its_buffer_exactly_is_in_one_piece() -> None:
    driver = Driver(buffer=104)
    driver.card.receive(frame(100))
    assert driver.status(RX_RING, 0)[0] == FS | LS | 1 << 25 | 104
    driver.card.receive(frame(101))
    assert [driver.status(RX_RING, index)[0] & (OWN | FS | LS) for index in (1, 2, 3)] == [FS, LS, OWN]


def test_a_new_ring_is_used_from_its_start() -> None:
    driver = Driver()
    driver.card.receive(frame(60, fill=1))
    driver.put(RDSAR, RX_RING, 4)
    driver.refill(0)
    driver.card.receive(frame(60, fill=2))
    assert driver.memory.read(BUFFERS, 60) == frame(60, fill=2)
    driver.put(CR, TE)
    driver.put(CR, TE | RE)
    driver.refill(0)
    driver.card.receive(frame(60, fill=3))
    assert driver.memory.read(BUFFERS, 60) == frame(60, fill=3)


@pytest.mark.parametrize(
    ("data", "verdict"),
    [
        (frame(100), 0),
        (tcp_frame(b"abc"), 1 << 16),
        (tcp_frame(b"abcd")[:-1] + b"x", 1 << 16 | 1 << 13),
        (udp_frame(b"abc"), 2 << 16),
        (udp_frame(b"abc")[:-1] + b"x", 2 << 16 | 1 << 14),
        (ip_packet(17, udp(b"no checksum")), 2 << 16),
        (ip_packet(1, b"ping"), 3 << 16),
        (ip_packet(1, b"ping", good=False), 3 << 16 | 1 << 15),
        (ip_packet(6, with_checksum(6, tcp(b"x"), 16), header=b"\1\1\1\0", good=False), 1 << 16 | 1 << 15),
        (ip_packet(17, b"a later fragment", fragment=0x2001), 3 << 16),
        (ip_packet(17, udp(bytes(100)))[:70], 0),
    ],
)
def test_checksum_verdicts(data: bytes, verdict: int) -> None:
    for offload, wanted in ((RXCHKSUM, verdict), (0, 0)):
        driver = Driver(offload=offload)
        driver.card.receive(data)
        found = driver.take()
        assert found is not None
        assert found[1] & 0x3E000 == wanted


def test_vlan_tags_are_taken_out() -> None:
    data = frame(100)
    tagged = data[:12] + b"\x81\x00\x20\x05" + data[12:]
    driver = Driver(offload=RXVLAN)
    driver.card.receive(tagged)
    driver.card.receive(data)
    found = driver.take()
    assert found is not None
    assert (found[0][:-4], found[2]) == (data, TAVA | 0x0520)
    assert found[1] & 0x1FFF == 104
    found = driver.take()
    assert found is not None
    assert (found[0][:-4], found[2]) == (data, 0)
    plain = Driver()
    plain.card.receive(tagged)
    found = plain.take()
    assert found is not None
    assert found[0][:-4] == tagged


# Transmission


def test_transmit_pads_and_gives_descriptors_back() -> None:
    driver = Driver()
    assert driver.send(frame(20, PEER)) == [frame(20, PEER).ljust(60, b"\0")]
    assert driver.status(TX_RING, 0) == (FS | LS | 20, 0)
    assert driver.get(ISR, 2) == TOK | TDU
    assert driver.send(frame(1000, PEER), pieces=3) == [frame(1000, PEER)]
    assert [driver.status(TX_RING, i)[0] & (OWN | FS | LS) for i in (1, 2, 3)] == [FS, 0, LS]
    for i in range(20):
        assert driver.send(frame(100, PEER, i)) == [frame(100, PEER, i)]
    assert driver.status(TX_RING, 7)[0] & EOR


def test_a_poll_that_finds_nothing() -> None:
    driver = Driver()
    driver.put(TPPOLL, 0x40)
    assert driver.get(ISR, 2) == TDU
    driver.put(TPPOLL, 1)
    assert driver.get(ISR, 2) == TDU | SWINT
    driver.queue(frame(60, PEER))
    assert driver.wire.sent == []  # nobody said so
    driver.put(TPPOLL, 0x80)
    assert driver.wire.sent == []
    driver.put(TPPOLL, 0x40)
    assert driver.wire.sent == [frame(60, PEER)]


def test_high_priority_goes_first() -> None:
    driver = Driver()
    driver.queue(frame(60, PEER, 1))
    driver.queue(frame(60, PEER, 2), ring=HIGH_RING)
    driver.put(TPPOLL, 0xC0)
    assert driver.wire.sent == [frame(60, PEER, 2), frame(60, PEER, 1)]


def test_a_full_wire_and_a_move_in_the_middle() -> None:
    driver = Driver()
    driver.wire.limit = 2
    for i in range(4):
        driver.queue(frame(60, PEER, i))
    driver.put(TPPOLL, 0x40)
    assert [bool(driver.status(TX_RING, i)[0] & OWN) for i in range(4)] == [False, False, True, True]
    driver.move_house()
    driver.wire.limit = 9
    driver.card.wire_ready()
    assert driver.wire.sent == [frame(60, PEER, i) for i in range(4)]
    driver.card.wire_ready()
    assert len(driver.wire.sent) == 4


def test_a_frame_that_is_not_all_there_waits() -> None:
    driver = Driver()
    driver.memory.write(OUTGOING, frame(100, PEER))
    driver.descriptor(TX_RING, 0, OWN | FS | 50, 0, OUTGOING)
    driver.put(TPPOLL, 0x40)
    assert driver.wire.sent == []
    assert driver.status(TX_RING, 0)[0] & OWN
    driver.descriptor(TX_RING, 1, OWN | LS | EOR | 50, 0, OUTGOING + 50)
    driver.put(TPPOLL, 0x40)
    assert driver.wire.sent == [frame(100, PEER)]


def test_a_ring_without_end_or_memory_stops() -> None:
    driver = Driver()
    for index in range(64):
        driver.descriptor(TX_RING, index, OWN | 1000, 0, OUTGOING)
    driver.put(TPPOLL, 0x40)
    assert driver.wire.sent == []
    assert driver.get(ISR, 2) & TER
    assert not any(driver.status(TX_RING, index)[0] & OWN for index in range(64))
    driver.put(TNPDS + 4, 0xFFFF, 4)  # all ones: frames of 65,535 bytes, for ever
    driver.put(TPPOLL, 0x40)
    driver.put(RDSAR + 4, 0xFFFF, 4)
    assert driver.card.receive(frame())


def test_loopback_through_descriptors() -> None:
    driver = Driver()
    driver.put(TCR, 3 << 17, 4)
    assert driver.send(frame(300)) == []
    found = driver.take()
    assert found is not None
    assert found[0][:-4] == frame(300)


def test_loopback_into_a_full_ring_loses_frames() -> None:
    driver = Driver()
    driver.put(TCR, 3 << 17, 4)
    for i in range(6):
        driver.send(frame(60, fill=i))
    assert driver.get(MPC, 4) == 2


@settings(deadline=None)
@given(data=st.binary(min_size=0, max_size=2000), pieces=st.integers(1, 4), options=st.integers(0, 10))
def test_checksums_are_filled_in(data: bytes, pieces: int, options: int) -> None:
    header = bytes(options * 4)
    driver = Driver()
    for protocol, make, at, flag in ((6, tcp, 16, TCPCS), (17, udp, 6, UDPCS)):
        blank = ip_packet(protocol, make(data), header, good=False)
        wanted = ip_packet(protocol, with_checksum(protocol, make(data), at), header)
        assert driver.send(blank, IPCS | flag, pieces=pieces) == [wanted.ljust(60, b"\0")]
        only_ip = ip_packet(protocol, make(data), header)
        assert driver.send(blank, IPCS) == [only_ip.ljust(60, b"\0")]
        driver.out = OUTGOING


def test_what_is_no_ip_goes_as_it_is() -> None:
    driver = Driver()
    fragment = ip_packet(17, udp(b"part"), fragment=0x2000).ljust(60, b"\0")
    for data in (frame(100, PEER), frame(14, PEER), ip_packet(6, b"")[:33], fragment, MAC + PEER + b"\x08\x00" + b"\x4f" * 30):
        assert driver.send(data, IPCS | TCPCS | UDPCS) == [data.ljust(60, b"\0")]


def test_vlan_tags_are_inserted() -> None:
    driver = Driver()
    data = frame(100, PEER)
    assert driver.send(data, tag=TAGC | 0x0520) == [data[:12] + b"\x81\x00\x20\x05" + data[12:]]


@settings(deadline=None)
@given(
    length=st.integers(0, 9000), mss=st.integers(64, 2047), pieces=st.integers(1, 4),
    options=st.integers(0, 2), room=st.integers(0, 9),
)  # fmt: skip
def test_large_send(length: int, mss: int, pieces: int, options: int, room: int) -> None:
    """Segments as TCP itself would have sent them, also when the wire is full in their midst."""
    data = bytes(i * 31 & 0xFF for i in range(length))
    option = b"\1\1\1\0" * options
    header = struct.pack(">HHIIBBHHH", 80, 1024, 0xFFFFFF00, 7, 0x50 + options * 16, 0x19, 5000, 0, 0) + option
    driver = Driver()
    driver.wire.limit = room
    driver.send(ip_packet(6, header + data), LGSEN | mss << 16, pieces=pieces)
    driver.move_house()
    driver.wire.limit = None
    driver.card.wire_ready()
    assert not driver.status(TX_RING, 0)[0] & OWN
    sent, position = driver.wire.sent, 0
    assert len(sent) == max(-(-length // mss), 1)
    for number, each in enumerate(sent):
        total = int.from_bytes(each[16:18], "big")
        each = each[: 14 + total]
        payload = each[34 + len(header) :]
        assert payload == data[position : position + mss]
        assert int.from_bytes(each[18:20], "big") == 0x1234 + number
        assert int.from_bytes(each[38:42], "big") == 0xFFFFFF00 + position & 0xFFFFFFFF
        assert each[47] == (0x19 if number == len(sent) - 1 else 0x10)
        assert internet_checksum(each[14:34]) == 0
        assert internet_checksum(each[26:34] + bytes((0, 6)) + (total - 20).to_bytes(2, "big") + each[34:]) == 0
        position += len(payload)
    assert position == length


def test_the_longest_large_send() -> None:
    driver = Driver()
    data = bytes(65535 - 40)
    assert len(driver.send(ip_packet(6, tcp(data)), LGSEN | 2000 << 16, pieces=2)) == -(-len(data) // 2000)
    assert driver.send(ip_packet(6, tcp(data)) + bytes(1), LGSEN | 2000 << 16, pieces=2) == []
    assert driver.send(frame(65534), pieces=2, tag=TAGC) == []  # with its tag it is no frame
    assert len(driver.send(frame(65535), pieces=2)) == 1


def test_large_send_of_what_is_not_tcp_sends_nothing() -> None:
    driver = Driver()
    for data in (frame(3000, PEER), ip_packet(17, udp(bytes(3000))), ip_packet(6, tcp(b"")[:12] + b"\xf0" + bytes(7))):
        assert driver.send(data, LGSEN | 1000 << 16) == []
    assert driver.get(ISR, 2) & TOK


def test_tally_counters_are_dumped() -> None:
    driver = Driver()
    for destination in (MAC, MAC, BROADCAST):
        driver.card.receive(frame(60, destination))
    driver.send(frame(60, PEER))
    driver.put(DTCCR + 4, 0, 4)
    driver.put(DTCCR, 0x7000, 4)
    assert driver.memory.read(0x7000, 16) == bytes(16)
    driver.put(DTCCR, 0x7000 | 8, 4)
    assert not driver.get(DTCCR, 4) & 8  # done
    sent, received = struct.unpack("<QQ", driver.memory.read(0x7000, 16))
    mine, broadcast = struct.unpack("<QQ", driver.memory.read(0x7028, 16))
    assert (sent, received, mine, broadcast) == (1, 3, 2, 1)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**21))))
def test_any_descriptors_are_survived(descriptors: list[tuple[int, int, int, int]]) -> None:
    driver = Driver(8)
    for index, command, tag, buffer in descriptors:
        driver.descriptor(TX_RING, index, command, tag, buffer)
        driver.descriptor(RX_RING, index, command, tag, buffer)
        driver.put(TPPOLL, 0x40)
        driver.card.receive(frame(1000))
    assert all(14 <= len(each) <= 65535 for each in driver.wire.sent)
