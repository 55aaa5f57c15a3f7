"""netfront's handshake: with the real netback, and with a backend whose nodes and rings are a test's own."""
import struct
import time
from collections.abc import Callable, Iterator
from typing import cast

import pytest
from netbench import PAGE, READING, Backend, response
from netpeer import Vif, World
from peer import WATCHDOG, Domain

from miniguest.frontend.netfront import Netfront
from miniguest.frontend.netfront_xenbus import NetfrontDevice
from miniguest.ring.abi.event_channel import EVTCHNSTAT_closed
from miniguest.ring.abi.xenbus import XenbusState
from miniguest.ring.events import Port
from miniguest.ring.loop import Loop
from miniguest.ring.memory import Memory
from miniguest.ring.process import XENSTORED_SOCKET, Process
from miniguest.ring.xenbus import read_state, write_keys
from miniguest.ring.xenstore import SocketTransport, Xenstore

Key = str | int
MAC = "00:16:3e:0a:0b:0c"


class Frontend:
    """What a NetfrontDevice needs of its Process, and what it reported."""

    def __init__(self, domain: Domain) -> None:
        self.domain, self.domid = domain, domain.domid
        self.loop = Loop(domain.events)
        domain.upcall = self.loop.upcall        # one vCPU has one
        self.store = Xenstore(SocketTransport(domain.runtime / XENSTORED_SOCKET), self.loop.call_soon)
        self.loop.on_fd(self.store.fileno(), self.store.dispatch)
        self.vifs: list[Netfront] = []
        self.lost: list[str] = []
        self.got: list[bytes] = []
        self.ports: list[int] = []
        self.free = len(domain.pages), len(domain.grants.free)

    def memory(self, domid: int) -> Memory:
        assert domid == self.domid
        return self.domain.memory

    def alloc_unbound(self, remote_domid: int) -> Port:
        port = self.domain.events.alloc_unbound(remote_domid)
        self.ports.append(port.number)
        return port

    def start(self, path: str, queues: int = 1, offload: bool = False) -> NetfrontDevice:
        return NetfrontDevice(
            cast(Process, self), self.store, path, self.domain.pages, self.domain.grants, self.connected, self.lost.append,
            queues, offload,
        )

    def connected(self, netfront: Netfront) -> None:
        """Nobody receives yet: that is `take_up`."""
        self.vifs.append(netfront)

    def take_up(self) -> Netfront:
        """Wait for the vif, and be its user."""
        self.until(lambda: self.vifs)

        def received(frame: bytes) -> bool:
            self.got.append(frame)
            return True

        netfront = self.vifs[-1]
        netfront.received = received
        netfront.start()
        return netfront

    def until(self, done: Callable[[], object]) -> None:
        deadline = time.monotonic() + WATCHDOG
        while not done():
            assert time.monotonic() < deadline, (self.vifs, self.lost, len(self.got))
            self.loop.turn(WATCHDOG)

    @property
    def gave_everything_back(self) -> bool:
        """Pages, grants and ports."""
        return self.kept == (0, 0, 0)

    @property
    def kept(self) -> tuple[int, int, int]:
        """Pages, grants and ports that are still in use."""
        closed = [self.domain.hypercalls.call("evtchn_status", domid=self.domid, port=port)[0] for port in self.ports]
        return (
            self.free[0] - len(self.domain.pages), self.free[1] - len(self.domain.grants.free),
            sum(state != EVTCHNSTAT_closed for state in closed),
        )

    def close(self) -> None:
        self.store.close()
        self.loop.close()


@pytest.fixture
def front(world: World) -> Iterator[Frontend]:
    made = Frontend(world.domain(memory=32 << 20))
    yield made
    made.close()


# -- with the real backend
class Real:
    """A vif of the frontend's domain on netback's link "lan", and a neighbour there."""

    def __init__(self, world: World, front: Frontend) -> None:
        self.front, self.store = front, world.store
        self.path = f"/local/domain/{front.domid}/device/vif/0"
        self.back = f"/local/domain/0/backend/vif/{front.domid}/0"
        self.mac = bytes.fromhex(MAC.replace(":", ""))
        world.add_vif(front.domid, 0, self.mac, "lan")
        self.other: Vif = world.vif().connect(buffers=60)

    @property
    def states(self) -> tuple[XenbusState, XenbusState]:
        return read_state(self.store, self.path), read_state(self.store, self.back)

    def exchange(self, netfront: Netfront, *sizes: int) -> None:
        """Frames of these sizes there and back."""
        self.other.announce()
        for size in sizes:
            self.other.q.post(17)
            there = (self.other.mac + self.mac + b"\x88\xb5").ljust(size - 1, b"t") + b"."
            assert netfront.room()
            netfront.send(there)
            while self.other.receive() != there:        # what was flooded before
                pass
            back = (self.mac + self.other.mac + b"\x88\xb5").ljust(size - 1, b"b") + b"."
            assert self.other.q.send(back) == 0
            self.front.until(lambda: self.front.got)
            assert self.front.got.pop(0) == back and not self.front.got


