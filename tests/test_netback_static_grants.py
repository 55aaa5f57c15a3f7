"""Static grants: frontends that have pages kept mapped, lists that make no sense, and what is left when somebody goes."""
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from netcontrol import ADD_GREFS, DEL_GREFS, GET_GREFS, INVALID, SUCCESS, Controlled
from netpeer import BROADCAST, ERROR, MORE, OKAY, Vif, World, tx_slot
from netrig import Rig

from miniguest.ring.abi.xenbus import XenbusState

READONLY, IN_USE, NO_GREF, PAGE = 1, 0x18, 30000, 4096
MOST = 1024                     # of a queue
List = list[tuple[int, int]]    # gref, flags


def list_of(grants: List) -> bytes:
    """struct xen_netif_gref, with a status that means nothing."""
    return b"".join(struct.pack("<IHH", gref, flags, 0xABCD) for gref, flags in grants)


class Static(Controlled):
    """A vif that asks for static grants."""

    def add(self, grants: List, queue: int = 0) -> int:
        """The status of ADD_GREF_MAPPING, with a list that nobody may write to."""
        status, data = self.ask(ADD_GREFS, queue, self.page(list_of(grants)), len(grants))
        assert data == 0
        return status

    def remove(self, grants: List, queue: int = 0) -> tuple[int, int, list[int]]:
        """Status and data of DEL_GREF_MAPPING, and the statuses of the list's entries."""
        gref, page = self.shared(list_of(grants), readonly=False)
        status, data = self.ask(DEL_GREFS, queue, gref, len(grants))
        return status, data, [struct.unpack_from("<H", page, 8 * index + 6)[0] for index in range(len(grants))]

    def grant(self, readonly: bool, data: bytes = b"") -> tuple[int, int, memoryview]:
        """A new page: gref, frame, bytes."""
        frame = self.vif.domain.pages.alloc()
        page = self.vif.domain.memory.frame(frame)
        page[: len(data)] = data
        return self.vif.domain.grants.give(0, frame, readonly), frame, page

    def in_use(self, gref: int) -> bool:
        return bool(self.vif.domain.grant_entry(gref)[0] & IN_USE)


@pytest.fixture
def vif(world: World) -> Static:
    return Static(world.vif())


@pytest.fixture
def other(world: World, vif: Static) -> Vif:
    made = world.vif().connect(buffers=200)
    made.announce()
    return made


# -- the requests
def test_how_many_there_can_be(vif: Static) -> None:
    assert vif.ask(GET_GREFS) == (SUCCESS, MOST)
    assert vif.add([(vif.grant(True)[0], READONLY) for _ in range(3)]) == SUCCESS
    assert vif.ask(GET_GREFS) == (SUCCESS, MOST - 3)
    assert vif.ask(GET_GREFS, 1) == (INVALID, 0)                    # no such queue
    for queue in (1, 0xFFFFFFFF):
        assert vif.add([(vif.grant(True)[0], READONLY)], queue) == INVALID
        assert vif.remove([(8, 0)], queue)[:2] == (INVALID, 0)


def test_each_queue_has_its_own(world: World) -> None:
    vif = Static(world.vif(), queues=2)
    gref = vif.grant(False)[0]
    assert vif.add([(gref, 0)], 0) == vif.add([(gref, 0)], 1) == SUCCESS
    assert vif.remove([(gref, 0)], 1) == (SUCCESS, 1, [SUCCESS])
    assert vif.in_use(gref)
    assert vif.remove([(gref, 0)], 0) == (SUCCESS, 1, [SUCCESS])
    assert not vif.in_use(gref)


@pytest.mark.parametrize("bad", [
    lambda vif: (NO_GREF, 0),                                       # granted to nobody
    lambda vif: (1 << 31, 0),                                       # beyond the table
    lambda vif: (vif.grant(True)[0], 0),                            # may only be read
    lambda vif: (vif.grant(False)[0], 2),                           # a flag that does not exist
    lambda vif: (vif.vif.domain.grants.give(7, 5), 0),              # granted to somebody else
    lambda vif: (vif.vif.domain.grants.give(0, 1 << 30), 0),        # not a frame
])
@pytest.mark.parametrize("at", [0, 2, 4])
def test_all_of_a_list_or_nothing(vif: Static, other: Vif, at: int, bad: Callable[[Static], tuple[int, int]]) -> None:
    grants = [(vif.grant(False)[0], 0) for _ in range(5)]
    before = vif.vif.domain.in_use
    assert vif.add([*grants[:at], bad(vif), *grants[at:]]) == INVALID
    assert vif.vif.domain.in_use == before
    assert vif.add(grants) == SUCCESS
    vif.vif.reaches(other)


