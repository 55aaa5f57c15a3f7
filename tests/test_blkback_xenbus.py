"""blkback's handshake: frontends that offer nonsense, change their minds, vanish or come back; images that are none."""
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from blkpeer import OKAY, READ, WRITE, Vbd, World, indirect_request, packed_segments, request
from peer import Key

from miniguest.deploy.topology import Disk
from miniguest.ring.abi.xenbus import XenbusState
from miniguest.ring.xenbus import write_keys


@pytest.fixture
def vbd(world: World) -> Vbd:
    made = world.vbd()
    made.wait_state(XenbusState.InitWait)
    return made


# -- what it offers
def test_what_it_offers(world: World, vbd: Vbd) -> None:
    read = vbd.store.read_text
    offered = {
        name: read(f"{vbd.back}/{name}")
        for name in (
            "feature-flush-cache", "feature-barrier", "feature-discard", "feature-persistent", "discard-secure",
            "feature-max-indirect-segments", "max-ring-page-order", "max-ring-pages",
        )
    }
    assert offered == {
        "feature-flush-cache": "1", "feature-barrier": "0", "feature-discard": "1", "feature-persistent": "1",
        "discard-secure": "0", "feature-max-indirect-segments": "256", "max-ring-page-order": "4", "max-ring-pages": "16",
    }
    vbd.connect()
    properties = {name: read(f"{vbd.back}/{name}") for name in ("sectors", "sector-size", "physical-sector-size", "info")}
    assert properties == {"sectors": "2048", "sector-size": "512", "physical-sector-size": "512", "info": "0"}


def test_the_toolstack_may_turn_discard_off(world: World, vbd: Vbd) -> None:
    with vbd.store.transaction() as t:          # as if the toolstack had made it so
        t.write(f"{vbd.back}/discard-enable", 0)
        t.write(f"{vbd.back}/state", 1)
    vbd.wait_state(XenbusState.InitWait)
    world.catch_up()
    assert vbd.store.read(f"{vbd.back}/feature-discard") == b"0"


@pytest.mark.parametrize(
    "keys",
    [
        {"protocol": None},
        {"ring_page_order": None},
        {"num_ring_pages": 1},
        {"ring_ref": None, "use": "ring-ref0"},
        {"feature_persistent": "banana", "feature_unheard_of": 1},
    ],
    ids=str,
)
def test_what_may_be_left_out_or_added(vbd: Vbd, keys: dict[str, Key]) -> None:
    wanted = dict(keys)
    ring = vbd.make_ring()
    if wanted.pop("use", None):
        ring["ring-ref0"] = ring.pop("ring-ref")
    named = {name.replace("_", "-"): value for name, value in wanted.items()}
    merged: dict[str, Key] = {**ring, **named}
    write_keys(vbd.store, vbd.front, {name: value for name, value in merged.items() if value is not None})
    vbd.switch(XenbusState.Initialised)
    assert vbd.wait_state(XenbusState.Connected, XenbusState.Closing) == XenbusState.Connected
    vbd.works()