@pytest.fixture
def real(world: World, front: Frontend) -> Real:
    return Real(world, front)


@pytest.mark.parametrize("queues", [1, 2, 3])
def test_it_connects(real: Real, front: Frontend, queues: int) -> None:
    front.start(real.path, queues)
    netfront = front.take_up()
    assert (netfront.mac, netfront.mtu, len(netfront.queues)) == (real.mac, 1500, queues)
    assert len({queue.transmit_port.number for queue in netfront.queues}) == queues
    assert all(queue.transmit_port is not queue.receive_port for queue in netfront.queues), "netback has split channels"
    front.until(lambda: real.states == (XenbusState.Connected, XenbusState.Connected))
    assert real.store.exists(f"{real.path}/multi-queue-num-queues") is (queues > 1)
    real.exchange(netfront, 60, 1514, 4096, 4097, 65535)


def test_more_frames_than_the_rings_hold(real: Real, front: Frontend) -> None:
    """In both directions at once, with waiting for room."""
    front.start(real.path)
    netfront = front.take_up()
    real.exchange(netfront, 60)
    other, sent, seen = real.other, 0, 0
    frames = [(other.mac + real.mac + b"\x88\xb5" + struct.pack("<H", n)).ljust(60 + n) for n in range(900)]
    answers = [(real.mac + other.mac + b"\x88\xb5" + struct.pack("<H", n)).ljust(1400 - n) for n in range(900)]
    while seen < len(frames):
        while sent < len(frames) and sent < seen + 250 and netfront.room():
            netfront.send(frames[sent])
            sent += 1
        other.q.post(40)
        for _ in range(min(40, sent - seen)):
            assert other.receive() == frames[seen]
            assert other.q.send(answers[seen]) == 0
            seen += 1
        front.until(lambda wanted=seen: len(front.got) == wanted)       # type: ignore[misc]
    assert front.got == answers


def test_netback_is_killed_and_the_vif_does_not_notice(world: World, real: Real, front: Frontend) -> None:
    front.start(real.path, queues=2)
    netfront = front.take_up()
    real.exchange(netfront, 60)
    world.backend.kill(9)
    world.backend.reap()
    netfront.send(b"\xff" * 6 + real.mac + bytes(48))
    world.start_backend()
    world.catch_up()
    real.exchange(netfront, 60, 9000)
    assert not front.lost and len(front.vifs) == 1


def test_the_toolstack_takes_the_vif_away(world: World, real: Real, front: Frontend) -> None:
    device = front.start(real.path)
    netfront = front.take_up()
    real.exchange(netfront, 60)
    real.store.write(f"{real.back}/online", 0)
    real.store.write(f"{real.back}/state", 5)
    front.until(lambda: front.lost)
    assert front.lost == ["the backend closed the device"]
    netfront.send(bytes(60))
    assert netfront.room()
    real.store.write(f"{real.back}/state", 6)
    front.until(lambda: read_state(real.store, real.path) == XenbusState.Closed)
    world.catch_up()
    assert not front.domain.in_use
    device.close()


def test_a_predecessors_connection_is_replaced(world: World, front: Frontend) -> None:
    """The frontend's process was killed and another one starts: the backend has to start over as well."""
    before = world.vif(domain=front.domain).connect(queues=2, split=True)
    other = world.vif().connect()
    before.reaches(other)
    front.start(before.front)
    netfront = front.take_up()
    assert len(netfront.queues) == 1 and netfront.mac == before.mac
    netfront.send(before.frame(other, b"here", 100))
    while other.receive() != before.frame(other, b"here", 100):
        pass
    before.drop_rings()                         # none of it is mapped any more
    assert other.q.send(other.frame(before, b"there", 5000)) == 0
    front.until(lambda: front.got)
    assert front.got == [other.frame(before, b"there", 5000)]


