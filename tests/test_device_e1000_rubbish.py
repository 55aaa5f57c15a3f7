"""A guest that writes anything anywhere: the 82540EM neither raises nor grows, and its goes stay short."""

import struct

from e1000_driver import (
    CTRL,
    EECD,
    EN,
    ITR,
    MAC,
    MDIC,
    RAM,
    RCTL,
    RDBAH,
    RDBAL,
    RDH,
    RDLEN,
    RDT,
    RDTR,
    RX_RING,
    SECRC,
    TCTL,
    TDBAH,
    TDBAL,
    TDH,
    TDLEN,
    TDT,
    TIDV,
    Card,
    frame_to,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from miniguest.frontend.devices.e1000 import E1000
from miniguest.frontend.devices.e1000_transmit import BLOCK_LIMIT, BURST
from miniguest.frontend.devices.saved import load, save

REGISTERS = sorted({register.offset for register in E1000.regs.writable if register is not None})
INTERESTING = [TDT, TDH, TDLEN, TDBAL, TDBAH, TCTL, RDT, RDH, RDLEN, RDBAL, RDBAH, RCTL, CTRL, MDIC, EECD, TIDV, RDTR, ITR]
values = st.sampled_from((0, 1, 2, 3, 8, 0xFF, 0x100, 0x8000, 0xFFFF, 0xFFFFFFFF)) | st.integers(0, 2**32 - 1)
writes = st.tuples(st.sampled_from(INTERESTING) | st.sampled_from(REGISTERS), values)
frames = st.integers(14, 17_000).map(lambda size: frame_to(MAC, size)) | st.binary(min_size=14, max_size=100)
descriptor = st.tuples(
    st.sampled_from((0, 0x100, RAM - 8, RAM, 1 << 40, 2**64 - 1)),
    st.sampled_from((0, 1, 60, 1500, 0xFFFF, 0xFFFFF)),
    st.sampled_from((0, 1, 7)),
    st.integers(0, 255),
    st.integers(0, 2**32 - 1),
).map(lambda d: struct.pack("<QII", d[0], d[1] | d[2] << 20 | d[3] << 24, d[4]))


@settings(max_examples=100, deadline=None)
@given(steps=st.lists(writes | frames, max_size=40), fill=st.binary(max_size=64))
def test_any_registers_and_frames(steps: list[tuple[int, int] | bytes], fill: bytes) -> None:
    card = Card(count=16)
    card.memory.data[RX_RING : RX_RING + 64 * len(fill)] = fill * 64
    for step in steps:
        if isinstance(step, bytes):
            card.nic.receive(step)
        else:
            card.put(*step)
        card.now += 1000
        card.nic.tick()
        card.wire.space = 50
        card.nic.wire_ready()
        assert len(card.nic.state.transmit.packet) <= BLOCK_LIMIT
        due = card.nic.deadline()
        assert due is None or due > 0
    load(card.nic, save(card.nic))


@settings(max_examples=100, deadline=None)
@given(ring=st.lists(descriptor, min_size=8, max_size=64), space=st.sampled_from((0, 1, 1 << 20)), tail=st.integers(0, 4095))
def test_any_descriptors(ring: list[bytes], space: int, tail: int) -> None:
    """A ring of 4,096 made of them over and over: each go reads and sends a bounded amount."""
    card = Card(count=8)
    table = b"".join(ring)
    card.put(TDBAL, 0x200000)
    card.put(TDLEN, 4096 * 16)
    card.memory.data[0x200000 : 0x200000 + 4096 * 16] = (table * 4096)[: 4096 * 16]
    card.wire.space = space
    card.put(TDT, tail)
    for _ in range(8):
        sent, reads = len(card.wire.frames), card.memory.reads
        card.nic.tick()
        card.nic.wire_ready()
        assert len(card.wire.frames) - sent <= 2 * BURST
        assert card.memory.reads - reads <= 4 * BURST
        assert len(card.nic.state.transmit.packet) <= BLOCK_LIMIT
    assert all(14 <= len(frame) <= 16288 + 4 for frame in card.wire.frames)


def test_rings_outside_memory() -> None:
    """All ones are descriptors too: at an address of ones, as long as can be."""
    card = Card()
    for base in (TDBAL, RDBAL):
        card.put(base + 4, 0xFFFFFFFF)
        card.put(base + 8, 0xFFF80)
    card.put(RDT, 0x7FFF)
    card.put(TDT, 0x7FFF)
    assert card.nic.receive(frame_to(MAC))
    while card.nic.deadline() is not None:
        card.nic.tick()
    assert card.get(TDH) == card.get(TDT)


def test_a_ring_of_null_addresses_is_searched_once() -> None:
    """64 Ki of them, and one buffer among them that is too small for the frame by itself."""
    card = Card(rctl=EN | SECRC | 3 << 16)
    card.put(RDBAL, 0x200000)
    card.put(RDLEN, 0xFFF80)
    card.put(RDT, 0xFFF7)
    card.memory.data[0x200000 + 16 * 5000] = 1
    assert not card.nic.receive(frame_to(MAC, 300))
    assert card.memory.reads < 0x10000
    before = card.memory.reads
    for _ in range(10):
        assert not card.nic.receive(frame_to(MAC, 300))
    assert card.memory.reads - before < 10 * 300
    assert card.memory.data[0x200000 + 16 * 4000 + 12] == 1  # given back
