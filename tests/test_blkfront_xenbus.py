"""blkfront's handshake: with the real blkback and a real image, and with a backend whose nodes are written by hand."""
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import cast

import pytest
from blkpeer import SECTOR, Domain, Vbd, World
from peer import WATCHDOG

from miniguest.frontend.blkfront import Blkfront
from miniguest.frontend.blkfront_xenbus import BlkfrontDevice
from miniguest.ring.abi.xenbus import XenbusState
from miniguest.ring.events import Port
from miniguest.ring.loop import Loop
from miniguest.ring.memory import Memory
from miniguest.ring.process import XENSTORED_SOCKET, Process
from miniguest.ring.xenbus import read_state, write_keys
from miniguest.ring.xenstore import SocketTransport, Xenstore


class Frontend:
    """What a BlkfrontDevice needs of its Process, and what it reported."""

    def __init__(self, domain: Domain) -> None:
        self.domain, self.domid = domain, domain.domid
        self.loop = Loop(domain.events)
        domain.upcall = self.loop.upcall        # one vCPU has one
        self.store = Xenstore(SocketTransport(domain.runtime / XENSTORED_SOCKET), self.loop.call_soon)
        self.loop.on_fd(self.store.fileno(), self.store.dispatch)
        self.disks: list[Blkfront] = []
        self.lost: list[str] = []
        self.free = len(domain.pages)

    def memory(self, domid: int) -> Memory:
        assert domid == self.domid
        return self.domain.memory

    def alloc_unbound(self, remote_domid: int) -> Port:
        return self.domain.events.alloc_unbound(remote_domid)

    def start(self, vbd: Vbd) -> BlkfrontDevice:
        return BlkfrontDevice(
            cast(Process, self), self.store, vbd.front, self.domain.pages, self.domain.grants, self.disks.append, self.lost.append
        )

    def until(self, done: Callable[[], object]) -> None:
        deadline = time.monotonic() + WATCHDOG
        while not done():
            assert time.monotonic() < deadline, (self.disks, self.lost)
            self.loop.turn(WATCHDOG)

    def close(self) -> None:
        self.store.close()
        self.loop.close()


@pytest.fixture
def front(world: World) -> Iterator[Frontend]:
    made = Frontend(world.domain(memory=16 << 20))
    yield made
    made.close()


def by_hand(front: Frontend, **keys: str | int) -> Vbd:
    """A vbd whose backend is no process: its nodes are written by the test. It is in InitWait."""
    vbd = Vbd(front.domain, 768, Path())
    vbd.back = f"/local/domain/0/backend/by-hand/{front.domid}/768"
    wanted = {name.replace("_", "-"): value for name, value in keys.items()}
    write_keys(front.domain.store, vbd.back, {"state": 2, **wanted})
    write_keys(front.domain.store, vbd.front, {"backend": vbd.back, "backend-id": 0, "state": 1})
    return vbd


def front_state(vbd: Vbd) -> XenbusState:
    return read_state(vbd.store, vbd.front)


# -- with the real backend
@pytest.mark.parametrize("access", ["rw", "ro"])
def test_it_connects(world: World, front: Frontend, access: str) -> None:
    vbd = front.domain.add_disk(world.image(), access=access)
    front.start(vbd)
    front.until(lambda: front.disks)
    (disk,) = front.disks
    assert (disk.sectors, disk.read_only) == (2048, access == "ro")
    results: list[object] = []
    disk.write(2000, b"q" * SECTOR, results.append)
    front.until(lambda: results)
    assert results == [access == "rw"]
    assert front_state(vbd) == vbd.state == XenbusState.Connected


def compare_a_round(front: Frontend, disk: Blkfront, random: Random, model: bytearray) -> None:
    """Twelve requests at the same time, none touching another's sectors."""
    results: list[bool] = []
    edges = sorted(random.sample(range(disk.sectors), 24))
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        part, count = slice(start * SECTOR, end * SECTOR), end - start
        kind = random.choice(["read", "write", "flush"])
        if kind == "read":
            disk.read(start, count, lambda data, wanted=bytes(model[part]): results.append(data == wanted))
        elif kind == "write":
            model[part] = random.randbytes(count * SECTOR)
            disk.write(start, bytes(model[part]), results.append)
        else:
            disk.flush(results.append)
    front.until(lambda: len(results) == 12)
    assert all(results)


