"""netback's handshake: frontends that offer nonsense, change their minds, vanish or come back; queues; the control ring."""
import signal
import struct
from collections.abc import Callable

import pytest
from netcontrol import (
    GET_FLAGS,
    GET_MAPPING_SIZE,
    INVALID,
    NOT_SUPPORTED,
    OVERFLOW,
    SET_ALGORITHM,
    SET_FLAGS,
    SET_KEY,
    SET_MAPPING,
    SET_MAPPING_SIZE,
    SUCCESS,
    Controlled,
)
from netpeer import BROADCAST, MCAST_ADD, OKAY, Vif, World, extra_slot
from peer import Key, dump

from miniguest.ring.abi.xenbus import XenbusState
from miniguest.ring.xenbus import write_keys


@pytest.fixture
def vif(world: World) -> Vif:
    made = world.vif()
    made.wait_state(XenbusState.InitWait)
    return made


@pytest.fixture
def other(world: World) -> Vif:
    return world.vif().connect(buffers=200)


# -- what it offers
def test_what_it_offers(world: World, vif: Vif) -> None:
    found = dump(vif.store, vif.back)
    assert {name: value for name, value in found.items() if "feature" in name or "queue" in name} == {
        "feature-sg": "1", "feature-gso-tcpv4": "1", "feature-gso-tcpv6": "1", "feature-ipv6-csum-offload": "1",
        "feature-rx-copy": "1", "feature-rx-flip": "0", "feature-multicast-control": "1",
        "feature-dynamic-multicast-control": "1", "feature-split-event-channels": "1", "multi-queue-max-queues": "8",
        "feature-ctrl-ring": "1",
    }
    assert found["mtu"] == "1500"


@pytest.mark.parametrize("size", [60, 1500, 4096, 4097, 9000, 65535])
@pytest.mark.parametrize("split", [False, True])
def test_two_vifs(world: World, vif: Vif, other: Vif, split: bool, size: int) -> None:
    vif.connect(split=split)
    vif.reaches(other)
    frame = vif.frame(other, bytes(range(256)) * 255, 14)[:size]
    assert vif.q.send(frame) == OKAY
    assert other.q.receive() == frame
    answer = other.frame(vif, bytes(range(255, 0, -1)) * 257, 14)[:size]
    assert other.q.send(answer) == OKAY
    assert vif.q.receive() == answer


def test_two_vifs_of_one_domain_and_two_links(world: World) -> None:
    domain = world.domain()
    one, two, far = world.vif(domain=domain).connect(), world.vif(domain=domain).connect(), world.vif("quiet").connect()
    one.reaches(two)
    assert one.q.send(one.frame(BROADCAST, b"near")) == OKAY
    assert two.q.receive()[14:18] == b"near"
    assert world.neighbours[0].q.send(world.neighbours[0].frame(BROADCAST, b"quiet")) == OKAY
    assert far.q.receive()[14:19] == b"quiet"                   # of its own link's only
    far.announce()
    assert one.q.send(one.frame(far, b"lost")) == OKAY
    assert two.q.receive()[14:18] == b"lost"                    # unknown here: flooded
    while far.q.rx.ready:
        assert far.q.receive()[6:12] != one.mac


def test_without_scatter_gather_a_frame_is_one_page(world: World, vif: Vif, other: Vif) -> None:
    vif.connect(feature_sg=None)
    vif.announce()
    for size in (4097, 4096):
        assert other.q.send(other.frame(vif, b"", size)) == OKAY
    assert len(vif.q.receive()) == 4096
    assert vif.statistics["rx_dropped"] == 1


