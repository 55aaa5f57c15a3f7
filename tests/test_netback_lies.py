"""What netback does about frontends that lie in their rings: xen/io/netif.h broken one way at a time."""
import struct
from collections.abc import Callable

import pytest
from netpeer import (
    CSUM_BLANK,
    ERROR,
    EXTRA,
    MCAST_ADD,
    MORE,
    NULL,
    OKAY,
    PAGE,
    Vif,
    World,
    extra_slot,
    gso_slot,
    tx_slot,
)

from miniguest.ring.abi.xenbus import XenbusState


@pytest.fixture
def vif(world: World) -> Vif:
    return world.vif().connect()


@pytest.fixture
def other(world: World) -> Vif:
    made = world.vif().connect(buffers=128)
    made.announce()
    return made


def page(vif: Vif, data: bytes = b"", readonly: bool = True) -> int:
    """A granted frame."""
    frame = vif.domain.pages.alloc()
    vif.domain.memory.frame(frame)[: len(data)] = data
    return vif.domain.grants.give(0, frame, readonly)


# -- lies that disable the vif
def chain(vif: Vif, continuations: int, total: int = 10000, size: int = 100) -> list[bytes]:
    gref = page(vif)
    first = tx_slot(gref, 0, MORE if continuations else 0, 0, total)
    return [first] + [tx_slot(gref, 0, MORE if n < continuations - 1 else 0, n + 1, size) for n in range(continuations)]


FATAL: dict[str, tuple[Callable[[Vif], list[bytes]], str]] = {
    "20-continuations": (lambda v: chain(v, 20), "20 continuation slots"),
    "100-continuations": (lambda v: chain(v, 100), "20 continuation slots"),
    "endless-and-incomplete": (lambda v: chain(v, 200)[:-1], "20 continuation slots"),
    "offset-beyond": (lambda v: [tx_slot(page(v), 4090, 0, 0, 60)], "crosses its page's end"),
    "offset-huge": (lambda v: [tx_slot(page(v), 65535, 0, 0, 60)], "crosses its page's end"),
    "size-beyond": (lambda v: [tx_slot(page(v), 0, 0, 0, 4097)], "crosses its page's end"),
    "size-and-offset-65535": (lambda v: [tx_slot(page(v), 65535, 0, 0, 65535)], "crosses its page's end"),
    "first-too-long-for-its-page": (
        lambda v: [tx_slot(page(v), 0, MORE, 0, 5000), tx_slot(page(v), 0, 0, 1, 100)], "offset 0 of 4900 bytes",
    ),
    "continuation-crosses": (
        lambda v: [tx_slot(page(v), 0, MORE, 0, 5000), tx_slot(page(v), 100, 0, 1, 4000)], "offset 100 of 4000 bytes",
    ),
    "extra-0": (lambda v: [tx_slot(page(v), 0, EXTRA, 0, 60), extra_slot(0)], "extra info of type 0"),
    "extra-5": (lambda v: [tx_slot(page(v), 0, EXTRA, 0, 60), extra_slot(5)], "extra info of type 5"),
    "extra-255": (lambda v: [tx_slot(page(v), 0, EXTRA, 0, 60), extra_slot(255)], "extra info of type 255"),
    "second-extra-0": (
        lambda v: [tx_slot(page(v), 0, EXTRA, 0, 60), extra_slot(4, more=True), extra_slot(0)], "extra info of type 0",
    ),
    "5-extras": (
        lambda v: [tx_slot(page(v), 0, EXTRA, 0, 60), *[extra_slot(4, more=True)] * 4, extra_slot(4)], "more than 4 extra",
    ),
    "endless-extras": (lambda v: [tx_slot(page(v), 0, EXTRA, 0, 60), *[extra_slot(4, more=True)] * 200], "more than 4 extra"),
    "gso-size-0": (lambda v: [tx_slot(page(v), 0, EXTRA, 0, 60), gso_slot(0)], "segment size of 0"),
    "gso-type-0": (lambda v: [tx_slot(page(v), 0, EXTRA, 0, 60), gso_slot(1448, 0)], "GSO packet of type 0"),
    "gso-type-3": (lambda v: [tx_slot(page(v), 0, EXTRA, 0, 60), gso_slot(1448, 3)], "GSO packet of type 3"),
}


