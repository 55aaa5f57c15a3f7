"""The 82540EM's interrupts: causes, throttling, delays, messages (317453, sections 3.2.7, 3.4.3, 4.1.3, 13.4.17-13.4.21)."""

from itertools import pairwise

from e1000_driver import (
    EOP,
    ICR,
    ICS,
    IDE,
    IFCS,
    IMC,
    IMS,
    ITR,
    LSC,
    MAC,
    RADV,
    RDTR,
    RS,
    RSRPD,
    RXDMT0,
    RXT0,
    SRPD,
    TADV,
    TIDV,
    TXD_LOW,
    TXDCTL,
    TXDW,
    TXQE,
    Card,
    frame_to,
)
from hypothesis import given
from hypothesis import strategies as st

from miniguest.frontend.devices.pci_function import PciFunction

UNIT = 1024  # ns of the delays
POINTER, STATUS_WORD = 0x34, 0x06


def test_reading_the_causes_acknowledges_them() -> None:
    card = Card()
    card.put(IMS, RXT0 | LSC)
    card.put(ICS, LSC | TXDW)
    assert card.nic.irq()
    assert card.get(ICR) == LSC | TXDW
    assert not card.nic.irq()
    assert card.get(ICR) == 0


def test_writing_ones_acknowledges_those() -> None:
    card = Card()
    card.put(IMS, RXT0 | LSC)
    card.put(ICS, LSC | RXT0 | TXDW)
    card.put(ICR, LSC)
    assert card.nic.irq()
    card.put(ICR, RXT0)
    assert not card.nic.irq()
    assert card.get(ICR) == TXDW


def test_the_mask_is_set_and_cleared_bit_by_bit() -> None:
    card = Card()
    card.put(ICS, LSC)
    assert not card.nic.irq()
    card.put(IMS, RXT0)
    card.put(IMS, LSC)
    assert card.get(IMS) == RXT0 | LSC
    assert card.nic.irq()
    card.put(IMC, LSC)
    assert card.get(IMS) == RXT0
    assert not card.nic.irq()
    card.put(IMS, 0xFFFFFFFF)
    assert card.get(IMS) == 0x1F6FF
    assert card.nic.irq()


def test_throttled_interrupts_are_an_interval_apart() -> None:
    card = Card(count=16)
    card.put(IMS, RXT0)
    card.put(ITR, 100)
    start = card.now
    card.nic.receive(frame_to(MAC))
    assert card.nic.irq()
    assert card.nic.deadline() is None
    card.now = start + 10_000
    assert card.get(ICR) & RXT0
    card.nic.receive(frame_to(MAC))
    assert not card.nic.irq()
    assert card.nic.deadline() == start + 25_600
    card.tick_at(start + 25_599)
    assert not card.nic.irq()
    card.tick_at(start + 25_600)
    assert card.nic.irq()
    card.get(ICR)
    card.now += 30_000
    card.nic.receive(frame_to(MAC))  # the interval is over: at once
    assert card.nic.irq()


def test_a_shorter_interval_counts_from_now_and_none_lets_go() -> None:
    for interval, wait in ((10, 2_560), (0, 0)):
        card = Card()
        card.put(IMS, RXT0)
        card.put(ITR, 0xFFFF)
        card.nic.receive(frame_to(MAC))
        card.get(ICR)
        card.nic.receive(frame_to(MAC))
        card.put(ITR, interval)
        assert card.nic.irq() == (not interval)
        card.tick_at(card.now + wait)
        assert card.nic.irq()


def test_a_driver_that_polls_meanwhile_gets_no_interrupt() -> None:
    card = Card()
    card.put(IMS, RXT0)
    card.put(ITR, 100)
    card.nic.receive(frame_to(MAC))
    card.get(ICR)
    card.nic.receive(frame_to(MAC))
    assert card.get(ICR) == RXT0
    assert card.nic.deadline() is None
    card.tick_at(card.now + 10**6)
    assert not card.nic.irq()


def test_the_receive_delay_starts_anew_with_each_packet_but_ends_with_the_absolute_one() -> None:
    card = Card(count=32)
    card.put(IMS, RXT0)
    card.put(RDTR, 10)
    card.put(RADV, 25)
    start = card.now
    card.nic.receive(frame_to(MAC))
    assert card.nic.deadline() == start + 10 * UNIT
    for step in (9, 18):
        card.tick_at(start + step * UNIT)
        card.nic.receive(frame_to(MAC))
        assert not card.nic.irq()
    assert card.nic.deadline() == start + 25 * UNIT
    card.tick_at(start + 25 * UNIT)
    assert card.get(ICR) == RXT0
    assert card.nic.deadline() is None  # the other timer stopped with it
    card.nic.receive(frame_to(MAC))
    assert card.nic.deadline() == card.now + 10 * UNIT
    card.tick_at(card.now + 10 * UNIT)
    assert card.nic.irq()


def test_flushing_the_receive_delay_and_small_packets() -> None:
    card = Card()
    card.put(RDTR, 1000)
    card.nic.receive(frame_to(MAC, 200))
    assert card.get(ICR) == 0
    card.put(RDTR, 1 << 31 | 1000)
    assert card.get(ICR) == RXT0
    assert card.get(RDTR) == 1000
    assert card.nic.deadline() is None
    card.put(RSRPD, 64)
    card.nic.receive(frame_to(MAC, 200))
    card.nic.receive(frame_to(MAC, 64))
    assert card.get(ICR) & ~RXDMT0 == SRPD
    assert card.nic.deadline() is None