# -- nonsense
NONSENSE: dict[str, tuple[int, dict[str, Key], str]] = {
    "ring-ref-missing": (0, {"ring_ref": None}, "ring-ref0 is missing"),
    "ring-ref-empty": (0, {"ring_ref": ""}, "ring-ref0 is missing"),
    "ring-ref-word": (0, {"ring_ref": "banana"}, "not a number"),
    "ring-ref-negative": (0, {"ring_ref": -1}, "is -1"),
    "ring-ref-hex": (0, {"ring_ref": "0x8"}, "not a number"),
    "ring-ref-bytes": (0, {"ring_ref": b"\xff\0\x01"}, "not a number"),
    "ring-ref-huge": (0, {"ring_ref": 10**30}, "not a number"),
    "ring-ref-beyond-u32": (0, {"ring_ref": 1 << 32}, "is 4294967296"),
    "ring-ref-u32": (0, {"ring_ref": (1 << 32) - 1}, "cannot be mapped"),
    "ring-ref-beyond-the-table": (0, {"ring_ref": 32768}, "cannot be mapped"),
    "ring-ref-not-granted": (0, {"ring_ref": 30000}, "cannot be mapped"),
    "event-channel-missing": (0, {"event_channel": None}, "event-channel is missing"),
    "event-channel-word": (0, {"event_channel": "x"}, "not a number"),
    "event-channel-0": (0, {"event_channel": 0}, "event-channel"),
    "event-channel-closed": (0, {"event_channel": 4000}, "not unbound"),
    "event-channel-beyond": (0, {"event_channel": 4096}, "event-channel"),
    "event-channel-u32": (0, {"event_channel": (1 << 32) - 1}, "event-channel"),
    "order-too-big": (0, {"ring_page_order": 5}, "ring-page-order is 5"),
    "order-huge": (0, {"ring_page_order": 1 << 31}, "ring-page-order"),
    "order-negative": (0, {"ring_page_order": -1}, "ring-page-order is -1"),
    "order-word": (0, {"ring_page_order": "two"}, "not a number"),
    "order-without-refs": (0, {"ring_page_order": 2}, "ring-ref0 is missing"),
    "a-ref-missing": (2, {"ring_ref3": None}, "ring-ref3 is missing"),
    "a-ref-not-granted": (2, {"ring_ref2": 30000}, "cannot be mapped"),
    "pages-3": (2, {"num_ring_pages": 3, "ring_page_order": None}, "num-ring-pages is 3"),
    "pages-0": (0, {"num_ring_pages": 0}, "num-ring-pages is 0"),
    "pages-32": (0, {"num_ring_pages": 32}, "num-ring-pages is 32"),
    "pages-against-order": (2, {"num_ring_pages": 2}, "num-ring-pages is 2"),
    "protocol-unknown": (0, {"protocol": "x86_128-abi"}, "x86_128-abi"),
    "protocol-empty": (0, {"protocol": ""}, "protocol"),
    "protocol-arm": (0, {"protocol": "arm-abi"}, "arm-abi"),
}


@pytest.mark.parametrize("what", NONSENSE)
def test_nonsense_disables_the_device(world: World, vbd: Vbd, what: str) -> None:
    order, keys, reason = NONSENSE[what]
    vbd.offer(order, **keys)
    world.is_disabled(vbd, reason)
    vbd.drop_ring()
    vbd.store.write(f"{vbd.front}/num-ring-pages", 1)
    world.comes_back(vbd)


def grants_to_another(vbd: Vbd) -> Key:
    return vbd.domain.grants.give(5, vbd.domain.pages.alloc())


def grants_read_only(vbd: Vbd) -> Key:
    return vbd.page(readonly=True)[0]


def grants_no_frame(vbd: Vbd) -> Key:
    return vbd.domain.grants.give(0, 1 << 30)


@pytest.mark.parametrize("grant", [grants_to_another, grants_read_only, grants_no_frame])
@pytest.mark.parametrize("order", [0, 3])
def test_a_ring_page_that_is_not_granted_so(world: World, vbd: Vbd, grant: Callable[[Vbd], Key], order: int) -> None:
    vbd.offer(order, **{"ring_ref7" if order else "ring_ref": grant(vbd)})
    world.is_disabled(vbd, "cannot be mapped")
    world.comes_back(vbd)


def test_a_port_for_another_domain(world: World, vbd: Vbd) -> None:
    vbd.offer(event_channel=vbd.domain.events.alloc_unbound(5).number)
    world.is_disabled(vbd, "not unbound")


def test_a_port_that_is_connected_already(world: World, vbd: Vbd) -> None:
    vbd.connect()
    other = vbd.domain.add_disk(world.image(), "hdb")
    other.wait_state(XenbusState.InitWait)
    assert vbd.port
    other.offer(event_channel=vbd.port.number)
    other.wait_state(XenbusState.Closing)
    assert "not unbound" in other.error
    vbd.works()


