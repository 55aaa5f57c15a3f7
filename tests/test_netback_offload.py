"""Checksums left blank, packets too large for the wire, hashes: what is passed on, and what netback does itself."""
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from dom0 import runtime_directory
from hypothesis import given, settings
from hypothesis import strategies as st
from netpeer import CSUM_BLANK, OKAY, RX_BLANK, RX_VALIDATED, VALIDATED, extra_slot, gso_slot
from netrig import Rig, RigVif

from miniguest.ring import _core

V4 = (bytes([10, 1, 2, 3]), bytes([10, 9, 8, 7]))
V6 = (bytes(range(16)), bytes(range(100, 116)))


@pytest.fixture
def rig() -> Iterator[Rig]:
    with runtime_directory() as directory:
        rig = Rig(directory)
        yield rig
        rig.check_idle()


def total(data: bytes) -> int:
    """The ones' complement sum (RFC 1071), the slow way."""
    data += b"\0" * (len(data) % 2)
    value = sum(struct.unpack(f">{len(data) // 2}H", data))
    while value >> 16:
        value = (value & 0xFFFF) + (value >> 16)
    return value


def ip(protocol: int, body: bytes, v6: bool = False, options: bytes = b"", flags: int = 0, number: int = 7) -> bytes:
    """An IP packet with its Ethernet type in front."""
    if v6:
        next_header = 60 if options else protocol
        middle = bytes([protocol, len(options) // 8 - 1]) + options[2:] if options else b""
        return b"\x86\xdd" + struct.pack(">IHBB", 6 << 28, len(middle + body), next_header, 64) + b"".join(V6) + middle + body
    length = 20 + len(options)
    head = struct.pack(">BBHHHBBH", 0x40 | length // 4, 0, length + len(body), number, flags, 64, protocol, 0)
    head += b"".join(V4) + options
    head = head[:10] + struct.pack(">H", 0xFFFF - total(head)) + head[12:]
    return b"\x08\x00" + head + body


def tcp(payload: bytes, sequence: int = 1000, flags: int = 0x18, options: bytes = b"", checksum: int = 0xDEAD) -> bytes:
    length = 20 + len(options)
    return struct.pack(">HHIIBBHHH", 4660, 80, sequence, 99, length // 4 << 4, flags, 512, checksum, 0) + options + payload


def udp(payload: bytes, checksum: int = 0xDEAD) -> bytes:
    return struct.pack(">HHHH", 4660, 53, 8 + len(payload), checksum) + payload


def is_right(packet: bytes, protocol: int, start: int, v6: bool) -> bool:
    """Whether a transport checksum is as its receiver wants it. start: of the transport header in the frame."""
    body = packet[start:]
    addresses = b"".join(V6 if v6 else V4)
    return total(addresses + struct.pack(">HH", protocol, len(body)) + body) == 0xFFFF


@settings(max_examples=150, deadline=None)
@given(
    v6=st.booleans(), use_tcp=st.booleans(), size=st.integers(0, 5000), tags=st.integers(0, 2),
    options=st.sampled_from([0, 8, 40]), pieces=st.integers(1, 6), seed=st.integers(0, 255), pad=st.sampled_from([0, 0, 3]),
)
def test_a_blank_checksum_is_completed(
    v6: bool, use_tcp: bool, size: int, tags: int, options: int, pieces: int, seed: int, pad: int
) -> None:
    """For a receiver without checksum offload, wherever the pieces lie."""
    with runtime_directory() as directory:
        rig = Rig(directory)
        sender, receiver, able = rig.vif(), rig.vif(csum_v4=False), rig.vif(csum_v6=True)
        for vif in (receiver, able):
            vif.q.post(4)
        payload = bytes((seed + n * 7) & 255 for n in range(size))
        body = tcp(payload) if use_tcp else udp(payload)
        protocol = 6 if use_tcp else 17
        tag = b"\x81\x00\x00\x05" * tags
        frame = b"\xff" * 6 + sender.mac + tag + ip(protocol, body, v6, bytes([1] * options)) + bytes(pad)
        step = min(4096, max(1, -(-len(frame) // pieces)))
        sizes = [min(step, len(frame) - at) for at in range(0, len(frame), step)]
        assert sender.q.send(frame, CSUM_BLANK, sizes=sizes) == OKAY
        found, = receiver.received()
        start = len(frame) - pad - len(body)
        field = start + (16 if use_tcp else 6)
        assert found[:field] + found[field + 2 :] == frame[:field] + frame[field + 2 :]
        assert is_right(found[: len(found) - pad], protocol, start, v6)
        assert found.flags == RX_VALIDATED
        blank, = able.received()                # the other one gets it as it was, and is told so
        assert blank == frame
        assert blank.flags == RX_BLANK | RX_VALIDATED
        rig.check_idle()


def test_a_udp_checksum_that_is_zero_is_sent_as_ones(rig: Rig) -> None:
    sender, receiver = rig.vif(), rig.vif(csum_v4=False)
    receiver.q.post(1)
    want = total(b"".join(V4) + struct.pack(">HH", 17, 10) + udp(bytes(2), 0))
    frame = b"\xff" * 6 + sender.mac + ip(17, udp(struct.pack(">H", 0xFFFF - want), 0))
    assert sender.q.send(frame, CSUM_BLANK) == OKAY
    assert receiver.received()[0][40:42] == b"\xff\xff"


@pytest.mark.parametrize(("flags", "wanted"), [(0, 0), (VALIDATED, RX_VALIDATED)])
def test_other_flags_are_passed_on_and_nothing_is_touched(rig: Rig, flags: int, wanted: int) -> None:
    sender, receiver = rig.vif(), rig.vif(csum_v4=False)
    receiver.q.post(1)
    frame = b"\xff" * 6 + sender.mac + ip(6, tcp(b"hello"))
    assert sender.q.send(frame, flags) == OKAY
    found, = receiver.received()
    assert found == frame
    assert found.flags == wanted


def test_frames_that_wait_are_complete_too(rig: Rig) -> None:
    sender, receiver = rig.vif(), rig.vif(csum_v4=False)
    assert sender.q.send(b"\xff" * 6 + sender.mac + ip(6, tcp(b"hello")), CSUM_BLANK) == OKAY
    receiver.q.post(1)
    rig.settle()
    found, = receiver.received()
    assert is_right(found, 6, 34, False)


# -- segmentation
def big(sender: RigVif, to: bytes, payload: bytes, v6: bool = False, flags: int = 0x99, options: bytes = b"\1" * 12) -> bytes:
    return to + sender.mac + ip(6, tcp(payload, 0xFFFFFF00, flags, options), v6)


def check_segments(frames: "list[bytes]", payload: bytes, size: int, v6: bool) -> None:
    """Segments as RFC 9293 wants them, with nothing missing and nothing twice."""
    base = 54 if v6 else 34
    at = 0
    for index, frame in enumerate(frames):
        last = index == len(frames) - 1
        body = frame[base + 32 :]
        assert body == payload[at : at + size]
        assert struct.unpack_from(">I", frame, base + 4)[0] == (0xFFFFFF00 + at) & 0xFFFFFFFF
        assert frame[base + 13] == 0x10 | (0x09 if last else 0) | (0x80 if index == 0 else 0)
        assert is_right(frame, 6, base, v6)
        if v6:
            assert struct.unpack_from(">H", frame, 18)[0] == len(frame) - 54
        else:
            assert struct.unpack_from(">HH", frame, 16) == (len(frame) - 14, (7 + index) & 0xFFFF)
            assert total(frame[14:34]) == 0xFFFF
        at += len(body)
    assert at == len(payload)


@settings(max_examples=60, deadline=None)
@given(v6=st.booleans(), length=st.integers(1, 65000), size=st.integers(260, 9000), pieces=st.integers(1, 3))
def test_a_large_packet_is_cut_for_who_takes_none(v6: bool, length: int, size: int, pieces: int) -> None:
    with runtime_directory() as directory:
        rig = Rig(directory)
        sender, plain, able = rig.vif(), rig.vif(csum_v4=False), rig.vif(gso_v4=True, gso_v6=True)
        plain.q.post(256)
        able.q.post(20)
        payload = bytes(n * 31 >> 3 & 255 for n in range(length))
        frame = big(sender, b"\xff" * 6, payload, v6)
        if len(frame) > 65535:
            return
        kind = 2 if v6 else 1
        assert sender.q.send(frame, CSUM_BLANK, extras=[gso_slot(size, kind)]) == OKAY
        whole, = able.received()
        assert whole == frame
        assert whole.gso == (size, kind)
        assert whole.flags == RX_BLANK | RX_VALIDATED
        rig.settle()
        found = plain.received()
        assert all(each.gso is None and each.flags == RX_VALIDATED for each in found)
        check_segments([*found], payload, size, v6)
        rig.check_idle()


def test_segments_wait_for_buffers_all_of_them(rig: Rig) -> None:
    sender, receiver = rig.vif(), rig.vif()
    receiver.announce()
    payload = bytes(range(250)) * 200
    for _ in range(8):
        sender.put(big(sender, receiver.mac, payload), CSUM_BLANK, extras=[gso_slot(1448)])
    found: list[bytes] = []
    for _ in range(60):
        rig.settle()
        receiver.q.post(10)
        rig.settle()
        found += receiver.received()
    assert len(found) == 8 * 35
    for index in range(8):
        check_segments(found[index * 35 : index * 35 + 35], payload, 1448, False)
    assert receiver.statistics["rx_dropped"] == 0


def test_a_gso_packet_waits_as_others_do(rig: Rig) -> None:
    sender, receiver = rig.vif(), rig.vif(gso_v4=True)
    receiver.announce()
    frame = big(sender, receiver.mac, bytes(5000))
    sender.put(frame, CSUM_BLANK, extras=[gso_slot(1448)])
    rig.settle()
    receiver.q.post(3)
    rig.settle()
    found, = receiver.received()
    assert (found, found.gso) == (frame, (1448, 1))


# -- the hash of netif.h, and the queue it chooses
def toeplitz(key: bytes, data: bytes) -> int:
    """As netif.h describes it: shift registers of bits."""
    keys, value = int.from_bytes(key.ljust(40, b"\0"), "big"), 0
    for index in range(len(data) * 8):
        if data[index // 8] >> (7 - index % 8) & 1:
            value ^= keys >> (320 - 32 - index) & 0xFFFFFFFF
    return value


KEY = bytes.fromhex("6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa")


def test_the_published_example() -> None:
    """Verification vectors of the algorithm's authors (RSS hash, IPv4): the model above is right."""
    data = bytes([66, 9, 149, 187, 161, 142, 100, 80]) + struct.pack(">HH", 2794, 1766)
    assert toeplitz(KEY, data[:8]) == 0x323E8FC2
    assert toeplitz(KEY, data) == 0x51CCC178


@settings(max_examples=80, deadline=None)
@given(
    v6=st.booleans(), use_tcp=st.booleans(), fragment=st.booleans(), flags=st.integers(0, 15), key=st.binary(max_size=40),
    mapping=st.lists(st.integers(0, 2), max_size=128),
)
def test_the_hash_that_is_asked_for(
    v6: bool, use_tcp: bool, fragment: bool, flags: int, key: bytes, mapping: list[int]
) -> None:
    with runtime_directory() as directory:
        rig = Rig(directory)
        sender, receiver = rig.vif(), rig.vif(3)
        receiver.vif.hash_algorithm, receiver.vif.hash_flags = 1, flags
        receiver.vif.set_hash_key(key)
        receiver.vif.set_mapping_size(len(mapping))
        receiver.vif.set_mapping(0, mapping)
        for queue in receiver.queues:
            queue.post(2)
        body = tcp(b"x") if use_tcp else udp(b"x")
        frame = b"\xff" * 6 + sender.mac + ip(6 if use_tcp else 17, body, v6, flags=0x2000 if fragment else 0)
        assert sender.q.send(frame) == OKAY
        ports = use_tcp and (v6 or not fragment)
        kinds = ([3] if ports else []) + [2] if v6 else ([1] if ports else []) + [0]
        kind = next((kind for kind in kinds if flags >> kind & 1), None)
        (index, found), = [(index, each) for index in range(3) for each in receiver.received(index)]
        assert found == frame
        if kind is None:
            assert found.hash is None
            return
        value = toeplitz(key, b"".join(V6 if v6 else V4) + (body[:4] if kind in (1, 3) else b""))
        assert found.hash == (kind, 1, value)
        assert index == (mapping[value % len(mapping)] if mapping else value % 3)


def test_a_hash_and_a_gso_size_go_together(rig: Rig) -> None:
    sender, receiver = rig.vif(), rig.vif(gso_v4=True)
    receiver.vif.hash_algorithm, receiver.vif.hash_flags = 1, 15
    receiver.vif.set_hash_key(KEY)
    receiver.q.post(5)
    frame = big(sender, b"\xff" * 6, bytes(8000))
    extras = [gso_slot(1448, more=True), extra_slot(4)]     # the sender's own hash is not believed
    assert sender.q.send(frame, CSUM_BLANK, extras=extras) == OKAY
    found, = receiver.received()
    assert found == frame
    assert found.gso == (1448, 1)
    assert found.hash == (1, 1, toeplitz(KEY, b"".join(V4) + struct.pack(">HH", 4660, 80)))


# -- to an uplink, which can do nothing itself
def test_an_uplink_gets_complete_frames() -> None:
    with runtime_directory() as directory:
        path = directory / "out.pcap"
        with path.open("wb") as file:
            rig = Rig(directory, _core.Uplink(_core.UPLINK_PCAP, -1, 1500, _core.PcapWriter(file.fileno())))
            sender = rig.vif()
            payload = bytes(range(256)) * 20
            assert sender.q.send(big(sender, b"\2" * 6, payload), CSUM_BLANK, extras=[gso_slot(1400)]) == OKAY
            assert sender.q.send(b"\2" * 6 + sender.mac + ip(17, udp(b"12345")), CSUM_BLANK) == OKAY
            assert sender.q.send(sender.frame(b"\2" * 6, b"", 1519)) == OKAY       # longer than the mtu allows
            assert sender.q.send(sender.frame(b"\2" * 6, b"", 1518)) == OKAY
            assert rig.uplink
            assert rig.uplink.dropped == 1
        frames = read_pcap(path)
        check_segments(frames[:4], payload, 1400, False)
        assert is_right(frames[4], 17, 34, False)
        assert len(frames[5]) == 1518
        assert len(frames) == 6


def read_pcap(path: Path) -> list[bytes]:
    data, at, frames = path.read_bytes(), 24, []
    while at < len(data):
        _, _, captured, length = struct.unpack_from("<4I", data, at)
        assert captured == length
        frames.append(data[at + 16 : at + 16 + length])
        at += 16 + length
    return frames