# -- with one of our own
class ByHand:
    """A vif whose backend is another domain of ours: nodes, rings and ports. It is in InitWait."""

    def __init__(self, world: World, front: Frontend, handle: int = 0, **keys: Key) -> None:
        self.front, self.store, self.domain = front, world.store, world.domain(memory=1 << 20)
        self.path = f"/local/domain/{front.domid}/device/vif/{handle}"
        self.back = f"/local/domain/{self.domain.domid}/backend/vif/{front.domid}/{handle}"
        self.own = {"backend": self.back, "backend-id": self.domain.domid, "handle": handle, "mac": MAC, "state": 1}
        self.rings: list[Backend] = []
        self.bells: list[list[Port]] = []
        write_keys(self.store, self.path, self.own)
        write_keys(self.store, self.back, {"state": 2, **{name.replace("_", "-"): value for name, value in keys.items()}})

    @property
    def state(self) -> XenbusState:
        return read_state(self.store, self.path)

    @property
    def error(self) -> str:
        return self.store.read_text(f"{self.path}/error")

    def key(self, name: str) -> int:
        return self.store.read_int(f"{self.path}/{name}")

    def switch(self, state: int) -> None:
        self.store.write(f"{self.back}/state", state)

    def wait(self, state: XenbusState) -> None:
        self.front.until(lambda: self.state == state)

    def connect(self, queues: int = 1) -> "ByHand":
        """Take the rings that were offered, and say so."""
        self.wait(XenbusState.Initialised)
        entries = self.front.domain.grant_entry
        for index in range(queues):
            prefix = f"queue-{index}/" if queues > 1 else ""
            frames = []
            for name in ("tx-ring-ref", "rx-ring-ref"):
                flags, domid, frame = entries(self.key(prefix + name))
                assert flags == 1 and domid == self.domain.domid
                frames.append(frame)
            self.rings.append(Backend(self.front.domain.memory, *frames, domid=self.domain.domid))
            split = self.store.exists(f"{self.path}/{prefix}event-channel-tx")
            names = ("event-channel-tx", "event-channel-rx") if split else ("event-channel",)
            self.bells.append([
                self.domain.events.bind_interdomain(self.front.domid, self.key(prefix + name)) for name in names
            ])
        self.switch(4)
        return self

    def deliver(self, *frames: bytes, queue: int = 0) -> None:
        if self.rings[queue].deliver(*frames):
            self.bells[queue][-1].notify()

    def leave(self) -> None:
        """Close in an orderly way; the frontend has then nothing more of ours."""
        self.switch(5)
        self.wait(XenbusState.Closed)
        self.switch(6)
        self.front.until(lambda: self.front.gave_everything_back)


FRAME = bytes.fromhex("00163e0a0b0c00163e00000288b5").ljust(60, b"f")


@pytest.mark.parametrize(("features", "wanted", "queues"), [
    ({}, 4, 1), ({"multi_queue_max_queues": 1}, 4, 1), ({"multi_queue_max_queues": 2}, 4, 2),
    ({"multi_queue_max_queues": 64}, 3, 3), ({"multi_queue_max_queues": 8}, 1, 1),
])
@pytest.mark.parametrize("split", [0, 1])
def test_queues_and_channels_are_what_both_can(
    world: World, front: Frontend, features: dict[str, Key], wanted: int, queues: int, split: int
) -> None:
    vif = ByHand(world, front, feature_split_event_channels=split, **features)
    front.start(vif.path, wanted)
    vif.connect(queues)
    netfront = front.take_up()
    assert (len(netfront.queues), len(front.ports)) == (queues, queues * (1 + split))
    assert vif.store.exists(f"{vif.path}/multi-queue-num-queues") is (queues > 1)
    if queues > 1:
        assert vif.key("multi-queue-num-queues") == queues and not vif.store.exists(f"{vif.path}/tx-ring-ref")
    for index in range(queues):
        vif.deliver(FRAME, FRAME + bytes([index]), queue=index)
        front.until(lambda: len(front.got) == 2)
        assert front.got == [FRAME, FRAME + bytes([index])]
        front.got.clear()
    vif.leave()