def test_ring_pages_anywhere_in_the_domain(vbd: Vbd) -> None:
    """The same page twice, and the domain's own grant table as a ring: memory of the domain, so its own affair."""
    vbd.make_ring()
    table = vbd.domain.grants.give(0, vbd.domain.memory.special("grants"))
    assert vbd.port
    keys = {"ring-ref0": vbd.ring.grefs[0], "ring-ref1": vbd.ring.grefs[0], "ring-ref2": table, "ring-ref3": table}
    write_keys(vbd.store, vbd.front, keys | {"ring-page-order": 2, "event-channel": vbd.port.number})
    vbd.switch(XenbusState.Initialised)
    vbd.wait_state(XenbusState.Connected)
    vbd.ring.slots = 128
    page, _ = vbd.page()
    assert vbd.ask(request(READ, 0, [(page, 0, 7)])) == [OKAY]


# -- changes of mind
def test_keys_rewritten_once_connected(world: World, vbd: Vbd) -> None:
    vbd.connect()
    write_keys(vbd.store, vbd.front, {
        "ring-ref": 30000, "event-channel": 1, "ring-page-order": 4, "protocol": "x", "feature-persistent": 1,
    })
    for state in (XenbusState.Initialised, XenbusState.Connected, XenbusState.Reconfiguring, XenbusState.InitWait):
        vbd.switch(state)
        world.catch_up()
        assert vbd.state == XenbusState.Connected
        vbd.works()


def test_the_backends_own_nodes_rewritten(world: World, vbd: Vbd) -> None:
    """What the toolstack writes where the backend has read: no crash, no other image."""
    vbd.connect()
    write_keys(vbd.store, vbd.back, {"params": "/dev/null", "mode": "r", "sectors": 5})
    world.catch_up()
    vbd.works()


@pytest.mark.parametrize("order", [0, 2])
def test_it_goes_and_comes_back(world: World, vbd: Vbd, order: int) -> None:
    for _ in range(3):
        vbd.connect(order, feature_persistent=1)
        page, _ = vbd.page()
        assert vbd.ask(request(READ, 0, [(page, 0, 7)])) == [OKAY]
        assert set(vbd.domain.in_use) == {*vbd.ring.grefs, page}
        vbd.switch(XenbusState.Closing)
        vbd.wait_state(XenbusState.Closing)
        assert vbd.domain.in_use == []
        assert vbd.domain.grant_entry(page)[0] == 1         # GTF_permit_access, and nothing else
        vbd.drop_ring()
        vbd.switch(XenbusState.Closed)
        vbd.wait_state(XenbusState.Closed)
        vbd.switch(XenbusState.Initialising)
        vbd.wait_state(XenbusState.InitWait)


def test_it_starts_over_without_a_word(world: World, vbd: Vbd) -> None:
    """A frontend that crashed and booted again: Initialising right after Connected."""
    vbd.connect()
    vbd.works()
    vbd.switch(XenbusState.Initialising)
    vbd.wait_state(XenbusState.InitWait)
    vbd.drop_ring()
    vbd.connect(1)
    vbd.works()


def test_closing_with_requests_under_way(world: World) -> None:
    domain = world.domain(memory=8 << 20)
    vbd = domain.add_disk(world.image(2 << 20)).connect(4)
    segments = [(domain.grants.give(0, domain.pages.alloc()), 0, 7)] * 256
    page, _ = vbd.page(packed_segments(segments))
    for _ in range(vbd.ring.slots):
        vbd.ring.put(indirect_request(READ, 0, 256, [page]))
    vbd.push()
    vbd.switch(XenbusState.Closing)
    vbd.wait_state(XenbusState.Closing)
    assert domain.in_use == []
    vbd.switch(XenbusState.Closed)
    vbd.switch(XenbusState.Initialising)
    vbd.wait_state(XenbusState.InitWait)
    vbd.connect().works()


