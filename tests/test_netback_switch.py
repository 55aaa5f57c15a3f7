"""The switch, in one process: where frames go, who waits for whom, what is dropped and when. The clock is told the time."""
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from dom0 import runtime_directory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from netpeer import BROADCAST, ERROR, MCAST_ADD, MCAST_DEL, OKAY, extra_slot
from netrig import SECOND, Rig, RigVif

QUEUE_BYTES = 512 << 10


@pytest.fixture
def directory() -> Iterator[Path]:
    with runtime_directory() as path:
        yield path


@pytest.fixture
def rig(directory: Path) -> Iterator[Rig]:
    rig = Rig(directory)
    yield rig
    rig.check_idle()


def fill(sender: RigVif, receiver: RigVif, count: int, size: int = 1000, start: int = 0) -> list[bytes]:
    """Put `count` numbered frames, and let the switch run."""
    frames = [sender.frame(receiver, struct.pack("<I", start + number), size) for number in range(count)]
    for frame in frames:
        sender.put(frame)
    sender.rig.settle()
    return frames


# -- where frames go
def test_unknown_floods_then_known_does_not(rig: Rig) -> None:
    one, two, three = rig.vif(), rig.vif(), rig.vif()
    for vif in rig.vifs:
        vif.q.post(8)
    first = fill(one, two, 1)
    assert two.received() == three.received() == first
    two.announce()
    assert one.received() == three.received() == []         # a frame to one's own address goes nowhere
    second = fill(one, two, 1)
    assert two.received() == second
    assert three.received() == []
    assert rig.switch.flooded == 1


def test_an_address_is_forgotten_after_300_seconds(rig: Rig) -> None:
    one, two, three = rig.vif(), rig.vif(), rig.vif()
    for vif in rig.vifs:
        vif.q.post(8)
    two.announce()
    rig.now += 300 * SECOND - 1
    fill(one, two, 1)
    assert len(two.received()) == 1
    assert three.received() == []
    rig.now += 1
    fill(one, two, 1)
    assert len(two.received()) == len(three.received()) == 1


def test_an_address_moves(rig: Rig) -> None:
    one, two, three = rig.vif(), rig.vif(), rig.vif()
    for vif in rig.vifs:
        vif.q.post(8)
    two.announce()
    three.q.send(two.frame(two.mac))                        # three says that it is two
    fill(one, two, 1)
    assert two.received() == []
    assert len(three.received()) == 1


def test_one_vif_cannot_fill_the_address_table(rig: Rig) -> None:
    liar, one, two = rig.vif(), rig.vif(), rig.vif()
    for number in range(3000):
        liar.put(liar.mac[:6] + b"\x02\xff" + number.to_bytes(4, "big") + b"\x88\xb5" + bytes(46))
        if number % 100 == 99:
            rig.settle()
            liar.sent()
    known = [number for number in range(3000) if rig.switch.port_of(b"\x02\xff" + number.to_bytes(4, "big"), rig.now)]
    assert known == list(range(256))
    one.announce()
    assert rig.switch.port_of(one.mac, rig.now) == one.port
    rig.now += 300 * SECOND
    two.announce()
    liar.put(liar.frame(liar.mac))
    rig.settle()
    assert rig.switch.port_of(liar.mac, rig.now) == liar.port
    rig.switch.detach(liar.vif)
    assert rig.switch.port_of(liar.mac, rig.now) is None
    assert rig.switch.port_of(two.mac, rig.now) == two.port