@pytest.mark.parametrize("offload", [False, True])
def test_what_it_asks_for(world: World, front: Frontend, offload: bool) -> None:
    vif = ByHand(world, front)
    front.start(vif.path, offload=offload)
    vif.connect()
    assert {name: vif.key(name) for name in vif.store.directory(vif.path) if name.startswith(("feature", "request"))} == {
        "request-rx-copy": 1, "feature-rx-notify": 1, "feature-sg": 1, "feature-no-csum-offload": int(not offload),
        "feature-ipv6-csum-offload": int(offload), "feature-gso-tcpv4": int(offload), "feature-gso-tcpv6": int(offload),
    }
    flags = [front.domain.grant_entry(gref)[0] for gref in range(8, 8 + 514)]
    assert flags.count(1) == 258 and flags.count(5) == 256, "what is sent may only be read"
    front.until(lambda: front.vifs)
    vif.leave()


@pytest.mark.parametrize("queues", [1, 2])
def test_what_a_predecessor_offered_is_gone(world: World, front: Frontend, queues: int) -> None:
    """It had other queues and channels, and a control ring; their grefs are something else's by now."""
    vif = ByHand(world, front, multi_queue_max_queues=2, feature_split_event_channels=queues - 1)
    stale = (
        "multi-queue-num-queues", "tx-ring-ref", "rx-ring-ref", "event-channel", "event-channel-tx", "event-channel-rx",
        "ctrl-ring-ref", "event-channel-ctrl",
        *[f"queue-{n}/{name}" for n in range(4) for name in ("tx-ring-ref", "event-channel")],
    )
    write_keys(vif.store, vif.path, dict.fromkeys(stale, 77777))
    front.start(vif.path, queues)
    vif.connect(queues)
    found = set(vif.store.directory(vif.path)) & {name.partition("/")[0] for name in stale}
    if queues == 1:
        assert found == {"tx-ring-ref", "rx-ring-ref", "event-channel"}
    else:
        assert found == {"multi-queue-num-queues", "queue-0", "queue-1"}
        assert sorted(vif.store.directory(f"{vif.path}/queue-1")) == [
            "event-channel-rx", "event-channel-tx", "rx-ring-ref", "tx-ring-ref",
        ]
    front.until(lambda: front.vifs)
    vif.leave()


@pytest.mark.parametrize("sg", [0, 1])
def test_a_backend_without_sg_is_sent_no_chains(world: World, front: Frontend, sg: int) -> None:
    vif = ByHand(world, front, feature_sg=sg)
    front.start(vif.path)
    vif.connect()
    netfront = front.take_up()
    netfront.send(bytes(PAGE + 1))
    netfront.send(FRAME)
    assert [len(sent.data) for sent in vif.rings[0].sent()] == [PAGE + 1, 60][1 - sg :]
    vif.leave()


def test_nothing_is_posted_before_the_vif_is_used(world: World, front: Frontend) -> None:
    """Events may come while others are still connected; frames that nobody could receive stay where they are."""
    vif = ByHand(world, front)
    front.start(vif.path)
    vif.connect()
    front.until(lambda: front.vifs)
    for _ in range(3):
        vif.bells[0][0].notify()
        front.loop.turn(0)
    assert vif.rings[0].take_posted() == 0
    front.take_up()
    assert vif.rings[0].take_posted() == 256
    vif.leave()


@pytest.mark.parametrize("split", [0, 1])
def test_who_waits_for_room_is_called(world: World, front: Frontend, split: int) -> None:
    vif = ByHand(world, front, feature_split_event_channels=split)
    front.start(vif.path)
    vif.connect()
    netfront = front.take_up()
    ready: list[None] = []
    netfront.ready = lambda: ready.append(None)
    while netfront.room():
        netfront.send(FRAME)
    sent = vif.rings[0].sent()
    if vif.rings[0].answer_sent(*sent):
        vif.bells[0][0].notify()
    front.until(lambda: ready)
    assert len(ready) == 1 and netfront.room()
    vif.leave()