@pytest.mark.parametrize("state", [b"banana", b"", b"99", b"-4", b"4" * 2000, b"\xff\0"])
def test_a_state_that_is_none(world: World, vbd: Vbd, state: bytes) -> None:
    vbd.connect()
    vbd.store.write(f"{vbd.front}/state", state)
    world.is_disabled(vbd, "state")
    world.comes_back(vbd)


# -- the end of things
def test_the_frontends_directory_is_removed(world: World, vbd: Vbd) -> None:
    vbd.connect(feature_persistent=1)
    vbd.store.rm(vbd.front)
    vbd.wait_state(XenbusState.Closed)
    assert vbd.domain.in_use == []
    world.neighbour.works()
    vbd.store.write(f"{vbd.front}/state", XenbusState.Initialising.value)
    vbd.wait_state(XenbusState.InitWait)
    vbd.connect().works()


def test_the_toolstack_removes_the_device(world: World, vbd: Vbd) -> None:
    vbd.connect(feature_persistent=1)
    vbd.works()
    vbd.store.rm(vbd.back)
    world.catch_up()
    assert vbd.domain.in_use == []
    vbd.switch(XenbusState.Closing)
    world.catch_up()
    assert not vbd.store.exists(vbd.back)
    assert vbd.image.name not in str([os.readlink(fd) for fd in Path(f"/proc/{world.backend.pid}/fd").iterdir()])


def test_the_toolstack_makes_it_anew_at_once(world: World, vbd: Vbd) -> None:
    """Removed and added again, with another image, before anybody could look."""
    vbd.connect()
    other = world.image()
    other.write_bytes(b"\x77" * (1 << 20))
    with vbd.store.transaction() as t:
        t.rm(vbd.back)
        t.rm(vbd.front)
    world.supervisor.toolstack.add_disk(vbd.store, vbd.domain.domid, Disk(image=other, vdev="hda"))
    vbd.wait_state(XenbusState.InitWait)
    world.catch_up()
    assert vbd.domain.in_use == []
    vbd.image = other
    vbd.connect()
    assert vbd.read(0, 8) == b"\x77" * 4096
    vbd.works()


def test_two_devices_of_one_domain(world: World) -> None:
    domain = world.domain()
    one, two = domain.add_disk(world.image()), domain.add_disk(world.image(), "hdb")
    one.connect()
    two.connect(1, feature_persistent=1)
    one.works()
    two.works()
    one.ring.set_index(req_prod=one.ring.req_prod + 77)
    one.notify()
    one.wait_state(XenbusState.Closing)
    two.works()
    assert set(two.ring.grefs) < set(domain.in_use)
    assert not set(one.ring.grefs) & set(domain.in_use)
    assert one.statistics["requests"] == two.statistics["requests"] - 2 == 2
    one.switch(XenbusState.Closed)
    one.wait_state(XenbusState.Closed)
    one.switch(XenbusState.Initialising)
    one.connect().works()
    two.works()


def test_the_domain_is_destroyed_and_made_again(world: World, vbd: Vbd) -> None:
    vbd.connect(feature_persistent=1)
    vbd.works()
    domid = vbd.domain.domid
    vbd.domain.destroy()
    world.neighbour.works()
    again = world.domain(domid=domid).add_disk(world.image())
    again.connect().works()
    assert again.statistics["requests"] == 2


def test_the_domain_is_made_again_before_anybody_looks(world: World, vbd: Vbd) -> None:
    vbd.connect()
    world.backend.kill(signal.SIGSTOP)
    vbd.domain.destroy()
    again = world.domain(domid=vbd.domain.domid).add_disk(world.image())
    world.backend.kill(signal.SIGCONT)
    again.wait_state(XenbusState.InitWait)
    world.catch_up()
    again.connect(2).works()
    assert again.statistics["requests"] == 2


