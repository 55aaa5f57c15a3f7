"""The 82540EM's receiver: rings, buffers, filters, VLANs, checksums, loopback (317453, sections 3.2, 9.3, 13.4.22-13.5)."""

import zlib

import pytest
from e1000_driver import (
    BAM,
    BSEX,
    CTRL,
    EN,
    ICR,
    LPE,
    MAC,
    MPE,
    MTA,
    RA,
    RCTL,
    RDH,
    RDLEN,
    RDT,
    RX_RING,
    RXCSUM,
    RXDMT0,
    RXO,
    RXT0,
    SECRC,
    TDH,
    TDT,
    UPE,
    VET,
    VFE,
    VFTA,
    VME,
    Card,
    checksums_hold,
    frame_to,
    ones_sum,
    packet,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from miniguest.frontend.devices.saved import load, save

BROADCAST = b"\xff" * 6
GROUP = bytes.fromhex("01005e7f1234")
DD, IXSM, VP, TCPCS, IPCS, PIF = 1, 4, 8, 0x20, 0x40, 0x80
MPC, RNBC, ROC, TPR, GPRC, MPRC, BPRC = 0x4010, 0x40A0, 0x40AC, 0x40D0, 0x4074, 0x407C, 0x4078
SIZES = {0: 2048, 1: 1024, 2: 512, 3: 256}


def taken(card: Card, frame: bytes) -> bool:
    """Whether the card takes a frame into memory."""
    assert card.nic.receive(frame)
    return bool(card.receive_all())


def test_one_frame_in_one_descriptor() -> None:
    card = Card()
    frame = frame_to(MAC, 100)
    assert card.nic.receive(frame)
    assert card.get(ICR) == RXT0
    assert card.get(RDH) == 1
    (data, status, errors, special, _), = card.receive_all()
    assert (data, status, errors, special) == (frame, DD | 2 | IXSM, 0, 0)


def test_the_crc_is_there_unless_stripped_and_short_frames_are_padded() -> None:
    card = Card(rctl=EN | BAM)
    card.nic.receive(frame_to(MAC, 20))
    (data, *_), = card.receive_all()
    padded = frame_to(MAC, 20) + bytes(40)
    assert data == padded + zlib.crc32(padded).to_bytes(4, "little")


def test_a_ring_that_is_full_keeps_the_frame_waiting_and_counts_it_once() -> None:
    card = Card(count=8)
    card.get(ICR)
    for n in range(7):
        assert card.nic.receive(frame_to(MAC, 60, fill=n))
    card.get(ICR)
    for _ in range(3):
        assert not card.nic.receive(frame_to(MAC, 60, fill=7))
    assert card.get(ICR) == RXO
    assert (card.get(RNBC), card.get(MPC), card.get(GPRC), card.get(TPR)) == (1, 0, 7, 7)
    assert [data for data, *_ in card.receive_all()] == [frame_to(MAC, 60, fill=n) for n in range(7)]
    assert card.nic.receive(frame_to(MAC, 60, fill=7))
    assert [data for data, *_ in card.receive_all()] == [frame_to(MAC, 60, fill=7)]


def test_a_receiver_that_is_off_or_has_no_ring() -> None:
    card = Card(rctl=0)
    assert card.nic.receive(frame_to(MAC))
    assert card.get(TPR) == 0
    card.put(RCTL, EN | SECRC)
    for register, value in ((RDLEN, 0), (RDT, 100), (RDH, 100)):
        before = card.get(register)
        card.put(register, value)
        assert not card.nic.receive(frame_to(MAC))
        assert card.get(RNBC) == (register == RDLEN)  # the first time
        card.put(register, before)
    assert card.nic.receive(frame_to(MAC))


@pytest.mark.parametrize(("code", "divisor"), [(0, 2), (1, 4), (2, 8)])
def test_the_minimum_threshold_is_told_of_when_it_is_reached(code: int, divisor: int) -> None:
    card = Card(count=32, rctl=EN | SECRC | code << 8)
    told = []
    for n in range(31):
        card.nic.receive(frame_to(MAC))
        if card.get(ICR) & RXDMT0:
            told.append(31 - n - 1)
    assert told == [32 // divisor]


@pytest.mark.parametrize("code", SIZES)
@pytest.mark.parametrize("extended", [False, True])
def test_buffer_sizes(code: int, extended: bool) -> None:
    size = min(SIZES[code] * (16 if extended else 1), 16384)
    card = Card(count=128, rctl=EN | SECRC | LPE | code << 16 | (BSEX if extended else 0))
    frame = frame_to(MAC, 9000)
    assert card.nic.receive(frame)
    assert card.get(RDH) == -(-9000 // size)
    assert [data for data, *_ in card.receive_all()] == [frame]


def test_long_frames_need_lpe() -> None:
    card = Card(count=32)
    assert taken(card, frame_to(MAC, 1518))
    assert not taken(card, frame_to(MAC, 1519))
    assert card.get(ROC) == 1
    card.put(RCTL, EN | SECRC | LPE)
    assert taken(card, frame_to(MAC, 16380))
    assert not taken(card, frame_to(MAC, 16381))
    assert not taken(card, frame_to(MAC, 65535))
    assert card.get(ROC) == 2


def test_a_frame_that_no_ring_of_this_size_can_hold_is_lost() -> None:
    card = Card(count=8, rctl=EN | SECRC | LPE | 3 << 16)
    assert not taken(card, frame_to(MAC, 7 * 256 + 1))
    assert card.get(MPC) == 1
    assert card.get(ICR) & RXO
    assert taken(card, frame_to(MAC, 7 * 256 - 4))


def test_descriptors_with_a_null_address_hold_nothing() -> None:
    card = Card(count=8)
    for index in (0, 1, 3):
        card.memory.data[RX_RING + 16 * index : RX_RING + 16 * index + 8] = bytes(8)
    assert card.nic.receive(frame_to(MAC))
    assert card.nic.receive(frame_to(MAC, 70))
    assert card.get(RDH) == 5
    assert [card.descriptor(n)[1] for n in range(5)] == [0, 0, 60, 0, 70]
    assert [data for data, *_ in card.receive_all()] == [frame_to(MAC), frame_to(MAC, 70)]


def test_unicast() -> None:
    card = Card(rctl=EN | SECRC)
    other = bytes.fromhex("00163e999999")
    assert taken(card, frame_to(MAC))
    assert not taken(card, frame_to(other))
    card.put(RA + 8 * 15, int.from_bytes(other[:4], "little"))
    card.put(RA + 8 * 15 + 4, int.from_bytes(other[4:], "little"))
    assert not taken(card, frame_to(other))  # not valid yet
    card.put(RA + 8 * 15 + 4, int.from_bytes(other[4:], "little") | 1 << 31)
    assert taken(card, frame_to(other))
    card.put(RA + 8 * 15 + 4, 0)
    card.put(RCTL, EN | SECRC | UPE)
    card.nic.receive(frame_to(other))
    card.nic.receive(frame_to(MAC))
    assert [status & PIF for _, status, *_ in card.receive_all()] == [PIF, 0]
    assert not taken(card, frame_to(GROUP))


def test_a_source_address_is_matched_when_the_entry_says_so() -> None:
    card = Card(rctl=EN | SECRC)
    frame = frame_to(bytes.fromhex("00163e999999"))
    card.put(RA + 8, int.from_bytes(frame[6:10], "little"))
    card.put(RA + 12, int.from_bytes(frame[10:12], "little") | 1 << 31 | 1 << 16)
    assert taken(card, frame)
    assert not taken(card, frame_to(frame[6:12])[:6] + MAC + frame[12:])


def test_broadcast_and_promiscuous_multicast() -> None:
    card = Card(rctl=EN | SECRC)
    for rctl, broadcast, group in ((0, False, False), (BAM, True, False), (MPE, True, True)):
        card.put(RCTL, EN | SECRC | rctl)
        assert taken(card, frame_to(BROADCAST)) == broadcast
        assert taken(card, frame_to(GROUP)) == group
    assert (card.get(BPRC), card.get(MPRC)) == (2, 1)


@given(group=st.binary(min_size=6, max_size=6).map(lambda data: bytes((data[0] | 1,)) + data[1:]), offset=st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_the_multicast_hash(group: bytes, offset: int) -> None:
    """As the manual counts: bits 47:36, 46:35, 45:34 or 43:32 of the address, its first byte being bits 7:0."""
    card = Card(rctl=EN | SECRC | offset << 12)
    low = {0: 36, 1: 35, 2: 34, 3: 32}[offset]
    value = int.from_bytes(group, "little") >> low & 0xFFF
    assert not taken(card, frame_to(group))
    card.put(MTA + 4 * (value >> 5), 1 << (value & 31))
    card.nic.receive(frame_to(group))
    assert [status & PIF for _, status, *_ in card.receive_all()] == [PIF]
    for n in range(128):
        card.put(MTA + 4 * n, 0xFFFFFFFF)
    card.put(MTA + 4 * (value >> 5), ~(1 << (value & 31)) & 0xFFFFFFFF)
    assert not taken(card, frame_to(group))


def tagged(vid: int, cfi: bool = False, size: int = 100) -> bytes:
    frame = frame_to(MAC, size)
    return frame[:12] + b"\x81\x00" + (0xA000 | cfi << 12 | vid).to_bytes(2, "big") + frame[12:]


def test_vlan_tags_are_stripped_into_the_descriptor() -> None:
    card = Card()
    card.nic.receive(tagged(5))
    card.put(VET, 0x8100)
    card.nic.receive(tagged(5))
    card.put(CTRL, card.get(CTRL) | VME)
    card.nic.receive(tagged(5))
    card.nic.receive(frame_to(MAC, 100))
    packets = [(data, status & VP, special) for data, status, _, special, _ in card.receive_all()]
    assert packets == [(tagged(5), 0, 0)] * 2 + [(frame_to(MAC, 100), VP, 0xA005), (frame_to(MAC, 100), 0, 0)]


def test_vlans_are_filtered() -> None:
    card = Card(rctl=EN | SECRC | VFE)
    card.put(VET, 0x8100)
    assert taken(card, frame_to(MAC))
    assert not taken(card, tagged(0x123))
    card.put(VFTA + 4 * (0x123 >> 5), 1 << (0x123 & 31))
    assert taken(card, tagged(0x123))
    assert not taken(card, tagged(0x124))
    card.put(RCTL, EN | SECRC | VFE | 1 << 19)
    assert not taken(card, tagged(0x123, cfi=True))
    assert taken(card, tagged(0x123))
    card.put(RCTL, EN | SECRC | VFE | 3 << 19)
    assert taken(card, tagged(0x123, cfi=True))
    assert not taken(card, tagged(0x123))


def test_pause_and_other_mac_control_frames() -> None:
    card = Card(rctl=EN | SECRC)
    pause = frame_to(MAC, 60, kind=0x8808)[:14] + b"\0\1" + bytes(44)
    other = frame_to(bytes.fromhex("0180c2000001"), 60, kind=0x8808)[:14] + b"\0\2" + bytes(44)
    card.put(0x30, 0x8808)
    for rctl, expected in ((0, (True, False)), (1 << 22, (False, False)), (1 << 23, (True, True))):
        card.put(RCTL, EN | SECRC | rctl)
        assert (taken(card, pause), taken(card, other)) == expected


checked = pytest.mark.parametrize("tag", [False, True])


@checked
@pytest.mark.parametrize(("version", "protocol"), [(4, 6), (4, 17), (6, 6), (6, 17)])
def test_checksums_that_are_right_and_wrong(version: int, protocol: int, tag: bool) -> None:
    card = Card(count=64)
    card.put(VET, 0x8100)
    good = packet(version, protocol, b"some payload!")
    assert checksums_hold(good)
    bad_payload = good[:-1] + bytes((good[-1] ^ 1,))
    lifetime = 22 if version == 4 else 21
    bad_header = good[:lifetime] + bytes((good[lifetime] ^ 1,)) + good[lifetime + 1 :]
    for enabled in (0, 0x100, 0x200, 0x300):
        card.put(RXCSUM, enabled)
        for frame, errors in ((good, 0), (bad_payload, 0x20), (bad_header, 0x40)):
            if tag:
                frame = frame[:12] + b"\x81\x00\0\1" + frame[12:]
            card.nic.receive(frame)
            (_, status, error, _, _), = card.receive_all()
            computed = (IPCS if enabled & 0x100 and version == 4 else 0) | (TCPCS if enabled & 0x200 else 0)
            assert status & (IXSM | IPCS | TCPCS) == (computed or IXSM)
            wrong = errors & ((0x40 if computed & IPCS else 0) | (0x20 if computed & TCPCS else 0))
            assert error == wrong


def test_what_no_checksum_is_computed_of() -> None:
    card = Card(count=64)
    card.put(RXCSUM, 0x300)
    tcp, udp = packet(4, 6, b"x" * 30), packet(4, 17, b"x" * 30)
    fragment = tcp[:20] + b"\x20\x00" + tcp[22:24] + bytes(2) + tcp[26:]
    fragment = fragment[:24] + (~ones_sum(fragment[14:34]) & 0xFFFF).to_bytes(2, "big") + fragment[26:]
    cases = [
        (fragment, IPCS),
        (udp[:40] + b"\0\0" + udp[42:], IPCS),  # no UDP checksum
        (tcp[:14] + b"\x55" + tcp[15:], IXSM),  # version 5
        (tcp[:14] + b"\x44" + tcp[15:], IXSM),  # a header of 16 bytes
        (tcp[:16] + b"\xff\xff" + tcp[18:], IXSM),  # longer than the frame
        (tcp[:16] + b"\0\x19" + tcp[18:], IPCS),  # TCP of 5 bytes
        (frame_to(MAC), IXSM),
        (MAC + MAC + b"\x08\x00" + bytes(46), IXSM),
        (MAC + MAC + b"\x86\xdd" + b"\x60" + bytes(45), IXSM),
    ]
    for frame, expected in cases:
        card.nic.receive(frame)
        (_, status, _, _, _), = card.receive_all()
        assert status & (IXSM | IPCS | TCPCS) == expected


def test_snap_frames_are_checked_too() -> None:
    card = Card()
    card.put(RXCSUM, 0x300)
    frame = packet(4, 6, b"x" * 30)
    snap = frame[:12] + (len(frame) - 14 + 8).to_bytes(2, "big") + b"\xaa\xaa\x03\0\0\0" + frame[12:]
    card.nic.receive(snap)
    (_, status, errors, _, _), = card.receive_all()
    assert (status & (IXSM | IPCS | TCPCS), errors) == (IPCS | TCPCS, 0)


@pytest.mark.parametrize("start", [0, 14, 33, 255])
def test_the_packet_checksum(start: int) -> None:
    card = Card()
    card.put(RXCSUM, start)
    frame = frame_to(MAC, 101)
    card.nic.receive(frame)
    (*_, checksum), = card.receive_all()
    assert checksum == ~ones_sum(frame[start:]) & 0xFFFF


def test_loopback_comes_back_and_the_line_is_cut_off() -> None:
    for loop in (3 << 6, 1 << 6, "phy"):
        card = Card(count=8)
        if loop == "phy":
            card.put(0x20, 1 << 26 | 1 << 21 | 0x4140)
        else:
            card.put(RCTL, EN | SECRC | int(loop))
        card.wire.space = 0
        card.nic.receive(frame_to(MAC))
        assert not card.receive_all()
        card.legacy(frame_to(MAC, 80))
        assert card.go() == []
        assert [data for data, *_ in card.receive_all()] == [frame_to(MAC, 80)]


def test_loopback_into_a_full_ring_loses() -> None:
    card = Card(count=8, rctl=EN | SECRC | 3 << 6)
    for _ in range(9):
        card.legacy(frame_to(MAC))
        card.go()
    assert card.get(TDH) == card.get(TDT)
    assert card.get(MPC) == 2
    assert len(card.receive_all()) == 7


frames = st.lists(st.integers(14, 3000), min_size=1, max_size=40)


@settings(max_examples=40, deadline=None)
@given(sizes=frames, code=st.integers(0, 3), extended=st.booleans(), count=st.sampled_from((8, 16, 64)), saved=st.integers(0, 39))
def test_frames_arrive_whole_and_in_order(sizes: list[int], code: int, extended: bool, count: int, saved: int) -> None:
    """Whatever the buffers and the ring; those that find no room are offered again; saved and loaded on the way."""
    rctl = EN | SECRC | LPE | code << 16 | (BSEX if extended else 0)
    card = Card(count=count, rctl=rctl)
    room = (count - 1) * card.nic.receiver.buffer_size()
    sent, got = [], []
    for number, size in enumerate(sizes):
        frame = frame_to(MAC, size, fill=number)
        while not card.nic.receive(frame):
            before = len(got)
            got += [data for data, *_ in card.receive_all()]
            assert len(got) > before
        if max(size, 60) + 4 <= room:
            sent.append(frame.ljust(60, b"\0"))
        if number == saved:
            state = save(card.nic)
            card.put(CTRL, 1 << 26)
            load(card.nic, state)
    got += [data for data, *_ in card.receive_all()]
    assert got == sent