# -- nonsense
NONSENSE: dict[str, tuple[int, dict[str, Key], str]] = {
    "no-rx-copy": (1, {"request_rx_copy": None}, "request-rx-copy is not 1"),
    "rx-copy-0": (1, {"request_rx_copy": 0}, "request-rx-copy is not 1"),
    "tx-ref-missing": (1, {"tx_ring_ref": None}, "tx-ring-ref is missing"),
    "rx-ref-missing": (1, {"rx_ring_ref": None}, "rx-ring-ref is missing"),
    "tx-ref-word": (1, {"tx_ring_ref": "banana"}, "not a number"),
    "tx-ref-negative": (1, {"tx_ring_ref": -1}, "is -1"),
    "tx-ref-u32": (1, {"tx_ring_ref": (1 << 32) - 1}, "cannot be mapped"),
    "rx-ref-beyond-u32": (1, {"rx_ring_ref": 1 << 32}, "is 4294967296"),
    "rx-ref-not-granted": (1, {"rx_ring_ref": 30000}, "cannot be mapped"),
    "port-missing": (1, {"event_channel": None}, "event-channel is missing"),
    "port-0": (1, {"event_channel": 0}, "event channel 0"),
    "port-closed": (1, {"event_channel": 4000}, "not unbound"),
    "port-beyond": (1, {"event_channel": 4096}, "event channel 4096"),
    "rx-port-missing": (1, {"event_channel_tx": 4000}, "event channel 4000"),
    "queues-0": (1, {"multi_queue_num_queues": 0}, "multi-queue-num-queues is 0"),
    "queues-9": (1, {"multi_queue_num_queues": 9}, "multi-queue-num-queues is 9"),
    "queues-word": (1, {"multi_queue_num_queues": "two"}, "not a number"),
    "queues-without-keys": (1, {"multi_queue_num_queues": 2}, "queue-0/tx-ring-ref is missing"),
    "a-queue-without-rx": (3, {"queue_1__rx_ring_ref": None}, "queue-1/rx-ring-ref is missing"),
    "a-queue-too-few": (2, {"multi_queue_num_queues": 3}, "queue-2/tx-ring-ref is missing"),
    "a-queue-without-port": (2, {"queue_1__event_channel": None}, "queue-1/event-channel is missing"),
    "control-not-granted": (1, {"ctrl_ring_ref": 30000}, "cannot be mapped"),
    "control-without-port": (1, {"ctrl_ring_ref": "same"}, "event-channel-ctrl is missing"),
}


@pytest.mark.parametrize("what", NONSENSE)
def test_nonsense_disables_the_vif(world: World, vif: Vif, what: str) -> None:
    queues, keys, reason = NONSENSE[what]
    if keys.get("ctrl_ring_ref") == "same":
        keys = {"ctrl_ring_ref": vif.domain.grants.give(0, vif.domain.pages.alloc())}
    vif.offer(queues, **keys)
    world.is_disabled(vif, reason)
    vif.drop_rings()
    vif.store.rm(vif.front)
    vif.store.write(f"{vif.front}/state", 6)
    world.comes_back(vif)


@pytest.mark.parametrize("rate", ["1000", "a,b", "0,5", "1,2,3", "99999999999,1", "-1,5", "5000000000,1"])
def test_a_rate_that_is_none(world: World, rate: str) -> None:
    vif = world.vif(rate=rate)
    vif.wait_state(XenbusState.Closing)
    assert "/rate is" in vif.error


def test_a_rate(world: World, other: Vif) -> None:
    """As netback has it: everything comes, in order, if not at once. (How fast is tested with a clock of our own.)"""
    vif = world.vif(rate="10000,1000").connect()
    other.announce()
    frames = [vif.frame(other, struct.pack("<I", number), 1500) for number in range(60)]
    for frame in frames:
        vif.q.put(*vif.q.slots_of(frame))
    assert vif.q.statuses(60) == [OKAY] * 60
    assert [other.q.receive() for _ in frames] == frames


def test_a_link_that_is_none(world: World) -> None:
    vif = world.vif("nowhere")
    vif.wait_state(XenbusState.Closing)
    assert "there is no link 'nowhere'" in vif.error


def grants_to_another(vif: Vif) -> Key:
    return vif.domain.grants.give(5, vif.domain.pages.alloc())


def grants_read_only(vif: Vif) -> Key:
    return vif.domain.grants.give(0, vif.domain.pages.alloc(), readonly=True)