# -- images
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.write_bytes(b""), "0 bytes"),
        (lambda path: path.write_bytes(b"x" * 1000), "1000 bytes"),
        (lambda path: path.mkdir(), "directory"),
        (lambda path: os.mkfifo(path), "neither a file nor a block device"),
        (lambda path: path.symlink_to("/dev/zero"), "neither a file nor a block device"),
    ],
    ids=["missing", "empty", "odd", "directory", "fifo", "zero"],
)
def test_an_image_that_is_none(world: World, tmp_path: Path, make: Callable[[Path], object], reason: str) -> None:
    path = tmp_path / "image"
    make(path)
    vbd = world.domain().add_disk(path)
    vbd.wait_state(XenbusState.Closing)
    assert reason in vbd.error
    world.neighbour.works()
    with vbd.store.transaction() as t:          # mended
        write_keys(t, vbd.back, {"params": str(world.image()), "state": 1})
    vbd.connect()
    assert vbd.read(7, 1)[:8] == (7).to_bytes(8, "little")
    assert not vbd.store.exists(f"{vbd.back}/error")


def test_a_device_of_no_domain(world: World) -> None:
    """The toolstack's slip: nothing is left open."""
    image = world.image()
    back = "/local/domain/0/backend/vbd/9999/768"
    with world.store.transaction() as t:
        write_keys(t, back, {"params": str(image), "state": 1, "frontend": "/local/domain/9999/device/vbd/768"})
    world.catch_up()
    assert "No such file" in world.store.read_text(f"{back}/error")
    assert image.name not in str([os.readlink(fd) for fd in Path(f"/proc/{world.backend.pid}/fd").iterdir()])
    world.store.rm("/local/domain/0/backend/vbd/9999")


def test_directories_that_are_no_devices(world: World) -> None:
    base = "/local/domain/0/backend/vbd"
    for path in ("x/y", "11/x", "x", "1/2/3/4", "99999999999999999999/1"):
        world.store.write(f"{base}/{path}", "")
    with world.store.transaction() as t:
        write_keys(t, f"{base}/70000/768", {"frontend": "/nowhere", "params": "/nothing", "state": 1})
    world.catch_up()
    assert "No such file" in world.store.read_text(f"{base}/70000/768/error")
    for name in ("x", "1", "70000", "99999999999999999999"):
        world.store.rm(f"{base}/{name}")


# -- its own death
def test_killed_and_started_again(world: World) -> None:
    """The successor serves what its predecessor left unanswered; no frontend has to do anything."""
    domain = world.domain(memory=8 << 20)
    vbd = domain.add_disk(world.image(2 << 20)).connect(1, feature_persistent=1)
    while vbd.ring.req_prod <= vbd.ring.slots:  # once round the ring, so that it matters where the successor begins
        vbd.works()
    old = world.backend
    old.kill(signal.SIGSTOP)
    frames = [vbd.page(bytes([number]) * 4096) for number in range(60)]
    for number, (gref, _) in enumerate(frames):
        vbd.ring.put(request(WRITE, number * 8, [(gref, 0, 7)], id=number))
    vbd.push()
    old.kill(signal.SIGKILL)
    old.reap()
    world.start_backend()
    assert vbd.responses(60) == [(number, WRITE, OKAY) for number in range(60)]
    assert vbd.image.read_bytes()[: 60 * 4096] == b"".join(bytes([number]) * 4096 for number in range(60))
    vbd.works()
    world.neighbour.works()
    vbd.switch(XenbusState.Closing)
    vbd.wait_state(XenbusState.Closing)
    assert domain.in_use == []


def test_ended_in_order(world: World) -> None:
    """SIGTERM: everything is unmapped, and again a successor goes on."""
    vbd = world.vbd().connect(feature_persistent=1)
    vbd.works()
    world.supervisor._children.stop([world.backend], 20)
    assert world.backend.exit_code == 0
    assert vbd.domain.in_use == []
    world.start_backend()
    vbd.works()
