"""Requests that lie: an error response each, nothing stays mapped, and the device and its neighbour go on."""
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from blkpeer import (
    BARRIER,
    DISCARD,
    EOPNOTSUPP,
    ERROR,
    FLUSH,
    INDIRECT,
    OKAY,
    READ,
    RESERVED,
    SECTOR,
    WRITE,
    Vbd,
    World,
    discard_request,
    indirect_request,
    packed_segments,
    request,
)

SECTORS = 2048                  # of the images below
MAX_U64 = (1 << 64) - 1


@pytest.fixture
def vbd(world: World) -> Vbd:
    return world.vbd().connect()


def good(vbd: Vbd) -> tuple[int, int, int]:
    """A segment of a whole page."""
    return vbd.page()[0], 0, 7


Lie = Callable[[Vbd], bytes]
LIES: dict[str, tuple[Lie, int]] = {
    "barrier-not-offered": (lambda vbd: request(BARRIER, 0, [good(vbd)]), EOPNOTSUPP),
    "reserved-operation": (lambda vbd: request(RESERVED, 0, [good(vbd)]), EOPNOTSUPP),
    "unknown-operation": (lambda vbd: request(255, 0, [good(vbd)]), EOPNOTSUPP),
    "no-segments-read": (lambda vbd: request(READ, 0, []), ERROR),
    "no-segments-write": (lambda vbd: request(WRITE, 0, []), ERROR),
    "12-segments": (lambda vbd: request(READ, 0, [good(vbd)] * 11, nr_segments=12), ERROR),
    "255-segments": (lambda vbd: request(WRITE, 0, [good(vbd)] * 11, nr_segments=255), ERROR),
    "flush-12-segments": (lambda vbd: request(FLUSH, 0, [good(vbd)] * 11, nr_segments=12), ERROR),
    "last-8": (lambda vbd: request(READ, 0, [(vbd.page()[0], 0, 8)]), ERROR),
    "last-255": (lambda vbd: request(WRITE, 0, [(vbd.page()[0], 0, 255)]), ERROR),
    "both-255": (lambda vbd: request(WRITE, 0, [(vbd.page()[0], 255, 255)]), ERROR),
    "first-past-last": (lambda vbd: request(WRITE, 0, [good(vbd), (vbd.page()[0], 5, 4)]), ERROR),
    "u64-sector": (lambda vbd: request(READ, MAX_U64, [good(vbd)]), ERROR),
    "u64-bytes": (lambda vbd: request(WRITE, 1 << 55, [good(vbd)]), ERROR),
    "s64-bytes": (lambda vbd: request(WRITE, 1 << 54, [good(vbd)]), ERROR),
    "first-sector-behind-the-end": (lambda vbd: request(READ, SECTORS, [(vbd.page()[0], 0, 0)]), ERROR),
    "last-sector-behind-the-end": (lambda vbd: request(WRITE, SECTORS - 7, [good(vbd)]), ERROR),
    "second-segment-behind-the-end": (lambda vbd: request(WRITE, SECTORS - 8, [good(vbd), good(vbd)]), ERROR),
    "gref-never-granted": (lambda vbd: request(WRITE, 0, [good(vbd), (30000, 0, 7), good(vbd)]), ERROR),
    "gref-beyond-the-table": (lambda vbd: request(WRITE, 0, [good(vbd), (1 << 20, 0, 7), good(vbd)]), ERROR),
    "gref-u32": (lambda vbd: request(READ, 0, [good(vbd), (0xFFFFFFFF, 0, 7)]), ERROR),
    "granted-to-another": (lambda vbd: request(READ, 0, [good(vbd), (vbd.domain.grants.give(5, 9), 0, 7)]), ERROR),
    "read-into-a-read-only-page": (lambda vbd: request(READ, 0, [good(vbd), (vbd.page(readonly=True)[0], 0, 7)]), ERROR),
    "frame-beyond-memory": (lambda vbd: request(WRITE, 0, [good(vbd), (vbd.domain.grants.give(0, 1 << 30), 0, 7)]), ERROR),
    "discard-nothing": (lambda vbd: discard_request(5, 0), ERROR),
    "discard-behind-the-end": (lambda vbd: discard_request(SECTORS - 1, 2), ERROR),
    "discard-u64": (lambda vbd: discard_request(8, MAX_U64), ERROR),
    "discard-overflow": (lambda vbd: discard_request(MAX_U64, 2), ERROR),
}


def indirect(vbd: Vbd, segments: list[tuple[int, int, int]], count: int, operation: int = WRITE, sector: int = 0) -> bytes:
    return indirect_request(operation, sector, count, [vbd.page(packed_segments(segments), readonly=True)[0]])