def grants_no_frame(vif: Vif) -> Key:
    return vif.domain.grants.give(0, 1 << 30)


@pytest.mark.parametrize("grant", [grants_to_another, grants_read_only, grants_no_frame])
@pytest.mark.parametrize("ring", ["tx_ring_ref", "rx_ring_ref", "ctrl_ring_ref"])
def test_a_ring_page_that_is_not_granted_so(world: World, vif: Vif, grant: Callable[[Vif], Key], ring: str) -> None:
    vif.offer(**{ring: grant(vif)})
    world.is_disabled(vif, "cannot be mapped")


def test_a_port_used_twice(world: World, vif: Vif) -> None:
    keys = vif.make_queues(2)
    keys["queue-1/event-channel"] = keys["queue-0/event-channel"]
    write_keys(vif.store, vif.front, keys)                      # type: ignore[arg-type]
    vif.switch(XenbusState.Connected)
    world.is_disabled(vif, "not unbound")


# -- changes of mind
def test_keys_rewritten_once_connected(world: World, vif: Vif, other: Vif) -> None:
    vif.connect()
    write_keys(vif.store, vif.front, {
        "tx-ring-ref": 30000, "event-channel": 1, "multi-queue-num-queues": 4, "request-rx-copy": 0, "feature-sg": 0,
    })
    for state in (XenbusState.Initialised, XenbusState.Connected, XenbusState.Reconfiguring, XenbusState.InitWait):
        vif.switch(state)
        world.catch_up()
        assert vif.state == XenbusState.Connected
        vif.reaches(other)


def test_the_multicast_filter_may_be_asked_for_at_any_time(world: World, vif: Vif, other: Vif) -> None:
    vif.connect()
    group = b"\x01\x00\x5e\x00\x00\x09"

    def hears(wanted: bool) -> None:
        assert other.q.send(other.frame(group, b"group")) == OKAY
        assert other.q.send(other.frame(BROADCAST, b"all")) == OKAY
        first = vif.q.receive()
        assert (first[14:19] == b"group") == wanted
        if wanted:
            vif.q.receive()
        vif.q.post(2)

    hears(True)
    vif.store.write(f"{vif.front}/request-multicast-control", 1)
    world.catch_up()
    hears(False)
    assert vif.q.send(vif.frame(vif.mac), extras=[extra_slot(MCAST_ADD, group)]) == OKAY
    hears(True)
    vif.store.write(f"{vif.front}/request-multicast-control", 0)
    world.catch_up()
    hears(True)


@pytest.mark.parametrize("queues", [1, 3])
def test_it_goes_and_comes_back(world: World, vif: Vif, other: Vif, queues: int) -> None:
    for _ in range(3):
        vif.connect(queues)
        vif.reaches(other)
        assert set(vif.domain.in_use) == {ring.gref for queue in vif.queues for ring in (queue.tx, queue.rx)}
        vif.switch(XenbusState.Closing)
        vif.wait_state(XenbusState.Closing)
        assert vif.domain.in_use == []
        vif.drop_rings()
        vif.switch(XenbusState.Closed)
        vif.wait_state(XenbusState.Closed)
        vif.switch(XenbusState.Initialising)
        vif.wait_state(XenbusState.InitWait)
        vif.store.rm(vif.front)
        vif.store.write(f"{vif.front}/state", 1)


def test_it_starts_over_without_a_word(world: World, vif: Vif, other: Vif) -> None:
    """A frontend that crashed and booted again: Initialising right after Connected."""
    vif.connect()
    vif.reaches(other)
    vif.switch(XenbusState.Initialising)
    vif.wait_state(XenbusState.InitWait)
    vif.drop_rings()
    vif.connect()
    vif.reaches(other)


@pytest.mark.parametrize("state", [b"banana", b"", b"99", b"-4", b"\xff\0"])
def test_a_state_that_is_none(world: World, vif: Vif, state: bytes) -> None:
    vif.connect()
    vif.store.write(f"{vif.front}/state", state)
    world.is_disabled(vif, "state")
    world.comes_back(vif)