@pytest.mark.parametrize("what", FATAL)
def test_a_lie_that_disables_the_vif(world: World, vif: Vif, what: str) -> None:
    make, reason = FATAL[what]
    vif.q.put(*make(vif))
    world.is_disabled(vif, reason)
    vif.q.sending = []
    vif.drop_rings()
    world.comes_back(vif)


@pytest.mark.parametrize("ring", ["tx", "rx"])
@pytest.mark.parametrize("ahead", [257, 300, 1 << 31, -1, -200])
def test_a_producer_index_that_cannot_be(world: World, vif: Vif, ring: str, ahead: int) -> None:
    """Ahead of the responses by more than the ring, or behind what it was."""
    vif.announce()
    lying = getattr(vif.q, ring)
    lying.set_index(req_prod=lying.index("rsp_prod") + ahead if ahead > 0 else lying.req_prod + ahead)
    vif.q.tx_port.notify()
    world.is_disabled(vif, "transmit ring" if ring == "tx" else "receive ring")
    world.comes_back(vif)


def test_a_receiver_that_lies_harms_no_sender(world: World, vif: Vif, other: Vif) -> None:
    """Found out while a frame is delivered to it."""
    other.q.rx.set_index(req_prod=other.q.rx.req_prod + 300)
    for number in range(200):
        assert vif.q.send(vif.frame(other, bytes([number]))) == OKAY
    other.wait_state(XenbusState.Closing)
    third = world.vif().connect()
    vif.reaches(third)