LIES |= {
    "indirect-none": (lambda vbd: indirect(vbd, [good(vbd)], 0), ERROR),
    "indirect-257": (lambda vbd: indirect(vbd, [good(vbd)] * 257, 257), ERROR),
    "indirect-65535": (lambda vbd: indirect(vbd, [good(vbd)], 65535), ERROR),
    "indirect-nested": (lambda vbd: indirect(vbd, [good(vbd)], 1, INDIRECT), ERROR),
    "indirect-flush": (lambda vbd: indirect(vbd, [good(vbd)], 1, FLUSH), ERROR),
    "indirect-discard": (lambda vbd: indirect(vbd, [good(vbd)], 1, DISCARD), ERROR),
    "indirect-page-not-granted": (lambda vbd: indirect_request(READ, 0, 1, [29999]), ERROR),
    "indirect-bad-grant-within": (lambda vbd: indirect(vbd, [good(vbd)] * 20 + [(30000, 0, 7)] + [good(vbd)], 22), ERROR),
    "indirect-bad-segment-within": (lambda vbd: indirect(vbd, [good(vbd)] * 20 + [(good(vbd)[0], 3, 2)], 21), ERROR),
    "indirect-behind-the-end": (lambda vbd: indirect(vbd, [good(vbd)] * 20, 20, WRITE, SECTORS - 159), ERROR),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("persistent", [0, 1])
def test_one_error_response(world: World, lie: str, persistent: int) -> None:
    vbd = world.vbd().connect(feature_persistent=persistent)
    before = vbd.image.read_bytes()
    make, status = LIES[lie]
    bad = make(vbd)
    assert vbd.ask(bad) == [status]
    assert vbd.image.read_bytes() == before
    if not persistent:
        assert vbd.domain.in_use == vbd.ring.grefs
    data, frame = vbd.page()
    assert vbd.ask(request(READ, 9, [(data, 0, 0)]), bad, request(READ, 9, [(data, 1, 1)])) == [OKAY, status, OKAY]
    assert bytes(vbd.domain.memory.frame(frame)[: 2 * SECTOR]) == before[9 * SECTOR : 10 * SECTOR] * 2
    assert vbd.statistics["errors"] == 2
    vbd.switch(5)
    vbd.wait_state(5)
    assert vbd.domain.in_use == []


@pytest.mark.parametrize("operation", [WRITE, FLUSH])
def test_a_write_to_a_read_only_disk(world: World, operation: int) -> None:
    vbd = world.vbd("ro").connect()
    assert vbd.store.read_int(f"{vbd.back}/info") & 4
    assert vbd.store.read_text(f"{vbd.back}/feature-discard") == "0"
    before = vbd.image.read_bytes()
    assert vbd.ask(request(operation, 0, [good(vbd)]), indirect(vbd, [good(vbd)], 1), discard_request(0, 8)) == [ERROR] * 3
    assert vbd.read(5, 3) == before[5 * SECTOR : 8 * SECTOR]
    assert vbd.ask(request(FLUSH, 0, [])) == [OKAY]
    assert vbd.image.read_bytes() == before


def test_what_is_allowed_at_the_edges(vbd: Vbd) -> None:
    page, _ = vbd.page(b"x" * 4096)
    assert vbd.ask(
        request(WRITE, SECTORS - 8, [(page, 0, 7)]),
        request(WRITE, 0, [(page, 7, 7)] * 11),
        request(FLUSH, 100, [(page, 3, 4)]),
        request(FLUSH, MAX_U64, []),
        indirect(vbd, [(page, 0, 0)], 1, WRITE, 200),
        indirect(vbd, [(page, 0, 7)] * 256, 256, READ, 0),
        discard_request(300, 1, flag=1),
        discard_request(SECTORS - 1, 1),
    ) == [OKAY] * 8
    image = vbd.image.read_bytes()
    assert len(image) == SECTORS * SECTOR
    written = [sector for sector in range(SECTORS) if image[sector * SECTOR : (sector + 1) * SECTOR] == b"x" * SECTOR]
    assert written == [*range(11), 100, 101, 200, *range(SECTORS - 8, SECTORS - 1)]


def test_the_response_echoes_the_request(vbd: Vbd) -> None:
    page, _ = vbd.page()
    for id_ in (0, 1, MAX_U64, 0x0123456789ABCDEF):
        vbd.ring.put(request(READ, 0, [(page, 0, 0)], id=id_))
        vbd.ring.put(request(77, 0, [], id=id_))
        vbd.push()
        assert vbd.responses(2) == [(id_, READ, OKAY), (id_, 77, EOPNOTSUPP)]


def test_the_same_page_many_times(vbd: Vbd) -> None:
    page, frame = vbd.page()
    assert vbd.ask(request(READ, 40, [(page, 0, 7)] * 11)) == [OKAY]
    assert bytes(vbd.domain.memory.frame(frame)) == vbd.image.read_bytes()[120 * SECTOR : 128 * SECTOR]
    assert vbd.domain.in_use == vbd.ring.grefs


def test_an_image_truncated_under_us(world: World) -> None:
    vbd = world.vbd().connect()
    before = vbd.image.read_bytes()
    with open(vbd.image, "r+b") as file:
        file.truncate(100 * SECTOR)
    page, _ = vbd.page()
    assert vbd.ask(request(READ, 99, [(page, 0, 1)]), request(READ, 500, [(page, 0, 0)])) == [ERROR, ERROR]
    assert vbd.read(98, 2) == before[98 * SECTOR : 100 * SECTOR]
    vbd.works()


def test_an_image_unlinked_under_us(world: World) -> None:
    vbd = world.vbd().connect()
    vbd.image.unlink()
    vbd.write(8, b"y" * 1024)
    assert vbd.read(8, 2) == b"y" * 1024


# -- the ring
@pytest.mark.parametrize("order", [0, 4])
@pytest.mark.parametrize("lie", ["one-too-many", "half-way-round", "back", "back-to-0"])
def test_req_prod(world: World, lie: str, order: int) -> None:
    vbd = world.vbd().connect(order)
    for _ in range(3):
        vbd.works()
    ring = vbd.ring
    assert ring.req_prod == 6
    ring.set_index(req_prod={
        "one-too-many": ring.req_prod + ring.slots + 1, "half-way-round": ring.req_prod + (1 << 31), "back": ring.req_prod - 1,
        "back-to-0": 0,
    }[lie])
    vbd.notify()
    world.is_disabled(vbd, "req_prod")
    assert ring.index("rsp_prod") == 6
    world.comes_back(vbd)


@pytest.mark.parametrize("order", [0, 4])
def test_a_full_ring_is_no_lie(world: World, order: int) -> None:
    vbd = world.vbd().connect(order)
    page, _ = vbd.page()
    for _ in range(3):
        assert vbd.ask(*[request(READ, sector, [(page, 0, 0)]) for sector in range(vbd.ring.slots)]) == [OKAY] * vbd.ring.slots


def test_indices_wrap(world: World) -> None:
    """A frontend may initialise its ring at any index; ours goes on where rsp_prod stands."""
    vbd = world.vbd()
    vbd.wait_state(2)
    keys = vbd.make_ring()
    start = 0xFFFFFFFE
    vbd.ring.set_index(req_prod=start, rsp_prod=start, req_event=start + 1, rsp_event=start + 1)
    vbd.ring.req_prod = vbd.ring.rsp_cons = start
    for name, value in keys.items():
        vbd.store.write(f"{vbd.front}/{name}", value)
    vbd.switch(3)
    vbd.wait_state(4)
    for _ in range(3):
        vbd.works()
    assert vbd.ring.index("rsp_prod") == 4


def test_a_ring_page_rewritten_at_random(world: World) -> None:
    """Whatever is in the slots: as many responses as requests, and no other sector of memory than its own is touched."""
    vbd = world.vbd().connect()
    state = 12345
    for _ in range(40):
        for _ in range(vbd.ring.slots):
            noise = bytearray()
            for _ in range(14):
                state = state * 6364136223846793005 + 1442695040888963407 & MAX_U64
                noise += (state >> 8).to_bytes(8, "little")
            noise[0] = state >> 40 & 7
            vbd.ring.put(bytes(noise))
        vbd.push()
        assert len(vbd.responses(vbd.ring.slots)) == vbd.ring.slots
    vbd.works()
    assert vbd.domain.in_use == vbd.ring.grefs


# -- beside others
def test_a_device_that_moves_much_does_not_keep_others_waiting(world: World) -> None:
    """hdb writes out the header of hda's ring as it stands when its turn comes: hda is not done by then."""
    domain = world.domain(memory=8 << 20)
    flood = domain.add_disk(world.image(2 << 20)).connect(4)
    other = domain.add_disk(world.image(), "hdb").connect()
    frame = domain.pages.alloc()
    segments = [(domain.grants.give(0, frame), 0, 7)] * 256
    for _ in range(flood.ring.slots):
        flood.ring.put(indirect(flood, segments, 256, READ) if flood.ring.req_prod == 0 else _again(flood))
    header = domain.grants.give(0, flood.ring.frames[0], True)
    other.ring.put(request(WRITE, 0, [(header, 0, 0)]))
    world.backend.kill(signal.SIGSTOP)
    flood.push()
    other.push()
    world.backend.kill(signal.SIGCONT)
    assert other.responses(1) == [(7, WRITE, OKAY)]
    rsp_prod = int.from_bytes(Path(other.image).read_bytes()[8:12], "little")
    assert rsp_prod < flood.ring.slots // 2
    assert {status for _, _, status in flood.responses(flood.ring.slots)} == {OKAY}


def _again(vbd: Vbd) -> bytes:
    """The request in the ring's first slot."""
    return bytes(vbd.ring.bytes[64 : 64 + 112])


def test_many_devices_with_persistent_grants(world: World) -> None:
    """Each keeps as many as it may; together they would be more than one process can map."""
    for _ in range(3):
        domain = world.domain(memory=24 << 20)
        for vdev in ("hda", "hdb", "hdc", "hdd"):
            vbd = domain.add_disk(world.image(2 << 20), vdev).connect(feature_persistent=1)
            for _ in range(5):
                grefs = [vbd.page()[0] for _ in range(256)]
                assert vbd.ask(indirect(vbd, [(gref, 0, 7) for gref in grefs], 256, READ)) == [OKAY]
        world.neighbour.works()
