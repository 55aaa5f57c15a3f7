"""Static grants as netfront asks for them: with the real netback, and with a backend that refuses, or lies."""
from collections.abc import Callable, Iterator
from typing import cast

import numpy
import pytest
from netpeer import World
from peer import Ring
from test_netfront_xenbus import FRAME, ByHand, Frontend, Real

from miniguest.frontend.netfront_control import Control, Kept
from miniguest.frontend.netfront_xenbus import NetfrontDevice
from miniguest.ring import _core
from miniguest.ring.abi.netif import CTRL_REQUEST, CTRL_RESPONSE, GREF
from miniguest.ring.abi.xenbus import XenbusState
from miniguest.ring.errors import RingError
from miniguest.ring.process import Process

ADD, SUCCESS, NOT_SUPPORTED, INVALID = 9, 0, 1, 2
IN_USE, READONLY = 0x18, 1
PAGES = 512                     # of a queue's two rings


@pytest.fixture
def front(world: World) -> Iterator[Frontend]:
    made = Frontend(world.domain(memory=32 << 20))
    yield made
    made.close()


def start(front: Frontend, path: str, queues: int = 1) -> NetfrontDevice:
    return NetfrontDevice(
        cast(Process, front), front.store, path, front.domain.pages, front.domain.grants, front.connected, front.lost.append,
        queues, static_grants=True,
    )


# -- the real backend
def mapped(front: Frontend) -> int:
    """Pages that netback has mapped, without the rings."""
    return sum(front.domain.grant_entry(gref)[0] & IN_USE != 0 for gref in range(8, 8 + 4000))


@pytest.mark.parametrize("queues", [1, 2])
def test_all_pages_stay_mapped(world: World, front: Frontend, queues: int) -> None:
    real = Real(world, front)
    start(front, real.path, queues)
    netfront = front.take_up()
    rings = 1 + 2 * queues
    front.until(lambda: mapped(front) == rings + queues * PAGES)
    real.exchange(netfront, 60, 1514, 4096, 4097, 65535)
    batch = netfront.queues[0].batch(40)
    front.until(lambda: mapped(front) == rings + queues * PAGES + 40)
    sent = real.other.mac + real.mac + b"\x88\xb5" + bytes(range(256)) * 40
    for first in (0, 20):
        batch.frame(first, len(sent))[:] = numpy.frombuffer(sent, numpy.uint8)
    lengths = numpy.full(2, len(sent), numpy.uint32)
    real.other.q.post(6)
    assert batch.put(numpy.array([0, 20], numpy.uint32), lengths) == 2
    netfront.queues[0].transmit.push()
    netfront.queues[0].transmit_port.notify()
    assert [real.other.receive() == sent for _ in range(2)] == [True, True]
    front.until(lambda: netfront.queues[0].transmit.take() or not batch.outstanding)
    assert batch.take()[1].tolist() == [0, 0]
    real.store.write(f"{real.back}/online", 0)
    real.store.write(f"{real.back}/state", 5)
    front.until(lambda: front.lost)
    real.store.write(f"{real.back}/state", 6)
    world.catch_up()
    assert not front.domain.in_use


def test_netback_is_killed(world: World, front: Frontend) -> None:
    """What its successor maps slot by slot is no lie, and what it has not mapped neither."""
    real = Real(world, front)
    start(front, real.path)
    netfront = front.take_up()
    front.until(lambda: mapped(front) == 3 + PAGES)
    world.backend.kill(9)
    world.backend.reap()
    world.start_backend()
    world.catch_up()
    real.exchange(netfront, 60, 9000)
    assert not front.lost and mapped(front) == 3


# -- one of our own
class Controller:
    """The other end of the control ring of a ByHand."""

    def __init__(self, vif: ByHand) -> None:
        memory, domain = vif.front.domain.memory, vif.front.domain
        self.memory, self.entry = memory, domain.grant_entry
        page = memory.frame(self.entry(vif.key("ctrl-ring-ref"))[2])
        self.ring = _core.BackRing(page, CTRL_REQUEST.size, CTRL_RESPONSE.size)
        self.port = vif.domain.events.bind_interdomain(vif.front.domid, vif.key("event-channel-ctrl"))

    def asked(self) -> list[tuple[int, int, list[tuple[int, int]]]]:
        """What was asked: id, queue, and the list."""
        found = []
        for index in range(self.ring.take()):
            number, kind, queue, gref, count = CTRL_REQUEST.struct.unpack_from(self.ring.requests, index * CTRL_REQUEST.size)
            assert kind == ADD
            flags, _, frame = self.entry(gref)
            assert not flags & 4, "its page is to be writable"
            page = self.memory.frame(frame)[: count * GREF.size]
            found.append((number, queue, [(ref, how) for ref, how, _ in GREF.struct.iter_unpack(page)]))
        return found

    def answer(self, number: int, status: int, kind: int = ADD) -> None:
        CTRL_RESPONSE.struct.pack_into(self.ring.responses, 0, number, kind, status, 0)
        self.ring.put(1)
        self.ring.push()
        self.port.notify()