# -- lies
@pytest.mark.parametrize(("own", "offered", "reason"), [
    ({}, {"multi-queue-max-queues": "banana"}, "multi-queue-max-queues is not a number: 'banana'"),
    ({}, {"multi-queue-max-queues": 0}, "multi-queue-max-queues is 0, not 1 to"),
    ({}, {"multi-queue-max-queues": -3}, "multi-queue-max-queues is -3"),
    ({}, {"multi-queue-max-queues": 1 << 32}, "multi-queue-max-queues is 4294967296"),
    ({"mac": "banana"}, {}, "mac is 'banana', not an Ethernet address"),
    ({"mac": "00:16:3e:00:00:01 "}, {}, "not an Ethernet address"),
    ({"mac": "x" * 2000}, {}, "mac is 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx', not"),
    ({"mac": ""}, {"mac": "banana"}, "mac is 'banana', not an Ethernet address"),
    ({"mac": ""}, {}, "mac is missing"),
    ({"mtu": 67}, {}, "mtu is 67, not 68 to 65521"), ({"mtu": 65522}, {}, "mtu is 65522"),
    ({"mtu": "big"}, {}, "mtu is not a number"), ({"mtu": ""}, {}, "mtu is not a number"),
])
def test_nonsense(world: World, front: Frontend, own: dict[str, Key], offered: dict[str, Key], reason: str) -> None:
    vif = ByHand(world, front)
    write_keys(vif.store, vif.path, own)
    write_keys(vif.store, vif.back, offered)
    front.start(vif.path, queues=4)
    front.until(lambda: front.lost or vif.state == XenbusState.Initialised)
    if not front.lost:
        vif.switch(4)
        front.until(lambda: front.lost)
    assert reason in front.lost[0] and reason in vif.error
    assert vif.state == XenbusState.Closing
    vif.leave()
    assert len(front.lost) == 1 and not front.vifs


@pytest.mark.parametrize("remove", ["backend", "backend-id"])
def test_own_keys_that_are_missing(world: World, front: Frontend, remove: str) -> None:
    vif = ByHand(world, front)
    vif.store.rm(f"{vif.path}/{remove}")
    device = front.start(vif.path)
    assert len(front.lost) == 1 and f"{remove} is missing" in front.lost[0] and vif.state == XenbusState.Closing
    device.close()
    assert front.gave_everything_back


@pytest.mark.parametrize(("name", "value"), [("backend", ""), ("backend", "x/y"), ("backend-id", "me"), ("backend-id", 0x7FF0)])
def test_own_keys_that_make_no_sense(world: World, front: Frontend, name: str, value: Key) -> None:
    vif = ByHand(world, front)
    vif.store.write(f"{vif.path}/{name}", value)
    front.start(vif.path)
    assert len(front.lost) == 1 and name in vif.error and not front.vifs


def test_the_address_may_be_the_backends(world: World, front: Frontend) -> None:
    vif = ByHand(world, front, mac="00:16:3E:AA:BB:CC")
    vif.store.rm(f"{vif.path}/mac")
    vif.store.write(f"{vif.path}/mtu", 9000)
    front.start(vif.path)
    vif.connect()
    front.until(lambda: front.vifs)
    assert (front.vifs[0].mac, front.vifs[0].mtu) == (bytes.fromhex("00163eaabbcc"), 9000)
    vif.leave()


@pytest.mark.parametrize("how", ["Closing", "Closed", "removed", "nonsense"])
@pytest.mark.parametrize("when", ["offered", "connected", "used"])
def test_the_backend_goes(world: World, front: Frontend, how: str, when: str) -> None:
    vif = ByHand(world, front, feature_split_event_channels=1, multi_queue_max_queues=2)
    front.start(vif.path, queues=2)
    vif.wait(XenbusState.Initialised)
    ready: list[None] = []
    if when != "offered":
        vif.connect(2)
        front.until(lambda: front.vifs)
        front.vifs[0].ready = lambda: ready.append(None)
    if when == "used":
        netfront = front.take_up()
        while netfront.room():
            netfront.send(FRAME)
        vif.deliver(FRAME)
        front.until(lambda: front.got)
    vif.store.write(f"{vif.back}/error", "the cable is out")
    if how == "removed":
        vif.store.rm(vif.back)
    else:
        vif.switch({"Closing": 5, "Closed": 6, "nonsense": -7}[how])
    front.until(lambda: front.lost)
    assert front.lost == ["the backend closed the device" + (": the cable is out" if how != "removed" else "")]
    assert len(ready) == (when == "used")
    vif.wait(XenbusState.Closed)
    if when == "used":
        assert front.vifs[0].room()
        front.vifs[0].send(FRAME)
    vif.switch(6)
    front.until(lambda: front.gave_everything_back)
    assert len(front.lost) == 1