def test_an_image_like_a_plain_bytearray(world: World, front: Frontend) -> None:
    """Random requests, many at a time, through the real blkback; the image afterwards is what a bytearray would be."""
    vbd = front.domain.add_disk(world.image(4 << 20))
    front.start(vbd)
    front.until(lambda: front.disks)
    disk, random = front.disks[0], Random(7)
    model = bytearray(vbd.image.read_bytes())
    for _ in range(60):
        compare_a_round(front, disk, random, model)
    assert vbd.image.read_bytes() == model


def test_blkback_is_killed_and_the_disk_does_not_notice(world: World, front: Frontend) -> None:
    vbd = front.domain.add_disk(world.image(4 << 20))
    front.start(vbd)
    front.until(lambda: front.disks)
    results: list[object] = []
    data = Random(1).randbytes(4 << 20)
    front.disks[0].write(0, data, results.append)
    world.backend.kill(9)
    world.backend.reap()
    world.start_backend()
    front.until(lambda: results)
    front.disks[0].read(0, 8192, results.append)
    front.until(lambda: len(results) == 2)
    assert results == [True, data]
    assert not front.lost
    assert vbd.image.read_bytes() == data


def test_a_missing_image_is_reported(world: World, front: Frontend) -> None:
    vbd = front.domain.add_disk(world.runtime / "not-there.img")
    front.start(vbd)
    front.until(lambda: front.lost)
    assert "No such file" in front.lost[0]
    assert not front.disks


def test_the_backend_closes_with_requests_out(world: World, front: Frontend) -> None:
    """Each gets an error, once; everything granted is taken back."""
    vbd = front.domain.add_disk(world.image())
    front.start(vbd)
    front.until(lambda: front.disks)
    results: list[object] = []
    world.backend.kill(19)
    for sector in range(300):
        front.disks[0].read(sector, 1, results.append)
    vbd.store.rm(vbd.back)
    world.backend.kill(18)
    front.until(lambda: front.lost)
    image = vbd.image.read_bytes()
    assert len(results) == 300
    assert set(results) <= {None, *[image[at * SECTOR : (at + 1) * SECTOR] for at in range(300)]}
    world.catch_up()
    assert front.domain.in_use == []
    assert len(front.lost) == 1
    front.disks[0].read(0, 1, results.append)
    assert results[300:] == [None]


def test_a_predecessors_connection_is_replaced(world: World, front: Frontend) -> None:
    """The frontend's process was killed and another one starts: the backend has to start over as well."""
    vbd = front.domain.add_disk(world.image()).connect()
    vbd.works()
    front.start(vbd)
    front.until(lambda: front.disks)
    results: list[object] = []
    front.disks[0].read(9, 1, results.append)
    front.until(lambda: results)
    assert results == [vbd.image.read_bytes()[9 * 512 : 10 * 512]]


# -- with nonsense
@pytest.mark.parametrize(
    ("offer", "properties", "reason"),
    [
        ({"max_ring_page_order": "banana"}, {}, "max-ring-page-order is not a number"),
        ({"max_ring_page_order": -1}, {}, "max-ring-page-order is -1"),
        ({}, {}, "sectors is missing"),
        ({}, {"sectors": 0}, "sectors is 0"),
        ({}, {"sectors": "many"}, "sectors is not a number"),
        ({}, {"sectors": 1 << 60}, "sectors is"),
        ({}, {"sectors": 10, "sector-size": 4096}, "sector-size is 4096"),
        ({}, {"sectors": 10, "sector-size": 0}, "sector-size is 0"),
        ({}, {"sectors": 10, "info": "x"}, "info is not a number"),
        ({"feature_max_indirect_segments": "x"}, {"sectors": 10}, "feature-max-indirect-segments is not a number"),
    ],
)
def test_nonsense_from_the_backend(
    world: World, front: Frontend, offer: dict[str, str | int], properties: dict[str, str | int], reason: str
) -> None:
    vbd = by_hand(front, **offer)
    front.start(vbd)
    front.until(lambda: front.lost or front_state(vbd) == XenbusState.Initialised)
    if not front.lost:
        write_keys(vbd.store, vbd.back, properties)
        vbd.store.write(f"{vbd.back}/state", 4)
        front.until(lambda: front.lost)
    assert reason in front.lost[0]
    assert reason in vbd.store.read_text(f"{vbd.front}/error")
    assert front_state(vbd) == XenbusState.Closing
    vbd.store.write(f"{vbd.back}/state", 5)
    front.until(lambda: front_state(vbd) == XenbusState.Closed)
    vbd.store.write(f"{vbd.back}/state", 6)
    front.until(lambda: len(front.domain.pages) == front.free)
    assert len(front.lost) == 1 and not front.disks