def test_lists_that_are_none(vif: Static) -> None:
    gref = vif.page(list_of([(vif.grant(True)[0], READONLY)] * 512))
    for kind in (ADD_GREFS, DEL_GREFS):
        assert vif.ask(kind, 0, gref, 513) == vif.ask(kind, 0, gref, 0xFFFFFFFF) == (INVALID, 0)
        assert vif.ask(kind, 0, NO_GREF, 1) == (INVALID, 0)
        assert vif.ask(kind, 0, NO_GREF, 0) == (SUCCESS, 0)
    assert vif.ask(ADD_GREFS, 0, gref, 2) == (INVALID, 0), "the same one twice"
    assert vif.ask(ADD_GREFS, 0, gref, 1) == (SUCCESS, 0)
    assert vif.ask(ADD_GREFS, 0, gref, 1) == (INVALID, 0), "and again"
    assert vif.ask(DEL_GREFS, 0, gref, 1) == (INVALID, 0), "nobody could be told"
    assert vif.ask(GET_GREFS) == (SUCCESS, MOST - 1)


def test_what_is_removed(vif: Static) -> None:
    first, second, third = ((vif.grant(False)[0], 0) for _ in range(3))
    assert vif.add([first, second, third]) == SUCCESS
    wanted = [second, (NO_GREF, 0), (1 << 31, 0), first, second]
    assert vif.remove(wanted) == (SUCCESS, 2, [SUCCESS, INVALID, INVALID, SUCCESS, INVALID])
    assert [vif.in_use(gref) for gref, _ in (first, second, third)] == [False, False, True]
    assert vif.vif.domain.grants.end(first[0])
    assert vif.ask(GET_GREFS) == (SUCCESS, MOST - 1)


# -- frames
def send(vif: Vif, *pages: tuple[int, int]) -> list[int]:
    """A frame in these pages, (gref, bytes) each; its statuses."""
    size = sum(length for _, length in pages)
    for index, (gref, length) in enumerate(pages):
        vif.q.put(tx_slot(gref, 0, MORE if index + 1 < len(pages) else 0, index, length if index else size))
    return vif.q.statuses(len(pages))


def test_frames_from_pages_that_stay_mapped(vif: Static, other: Vif) -> None:
    frame = vif.vif.frame(other, bytes(range(256)) * 40, 3 * PAGE)[: 2 * PAGE + 100]
    pieces = [vif.grant(True, frame[at : at + PAGE]) for at in range(0, len(frame), PAGE)]
    slots = [(gref, length) for (gref, _, _), length in zip(pieces, (PAGE, PAGE, 100), strict=True)]
    assert vif.add([(pieces[0][0], READONLY), (pieces[2][0], READONLY)]) == SUCCESS
    for _ in range(3):
        assert send(vif.vif, *slots) == [OKAY] * 3
        assert other.q.receive() == frame
        assert [vif.in_use(gref) for gref, _, _ in pieces] == [True, False, True]
    assert vif.remove([(pieces[0][0], 0)])[:2] == (SUCCESS, 1)
    assert send(vif.vif, *slots) == [OKAY] * 3
    assert other.q.receive() == frame
    assert [vif.in_use(gref) for gref, _, _ in pieces] == [False, False, True]


def post(vif: Vif, *grants: tuple[int, int]) -> None:
    """Post pages, (gref, frame) each, as receive buffers."""
    rx = vif.q.rx
    for gref, frame in grants:
        vif.q.posted[rx.req_prod % rx.slots] = gref, frame
        rx.put(struct.pack("<HHI", rx.req_prod % rx.slots, 0, gref))
    rx.push()
    vif.q.rx_port.notify()


def answer(vif: Vif) -> tuple[int, int]:
    """(bytes or error, flags) of the next receive response."""
    vif.q.rx.wait(1)
    _, _, flags, status = struct.unpack("<HHHh", vif.q.rx.take(8))
    return status, flags


def test_frames_into_pages_that_stay_mapped(world: World, other: Vif) -> None:
    vif = Static(world.vif(), buffers=0)
    grants = [vif.grant(False) for _ in range(3)]
    assert vif.add([(grants[0][0], 0), (grants[1][0], 0)]) == SUCCESS
    vif.vif.announce()
    for _ in range(3):
        post(vif.vif, *[(gref, frame) for gref, frame, _ in grants])
        sent = other.frame(vif.vif, b"x" * 9000, 9014)
        assert other.q.send(sent) == OKAY
        assert [answer(vif.vif)[0] for _ in range(3)] == [PAGE, PAGE, 9014 - 2 * PAGE]
        assert b"".join(page for _, _, page in grants)[:9014] == sent
        assert [vif.in_use(gref) for gref, _, _ in grants] == [True, True, False]


