"""A million frames between two netfronts through netback's switch, and a receiver that posts no buffers for a while."""
import os
import select
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy
import pytest

from miniguest.deploy.children import Child
from miniguest.deploy.stress.frames import BATCH, LEAST, MOST, Bytes, Numbers, Sink, Source, hello, sizes_of
from miniguest.deploy.stress.lan import Lan, lan, mac_of
from miniguest.deploy.stress.net import FLOWS, Receiving, Sending, Station, look_at_counters, pass_frames
from miniguest.deploy.stress.stirring import Stirring
from miniguest.deploy.stress.workers import StressError
from miniguest.frontend.netfront import Netfront
from miniguest.ring.process import Process

WATCHDOG = 60.0
QUEUE_BYTES = 512 << 10                 # that netback keeps for one queue's receiver
HELLOS_OF_OTHERS = 4                    # that are flooded, or may be


def test_a_million_frames() -> None:
    """Half of them in each direction at once: none lost, doubled, changed, or out of order in its flow."""
    pass_frames(500_000, seconds=200)


@pytest.mark.parametrize("doorbell", ["zmq", "fifo"])
@pytest.mark.parametrize("queues", [1, 3])
def test_stirred(doorbell: str, queues: int) -> None:
    """Frames and buffers in parts, waits that sleep at once or spin for a random time."""
    pass_frames(30_000, doorbell, queues, seed=7, stir=True, seconds=100)


def test_one_at_a_time() -> None:
    """With a single frame under way in each direction every final check and every wake counts."""
    pass_frames(8_000, "fifo", seed=9, stir=True, window=1, seconds=100)


def test_every_size() -> None:
    """From the least to the most that netif has, and around every page's end."""
    sizes = sizes_of(1)
    assert (sizes.min(), sizes.max()) == (LEAST, MOST)
    for pages in range(1, 17):
        in_so_many = (sizes + 4095) // 4096 == pages
        assert in_so_many.any()
        assert (sizes[in_so_many] % 4096 == 1).any() or pages == 1
    assert (sizes < 1514).mean() > 0.9


@pytest.fixture
def batch() -> tuple[Bytes, Numbers]:
    return Source(mac_of(1), mac_of(2), [0, 3], 5).batch(BATCH)


def frames_of(batch: tuple[Bytes, Numbers]) -> list[Bytes]:
    data, lengths = batch
    return numpy.split(data, numpy.cumsum(lengths)[:-1])


def check(frames: list[Bytes]) -> int:
    sink = Sink(mac_of(1), mac_of(2), FLOWS)
    sink.check(numpy.concatenate(frames), numpy.array([len(frame) for frame in frames], numpy.uint32))
    return sink.taken


def test_the_check_passes_what_is_right(batch: tuple[Bytes, Numbers]) -> None:
    frames = frames_of(batch)
    assert check([*frames[:9], numpy.frombuffer(hello(mac_of(1)), numpy.uint8), *frames[9:]]) == BATCH


def test_the_check_sees_a_frame_lost_doubled_or_overtaken(batch: tuple[Bytes, Numbers]) -> None:
    frames = frames_of(batch)
    first, second = [index for index, frame in enumerate(frames) if frame[11] == 3][4:6]
    swapped = frames.copy()
    swapped[first], swapped[second] = frames[second], frames[first]
    for wrong in (frames[:first] + frames[first + 1 :], frames[: first + 1] + frames[first:], swapped):
        with pytest.raises(StressError, match=r"of flow 3.*should be number"):
            check(wrong)