# -- the end of things
def test_the_frontends_directory_is_removed(world: World, vif: Vif, other: Vif) -> None:
    vif.connect()
    vif.store.rm(vif.front)
    vif.wait_state(XenbusState.Closed)
    assert vif.domain.in_use == []
    vif.store.write(f"{vif.front}/state", XenbusState.Initialising.value)
    vif.wait_state(XenbusState.InitWait)
    vif.connect().reaches(other)


def test_the_toolstack_removes_the_device(world: World, vif: Vif) -> None:
    vif.connect()
    vif.store.rm(vif.back)
    world.catch_up()
    assert vif.domain.in_use == []
    vif.switch(XenbusState.Closing)
    world.catch_up()
    assert not vif.store.exists(vif.back)


def test_the_domain_is_made_again_before_anybody_looks(world: World, vif: Vif, other: Vif) -> None:
    vif.connect()
    vif.reaches(other)
    world.backend.kill(signal.SIGSTOP)
    vif.store.rm(vif.back)
    vif.domain.destroy()
    again = world.vif(domain=world.domain(domid=vif.domain.domid))
    world.backend.kill(signal.SIGCONT)
    again.wait_state(XenbusState.InitWait)
    world.catch_up()
    again.connect().reaches(other)
    assert again.statistics["rx_packets"] < 10


def test_a_vif_of_no_domain(world: World) -> None:
    world.add_vif(9999, 0, b"\2" * 6, "lan")
    world.store.write("/local/domain/9999/device/vif/0/request-rx-copy", 1)
    world.store.write("/local/domain/9999/device/vif/0/state", 4)
    world.catch_up()
    assert "No such file" in world.store.read_text("/local/domain/0/backend/vif/9999/0/error")
    world.store.rm("/local/domain/0/backend/vif/9999")
    world.store.rm("/local/domain/9999")


def test_a_vif_leaves_while_others_wait_for_it(world: World, vif: Vif, other: Vif) -> None:
    vif.connect(buffers=1)
    vif.announce()
    slots = [slot for _ in range(60) for slot in other.q.slots_of(other.frame(vif, b"", 16000))]
    other.q.put(*slots)
    vif.switch(XenbusState.Closing)
    vif.wait_state(XenbusState.Closing)
    assert other.q.statuses(len(slots)) == [OKAY] * len(slots)
    assert vif.domain.in_use == []


# -- its own death
def test_killed_and_started_again(world: World, vif: Vif, other: Vif) -> None:
    """The successor serves what its predecessor left unanswered; no frontend has to do anything."""
    vif.connect(2, split=True)
    for _ in range(300):                        # once round the ring
        vif.announce()
    world.backend.kill(signal.SIGSTOP)
    frames = [vif.frame(BROADCAST, bytes([number]), 5000) for number in range(20)]
    slots = [slot for frame in frames for slot in vif.q.slots_of(frame)]
    vif.q.put(*slots)
    world.backend.kill(signal.SIGKILL)
    world.backend.reap()
    world.start_backend()
    assert vif.q.statuses(40) == [OKAY] * 40
    # The other one may have been connected after these were flooded; from now on it hears everything.
    other.wait_state(XenbusState.Connected)
    world.catch_up()
    vif.reaches(other)
    vif.switch(XenbusState.Closing)
    vif.wait_state(XenbusState.Closing)
    assert vif.domain.in_use == []


def test_ended_in_order(world: World, vif: Vif, other: Vif) -> None:
    vif.connect()
    vif.reaches(other)
    world.supervisor._children.stop([world.backend], 20)
    assert world.backend.exit_code == 0
    assert vif.domain.in_use == []
    world.start_backend()
    vif.reaches(other)