def test_sources_that_are_no_station(rig: Rig) -> None:
    one, two = rig.vif(), rig.vif()
    two.q.post(4)
    for source in (BROADCAST, b"\x01\x00\x5e\x00\x00\x01", bytes(6)):
        assert one.q.send(two.mac + source + b"\x88\xb5" + bytes(46)) == OKAY
        assert rig.switch.port_of(source, rig.now) is None
    assert len(two.received()) == 3


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 7), st.integers(0, 7), st.sampled_from([0, 1, 100, 200, 299, 300])),
        max_size=40,
    )
)
def test_as_a_plain_model(directory: Path, steps: list[tuple[int, int, int, int]]) -> None:
    """Frames between four vifs, with addresses of anybody: the same ports get them as a dictionary says."""
    with runtime_directory() as path:
        rig = Rig(path)
        vifs = [rig.vif() for _ in range(4)]
        addresses = [b"\x02\0\0\0\0" + bytes([number]) for number in range(6)] + [BROADCAST, b"\x01\0\0\0\0\x01"]
        table: dict[bytes, tuple[int, int]] = {}
        for number, (sender, source, target, seconds) in enumerate(steps):
            rig.now += seconds * SECOND
            for vif in vifs:
                vif.q.post(1)
            frame = (addresses[target] + addresses[source] + b"\x88\xb5" + number.to_bytes(4, "big")).ljust(60, b"\0")
            assert vifs[sender].q.send(frame) == OKAY
            if source < 6:
                table[addresses[source]] = (sender, rig.now)
            at, seen = table.get(addresses[target], (-1, 0)) if target < 6 else (-1, 0)
            wanted = {0, 1, 2, 3} - {sender}
            if at >= 0 and rig.now - seen < 300 * SECOND:
                wanted &= {at}
            got = {index for index, vif in enumerate(vifs) if frame in vif.received()}
            assert got == wanted
        rig.check_idle()


# -- waiting for a receiver
def ready(rig: Rig) -> tuple[RigVif, RigVif]:
    """A sender, and a receiver that is known and has just had a buffer."""
    sender, receiver = rig.vif(), rig.vif()
    receiver.announce()
    receiver.q.post(1)
    fill(sender, receiver, 1)
    assert len(receiver.received()) == 1
    sender.sent()
    return sender, receiver


def test_a_big_frame_waits_a_moment_where_it_is(rig: Rig) -> None:
    """It is not kept, which would be one more copy, before its receiver is late; and nothing overtakes it."""
    sender, receiver = ready(rig)
    frames = fill(sender, receiver, 1, 4097) + fill(sender, receiver, 1, 60, start=1)
    rig.pass_time(0.0049)
    assert sender.sent() == [] and receiver.back.waiting_frames == 0
    receiver.q.post(4)
    rig.settle()
    assert receiver.received() == frames and sender.sent() == [OKAY] * 3
    frames = fill(sender, receiver, 1, 4097, start=2) + fill(sender, receiver, 1, 60, start=3)
    receiver.received()
    rig.pass_time(0.005)
    assert sender.sent() == [OKAY] * 3 and receiver.back.waiting_frames == 2
    receiver.q.post(3)
    rig.settle()
    assert receiver.received() == frames


def test_a_small_frame_is_kept_at_once(rig: Rig) -> None:
    sender, receiver = ready(rig)
    fill(sender, receiver, 1, 4096)
    assert sender.sent() == [OKAY] and receiver.back.waiting_frames == 1


def test_a_receiver_without_buffers_has_a_bounded_queue_and_then_the_sender_waits(rig: Rig) -> None:
    sender, receiver = ready(rig)
    frames = fill(sender, receiver, 60, 16000)
    rig.pass_time(0.005)                        # a moment later they are kept
    kept = receiver.back.waiting_frames
    assert 0 < kept < 60
    assert QUEUE_BYTES - 20000 < receiver.back.waiting_bytes <= QUEUE_BYTES
    assert len(sender.sent()) == kept * 4                   # the others wait in the ring, unanswered
    assert rig.switch.deadline == rig.now + SECOND
    # As buffers come, everything arrives, in order.
    found = []
    while len(found) < 60:
        receiver.q.post(16)
        rig.settle()
        found += receiver.received()
    assert found == frames
    assert sender.statistics["tx_packets"] == receiver.statistics["rx_packets"] == 1 + 60
    assert receiver.statistics["rx_dropped"] == 0
    assert receiver.back.waiting_bytes == 0