@pytest.mark.parametrize("how", ["Closing", "Closed", "removed", "nonsense"])
def test_the_backend_goes(world: World, front: Frontend, how: str) -> None:
    vbd = by_hand(front, sectors=100)
    front.start(vbd)
    front.until(lambda: front_state(vbd) == XenbusState.Initialised)
    vbd.store.write(f"{vbd.back}/state", 4)
    front.until(lambda: front.disks)
    results: list[object] = []
    for sector in range(50):
        front.disks[0].read(sector, 2, results.append)
    if how == "removed":
        vbd.store.rm(vbd.back)
    else:
        vbd.store.write(f"{vbd.back}/state", {"Closing": 5, "Closed": 6, "nonsense": -7}[how])
    front.until(lambda: front.lost)
    assert results == [None] * 50
    assert front_state(vbd) == XenbusState.Closed
    vbd.store.write(f"{vbd.back}/state", 6)
    front.until(lambda: len(front.domain.pages) == front.free)


@pytest.mark.parametrize("keys", [{}, {"backend": "/x"}, {"backend": "/x", "backend-id": "me"}, {"backend": "", "backend-id": 0}])
def test_own_keys_that_make_no_sense(world: World, front: Frontend, keys: dict[str, str | int]) -> None:
    vbd = Vbd(front.domain, 768, Path())
    write_keys(vbd.store, vbd.front, {"state": 1, **keys})
    device = front.start(vbd)
    assert len(front.lost) == 1 and not front.disks
    device.close()


def test_a_backend_that_skips_init_wait(world: World, front: Frontend) -> None:
    vbd = by_hand(front, sectors=100, state=3)
    front.start(vbd)
    front.until(lambda: front_state(vbd) == XenbusState.Initialised)
    assert vbd.store.read_int(f"{vbd.front}/ring-ref") >= 8
    assert not vbd.store.exists(f"{vbd.front}/ring-page-order")


@pytest.mark.parametrize("order", [0, 1])
def test_what_a_predecessor_offered_is_gone(world: World, front: Frontend, order: int) -> None:
    """It had a larger ring; its grefs are something else's by now, and blkback would take them."""
    vbd = by_hand(front, max_ring_page_order=order, sectors=100)
    stale = ("ring-ref", "ring-page-order", "num-ring-pages", *[f"ring-ref{number}" for number in range(4)])
    write_keys(vbd.store, vbd.front, dict.fromkeys(stale, 77777))
    front.start(vbd)
    front.until(lambda: front_state(vbd) == XenbusState.Initialised)
    found = {name: vbd.store.read_int(f"{vbd.front}/{name}") for name in stale if vbd.store.exists(f"{vbd.front}/{name}")}
    assert set(found) == ({"ring-ref0", "ring-ref1", "ring-page-order", "num-ring-pages"} if order else {"ring-ref"})
    assert 77777 not in found.values()


def test_no_pages_for_a_ring(world: World) -> None:
    front = Frontend(world.domain(memory=8192))
    vbd = by_hand(front, max_ring_page_order=4)
    front.start(vbd)
    front.until(lambda: front.lost)
    assert "frames are all in use" in front.lost[0]
    front.close()