def connect(world: World, front: Frontend) -> tuple[ByHand, Controller, NetfrontDevice]:
    vif = ByHand(world, front, feature_ctrl_ring=1)
    device = start(front, vif.path)
    vif.connect()
    control = Controller(vif)
    front.take_up()
    return vif, control, device


def test_what_it_asks_for(world: World, front: Frontend) -> None:
    vif, control, _ = connect(world, front)
    (_, queue, transmit), (_, queue_too, receive) = control.asked()
    assert queue == queue_too == 0
    assert [how for _, how in transmit] == [READONLY] * 256 and [how for _, how in receive] == [0] * 256
    assert {front.domain.grant_entry(gref)[0] for gref, _ in transmit} == {5}
    assert {front.domain.grant_entry(gref)[0] for gref, _ in receive} == {1}
    vif.leave()


def test_a_backend_without_a_control_ring_is_not_asked(world: World, front: Frontend) -> None:
    vif = ByHand(world, front)
    start(front, vif.path)
    vif.connect()
    front.take_up()
    assert not vif.store.exists(f"{vif.path}/ctrl-ring-ref")
    vif.leave()


def lie(front: Frontend, vif: ByHand) -> None:
    """Deliver a frame, and keep its page mapped."""
    ring = vif.rings[0]
    ring.take_posted()
    page = front.domain.memory.grant_entries[ring.posted[0][1] * 8 :]
    slots = ring.slots(FRAME)
    page[0] |= IN_USE
    ring.respond(*slots)
    vif.bells[0][0].notify()


@pytest.mark.parametrize("answered", [False, True])
def test_it_is_no_lie_to_have_them_mapped(world: World, front: Frontend, answered: bool) -> None:
    """From the moment when it was asked for: the backend maps them before it answers."""
    vif, control, _ = connect(world, front)
    numbers = [number for number, _, _ in control.asked()]
    if answered:
        for number in numbers:
            control.answer(number, SUCCESS)
    lie(front, vif)
    front.until(lambda: front.got)
    assert front.got == [FRAME] and not front.lost


@pytest.mark.parametrize("status", [NOT_SUPPORTED, INVALID, 77])
def test_after_a_refusal_it_is(world: World, front: Frontend, status: int) -> None:
    vif, control, device = connect(world, front)
    for number, _, _ in control.asked():
        control.answer(number, status)
    front.until(lambda: not any(pages.static for _, _, _, pages in device._kept))
    vif.deliver(FRAME)
    front.until(lambda: front.got)
    lie(front, vif)
    front.until(lambda: front.lost)
    assert "still mapped" in front.lost[0]


@pytest.mark.parametrize(("spoil", "reason"), [
    (lambda control, number: control.answer(number + 9, SUCCESS), "a response to control request"),
    (lambda control, number: control.answer(number, SUCCESS, 3), "of type 3, which is not out"),
    (lambda control, number: [control.answer(number, SUCCESS) for _ in range(2)], "which is not out"),
])
def test_lies(world: World, front: Frontend, spoil: Callable[[Controller, int], object], reason: str) -> None:
    vif, control, _ = connect(world, front)
    spoil(control, control.asked()[0][0])
    front.until(lambda: front.lost)
    assert reason in front.lost[0] and reason in vif.error and vif.state == XenbusState.Closing


# -- alone
class Pages:
    static = False


def test_questions_that_nobody_answers(world: World) -> None:
    """Their ring is full some day: then it goes without."""
    ring = Ring(world.domain(), CTRL_REQUEST.size)
    control = Control(_core.FrontRing(ring.bytes, CTRL_REQUEST.size, CTRL_RESPONSE.size), lambda: None)
    page, pages = bytearray(4096), Pages()
    for _ in range(ring.slots):
        pages.static = False
        control.keep_mapped(0, [8, 9], True, cast(Kept, pages), 10, memoryview(page))
        assert pages.static
    control.keep_mapped(0, [8, 9], True, cast(Kept, pages), 10, memoryview(page))
    assert not pages.static
    assert not control.on_event()
    ring.set_index(rsp_prod=ring.slots + 1)
    with pytest.raises(RingError):
        control.on_event()


def test_more_than_a_list_holds(world: World) -> None:
    ring = Ring(world.domain(), CTRL_REQUEST.size)
    control, pages = Control(_core.FrontRing(ring.bytes, CTRL_REQUEST.size, CTRL_RESPONSE.size), lambda: None), Pages()
    control.keep_mapped(0, list(range(8, 8 + 513)), True, cast(Kept, pages), 10, memoryview(bytearray(4096)))
    assert not pages.static and ring.index("req_prod") == 0