def test_many_who_wait_for_one_receiver_let_the_switch_rest(rig: Rig) -> None:
    """More of them than there are turns in a run: none is to try again before something happened."""
    sender, receiver = ready(rig)
    fill(sender, receiver, 60, 16000)
    crowd = [rig.vif(queues=8) for _ in range(3)]
    queues = [(vif, queue) for vif in crowd for queue in vif.queues]
    for vif, queue in queues:
        queue.put(*queue.slots_of(vif.frame(receiver, b"", 16000)))
    rig.settle()
    assert not any(queue.tx.ready for _, queue in queues)
    receiver.q.post(200)                        # for all that was kept, and some who waited
    rig.settle()
    receiver.received()
    receiver.q.post(200)
    rig.settle()
    assert [queue.statuses(4) for _, queue in queues] == [[OKAY] * 4] * 24


def test_a_vif_that_left_waits_for_nobody(rig: Rig) -> None:
    """Who it waited for may be gone when it joins a switch again."""
    sender, receiver = ready(rig)
    fill(sender, receiver, 60, 16000)
    rig.pass_time(0.005)                        # a moment later they are kept
    assert 0 < len(sender.sent()) < 240
    rig.switch.detach(sender.vif)
    rig.switch.detach(receiver.vif)
    rig.switch.attach(sender.vif)
    rig.settle()
    assert sender.q.tx.rsp_cons + sender.q.tx.ready == sender.q.tx.req_prod


def test_a_receiver_that_does_not_move_is_not_waited_for(rig: Rig) -> None:
    sender, receiver = ready(rig)
    fill(sender, receiver, 60, 16000)
    rig.pass_time(0.005)                        # a moment later they are kept
    kept = receiver.back.waiting_frames
    sender.sent()
    rig.pass_time(0.999)
    assert sender.sent() == []
    rig.pass_time(0.001)
    assert len(sender.sent()) == (60 - kept) * 4
    assert receiver.statistics["rx_dropped"] == 60 - kept
    fill(sender, receiver, 1, 16000)                        # nobody waits from now on
    assert len(sender.sent()) == 4
    assert receiver.statistics["rx_dropped"] == 61 - kept
    # Once it posts again, what was kept comes, and it is waited for again.
    receiver.q.post(200)
    rig.settle()
    assert len(receiver.received()) == kept
    assert receiver.back.waiting_frames == 0


def test_a_receiver_that_dribbles_is_not_waited_for(rig: Rig) -> None:
    """A buffer every half second is a way to stop whoever sends to it, not progress."""
    sender, dribbler, other = rig.vif(), rig.vif(), rig.vif()
    for vif in (dribbler, other):
        vif.announce()
    other.q.post(10)
    fill(sender, dribbler, 55, 16000)
    wanted = fill(sender, other, 1)
    sender.sent()
    assert other.received() == []                           # behind the others
    for _ in range(3):
        dribbler.q.post(4)
        rig.pass_time(0.4)
        dribbler.received()
    assert other.received() == wanted
    assert dribbler.statistics["rx_dropped"] > 0


def test_a_slow_receiver_is_waited_for(rig: Rig) -> None:
    """A hundred buffers a second are few, but it moves: everything comes, minutes later."""
    sender, receiver = ready(rig)
    frames = fill(sender, receiver, 60, 16000)
    found = []
    for _ in range(60):
        rig.pass_time(0.04)
        receiver.q.post(4)
        rig.settle()
        found += receiver.received()
    assert found == frames
    assert receiver.statistics["rx_dropped"] == 0


def test_what_was_kept_is_dropped_after_ten_seconds(rig: Rig) -> None:
    sender, receiver = ready(rig)
    fill(sender, receiver, 3)
    rig.pass_time(5)
    fill(sender, receiver, 2, start=3)
    rig.pass_time(4.9)
    assert receiver.back.waiting_frames == 5
    rig.pass_time(0.1)
    assert receiver.back.waiting_frames == 2
    rig.pass_time(5)
    assert receiver.back.waiting_frames == 0
    assert receiver.statistics["rx_dropped"] == 5
    assert rig.switch.deadline == -1