@pytest.mark.parametrize("at", [0, 6, 11, 13, 14, 18, 20, 22, 25, 26, 59, -1])
def test_the_check_sees_any_changed_byte(batch: tuple[Bytes, Numbers], at: int) -> None:
    frames = frames_of(batch)
    for index in (0, BATCH // 2, BATCH - 1):
        changed = [frame.copy() for frame in frames]
        changed[index][at] ^= 4
        with pytest.raises(StressError, match=r"not as it was sent|of another address"):
            check(changed)


def test_the_check_sees_a_length(batch: tuple[Bytes, Numbers]) -> None:
    frames = frames_of(batch)
    with pytest.raises(StressError, match="not as it was sent"):
        check([numpy.append(frames[0], numpy.uint8(0)), *frames[1:]])
    with pytest.raises(StressError, match="a frame of 59 bytes"):
        check([frames[0][:59]])


class Line:
    """Numbers on their way between the test and one of its processes."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def say(self, *numbers: int) -> None:
        os.write(self.writer, struct.pack("<4q", *numbers, *[0] * (4 - len(numbers))))

    def hear(self) -> tuple[int, ...]:
        return struct.unpack("<4q", os.read(self.reader, 32))

    def wait(self, switch: Lan) -> tuple[int, ...]:
        """For what a station says."""
        if not select.select([self.reader], [], [], WATCHDOG)[0]:
            switch.finish(0)                    # says who has died, or is late
        return self.hear()


class Sender:
    """Sends a first lot once it has heard of its peer, and a second one when told to."""

    def __init__(
        self, process: Process, netfront: Netfront, peer: int, lots: tuple[int, ...], connected: Line, go_on: Line, sent: Line
    ) -> None:
        (self.queue,) = netfront.queues
        self.may_send, self.wanted = False, len(lots)
        self.sent = sent
        stirring = Stirring(process, 0, False)
        self.lots = [
            Sending(self.queue, Source(netfront.mac, mac_of(peer), [flow], flow), total, stirring)
            for flow, total in enumerate(lots)
        ]
        self.receiving = Receiving(self.queue, Sink(mac_of(peer), netfront.mac, 1), stirring)
        self.receiving.post()
        netfront.attend = self.on_event

        def told() -> None:
            go_on.hear()
            self.may_send = True
            netfront.on_event(0, True, True)

        process.loop.on_fd(go_on.reader, told)
        connected.say()

    def on_event(self, _: int) -> bool:
        while True:
            moved = self.receiving.move()
            if self.receiving.heard and len(self.lots) == self.wanted:
                self.may_send = True            # the switch knows where our peer is
            moved += self.send() if self.may_send else 0
            if not moved and not self.queue.transmit.final_check() | self.queue.receive.final_check():
                return True

    def send(self) -> int:
        moved = self.lots[0].take() + self.lots[0].put()
        if self.lots[0].done:
            del self.lots[0]
            self.may_send = False
            self.sent.say()
        return moved

    def ended(self) -> bool:
        return not self.lots


class Silent:
    """Posts its buffers once, and again when it is told to. Ends when the second lot is there."""

    def __init__(
        self, process: Process, netfront: Netfront, peer: int, second: int, post: Line, posted: Line, counts: Line
    ) -> None:
        (self.queue,) = netfront.queues
        self.netfront, self.second, self.posted, self.counts = netfront, second, posted, counts
        self.sink = Sink(mac_of(peer), netfront.mac, 2)
        self.before = -1                        # frames that came before it was told
        self.receiving = Receiving(self.queue, self.sink, Stirring(process, 0, False))
        self.receiving.post()
        self.receiving.holds = True
        netfront.attend = self.on_event

        def told() -> None:
            post.hear()
            self.before = self.sink.taken
            self.receiving.holds = False
            self.receiving.post()
            posted.say()
            netfront.on_event(0, True, True)

        process.loop.on_fd(post.reader, told)
        assert self.queue.transmit.put_frame(hello(netfront.mac))
        self.queue.transmit.push()
        self.queue.transmit_port.notify()

    def on_event(self, _: int) -> bool:
        while True:
            if not self.receiving.move() and not self.queue.receive.final_check():
                return True

    def ended(self) -> bool:
        if self.sink.numbers[1] < self.second:
            return False
        self.counts.say(self.before, self.sink.numbers[0])
        return True


def own_memory(child: Child) -> int:
    """Bytes of a process's memory that it does not share."""
    status = Path(f"/proc/{child.pid}/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) << 10


def test_a_receiver_that_posts_nothing_for_a_while() -> None:
    """netback keeps what its bound allows, in order, and drops the rest; others on the switch do not notice."""
    first, second, others = 20_000, 2_000, 5_000
    connected, go_on, sent, post, posted, counts = (Line() for _ in range(6))
    with lan("fifo") as switch:
        switch.station(1, lambda process, netfront: Sender(process, netfront, 2, (first, second), connected, go_on, sent).ended)
        connected.wait(switch)
        switch.station(2, lambda process, netfront: Silent(process, netfront, 1, second, post, posted, counts).ended)
        before = own_memory(switch.netback)
        sent.wait(switch)                       # all of the first lot was answered, and nobody took most of it
        assert own_memory(switch.netback) - before < 8 * QUEUE_BYTES
        held = switch.counters(2)
        assert switch.counters(1)["tx_packets"] == first
        for domid, peer in ((3, 4), (4, 3)):
            switch.station(domid, partial(pass_to, peer, others))
        switch.finish(WATCHDOG, but=("station1", "station2"))
        for domid in (3, 4):
            look_at_counters(switch, domid, others)
        assert switch.counters(2)["rx_packets"] == held["rx_packets"]
        post.say()
        posted.wait(switch)
        go_on.say()
        switch.finish(WATCHDOG)
        taken, arrived, *_ = counts.wait(switch)
        found = switch.counters(2)
    # That they are the first ones of the flow, each there, the sink has checked.
    sizes = numpy.resize(sizes_of(0), first)
    assert 0 < taken < arrived < first
    assert QUEUE_BYTES // 8 < sizes[taken:arrived].sum() <= QUEUE_BYTES
    assert 0 <= found["rx_packets"] + found["rx_dropped"] - first - second <= HELLOS_OF_OTHERS
    assert 0 <= found["rx_packets"] - arrived - second <= HELLOS_OF_OTHERS
    assert found["errors"] == found["tx_dropped"] == 0


def pass_to(peer: int, total: int, process: Process, netfront: Netfront) -> Callable[[], bool]:
    return Station(process, netfront, peer, total, 30 + peer, False).ended