# -- several queues
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("queues", [2, 8])
def test_several_queues(world: World, vif: Vif, other: Vif, queues: int, split: bool) -> None:
    vif.connect(queues, split, buffers=20)
    other.announce()
    for index, queue in enumerate(vif.queues):
        frame = vif.frame(other, bytes([index]), 100)
        assert queue.send(frame) == OKAY
        assert other.q.receive() == frame
    used = set()
    for flow in range(64):
        packet = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 40, 1, 0, 64, 17, 0, bytes([10, 0, 0, flow]), bytes(4)) + bytes(20)
        frame = vif.mac + other.mac + b"\x08\x00" + packet
        assert other.q.send(frame) == OKAY
        world.catch_up()
        found = [index for index, queue in enumerate(vif.queues) if queue.rx.ready]
        assert len(found) == 1
        assert vif.queues[found[0]].receive() == frame
        vif.queues[found[0]].post(1)
        used.add(found[0])
    assert used == set(range(queues))


# -- the control ring
def test_the_control_ring(world: World, vif: Vif, other: Vif) -> None:
    control = Controlled(vif, 4)
    ask = control.ask
    assert ask(GET_FLAGS) == (NOT_SUPPORTED, 0)                 # no algorithm yet
    assert ask(SET_FLAGS, 1) == (INVALID, 0)
    assert ask(SET_ALGORITHM, 7) == (INVALID, 0)
    assert ask(SET_ALGORITHM, 1) == (SUCCESS, 0)
    assert ask(GET_FLAGS) == (SUCCESS, 15)
    assert ask(SET_FLAGS, 16) == (INVALID, 0)
    assert ask(SET_FLAGS, 15) == (SUCCESS, 0)
    assert ask(SET_KEY, control.page(bytes(range(1, 41))), 40) == (SUCCESS, 0)
    assert ask(SET_KEY, 0, 41) == (OVERFLOW, 0)
    assert ask(SET_KEY, 30000, 10) == (INVALID, 0)
    assert ask(GET_MAPPING_SIZE) == (SUCCESS, 128)
    assert ask(SET_MAPPING_SIZE, 129) == (INVALID, 0)
    assert ask(SET_MAPPING_SIZE, 8) == (SUCCESS, 0)
    table = control.page(struct.pack("<4I", 2, 2, 2, 2))
    assert ask(SET_MAPPING, table, 4, 0) == (SUCCESS, 0)
    assert ask(SET_MAPPING, table, 4, 4) == (SUCCESS, 0)
    assert ask(SET_MAPPING, table, 4, 5) == (INVALID, 0)        # beyond the table
    assert ask(SET_MAPPING, table, 4, 0xFFFFFFFE) == (INVALID, 0)
    assert ask(SET_MAPPING, table, 129, 0) == (OVERFLOW, 0)
    assert ask(SET_MAPPING, 30000, 1, 0) == (INVALID, 0)
    assert ask(SET_MAPPING, control.page(struct.pack("<I", 4)), 1, 0) == (INVALID, 0)       # no such queue
    for kind in (0, 11, 65535):
        assert ask(kind) == (NOT_SUPPORTED, 0)
    packet = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 40, 1, 0, 64, 6, 0, bytes([10, 0, 0, 1]), bytes(4)) + bytes(20)
    vif.announce()
    assert other.q.send(vif.mac + other.mac + b"\x08\x00" + packet) == OKAY
    found = vif.queues[2].receive()
    assert found.hash
    assert found.hash[:2] == (1, 1)
    assert ask(SET_ALGORITHM, 0) == (SUCCESS, 0)
    assert ask(GET_FLAGS) == (NOT_SUPPORTED, 0)
    control.ring.set_index(req_prod=control.ring.req_prod + 300)
    control.port.notify()
    world.is_disabled(vif, "control ring")


def test_many_control_requests_at_once(world: World, vif: Vif) -> None:
    control = Controlled(vif, 1)
    for number in range(100):
        control.ring.put(struct.pack("<HHIII", number, GET_MAPPING_SIZE, 0, 0, 0))
    control.ring.push()
    control.port.notify()
    control.ring.wait(100)
    assert [struct.unpack("<HHII", control.ring.take(12))[0] for _ in range(100)] == list(range(100))
