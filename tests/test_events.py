"""Event channels bit by bit: sending, taking, masking, waiting, and what the hypervisor raises for the dead."""
import mmap
import os
import struct

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from miniguest.ring._core import Channel, IoreqSlot, Upcall, kick_vcpu, load64, raise_port, store64
from miniguest.ring.hypervisor.event_channels import pack

DOORBELL, DESCRIPTOR, PENDING, WATCHED = 1, 2, 4, 8
INTERDOMAIN, UNBOUND = 2, 1
PORTS = 4096
PENDING_AT, MASK_AT, SELECTOR_AT = 2048, 2560, 8


def shared(size: int) -> memoryview:
    return memoryview(mmap.mmap(-1, size))


class Pair:
    """Port 3 of domain 1 connected to `port` of domain 2, where it goes to `vcpu`."""

    def __init__(self, port: int = 70, vcpu: int = 0) -> None:
        self.port = port
        self.local, self.remote, self.pages = shared(PORTS * 8), shared(PORTS * 8), shared(8192)
        store64(self.local, 3, pack(INTERDOMAIN, 0, 2, port))
        self.bind(vcpu)
        self.channel = Channel(self.local, 3, 1, self.remote, port, 2, self.pages)

    def bind(self, vcpu: int) -> None:
        store64(self.remote, self.port, pack(INTERDOMAIN, vcpu, 1, 3))

    def upcall(self, vcpu: int, doorbell: int = -1, descriptor: int = -1) -> Upcall:
        made = Upcall(self.pages[vcpu // 32 * 4096 :][:4096], vcpu % 32, doorbell, descriptor)
        made.bind(self.port)
        return made

    def info(self, vcpu: int) -> memoryview:
        return self.pages[vcpu // 32 * 4096 + vcpu % 32 * 64 :][:64]

    def bit(self, at: int, vcpu: int = 0) -> bool:
        return bool(load64(self.pages[vcpu // 32 * 4096 :], at // 8 + self.port // 64) >> self.port % 64 & 1)


@pytest.mark.parametrize("vcpu", [0, 1, 31, 32, 63])
@pytest.mark.parametrize("port", [1, 63, 64, 4095])
def test_send_sets_pending_selector_and_upcall(port: int, vcpu: int) -> None:
    pair = Pair(port, vcpu)
    assert pair.channel.send() == vcpu + 1, "nobody is awake: ring the doorbell"
    page = pair.pages[vcpu // 32 * 4096 :][:4096]
    expected = bytearray(4096)
    expected[vcpu % 32 * 64] = 1
    struct.pack_into("<Q", expected, vcpu % 32 * 64 + SELECTOR_AT, 1 << port // 64)
    struct.pack_into("<Q", expected, PENDING_AT + port // 64 * 8, 1 << port % 64)
    assert bytes(page) == expected
    assert bytes(pair.pages[(1 - vcpu // 32) * 4096 :][:4096]) == bytes(4096)
    assert (pair.channel.sent, pair.channel.saved) == (1, 0)


def test_the_doorbell_is_rung_once_and_not_for_the_wakeful() -> None:
    pair = Pair()
    assert pair.channel.send() == 1
    assert pair.channel.send() == 0, "pending already: whoever made it pending rings"
    upcall = pair.upcall(0)
    assert upcall.take() == [70]
    assert pair.channel.send() == 0, "it masks its upcall while it runs"
    assert upcall.take() == [70] and upcall.take() == []
    upcall.leave()
    assert pair.channel.send() == 1
    assert (pair.channel.sent, pair.channel.saved) == (2, 2)


def test_a_masked_port_stays_pending_until_unmasked() -> None:
    pair = Pair()
    upcall = pair.upcall(0)
    upcall.mask_port(70)
    upcall.leave()
    assert pair.channel.send() == 0
    assert pair.info(0)[0] == 0 and pair.bit(PENDING_AT)
    assert upcall.wait(0) == 0 and upcall.take() == []
    upcall.unmask_port(70)
    assert upcall.wait(0) == PENDING and upcall.take() == [70]


def test_a_port_masked_after_it_was_sent_is_not_lost() -> None:
    pair = Pair()
    upcall = pair.upcall(0)
    pair.channel.send()
    upcall.mask_port(70)
    assert upcall.take() == [] and pair.bit(PENDING_AT)
    upcall.unmask_port(70)
    assert upcall.take() == [70]


def test_the_next_user_of_a_port_starts_unmasked_with_what_is_pending() -> None:
    pair = Pair()
    dead = pair.upcall(0)
    dead.mask_port(70)
    pair.channel.send()
    assert pair.upcall(0).take() == [70]
    assert not pair.bit(MASK_AT)


def test_unbinding_drops_what_is_pending() -> None:
    pair = Pair()
    upcall = pair.upcall(0)
    pair.channel.send()
    upcall.unbind(70)
    assert upcall.take() == [] and not pair.bit(PENDING_AT)


def test_ports_of_another_vcpu_are_left_to_it() -> None:
    pair = Pair()
    mine, other = pair.upcall(0), Upcall(pair.pages[:4096], 1)
    other.bind(71)
    raise_port(pair.pages, 1, 71)
    raise_port(pair.pages, 0, 71)       # told the wrong one, as a rebound port's sender may do
    pair.channel.send()
    assert mine.take() == [70]
    assert other.take() == [71]


def test_a_rebound_port_goes_to_its_new_vcpu() -> None:
    pair = Pair()
    pair.bind(33)
    assert pair.channel.send() == 34
    assert pair.upcall(33).take() == [70]
    assert not pair.bit(PENDING_AT)


@pytest.mark.parametrize("end", ["local", "remote"])
@pytest.mark.parametrize("entry", [0, pack(UNBOUND, 0, 2, 0), pack(INTERDOMAIN, 0, 1, 4), pack(INTERDOMAIN, 0, 7, 70)])
def test_nothing_is_sent_on_a_channel_that_is_no_more(end: str, entry: int) -> None:
    pair = Pair()
    if end == "local":
        store64(pair.local, 3, entry)
    else:
        store64(pair.remote, 70, entry)
    assert pair.channel.send() == -1
    assert bytes(pair.pages) == bytes(8192)


def test_an_event_half_sent_by_a_dead_sender_is_announced() -> None:
    """Killed after the pending bit and before the selector: later senders see it pending and say nothing."""
    pair = Pair()
    upcall = pair.upcall(0)
    store64(pair.pages, PENDING_AT // 8 + 1, 1 << 6)
    assert pair.channel.send() == 0 and upcall.take() == []
    upcall.leave()
    assert raise_port(pair.pages, 0, 70) is True
    assert upcall.take() == [70]


def test_a_kick_wakes_without_a_port() -> None:
    pair = Pair()
    upcall = pair.upcall(40)
    assert kick_vcpu(pair.pages, 40) is False
    assert upcall.wait() == PENDING and upcall.take() == [] and upcall.wait(0) == 0
    upcall.leave()
    assert kick_vcpu(pair.pages, 40) is True


def test_wait_tells_what_woke_it() -> None:
    pair = Pair()
    bell, ring = os.pipe()
    other, write = os.pipe()
    upcall = pair.upcall(0, bell, other)
    upcall.spin_ns = 1000
    assert upcall.wait(0) == 0 and upcall.wait(1000) == 0
    os.write(ring, b"x")
    assert upcall.wait() == DOORBELL
    os.write(write, b"x")
    assert upcall.wait() == DOORBELL | DESCRIPTOR
    os.read(bell, 1)
    assert upcall.wait() == DESCRIPTOR
    pair.channel.send()
    assert upcall.wait() == PENDING, "and does not look at descriptors while there is work"
    upcall.take()
    slot = IoreqSlot(shared(4096), 2)
    slot.start(0, 0x1F0, 0, 1, 2, 1)
    assert upcall.wait(0, slot) == DESCRIPTOR
    slot.take()
    slot.complete(5)
    assert upcall.wait(-1, slot) == WATCHED
    assert pair.info(0)[1] == 1, "awake again"
    for fd in (bell, ring, other, write):
        os.close(fd)


def test_a_doorbell_is_drained_when_there_is_nothing_else_to_do() -> None:
    pair = Pair()
    bell, ring = os.pipe()
    upcall = pair.upcall(0, bell)
    upcall.spin_ns = 0
    drained: list[bytes] = []
    upcall.drain = lambda: drained.append(os.read(bell, 16))
    os.write(ring, b"a")
    assert upcall.wait() == DOORBELL and not drained
    pair.channel.send()
    assert upcall.wait() == PENDING and not drained, "there is work to do first"
    upcall.take()
    assert upcall.wait(0) == 0 and drained == [b"a"]
    assert upcall.wait(0) == 0 and drained == [b"a"], "it did not ring again"
    os.write(ring, b"bc")
    assert (upcall.wait(), upcall.wait(0), drained) == (DOORBELL, 0, [b"a", b"bc"])
    for fd in (bell, ring):
        os.close(fd)


def test_an_exception_of_a_drain_is_told() -> None:
    pair = Pair()
    bell, ring = os.pipe()
    upcall = pair.upcall(0, bell)
    upcall.spin_ns = 0
    upcall.drain = lambda: os.close(-1)
    os.write(ring, b"a")
    assert upcall.wait() == DOORBELL
    with pytest.raises(OSError, match="Bad file"):
        upcall.wait(0)
    assert pair.info(0)[1] == 1, "it did not go to sleep"
    for fd in (bell, ring):
        os.close(fd)


@pytest.mark.parametrize("call", ["bind", "mask_port", "unmask_port"])
@pytest.mark.parametrize("port", [4096, 0xFFFFFFFF])
def test_ports_are_bounded(call: str, port: int) -> None:
    pair = Pair()
    with pytest.raises(ValueError, match="beyond"):
        getattr(pair.upcall(0), call)(port)


def test_other_bounds() -> None:
    pair = Pair()
    for make in (
        lambda: Upcall(pair.pages[:4096], 32), lambda: Upcall(pair.pages[:64], 0),
        lambda: Channel(pair.local, PORTS, 1, pair.remote, 1, 2, pair.pages),
        lambda: Channel(pair.local[:800], 3, 1, pair.remote, 70, 2, pair.pages),
        lambda: Channel(pair.local, 3, 1, pair.remote, 70, 2, pair.pages[:4096]),
        lambda: raise_port(pair.pages, 64, 1), lambda: raise_port(pair.pages, 0, PORTS), lambda: kick_vcpu(pair.pages, 64),
    ):
        with pytest.raises(ValueError, match="no "):
            make()
    with pytest.raises(IndexError):
        load64(pair.pages, 1024)
    with pytest.raises(IndexError):
        store64(pair.pages, -1, 0)


NUMBERS = st.sampled_from([1, 2, 63, 64, 65, 130])


class Bits(RuleBasedStateMachine):
    """Two vCPUs with ports in the same words, against sets: what was sent is taken once, when unmasked, by its owner."""

    @initialize()
    def start(self) -> None:
        self.pages = shared(8192)
        self.upcalls = [Upcall(self.pages[:4096], vcpu) for vcpu in range(2)]
        self.owner: dict[int, int] = {}
        self.pending: set[int] = set()
        self.masked: set[int] = set()

    @rule(port=NUMBERS, vcpu=st.integers(0, 1))
    def bind(self, port: int, vcpu: int) -> None:
        if port not in self.owner:
            self.upcalls[vcpu].bind(port)
            self.owner[port] = vcpu
            self.masked.discard(port)

    @rule(port=NUMBERS)
    def unbind(self, port: int) -> None:
        if port in self.owner:
            self.upcalls[self.owner.pop(port)].unbind(port)
            self.pending.discard(port)

    @rule(port=NUMBERS, stale=st.booleans())
    def send(self, port: int, stale: bool) -> None:
        """stale: told the vCPU that does not own it, as before it was bound."""
        if port in self.owner:
            raise_port(self.pages, self.owner[port], port)
            self.pending.add(port)
        elif stale:
            raise_port(self.pages, 1, port)
            self.pending.add(port)

    @rule(port=NUMBERS)
    def mask(self, port: int) -> None:
        if port in self.owner:
            self.upcalls[self.owner[port]].mask_port(port)
            self.masked.add(port)

    @rule(port=NUMBERS)
    def unmask(self, port: int) -> None:
        if port in self.owner:
            self.upcalls[self.owner[port]].unmask_port(port)
            self.masked.discard(port)

    @rule(vcpu=st.integers(0, 1))
    def take(self, vcpu: int) -> None:
        due = sorted(p for p in self.pending - self.masked if self.owner.get(p) == vcpu)
        if due:
            assert self.upcalls[vcpu].wait(0) == PENDING
        assert self.upcalls[vcpu].take() == due
        self.pending.difference_update(due)


TestBits = Bits.TestCase
TestBits.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
