"""TCP and UDP segmentation by the 82540EM (317453, section 3.5)."""

import pytest
from e1000_driver import (
    CTRL,
    DEXT,
    EOP,
    IFCS,
    MAC,
    RS,
    TDH,
    TDT,
    TSE,
    TX_BUFFERS,
    VET,
    VLE,
    VME,
    Card,
    checksums_hold,
    frame_to,
    packet,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from miniguest.frontend.devices.saved import load, save

TSCTC, TSCTFC = 0x40F8, 0x40FC
TCP, UDP = 6, 17


def block(card: Card, version: int, protocol: int, payload: bytes, mss: int, cuts: tuple[int, ...] = (), **more: int) -> int:
    """Describe a block to be segmented: context, the header by itself, then the payload cut up; gives the last index."""
    vlan = more.pop("vlan", 0)
    whole = packet(version, protocol, payload, complete=False, length_known=False, **more)
    upper = 34 if version == 4 else 54
    header = upper + (20 if protocol == TCP else 8)
    at = upper + (16 if protocol == TCP else 6)
    kind = (1 if protocol == TCP else 0) | (2 if version == 4 else 0)
    card.context((14, 24, 33 if version == 4 else 0), (upper, at, 0), TSE | RS | kind, len(payload), header, mss)
    command = TSE | IFCS | RS | (VLE if vlan else 0)
    options = 3 if version == 4 else 2
    ends = [header, *(header + cut for cut in cuts if 0 < cut < len(payload)), len(whole)]
    index, start = 0, 0
    where = TX_BUFFERS
    for end in ends:
        last = end == len(whole)
        index = card.extended(whole[start:end], command | (EOP if last else 0), options, vlan, where + start)
        start = end
    return index


def fields(frame: bytes) -> tuple[int, int, bytes]:
    """Sequence number, flags and payload of a TCP frame, by its own lengths."""
    at = 34 if frame[12:14] == b"\x08\x00" else 54
    end = 14 + int.from_bytes(frame[16:18], "big") if at == 34 else 54 + int.from_bytes(frame[18:20], "big")
    return int.from_bytes(frame[at + 4 : at + 8], "big"), frame[at + 13], frame[at + 20 : end]


@settings(max_examples=80, deadline=None)
@given(
    version=st.sampled_from((4, 6)),
    size=st.integers(1, 20_000),
    mss=st.integers(100, 9000),
    sequence=st.integers(0, 2**32 - 1),
    ident=st.integers(0, 2**16 - 1),
    flags=st.integers(0, 255),
    cuts=st.lists(st.integers(1, 20_000), max_size=5).map(lambda cuts: tuple(sorted(set(cuts)))),
    spaces=st.lists(st.integers(0, 4), max_size=10),
)
def test_tcp_segments_put_together_are_the_block(
    version: int, size: int, mss: int, sequence: int, ident: int, flags: int, cuts: tuple[int, ...], spaces: list[int]
) -> None:
    card = Card(count=16)
    payload = bytes(i * 7 % 253 for i in range(size))
    last = block(card, version, TCP, payload, mss, cuts, sequence=sequence, ident=ident, flags=flags)
    card.wire.space = 0
    card.go()
    for space in spaces:
        card.wire.space = space
        card.nic.wire_ready()
        if space:
            state = save(card.nic)
            card.put(CTRL, 1 << 26)
            load(card.nic, state)
    assert card.done(last) == (card.get(TDH) == card.get(TDT))
    card.wire.space = 1 << 20
    card.nic.wire_ready()
    assert card.done(last)
    sent = card.wire.frames
    assert len(sent) == -(-size // mss)
    assert all(checksums_hold(frame) for frame in sent)
    got = [fields(frame) for frame in sent]
    assert b"".join(data for _, _, data in got) == payload
    assert [number for number, _, _ in got] == [sequence + n * mss & 0xFFFFFFFF for n in range(len(sent))]
    assert [flag for _, flag, _ in got] == [flags & ~9] * (len(sent) - 1) + [flags]
    if version == 4:
        assert [int.from_bytes(frame[18:20], "big") for frame in sent] == [ident + n & 0xFFFF for n in range(len(sent))]
    template = packet(version, TCP, payload, sequence=sequence, ident=ident, flags=flags)
    changing = {16, 17, 18, 19, 24, 25, 38, 39, 40, 41, 47, 50, 51} if version == 4 else {18, 19, 58, 59, 60, 61, 67, 70, 71}
    for frame in sent:
        header = 54 if version == 4 else 74
        assert [frame[n] for n in range(header) if n not in changing] == [template[n] for n in range(header) if n not in changing]
    assert card.get(TSCTC) == 1


@pytest.mark.parametrize("version", [4, 6])
def test_udp_segments(version: int) -> None:
    card = Card(count=16)
    payload = bytes(range(256)) * 10
    block(card, version, UDP, payload, 1000)
    sent = card.go()
    assert all(checksums_hold(frame) for frame in sent)
    at = 34 if version == 4 else 54
    assert [int.from_bytes(frame[at + 4 : at + 6], "big") for frame in sent] == [1008, 1008, 568]
    assert b"".join(frame[at + 8 :] for frame in sent) == payload


def test_segments_are_tagged() -> None:
    card = Card(count=16)
    card.put(CTRL, VME)
    card.put(VET, 0x8100)
    block(card, 4, TCP, bytes(2000), 1000, vlan=0x0123)
    sent = card.go()
    assert [frame[12:18] for frame in sent] == [b"\x81\x00\x01\x23\x08\x00"] * 2
    assert all(checksums_hold(frame[:12] + frame[16:]) for frame in sent)


def test_a_snap_header_has_its_length_brought_up_to_date() -> None:
    card = Card(count=16)
    whole = packet(4, TCP, bytes(150), complete=False, length_known=False)
    snap = whole[:12] + b"\0\0" + b"\xaa\xaa\x03\0\0\0" + whole[12:]
    card.context((22, 32, 41), (42, 58, 0), TSE | 3, 150, 62, 100)
    card.extended(snap, EOP | IFCS | TSE, 3)
    sent = card.go()
    assert [int.from_bytes(frame[12:14], "big") for frame in sent] == [148, 98]
    assert all(checksums_hold(frame[:12] + frame[20:]) for frame in sent)


def test_a_block_without_ip_only_gets_its_header_repeated() -> None:
    card = Card(count=16)
    header = frame_to(MAC, 40)
    payload = bytes(range(250))
    card.context((14, 24, 33), (34, 50, 0), TSE, len(payload), 40, 100)
    card.extended(header + payload, EOP | IFCS | TSE)
    assert card.go() == [header + payload[n : n + 100] for n in (0, 100, 200)]
    card.context((14, 24, 33), (34, 50, 0), TSE, len(payload), 14, 100)
    card.extended(header[:14] + payload, EOP | IFCS | TSE)
    assert card.go() == [header[:14] + payload[n : n + 100] for n in (0, 100, 200)]


@pytest.mark.parametrize(
    ("header", "mss", "size"), [(54, 0, 1000), (255, 100, 200), (255, 100, 255), (13, 100, 1000), (54, 16288, 17000)]
)
def test_contexts_that_make_no_frames(header: int, mss: int, size: int) -> None:
    card = Card(count=16)
    card.context((14, 24, 33), (34, 50, 0), TSE | 3, size, header, mss)
    index = card.extended(bytes(size), EOP | IFCS | RS | TSE, 3)
    card.legacy(frame_to(MAC))
    assert card.go() == [frame_to(MAC)]
    assert card.done(index)
    assert card.get(TSCTFC) == 1


def test_a_block_beyond_256_kib_is_dropped_whole() -> None:
    card = Card(count=16)
    card.context((14, 24, 33), (34, 50, 0), TSE | 3, 0xFFFFF, 54, 1000)
    for _ in range(5):
        card.describe(TX_BUFFERS, 60_000 | 1 << 20 | (TSE | DEXT) << 24, 3 << 8)
    card.describe(TX_BUFFERS, 0xFFFFF | 1 << 20 | (TSE | DEXT | EOP) << 24, 3 << 8)
    assert card.go() == []
    assert card.get(TDH) == card.get(TDT)
    card.legacy(frame_to(MAC))
    assert card.go() == [frame_to(MAC)]


def test_the_smallest_segments_come_in_pieces() -> None:
    """64 KiB in segments of one byte: bounded goes, nothing lost."""
    card = Card(count=16)
    block(card, 4, TCP, bytes(5000), 1)
    most = len(card.go())
    while card.nic.deadline() is not None:
        before = len(card.wire.frames)
        card.nic.tick()
        most = max(most, len(card.wire.frames) - before)
    assert most <= 1024
    assert len(card.wire.frames) == 5000
    assert card.get(TDH) == card.get(TDT)


@given(data=st.binary(min_size=1, max_size=80), context=st.tuples(*[st.integers(0, 255)] * 4), kind=st.integers(0, 3))
def test_offsets_outside_the_packet_do_no_harm(data: bytes, context: tuple[int, int, int, int], kind: int) -> None:
    card = Card(count=16)
    ipcss, ipcso, tucss, tucso = context
    for options in range(4):
        card.context((ipcss, ipcso, tucso), (tucss, tucso, ipcss), TSE | kind, 10, 20, 13)
        card.context((ipcss, ipcso, tucso), (tucss, tucso, ipcss), kind)
        card.extended(data, EOP | TSE, options)
        card.extended(data, EOP, options)
        card.go()
    assert card.get(TDH) == card.get(TDT)
    assert all(len(frame) <= max(60, len(data)) for frame in card.wire.frames)