def test_what_may_only_be_read_is_not_written_to(world: World, other: Vif) -> None:
    vif = Static(world.vif(), buffers=0)
    gref, frame, page = vif.grant(True, b"mine")
    assert vif.add([(gref, READONLY)]) == SUCCESS
    vif.vif.announce()
    post(vif.vif, (gref, frame))
    assert other.q.send(other.frame(vif.vif)) == OKAY
    assert answer(vif.vif)[0] == ERROR
    assert page[:4] == b"mine"
    vif.vif.q.post(8)
    vif.vif.reaches(other)


def test_a_grant_changed_while_it_is_mapped(vif: Static, other: Vif) -> None:
    """What the frontend writes into its grant table counts when it is mapped, and not again."""
    frame = vif.vif.frame(other, b"as it was")
    gref, number, _ = vif.grant(True, frame)
    assert vif.add([(gref, READONLY)]) == SUCCESS
    entries = vif.vif.domain.memory.grant_entries
    for flags, domid, elsewhere in ((0, 0, number), (5, 7, number), (0xFFFF, 0xFFFF, 0xFFFFFFFF), (5, 0, 1 << 31)):
        struct.pack_into("<HHI", entries, gref * 8, flags, domid, elsewhere)
        assert send(vif.vif, (gref, 60)) == [OKAY]
        assert other.q.receive() == frame
    assert vif.remove([(gref, 0)])[:2] == (SUCCESS, 1)
    assert send(vif.vif, (gref, 60)) == [ERROR]
    vif.vif.reaches(other)


# -- the end of it
def test_the_vif_is_disabled(world: World, vif: Static, other: Vif) -> None:
    assert vif.add([(vif.grant(False)[0], 0) for _ in range(100)]) == SUCCESS
    vif.vif.q.tx.set_index(req_prod=vif.vif.q.tx.req_prod + 300)
    vif.vif.q.tx_port.notify()
    world.is_disabled(vif.vif, "transmit ring")         # and nothing is mapped


def test_the_frontend_closes(vif: Static, other: Vif) -> None:
    assert vif.add([(vif.grant(False)[0], 0) for _ in range(100)]) == SUCCESS
    vif.vif.reaches(other)
    vif.vif.switch(XenbusState.Closing)
    vif.vif.wait_state(XenbusState.Closing)
    assert vif.vif.domain.in_use == []


def test_netback_is_killed(world: World, vif: Static, other: Vif) -> None:
    """Its successor maps what it needs slot by slot, until it is asked again."""
    frame = vif.vif.frame(BROADCAST, b"still there")
    gref, _, _ = vif.grant(True, frame)
    assert vif.add([(gref, READONLY)]) == SUCCESS
    assert send(vif.vif, (gref, 60)) == [OKAY]
    world.backend.kill(signal.SIGKILL)
    world.backend.reap()
    world.start_backend()
    other.wait_state(XenbusState.Connected)
    world.catch_up()
    assert not vif.in_use(gref)
    assert send(vif.vif, (gref, 60)) == [OKAY]
    assert not vif.in_use(gref)
    assert vif.add([(gref, READONLY)]) == SUCCESS
    assert send(vif.vif, (gref, 60)) == [OKAY]
    assert vif.in_use(gref)
    vif.vif.reaches(other)


# -- limits, in this process
def test_half_of_what_may_be_mapped_is_left_for_others(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    found = []
    for _ in range(6):
        vif = rig.vif()
        mine = vif.back.static_grants
        grants = [(vif.domain.grants.give(0, 1), 0) for _ in range(MOST + 1)]
        assert not mine.add(grants) and mine.count == 0, "one too many"
        room = mine.room
        assert mine.add(grants[:room])
        assert mine.room == 0 and not mine.add(grants[room : room + 1])
        found.append(room)
    assert found == [MOST] * 4 + [0, 0]
    first, last = rig.vifs[0], rig.vifs[-1]
    last.q.post(20)
    last.announce()
    first.put(first.frame(last, b"slot by slot", 9000))
    rig.settle()
    assert len(last.received()) == 1 and first.sent() == [OKAY] * 3
    first.back.static_grants.clear()
    assert first.domain.in_use == [] and last.back.static_grants.room == MOST