def test_a_receiver_is_stalled_after_a_minute_until_it_posts(rig: Rig) -> None:
    sender, receiver = ready(rig)
    fill(sender, receiver, 1)
    rig.pass_time(59.9)
    fill(sender, receiver, 1)
    assert not receiver.back.stalled
    assert receiver.back.waiting_frames == 1
    rig.pass_time(0.1)
    fill(sender, receiver, 1)
    assert receiver.back.stalled
    assert receiver.back.waiting_frames == 1                # the one from before; nothing more is kept
    receiver.q.post(8)
    rig.settle()
    assert not receiver.back.stalled
    assert len(receiver.received()) == 1
    fill(sender, receiver, 1)
    assert len(receiver.received()) == 1


def test_without_feature_rx_notify_nothing_is_kept(rig: Rig) -> None:
    """netif.h: the backend cannot count on being told of buffers."""
    sender, receiver = rig.vif(), rig.vif(rx_notify=False)
    receiver.announce()
    fill(sender, receiver, 5)
    assert len(sender.sent()) == 5
    assert receiver.back.waiting_frames == 0
    assert receiver.statistics["rx_dropped"] == 5
    receiver.q.post(2, notify=False)
    fill(sender, receiver, 2)
    assert len(receiver.received()) == 2


def test_floods_wait_for_nobody(rig: Rig) -> None:
    sender, slow, fast = rig.vif(), rig.vif(), rig.vif()
    fast.q.post(200)
    frames = [sender.frame(BROADCAST, struct.pack("<I", number), 4096) for number in range(200)]
    for frame in frames:
        sender.put(frame)
    rig.settle()
    assert sender.sent() == [OKAY] * 200
    assert fast.received() == frames
    assert slow.back.waiting_bytes <= QUEUE_BYTES
    assert slow.back.waiting_frames + slow.statistics["rx_dropped"] == 200


def test_a_frame_does_not_overtake_those_that_wait(rig: Rig) -> None:
    """A large frame that needs more buffers than there are, and then small ones that would fit."""
    sender, receiver = ready(rig)
    receiver.q.post(2)
    frames = fill(sender, receiver, 1, 9000) + fill(sender, receiver, 5, 100, start=1)
    assert receiver.received() == []
    receiver.q.post(6)
    rig.settle()
    assert receiver.received() == frames


def test_a_sender_that_waits_stops_nobody_else(rig: Rig) -> None:
    sender, stuck = ready(rig)
    other, third = rig.vif(), rig.vif()
    third.announce()
    third.q.post(100)
    fill(sender, stuck, 60, 16000)
    assert len(fill(other, third, 100)) == len(third.received()) == 100


def test_the_senders_go_on_when_the_receiver_leaves(rig: Rig) -> None:
    sender, receiver = ready(rig)
    fill(sender, receiver, 60, 16000)
    sender.sent()
    rig.switch.detach(receiver.vif)
    rig.settle()
    assert sender.q.tx.rsp_cons + sender.q.tx.ready == sender.q.tx.req_prod
    assert receiver.back.waiting_frames == 0


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("send"), st.integers(0, 1), st.integers(14, 9000)),
            st.tuples(st.just("post"), st.integers(0, 30), st.just(0)),
            st.tuples(st.just("time"), st.integers(0, 12), st.just(0)),
        ),
        max_size=60,
    )
)
def test_order_and_numbers_whatever_happens(steps: list[tuple[str, int, int]]) -> None:
    """Two senders, one receiver that posts now and then: frames of one sender never change order, and each one was
    received, dropped and counted, or still waits somewhere."""
    with runtime_directory() as path:
        rig = Rig(path)
        senders, receiver = [rig.vif(), rig.vif()], rig.vif()
        receiver.announce()
        numbers, found = [0, 0], []
        for what, amount, size in steps:
            if what == "send" and senders[amount].q.tx.req_prod - senders[amount].q.tx.rsp_cons < 250:
                sender = senders[amount]
                frame = sender.frame(receiver, struct.pack("<I", numbers[amount]), size)[: max(size, 18)]
                sender.put(frame)
                numbers[amount] += 1
            elif what == "post":
                receiver.q.post(min(amount, 256 - (receiver.q.rx.req_prod - receiver.q.rx.rsp_cons)))
            else:
                rig.pass_time(amount / 4)
            rig.settle()
            found += receiver.received()
            for sender in senders:
                assert set(sender.sent()) <= {OKAY}
        for index, sender in enumerate(senders):
            order = [struct.unpack_from("<I", frame, 14)[0] for frame in found if frame[6:12] == sender.mac]
            assert order == sorted(order)
            assert sender.statistics["tx_packets"] + len(unanswered(sender)) >= numbers[index]
        total = sum(sender.statistics["tx_packets"] for sender in senders)
        assert total == len(found) + receiver.back.waiting_frames + receiver.statistics["rx_dropped"]
        rig.check_idle()