# -- lies that cost one packet
REFUSED: dict[str, Callable[[Vif], list[bytes]]] = {
    "size-0": lambda v: [tx_slot(page(v), 0, 0, 0, 0)],
    "size-13": lambda v: [tx_slot(page(v), 0, 0, 0, 13)],
    "19-slots": lambda v: chain(v, 18, total=4000),
    "20-slots": lambda v: chain(v, 19, total=4000),
    "fragments-longer-than-the-packet": lambda v: [tx_slot(page(v), 0, MORE, 0, 100), tx_slot(page(v), 0, 0, 1, 200)],
    "13-bytes-in-two": lambda v: [tx_slot(page(v), 0, MORE, 0, 13), tx_slot(page(v), 0, 0, 1, 6)],
    "no-such-gref": lambda v: [tx_slot(30000, 0, 0, 0, 60)],
    "gref-beyond-the-table": lambda v: [tx_slot(1 << 31, 0, 0, 0, 60)],
    "granted-to-another": lambda v: [tx_slot(v.domain.grants.give(5, v.domain.pages.alloc()), 0, 0, 0, 60)],
    "no-such-frame": lambda v: [tx_slot(v.domain.grants.give(0, 1 << 30), 0, 0, 0, 60)],
    "bad-grant-in-the-middle": lambda v: [
        tx_slot(page(v), 0, MORE, 0, 6000), tx_slot(30000, 0, MORE, 1, 1000), tx_slot(page(v), 0, 0, 2, 1000),
    ],
    "bad-grant-at-the-end": lambda v: [tx_slot(page(v), 0, MORE, 0, 6000), tx_slot(30000, 0, 0, 1, 4000)],
    "a-checksum-of-nothing": lambda v: [tx_slot(page(v, b"\2" * 12 + b"\x88\xb5"), 0, CSUM_BLANK, 0, 60)],
    "a-checksum-of-a-short-ip-header": lambda v: [
        tx_slot(page(v, b"\2" * 12 + b"\x08\x00\x41" + bytes(8) + b"\x06"), 0, CSUM_BLANK, 0, 60),
    ],
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_lie_that_costs_a_packet(world: World, vif: Vif, other: Vif, what: str) -> None:
    slots = REFUSED[what](vif)
    vif.q.put(*slots)
    assert vif.q.statuses(len(slots)) == [ERROR] * len(slots)
    assert set(vif.domain.in_use) == {vif.q.tx.gref, vif.q.rx.gref}     # what was mapped of it is not any more
    assert vif.statistics["errors"] == vif.statistics["tx_dropped"] == 1
    vif.reaches(other)


GSO_REFUSED = {
    "no-tcp": (1, b"\2" * 12 + b"\x88\xb5"),
    "of-another-kind": (2, b"\2" * 12 + b"\x08\x00\x45\0\0\x40" + bytes(5) + b"\x06" + bytes(40)),
    "a-header-longer-than-the-packet": (
        1, b"\2" * 12 + b"\x08\x00\x45\0\0\x2e\0\0\0\0\x40\x06\0\0" + bytes(8) + bytes(12) + b"\xf0\x10" + bytes(6),
    ),
}


@pytest.mark.parametrize("what", GSO_REFUSED)
def test_gso_of_what_is_no_such_packet(world: World, vif: Vif, what: str) -> None:
    kind, data = GSO_REFUSED[what]
    vif.q.put(tx_slot(page(vif, data), 0, EXTRA | CSUM_BLANK, 0, 60), gso_slot(1000, kind))
    assert vif.q.statuses(2) == [ERROR, NULL]


def test_gso_into_more_segments_than_anybody_needs(world: World, vif: Vif) -> None:
    data = b"\2" * 12 + b"\x08\x00" + struct.pack(">BBHHHBBH", 0x45, 0, 4000, 0, 0, 64, 6, 0) + bytes(8)
    data += bytes(12) + b"\x50\x10" + bytes(6)
    vif.q.put(tx_slot(page(vif, data), 0, EXTRA | CSUM_BLANK, 0, 4014), gso_slot(1))
    assert vif.q.statuses(2) == [ERROR, NULL]
    assert vif.q.send(vif.frame(vif.mac)) == OKAY


def test_the_filter_of_a_chain_that_is_refused_is_not_changed(world: World, vif: Vif) -> None:
    slots = chain(vif, 18, total=4000)
    slots[0] = slots[0][:6] + struct.pack("<H", MORE | EXTRA) + slots[0][8:]
    slots.insert(1, extra_slot(MCAST_ADD, b"\x01\0\0\0\0\x01"))
    vif.q.put(*slots)
    assert vif.q.statuses(len(slots)) == [ERROR, NULL] + [ERROR] * 18


@pytest.mark.parametrize("gref", [30000, 1 << 31, "another", "readonly", "frame"])
def test_a_receive_buffer_that_cannot_be_mapped(world: World, vif: Vif, other: Vif, gref: int | str) -> None:
    """Its frame is lost to it, the response says so, and everything goes on."""
    receiver = world.vif().connect(buffers=0)
    receiver.announce()
    bad = gref if isinstance(gref, int) else {
        "another": lambda: receiver.domain.grants.give(5, receiver.domain.pages.alloc()),
        "readonly": lambda: page(receiver), "frame": lambda: receiver.domain.grants.give(0, 1 << 30),
    }[gref]()
    good = page(receiver, readonly=False)
    for number, each in enumerate((bad, good, bad)):
        receiver.q.rx.put(struct.pack("<HHI", number, 0, each))
    receiver.q.rx.push()
    receiver.q.rx_port.notify()
    assert vif.q.send(vif.frame(receiver)) == OKAY
    assert vif.q.send(vif.frame(receiver, b"two")) == OKAY
    assert vif.q.send(vif.frame(receiver, b"three")) == OKAY
    receiver.q.rx.wait(3)
    found = [struct.unpack("<HHHh", receiver.q.rx.take(8)) for _ in range(3)]
    assert [(number, status) for number, _, _, status in found] == [(0, ERROR), (1, 60), (2, ERROR)]
    assert receiver.statistics["rx_dropped"] == receiver.statistics["errors"] == 2
    assert set(receiver.domain.in_use) == {receiver.q.tx.gref, receiver.q.rx.gref}
    receiver.q.post(1)
    receiver.reaches(vif)


def test_a_bad_buffer_in_the_middle_of_a_frame(world: World, vif: Vif) -> None:
    """The chain stays a chain, so that the frontend knows what to throw away."""
    receiver = world.vif().connect(buffers=0)
    receiver.announce()
    for number, gref in enumerate((page(receiver, readonly=False), 30000, page(receiver, readonly=False))):
        receiver.q.rx.put(struct.pack("<HHI", number, 0, gref))
    receiver.q.rx.push()
    receiver.q.rx_port.notify()
    assert vif.q.send(vif.frame(receiver, b"", 9000)) == OKAY
    receiver.q.rx.wait(3)
    found = [struct.unpack("<HHHh", receiver.q.rx.take(8)) for _ in range(3)]
    assert [(flags & 4, status) for _, _, flags, status in found] == [(4, PAGE), (4, ERROR), (0, 9000 - 2 * PAGE)]


# -- what is no lie
def test_a_chain_that_comes_slot_by_slot(world: World, vif: Vif, other: Vif) -> None:
    frame = vif.frame(other, bytes(range(200)), 9000)
    slots = vif.q.slots_of(frame, extras=[extra_slot(4)], sizes=[100, 4000, 1000, 3900])
    for slot in slots[:-1]:
        vif.q.put(slot)
        world.others_work()                     # netback has looked
        assert vif.q.tx.ready == 0
    vif.q.put(slots[-1])
    assert vif.q.statuses(len(slots)) == [OKAY, NULL, OKAY, OKAY, OKAY]
    assert other.q.receive() == frame


def test_18_slots_and_pieces_of_any_size(world: World, vif: Vif, other: Vif) -> None:
    for sizes in ([1] * 17 + [83], [13, 1, 46], [0, 60], [60, 0], [4096] * 15 + [4095], [1, 4096, 4096, 1]):
        frame = vif.frame(other, bytes(range(256)) * 250, sum(sizes))[: sum(sizes)]
        assert vif.q.send(frame, sizes=sizes) == OKAY
        assert other.q.receive() == frame
    assert vif.statistics["errors"] == 0


def test_the_ids_are_the_frontends_own_affair(world: World, vif: Vif, other: Vif) -> None:
    gref = page(vif, vif.frame(other))
    for number in (7, 7, 65535, 0):
        vif.q.put(tx_slot(gref, 0, 0, number, 60))
        vif.q.tx.wait(1)
        assert struct.unpack("<Hh", vif.q.tx.take(4)) == (number, OKAY)
        assert other.q.receive()[:12] == other.mac + vif.mac


def test_unknown_flags_are_passed_over(world: World, vif: Vif, other: Vif) -> None:
    gref = page(vif, vif.frame(other))
    vif.q.put(tx_slot(gref, 0, 0xFFF0, 1, 60))
    assert vif.q.statuses(1) == [OKAY]
    assert other.q.receive().flags == 0


def test_events_without_work(world: World, vif: Vif, other: Vif) -> None:
    for _ in range(300):
        vif.q.tx_port.notify()
        world.others_work()
    vif.reaches(other)


def test_a_ring_written_all_over(world: World) -> None:
    """Slots of random bytes: whatever they say, the vif is disabled or answers, and others work."""
    state = 12345
    for _ in range(60):
        vif = world.vif().connect(buffers=16)
        for _ in range(8):
            words = []
            for _ in range(3):
                state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
                words.append(state >> 32)
            vif.q.tx.put(struct.pack("<III", *words))
        vif.q.tx.push()
        vif.q.tx_port.notify()
        world.catch_up()
        assert vif.state in (XenbusState.Connected, XenbusState.Closing)
        assert len(vif.domain.in_use) in (0, 2)
    world.others_work()
