"""The 82540EM's transmitter: rings, packets, tags and padding, back-pressure (317453, sections 3.3, 3.4, 13.4.32-13.4.44)."""

import zlib
from itertools import pairwise

import pytest
from e1000_driver import (
    CTRL,
    DEXT,
    EN,
    EOP,
    IC,
    ICR,
    IFCS,
    RS,
    TCTL,
    TDBAL,
    TDH,
    TDLEN,
    TDT,
    TXD_LOW,
    TXDW,
    TXQE,
    VET,
    VLE,
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

PEER = bytes.fromhex("00163e000002")
GPTC, TPT, TOTL, PTC64, PTC127, MPTC, BPTC = 0x4080, 0x40D4, 0x40C8, 0x40D8, 0x40DC, 0x40F0, 0x40F4
LIMIT = 16288


def test_one_frame() -> None:
    card = Card()
    index = card.legacy(frame_to(PEER, 100))
    assert not card.done(index)
    assert card.go() == [frame_to(PEER, 100)]
    assert card.done(index)
    assert card.get(TDH) == card.get(TDT) == 1
    assert card.get(ICR) == TXDW | TXQE | TXD_LOW


def test_status_is_reported_only_where_it_is_asked_for() -> None:
    card = Card()
    quiet, told = card.legacy(frame_to(PEER), EOP | IFCS), card.legacy(frame_to(PEER))
    card.get(ICR)
    card.put(TDT, 1)
    assert not card.get(ICR) & TXDW
    card.go()
    assert (card.done(quiet), card.done(told)) == (False, True)


def test_nothing_goes_before_the_transmitter_is_on_or_the_ring_is_sound() -> None:
    card = Card()
    card.put(TCTL, 0)
    card.legacy(frame_to(PEER))
    assert card.go() == []
    card.put(TCTL, EN)
    assert len(card.wire.frames) == 1
    for register, value in ((TDLEN, 0), (TDT, 8), (TDH, 0xFFFF)):
        before = card.get(register)
        card.put(register, value)
        assert card.go() == []
        card.put(register, before)


def test_the_ring_wraps() -> None:
    card = Card(count=8)
    for n in range(50):
        card.legacy(frame_to(PEER, 60 + n))
        assert card.go() == [frame_to(PEER, 60 + n)]
        assert card.get(TDH) == (n + 1) % 8
    for n in range(7):
        card.legacy(frame_to(PEER, 60 + n))
    assert card.go() == [frame_to(PEER, 60 + n) for n in range(7)]


def test_short_frames_are_padded_when_that_is_on() -> None:
    card = Card()
    card.legacy(frame_to(PEER, 20))
    assert card.go() == [frame_to(PEER, 20) + bytes(40)]
    card.put(TCTL, EN)
    card.legacy(frame_to(PEER, 20))
    card.legacy(frame_to(PEER, 14)[:13])  # that is no frame
    assert card.go() == [frame_to(PEER, 20)]
    assert card.get(TDH) == card.get(TDT)


def test_an_fcs_that_software_made_is_taken_off() -> None:
    card = Card()
    frame = frame_to(PEER, 100)
    card.legacy(frame + zlib.crc32(frame).to_bytes(4, "little"), EOP | RS)
    card.legacy(frame, EOP | RS)
    card.legacy(bytes(8), EOP | RS)
    short = frame_to(PEER, 14)[:13]
    card.legacy(short + zlib.crc32(short).to_bytes(4, "little"), EOP | RS)
    assert card.go() == [frame, frame]


def test_vlan_tags_are_inserted_when_the_mode_is_on() -> None:
    card = Card()
    card.put(VET, 0x8100)
    frame = frame_to(PEER, 100)
    for mode, expected in ((0, frame), (VME, frame[:12] + b"\x81\x00\xe1\x23" + frame[12:])):
        card.put(CTRL, card.get(CTRL) & ~VME | mode)
        card.legacy(frame, EOP | IFCS | RS | VLE, special=0xE123)
        card.legacy(frame[:50], 0)
        card.legacy(frame[50:], EOP | IFCS | VLE, special=0xE123)  # the last descriptor's tag counts
        card.extended(frame, EOP | IFCS | VLE, special=0xE123)
        assert card.go() == [expected] * 3


@pytest.mark.parametrize(
    ("start", "offset", "inserted"),
    [(14, 16, True), (34, 50, True), (15, 31, True), (0, 98, True), (99, 20, True), (100, 20, False), (14, 99, False)],
)
def test_a_checksum_by_a_legacy_descriptor(start: int, offset: int, inserted: bool) -> None:
    card = Card()
    frame = frame_to(PEER, 100)
    card.legacy(frame, EOP | IFCS | IC | RS, cso=offset, css=start)
    value = (~ones_sum(frame[start:]) & 0xFFFF).to_bytes(2, "big")
    assert card.go() == [frame[:offset] + value + frame[offset + 2 :] if inserted else frame]


@pytest.mark.parametrize(("version", "protocol"), [(4, 6), (4, 17), (6, 6), (6, 17)])
@pytest.mark.parametrize("split", [0, 54, 60])
def test_checksums_by_a_context(version: int, protocol: int, split: int) -> None:
    card = Card(count=16)
    upper = 34 if version == 4 else 54
    at = upper + (16 if protocol == 6 else 6)
    for payload in (b"", b"odd", bytes(range(200))):
        frame = packet(version, protocol, payload, complete=False)
        card.context((14, 24, 33), (upper, at, 0), RS | (1 if protocol == 6 else 0) | (2 if version == 4 else 0))
        options = 3 if version == 4 else 2
        if split:
            card.extended(frame[:split], 0, options)
            card.extended(frame[split:], EOP | IFCS | RS)
        else:
            card.extended(frame, EOP | IFCS | RS, options)
        (sent,) = card.go()
        assert sent == packet(version, protocol, payload).ljust(60, b"\0")
        assert checksums_hold(sent)


def test_a_context_stays_for_the_packets_behind() -> None:
    card = Card(count=16)
    card.context((14, 24, 33), (34, 50, 0), 1)
    for n in range(3):
        card.extended(packet(4, 6, bytes(n), complete=False), EOP | IFCS, 3)
        card.extended(packet(4, 6, bytes(n), complete=False), EOP | IFCS, 1)
    sent = card.go()
    assert sent[::2] == [packet(4, 6, bytes(n)).ljust(60, b"\0") for n in range(3)]
    assert not any(checksums_hold(frame) for frame in sent[1::2])


def test_udp_never_sends_a_checksum_of_zero() -> None:
    card = Card(count=16)
    plain = packet(4, 17, b"\0\0", complete=False)
    fix = ~ones_sum(plain[34:]) & 0xFFFF
    frame = plain[:-2] + fix.to_bytes(2, "big")
    card.context((14, 24, 33), (34, 40, 0), 2)
    card.extended(frame, EOP | IFCS, 3)
    card.context((14, 24, 33), (34, 40, 0), 3)
    card.extended(frame, EOP | IFCS, 3)
    assert [sent[40:42] for sent in card.go()] == [b"\xff\xff", b"\0\0"]


def test_descriptors_without_data() -> None:
    card = Card(count=16)
    null = card.describe(0, 100 | (RS << 24), 0)
    empty = card.legacy(b"", RS)
    card.legacy(frame_to(PEER), EOP | IFCS)
    nothing = card.legacy(b"", EOP | IFCS | RS)
    strange = card.describe(0x100, 64 | 7 << 20 | (DEXT | RS) << 24, 0)
    assert card.go() == [frame_to(PEER)]
    assert all(card.done(index) for index in (null, empty, nothing, strange))


def test_a_packet_that_is_too_long_or_never_ends_is_dropped() -> None:
    card = Card(count=64)
    part = bytes(4000)
    for total, count in ((LIMIT, 1), (LIMIT + 1, 0)):
        frame = frame_to(PEER, total)
        for at in range(0, total, 8000):
            card.legacy(frame[at : at + 8000], EOP | IFCS if at + 8000 >= total else 0)
        assert card.go() == [frame] * count
    for _ in range(300):
        card.legacy(part, RS)
        card.go()
        assert len(card.nic.state.transmit.packet) <= LIMIT
    card.legacy(part, EOP)
    card.legacy(frame_to(PEER))
    assert card.go() == [frame_to(PEER)]


def test_half_a_packet_is_forgotten_when_the_transmitter_is_set_up_anew() -> None:
    card = Card()
    card.legacy(b"half of something", 0)
    card.go()
    card.put(TCTL, 0)
    card.put(TCTL, EN | 8)
    card.legacy(frame_to(PEER))
    assert card.go() == [frame_to(PEER)]
    card.legacy(b"half of something", 0)
    card.go()
    card.put(TDH, card.get(TDH))
    card.legacy(frame_to(PEER))
    assert card.go() == [frame_to(PEER)]


def test_a_full_wire_holds_the_descriptor_and_loses_nothing() -> None:
    card = Card(count=16)
    frames = [frame_to(PEER, 60 + n) for n in range(10)]
    indices = [card.legacy(frame) for frame in frames]
    card.wire.space = 4
    assert card.go() == frames[:4]
    assert card.get(TDH) == 4
    assert [card.done(index) for index in indices] == [True] * 4 + [False] * 6
    assert card.get(ICR) == TXDW
    card.nic.wire_ready()
    assert len(card.wire.frames) == 4
    card.wire.space = 3
    card.nic.wire_ready()
    assert card.wire.frames == frames[:7]
    card.wire.space = 100
    card.nic.wire_ready()
    assert card.wire.frames == frames
    assert card.get(ICR) & TXQE


def test_statistics() -> None:
    card = Card(count=16)
    for destination, size in ((PEER, 60), (b"\xff" * 6, 61), (bytes.fromhex("01005e000001"), 123)):
        card.legacy(frame_to(destination, size))
    card.go()
    counted = [card.get(register) for register in (GPTC, TPT, TOTL, PTC64, PTC127, BPTC, MPTC)]
    assert counted == [3, 3, 60 + 61 + 123 + 12, 1, 2, 1, 1]


def test_a_ring_of_many_goes_in_pieces() -> None:
    """A full ring of 4,096 takes several goes, the next one due at once, and few reads of memory."""
    card = Card(count=128)
    card.count = 4096
    ring = 0x200000
    card.put(TDBAL, ring)
    card.put(TDLEN, 4096 * 16)
    frame = frame_to(PEER)
    card.memory.data[0x80000 : 0x80000 + 60] = frame
    descriptor = (0x80000).to_bytes(8, "little") + (60 | (EOP | IFCS) << 24).to_bytes(8, "little")
    card.memory.data[ring : ring + 4096 * 16] = descriptor * 4096
    card.put(TDT, 4095)
    goes = 1
    while (due := card.nic.deadline()) is not None:
        assert due == card.now
        assert card.get(TDH) != 4095
        card.nic.tick()
        goes += 1
    assert goes == 4
    assert len(card.wire.frames) == 4095
    assert card.memory.reads < 4095 * 1.1


pieces = st.lists(
    st.tuples(st.lists(st.integers(1, 900), min_size=1, max_size=5), st.booleans()), min_size=1, max_size=25)


@settings(max_examples=60, deadline=None)
@given(
    packets=pieces, count=st.sampled_from((8, 16, 32)), spaces=st.lists(st.integers(0, 5), max_size=30),
    moved=st.integers(0, 25),
)
def test_packets_go_out_whole_and_in_order(
    packets: list[tuple[list[int], bool]], count: int, spaces: list[int], moved: int
) -> None:
    """However they are cut up and described, however the wire stalls, and across a save and load."""
    card = Card(count=count)
    card.wire.space = 0
    expected = []
    stalls = iter(spaces)

    def drain() -> None:
        card.wire.space = next(stalls, 1 << 20)
        card.nic.wire_ready()
        card.wire.space = 0

    for number, (sizes, extended) in enumerate(packets):
        frame = frame_to(PEER, 14 + sum(sizes), fill=number)
        expected.append(frame.ljust(60, b"\0"))
        cuts = [0]
        for size in (sizes[0] + 14, *sizes[1:]):
            cuts.append(cuts[-1] + size)
        for first, last in pairwise(cuts):
            while (card.tx_next + 1 - card.get(TDH)) % count == 0:
                drain()
            command = RS | (EOP | IFCS if last == len(frame) else 0)
            (card.extended if extended else card.legacy)(frame[first:last], command)
            card.go()
        if number == moved:
            state = save(card.nic)
            card.put(CTRL, 1 << 26)
            load(card.nic, state)
    while card.get(TDH) != card.get(TDT):
        drain()
    assert card.wire.frames == expected