def unanswered(sender: RigVif) -> range:
    return range(sender.q.tx.index("rsp_prod"), sender.q.tx.req_prod)


def test_nobody_starves(rig: Rig) -> None:
    """A vif whose ring is always full, and one with a single frame: that goes within the next turns."""
    busy, modest, receiver = rig.vif(), rig.vif(), rig.vif()
    receiver.announce()
    receiver.q.post(256)
    for number in range(200):
        busy.put(busy.frame(receiver, struct.pack("<I", number)))
    modest.put(modest.frame(receiver, b"modest"))
    rig.settle()
    order = [frame[6:12] for frame in receiver.received()]
    assert order.index(modest.mac) <= 64


@pytest.mark.parametrize(("size", "count", "turn"), [(60, 200, 64), (4096, 200, 64), (65535, 15, 9 * 16)])
def test_frontends_are_told_while_the_rest_is_copied(directory: Path, size: int, count: int, turn: int) -> None:
    """After the first turn, of 64 frames or half a megabyte, both have that much to do."""
    seen: list[tuple[int, int]] = []

    class Telling(Rig):
        def notice(self) -> None:
            super().notice()
            seen.append((sender.q.tx.ready, receiver.q.rx.ready))

    rig = Telling(directory)
    sender, receiver = rig.vif(), rig.vif()
    receiver.announce()
    receiver.q.post(240)
    seen.clear()
    sent = [sender.frame(receiver, struct.pack("<I", number), size) for number in range(count)]
    for frame in sent:
        sender.put(frame)
    for vif in (sender, receiver):
        vif.q.tx.set_index(rsp_event=vif.q.tx.rsp_cons + 1)
        vif.q.rx.set_index(rsp_event=vif.q.rx.rsp_cons + 1)
    rig.run()
    assert seen == [(turn, turn)] * 2
    assert receiver.received() == sent
    assert set(sender.sent()) == {OKAY}


# -- the rate
def test_the_rate_delays_and_drops_nothing(rig: Rig) -> None:
    sender, receiver = rig.vif(), rig.vif()
    receiver.announce()
    receiver.q.post(256)
    sender.vif.limit(3000, 50_000, rig.now)                 # three frames in 50 ms
    frames = fill(sender, receiver, 10)
    found = receiver.received()
    assert found == frames[:3]
    assert sender.sent() == [OKAY] * 3
    assert rig.switch.deadline == rig.now + 50_000_000
    rig.pass_time(0.049)
    assert receiver.received() == []
    rig.pass_time(0.001)
    assert receiver.received() == frames[3:6]
    rig.pass_time(0.1)
    assert receiver.received() == frames[6:]
    assert sender.statistics["tx_dropped"] == receiver.statistics["rx_dropped"] == 0


def test_a_frame_larger_than_the_bucket_goes_eventually(rig: Rig) -> None:
    sender, receiver = rig.vif(), rig.vif()
    receiver.announce()
    receiver.q.post(20)
    sender.vif.limit(1000, 1000, rig.now)
    frames = fill(sender, receiver, 1, 65535)
    assert receiver.received() == []
    rig.pass_time(0.064)
    assert receiver.received() == []
    rig.pass_time(0.001)
    assert receiver.received() == frames