@pytest.mark.parametrize("ring", ["tx", "rx"])
def test_the_backend_breaks_the_protocol(world: World, front: Frontend, ring: str) -> None:
    """The device is disabled with the reason in the store, and another one's frames come as before."""
    vif, sound = ByHand(world, front), ByHand(world, front, handle=1)
    front.start(vif.path)
    vif.connect()
    netfront = front.take_up()
    front.start(sound.path)
    sound.connect()
    front.until(lambda: len(front.vifs) == 2)
    front.take_up()
    if ring == "tx":
        while netfront.room():
            netfront.send(FRAME)
        vif.rings[0].sent()
        vif.rings[0].answer((999, 0))
    else:
        vif.rings[0].take_posted()
        vif.rings[0].respond(response(999, 0, 0, 60))
    vif.bells[0][0].notify()
    front.until(lambda: front.lost)
    reason = f"request {999}, which is not out"
    assert reason in front.lost[0] and reason in vif.error and vif.state == XenbusState.Closing
    vif.bells[0][0].notify()
    sound.deliver(FRAME)
    front.until(lambda: front.got)
    assert sound.state == XenbusState.Connected and len(front.lost) == 1
    vif.switch(5)
    vif.wait(XenbusState.Closed)
    vif.switch(6)
    sound.leave()


def test_pages_that_stay_mapped_are_not_used_again(world: World, front: Frontend) -> None:
    vif = ByHand(world, front)
    front.start(vif.path)
    vif.connect()
    front.take_up()
    back = vif.rings[0]
    back.take_posted()
    gref = back.posted[3][1]
    ring = vif.key("tx-ring-ref")
    frames = {front.domain.grant_entry(each)[2] for each in (gref, ring)}
    for each in (gref, ring):
        back.keep_mapped(each, READING)
    vif.switch(5)
    vif.wait(XenbusState.Closed)
    vif.switch(6)
    front.until(lambda: not front.kept[2])
    assert front.kept == (2, 2, 0)
    assert not frames & {front.domain.pages.alloc() for _ in range(len(front.domain.pages))}


def test_another_one_can_follow(world: World, front: Frontend) -> None:
    """A device that was lost stays so; a new one on the same directory starts over, with the same backend."""
    for round_ in range(3):
        vif = ByHand(world, front, handle=0)
        front.start(vif.path)
        vif.connect()
        netfront = front.take_up()
        front.vifs.clear()
        vif.deliver(FRAME)
        front.until(lambda: front.got)
        front.got.clear()
        vif.leave()
        assert len(front.lost) == round_ + 1 and netfront.room()
        vif.switch(2)                           # it would begin again, but this one is over
        vif.switch(4)
        front.loop.turn(0)
        assert vif.state == XenbusState.Closed and not front.vifs
        vif.store.rm(vif.back)


def test_no_pages_for_all_the_buffers(world: World) -> None:
    front = Frontend(world.domain(memory=300 * PAGE))
    vif = ByHand(world, front)
    front.start(vif.path)
    front.until(lambda: front.lost)
    assert "frames are all in use" in front.lost[0] and "frames are all in use" in vif.error
    vif.leave()
    front.close()


def test_nobodys_directory(world: World, front: Frontend) -> None:
    device = front.start(f"/local/domain/{front.domid}/device/vif/7")
    assert len(front.lost) == 1 and "backend is missing" in front.lost[0]
    assert not front.store.exists(f"/local/domain/{front.domid}/device/vif"), "and it is not made"
    device.close()


@pytest.mark.parametrize("kept", [False, True])
def test_a_storm_of_events_for_nothing(world: World, front: Frontend, kept: bool) -> None:
    """Whether or not the card has room, a backend that rings all the time is listened to less and less."""
    vif = ByHand(world, front, feature_split_event_channels=1)
    front.start(vif.path)
    vif.connect()
    netfront = front.take_up()
    taking = [not kept]

    def received(frame: bytes) -> bool:
        if taking[0]:
            front.got.append(frame)
        return taking[0]

    netfront.received = received
    if kept:
        vif.deliver(FRAME)
        front.until(lambda: netfront.keeps)
    called = 0
    on_event = netfront.on_event

    def counting(index: int, transmit: bool, receive: bool) -> bool:
        nonlocal called
        called += 1
        return on_event(index, transmit, receive)

    netfront.on_event = counting                # type: ignore[method-assign]
    for _ in range(5000):
        for bell in vif.bells[0]:
            bell.notify()
        front.loop.turn(0)
    # 16 are free on each port; then each waits twice as long as the one before, up to a second.
    assert 32 <= called < 200
    taking[0] = True
    netfront.resume()
    vif.deliver(FRAME)
    front.until(lambda: len(front.got) == 1 + kept)
    vif.leave()