def test_the_transmit_delay() -> None:
    card = Card()
    card.put(TIDV, 8)
    card.put(TADV, 12)
    start = card.now
    for step in (0, 5):
        card.now = start + step * UNIT
        card.legacy(frame_to(MAC), EOP | IFCS | RS | IDE)
        card.go()
        assert card.get(ICR) & TXDW == 0
    assert card.nic.deadline() == start + 12 * UNIT
    card.tick_at(start + 12 * UNIT)
    assert card.get(ICR) == TXDW
    card.legacy(frame_to(MAC), EOP | IFCS | RS | IDE)
    card.go()
    card.legacy(frame_to(MAC))  # one without IDE interrupts at once, and that is that
    card.go()
    assert card.get(ICR) & TXDW
    assert card.nic.deadline() is None
    card.legacy(frame_to(MAC), EOP | IFCS | RS | IDE)
    card.go()
    card.put(TIDV, 1 << 31 | 8)
    assert card.get(ICR) & TXDW
    assert card.nic.deadline() is None


def test_the_low_threshold_is_told_of_when_it_is_crossed() -> None:
    card = Card(count=64)
    card.put(TXDCTL, 1 << 25)  # eight descriptors
    for _ in range(20):
        card.legacy(frame_to(MAC), EOP | IFCS)
    for space, told in ((11, 0), (1, TXD_LOW), (3, 0), (5, TXQE)):  # 9, 8, 5 and none left
        card.wire.space = space
        card.go()
        assert card.get(ICR) == told


def message_signaled(card: Card, messages: list[tuple[int, int]]) -> PciFunction:
    function = PciFunction(card.nic.IDENTITY, card.nic.BARS)
    card.nic.capabilities(function)
    card.nic.send_msi = lambda address, data: messages.append((address, data))
    return function


def test_the_capabilities_are_a_list_of_three() -> None:
    function = message_signaled(Card(), [])
    assert function.read(STATUS_WORD, 2) & 0x10
    chain, at = [], function.read(POINTER, 1)
    while at:
        chain.append((at, function.read(at, 1)))
        at = function.read(at + 1, 1)
    assert chain == [(0xDC, 1), (0xE4, 7), (0xF0, 5)]
    assert function.read(0xF2, 2) == 0x80  # one message, 64 bits
    function.write(0xE0, 2, 0x8103)
    assert function.read(0xE0, 2) == 0x0103
    function.write(0xE0, 2, 0)
    assert function.read(0xE0, 2) == 0
    function.write(0xDC, 4, 0xFFFFFFFF)
    assert function.read(0xDC, 4) == 0xC822E401


def test_interrupts_as_messages() -> None:
    card = Card()
    messages: list[tuple[int, int]] = []
    function = message_signaled(card, messages)
    card.put(IMS, RXT0 | LSC)
    card.put(ICS, LSC)
    assert card.nic.irq()
    assert messages == []
    card.get(ICR)
    function.write(0xF4, 4, 0xFEE01007)
    function.write(0xF8, 4, 0x5)
    function.write(0xFC, 2, 0x4031)
    function.write(0xF2, 2, 1)
    card.put(ICS, LSC)
    assert messages == [(0x5_FEE01004, 0x4031)]
    assert not card.nic.irq()
    card.nic.receive(frame_to(MAC))
    assert len(messages) == 1  # none again before the causes are read
    assert card.get(ICR) == LSC | RXT0
    card.nic.receive(frame_to(MAC))
    assert len(messages) == 2
    function.write(0xF2, 2, 0)
    assert card.nic.irq()


def test_messages_are_throttled_too() -> None:
    card = Card()
    messages: list[tuple[int, int]] = []
    message_signaled(card, messages).write(0xF2, 2, 1)
    card.put(IMS, RXT0)
    card.put(ITR, 10)
    for _ in range(2):
        card.nic.receive(frame_to(MAC))
        card.get(ICR)
    card.nic.receive(frame_to(MAC))
    assert len(messages) == 1
    due = card.nic.deadline()
    assert due == card.now + 2560
    card.tick_at(due)
    assert len(messages) == 2


steps = st.lists(st.tuples(st.sampled_from(("receive", "read", "wait", "mask", "unmask")), st.integers(0, 5000)), max_size=60)


@given(steps=steps, interval=st.integers(1, 50))
def test_no_two_interrupts_are_closer_than_the_interval_and_none_is_lost(steps: list[tuple[str, int]], interval: int) -> None:
    card = Card(count=128)
    card.put(IMS, RXT0)
    card.put(ITR, interval)
    rises, level = [], False
    for what, wait in steps:
        if what == "receive":
            card.nic.receive(frame_to(MAC))
        elif what == "read":
            card.get(ICR)
        elif what == "wait":
            card.tick_at(card.now + wait)
        else:
            card.put(IMC if what == "mask" else IMS, RXT0)
        if card.nic.irq() and not level:
            rises.append(card.now)
        level = card.nic.irq()
        pending = card.nic.state.interrupts.icr & card.nic.state.interrupts.ims
        assert level <= bool(pending)
        assert level or not pending or card.nic.deadline() is not None
    assert all(later - earlier >= interval * 256 for earlier, later in pairwise(rises))