@settings(max_examples=30, deadline=None)
@given(
    rate=st.integers(100, 50_000), period=st.integers(1, 100_000),
    steps=st.lists(st.tuples(st.integers(14, 4096), st.integers(0, 40)), min_size=1, max_size=30),
)
def test_never_more_than_the_rate(rate: int, period: int, steps: list[tuple[int, int]]) -> None:
    """However the frames come: in any span of time no more leaves than the bursts of its periods and the largest one."""
    with runtime_directory() as path:
        rig = Rig(path)
        sender, receiver = rig.vif(), rig.vif()
        receiver.announce()
        receiver.q.post(256)
        began = rig.now
        sender.vif.limit(rate, period, rig.now)
        count = 0
        for size, wait in steps:
            sender.put(sender.frame(receiver, b"", size)[:size])
            rig.settle()
            rig.pass_time(wait / 1000)
            count += 1
            periods = (rig.now - began) // (period * 1000) + 1
            assert sender.statistics["tx_bytes"] <= rate * periods
        rig.pass_time(period / 1e6 * (count * 4096 / rate + 2))
        assert sender.statistics["tx_packets"] == count     # and all of them in the end


# -- multicast
def test_the_multicast_filter(rig: Rig) -> None:
    sender, picky = rig.vif(), rig.vif(multicast_control=True)
    picky.q.post(20)
    group, other = b"\x01\x00\x5e\x00\x00\x05", b"\x01\x00\x5e\x00\x00\x06"
    dummy = picky.frame(picky.mac)
    assert picky.q.send(dummy, extras=[extra_slot(MCAST_ADD, group)]) == OKAY
    for target in (group, other, BROADCAST, picky.mac):
        assert sender.q.send(sender.frame(target)) == OKAY
    assert [frame[:6] for frame in picky.received()] == [group, BROADCAST, picky.mac]
    assert picky.q.send(dummy, extras=[extra_slot(MCAST_DEL, group)]) == OKAY
    assert picky.q.send(dummy, extras=[extra_slot(MCAST_DEL, group)]) == OKAY
    sender.q.send(sender.frame(group))
    assert picky.received() == []
    picky.vif.multicast_control = False
    sender.q.send(sender.frame(group))
    assert len(picky.received()) == 1


def test_the_multicast_filter_is_bounded(rig: Rig) -> None:
    vif = rig.vif(multicast_control=True)
    statuses = [
        vif.q.send(vif.frame(vif.mac), extras=[extra_slot(MCAST_ADD, b"\x01\0\0\0\0" + bytes([number]))])
        for number in range(66)
    ]
    assert statuses == [OKAY] * 64 + [ERROR] * 2
    assert vif.vif.nr_mcast == 64
    assert vif.q.send(vif.frame(vif.mac), extras=[extra_slot(MCAST_ADD, b"\x01\0\0\0\0\x05")]) == OKAY   # it is there


# -- several queues
def test_a_flow_stays_in_its_queue(rig: Rig) -> None:
    sender, receiver = rig.vif(2), rig.vif(4)
    receiver.announce()
    for queue in receiver.queues:
        queue.post(128)
    used: dict[int, set[int]] = {}
    for number in range(200):
        flow = number % 20
        packet = ipv4(10, bytes([10, 0, 0, flow]), bytes([10, 0, 1, 1]), struct.pack(">HH", 1000 + flow, 80) + bytes(16))
        frame = receiver.mac + sender.mac + b"\x08\x00" + packet
        assert sender.queues[number % 2].send(frame) == OKAY
        index = next(index for index, queue in enumerate(receiver.queues) if queue.rx.ready)
        assert receiver.received(index) == [frame]
        used.setdefault(flow, set()).add(index)
    assert all(len(queues) == 1 for queues in used.values())
    assert len({min(queues) for queues in used.values()}) == 4


def ipv4(protocol: int, source: bytes, target: bytes, body: bytes) -> bytes:
    return struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, protocol, 0) + source + target + body
