"""netfront's data path against a backend driven step by step, lies included, and against plain models of both rings."""
import gc
import random
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from netbench import (
    CSUM_BLANK,
    DROPPED,
    ERROR,
    EXTRA,
    GSO,
    HASH,
    MCAST_ADD,
    MCAST_DEL,
    MORE,
    NULL,
    OKAY,
    PAGE,
    READING,
    RX_BLANK,
    RX_MORE,
    RX_VALIDATED,
    VALIDATED,
    WRITING,
    Bench,
    Pair,
    Sent,
    frame,
    nothing,
    response,
)

from miniguest.ring import _core
from miniguest.ring.errors import RingError

LAST = 0xFFFFFFF0               # where a ring's indices start so that they wrap before long
MOST = 65535


@pytest.fixture(params=[0, LAST], ids=["from 0", "wrapping"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path, index=request.param)
    yield made
    made.close()


@pytest.fixture
def started(bench: Bench) -> Bench:
    bench.front.start()
    return bench


# -- transmit
def test_a_frame_arrives_with_its_flags(bench: Bench) -> None:
    transmit, back = bench.pair.transmit, bench.back
    assert transmit.put_frame(frame(1514), CSUM_BLANK | VALIDATED | MORE | EXTRA | 0xFF00)
    assert not back.sent(), "not pushed yet"
    assert transmit.push()
    (sent,) = back.sent()
    assert (sent.data, sent.flags, sent.gso, len(sent.ids)) == (frame(1514), CSUM_BLANK | VALIDATED, None, 1)
    assert (transmit.frames, transmit.bytes, transmit.outstanding) == (1, 1514, 1)


@pytest.mark.parametrize(("size", "slots"), [(14, 1), (4096, 1), (4097, 2), (8192, 2), (65535, 16)])
@pytest.mark.parametrize("gso", [0, 1, 3])
def test_a_long_frame_is_a_chain_with_its_extra_info_second(bench: Bench, size: int, slots: int, gso: int) -> None:
    transmit = bench.pair.transmit
    assert transmit.put_frame(frame(size), CSUM_BLANK, gso, 1448)
    transmit.push()
    (sent,) = bench.back.sent()
    assert (sent.data, sent.flags, sent.gso) == (frame(size), CSUM_BLANK, (1448, gso) if gso else None)
    assert len(sent.ids) == slots + bool(gso)
    assert [index for index, id_ in enumerate(sent.ids) if id_ is None] == ([1] if gso else [])
    bench.back.answer_sent(sent)
    assert transmit.take() == slots + bool(gso)
    assert transmit.outstanding == 0 and bench.pair.tx_pages.nr_spare == 256 and transmit.refused == 0


@pytest.mark.parametrize("size", [0, 13, 65536, 1 << 17])
def test_what_no_frame_can_be_is_refused(bench: Bench, size: int) -> None:
    with pytest.raises(ValueError, match=f"a frame of {size} bytes"):
        bench.pair.transmit.put_frame(bytes(size))
    assert bench.pair.transmit.outstanding == 0


def test_without_sg_a_frame_is_one_page(tmp_path: Path) -> None:
    bench = Bench(tmp_path, sg=False)
    transmit = bench.pair.transmit
    with pytest.raises(ValueError, match="4097"):
        transmit.put_frame(bytes(4097))
    with pytest.raises(ValueError, match="4097"):
        transmit.put(bytes(4097), lengths(4097))
    assert transmit.put_frame(frame(4096))
    bench.front.send(bytes(4097))               # a guest may try: it is dropped, and nothing else is
    bench.front.send(bytes(13))
    bench.front.send(frame(60))
    assert [sent.data for sent in bench.back.sent()] == [frame(4096), frame(60)]
    bench.close()


def test_a_ring_that_is_not_for_these_slots(bench: Bench) -> None:
    ring = _core.FrontRing(bytearray(PAGE), 16, 16)
    with pytest.raises(ValueError, match="not a transmit ring"):
        _core.NetTransmit(ring, bench.pair.tx_pages, True)
    with pytest.raises(ValueError, match="not a receive ring"):
        _core.NetReceive(ring, bench.pair.rx_pages)


@pytest.mark.parametrize("page", [(8, 1 << 32), (8, -1), (1 << 20, 0), (-1, 0)])
def test_pages_are_within_memory_and_grant_table(bench: Bench, page: tuple[int, int]) -> None:
    with pytest.raises((IndexError, OverflowError)):
        _core.NetPages(bench.memory.map, bench.memory.grant_entries, [(8, 1), page])


def lengths(*each: int) -> bytes:
    return memoryview(struct.pack(f"<{len(each)}I", *each)).cast("I")     # type: ignore[return-value]


def test_a_batch_is_put_as_far_as_there_is_room(bench: Bench) -> None:
    transmit = bench.pair.transmit
    frames = [frame(size, size & 0xFF) for size in (60, 65535, 14, 4096, 1514) * 12]
    data, sizes = b"".join(frames), lengths(*map(len, frames))
    done, offset, seen = 0, 0, []
    while done < len(frames):
        count = transmit.put(data, sizes, done, offset)
        assert count or transmit.outstanding
        offset += sum(map(len, frames[done : done + count]))
        done += count
        transmit.push()
        sent = bench.back.sent()
        seen += [one.data for one in sent]
        bench.back.answer_sent(*sent)
        transmit.take()
    assert seen == frames
    assert (transmit.frames, transmit.bytes) == (len(frames), len(data))


@pytest.mark.parametrize(("size", "first", "offset"), [
    (100, 0, 1), (100, 0, 101), (100, 0, 1 << 63), (100, 0, (1 << 64) - 50), (101, 0, 0), (13, 0, 0), (65536, 0, 0),
])
def test_a_batch_never_reads_beside_its_data(bench: Bench, size: int, first: int, offset: int) -> None:
    with pytest.raises(ValueError, match=str(size)):
        bench.pair.transmit.put(bytes(100), lengths(size), first, offset)
    assert bench.pair.transmit.outstanding == 0


def test_a_batch_is_put_up_to_the_frame_that_is_wrong(bench: Bench) -> None:
    transmit = bench.pair.transmit
    assert transmit.put(frame(60) + bytes(13), lengths(60, 13)) == 1
    with pytest.raises(ValueError, match="13"):
        transmit.put(frame(60) + bytes(13), lengths(60, 13), 1, 60)
    assert transmit.put(frame(60), lengths(60), 1, 60) == 0, "there is none behind the last"
    assert transmit.put(frame(60), lengths(60), 1 << 31) == 0


def test_an_extra_info_takes_a_slot_and_no_page(bench: Bench) -> None:
    transmit, back = bench.pair.transmit, bench.back
    for _ in range(255):
        assert transmit.put_frame(frame(60))
    assert bench.pair.tx_pages.nr_spare == 1
    assert not transmit.fits(60, True) and not transmit.put_frame(frame(60), gso_type=1, gso_size=20)
    transmit.push()
    first, *others = back.sent()
    back.answer_sent(first)
    transmit.take()
    assert transmit.fits(60, True) and transmit.put_frame(frame(61), gso_type=1, gso_size=20)
    assert bench.pair.tx_pages.nr_spare == 1 and not transmit.fits(14), "a page is left, and no slot"
    transmit.push()
    back.answer_sent(*others, *back.sent())
    assert transmit.take() == 256 and bench.pair.tx_pages.nr_spare == 256


def test_room_is_for_the_longest_frame(bench: Bench) -> None:
    """`room` promises that any frame fits; the ring is asked for an event only when it is full."""
    front, back = bench.front, bench.back
    sent = 0
    while front.room():
        front.send(frame(60))
        sent += 1
    assert sent == 256 - 15
    assert not bench.readied
    frames = back.sent()
    assert back.answer_sent(frames[0]), "asked for an event of the first answer"
    assert front.on_transmit()
    assert bench.readied == 1 and front.room()
    front.send(frame(65535))
    assert not front.room()
    assert [one.data for one in back.sent()] == [frame(65535)]


def test_ready_comes_once_and_only_when_there_is_room(bench: Bench) -> None:
    front, back = bench.front, bench.back
    assert not front.on_transmit(), "nobody waited"
    while front.room():
        front.send(frame(65535))
    frames = back.sent()
    assert len(frames) == 16
    ids = [id_ for id_ in frames[0].ids if id_ is not None]
    for id_ in ids[:-1]:
        assert back.answer((id_, OKAY))
        assert front.on_transmit() and not bench.readied
    back.answer((ids[-1], OKAY))
    assert front.on_transmit() and bench.readied == 1
    back.answer_sent(*frames[1:])
    assert not front.on_transmit() and bench.readied == 1


def test_one_notification_for_what_the_backend_has_not_seen(bench: Bench) -> None:
    for _ in range(10):
        bench.front.send(frame(60))
    assert bench.pair.tx_port.notified == 1
    bench.back.answer_sent(*bench.back.sent())
    bench.front.send(frame(60))
    assert bench.pair.tx_port.notified == 2


def test_errors_are_counted_and_cost_nothing_else(bench: Bench) -> None:
    transmit, back = bench.pair.transmit, bench.back
    for status in (ERROR, DROPPED, -32768):
        transmit.put_frame(frame(9000))
        transmit.push()
        back.answer_sent(*back.sent(), status=status)
        assert transmit.take() == 3
    assert transmit.refused == 9 and bench.pair.tx_pages.nr_spare == 256


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_transmit_like_a_plain_model(data: st.DataObject) -> None:
    """Frames of any size, alone and in batches, pushed and answered whenever and in any order: they arrive as they are."""
    size = st.one_of(st.integers(14, 9000), st.sampled_from([14, 4095, 4096, 4097, 8192, 61440, 65535]))
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), index=data.draw(st.sampled_from([0, LAST, 0xFFFFFFFF, 77]), "index"))
        transmit, back, pages = bench.pair.transmit, bench.back, bench.pair.tx_pages
        put: list[tuple[bytes, int, tuple[int, int] | None]] = []
        arrived: list[tuple[bytes, int, tuple[int, int] | None]] = []
        unanswered: list[Sent] = []
        out = 0                                 # slots

        def look() -> None:
            found = back.sent()
            arrived.extend((one.data, one.flags, one.gso) for one in found)
            unanswered.extend(found)

        for step in range(data.draw(st.integers(1, 30), "steps")):
            action = data.draw(st.sampled_from(["one", "batch", "push", "answer", "take"]), "action")
            if action == "one":
                one, flags, gso = frame(data.draw(size), step), data.draw(st.integers(0, 3)), data.draw(st.integers(0, 2))
                needed = -(-len(one) // PAGE) + bool(gso)
                fits = out + needed <= 256
                assert transmit.fits(len(one), gso != 0) is transmit.put_frame(one, flags, gso, step) is fits
                if fits:
                    put.append((one, flags, (step, gso) if gso else None))
                    out += needed
            elif action == "batch":
                frames = [frame(each, step + index) for index, each in enumerate(data.draw(st.lists(size, max_size=20)))]
                count = transmit.put(b"".join(frames), lengths(*map(len, frames))) if frames else 0
                for index, one in enumerate(frames):
                    assert (index < count) is (out + -(-len(one) // PAGE) <= 256)
                    if index >= count:
                        break
                    out += -(-len(one) // PAGE)
                    put.append((one, 0, None))
            elif action == "push":
                transmit.push()
                look()
            elif action == "answer" and unanswered:
                for one_sent in data.draw(st.permutations(unanswered), "order")[: data.draw(st.integers(0, len(unanswered)))]:
                    unanswered.remove(one_sent)
                    back.answer_sent(one_sent)
            elif action == "take":
                out -= transmit.take()
                assert transmit.outstanding == out
        transmit.push()
        look()
        back.answer_sent(*unanswered)
        transmit.take()
        assert arrived == put
        assert transmit.frames == len(put) and transmit.bytes == sum(len(one) for one, _, _ in put)
        assert (transmit.outstanding, pages.nr_spare, transmit.refused) == (0, 256, 0)
        bench.close()


# -- receive
def test_nothing_is_posted_or_taken_before_start(bench: Bench) -> None:
    """Events may come before the card is there: frames wait in the backend, not for nobody."""
    assert not bench.front.on_receive(bench.pair.queue)
    assert bench.back.take_posted() == 0
    bench.front.start()
    assert bench.back.take_posted() == 256
    assert bench.pair.rx_port.notified == 1


def test_frames_come_in_order_and_their_pages_are_posted_again(started: Bench) -> None:
    frames = [frame(60 + 97 * index, index) for index in range(100)]
    assert started.back.deliver(*frames)
    assert started.front.on_receive(started.pair.queue)
    assert started.got == frames
    assert started.back.take_posted() == 256
    assert not started.front.on_receive(started.pair.queue)
    assert (started.pair.receive.frames, started.pair.receive.bytes) == (100, sum(map(len, frames)))


def test_an_event_is_asked_for_with_every_look(started: Bench) -> None:
    for index in range(3):
        assert started.back.deliver(frame(60, index)), "the backend is to notify"
        started.front.on_receive(started.pair.queue)
    assert len(started.got) == 3


def test_flags_and_extra_infos_arrive(bench: Bench) -> None:
    bench.pair.receive.post()
    bench.pair.receive.push()
    back = bench.back
    back.take_posted()
    gso = struct.pack("<BHBBH", GSO, 1448, 3, 0, 0)
    hashed = struct.pack("<BBBI", HASH, 2, 1, 0xDEADBEEF)
    back.respond(
        *back.slots(frame(9000), flags=RX_BLANK, extras=(gso,)), *back.slots(frame(60), flags=RX_VALIDATED, extras=(hashed, gso)),
        *back.slots(frame(61)), *back.slots(frame(62), flags=0xFFF3, extras=(bytes([MCAST_ADD]), bytes([MCAST_DEL]))),
    )
    found = bench.pair.take()
    assert [data for data, _ in found] == [frame(9000), frame(60), frame(61), frame(62)]
    plain = {"flags": 0, "gso_size": 0, "gso_type": 0, "hash_type": 0, "parts": 0, "hash": 0}
    assert [info for _, info in found] == [
        {**plain, "length": 9000, "flags": RX_BLANK, "gso_size": 1448, "gso_type": 3},
        {**plain, "length": 60, "flags": RX_VALIDATED, "gso_size": 1448, "gso_type": 3, "hash_type": 2, "hash": 0xDEADBEEF},
        {**plain, "length": 61}, {**plain, "length": 62, "flags": 0xFFF3},
    ]
    assert bench.pair.rx_pages.nr_spare == 3 + 1 + 1 + 2 + 1 + 1 + 2


@pytest.mark.parametrize("queue", [0, 2])
def test_every_queue_receives(tmp_path: Path, queue: int) -> None:
    bench = Bench(tmp_path, queues=3)
    bench.front.start()
    pair = bench.pairs[queue]
    assert pair.rx_port.notified == 1 and pair.tx_port.notified == 0
    pair.back.deliver(frame(60, queue))
    bench.front.on_receive(pair.queue)
    assert bench.got == [frame(60, queue)]
    bench.close()


def test_frames_are_kept_in_order_until_there_is_room(started: Bench) -> None:
    front, back, queue = started.front, started.back, started.pair.queue
    frames = [frame(60 + index, index) for index in range(20)]
    started.taking = 3
    back.deliver(*frames[:10])
    notified = started.pair.rx_port.notified
    assert front.on_receive(queue)
    assert started.got == frames[:3] and front.keeps
    assert back.take_posted() == 246 and started.pair.rx_port.notified == notified, "the backend waits, too"
    back.deliver(*frames[10:])
    front.on_receive(queue)
    front.resume()
    assert started.got == frames[:3] and started.pair.receive.frames == 10, "nothing more is taken"
    started.taking = 4
    front.resume()
    assert started.got == frames[:7] and front.keeps
    started.taking = 100
    front.resume()
    assert started.got == frames and not front.keeps
    assert back.take_posted() == 256


def test_no_frame_overtakes_one_that_is_kept(started: Bench) -> None:
    """A short one would fit where the long one before it does not."""
    fits = [60]

    def receive(data: bytes) -> bool:
        if len(data) > fits[0]:
            return False
        started.got.append(data)
        return True

    started.front.received = receive
    frames = [frame(size, index) for index, size in enumerate((60, 1514, 60, 1000, 60))]
    started.back.deliver(*frames)
    started.front.on_receive(started.pair.queue)
    assert started.got == frames[:1]
    for fits[0], count in ((100, 1), (1514, 5)):
        started.front.resume()
        assert started.got == frames[:count]


def test_resume_with_nothing_kept(started: Bench) -> None:
    started.front.resume()
    assert started.got == [] and not started.front.keeps


def test_what_comes_while_frames_are_kept_is_for_nothing(started: Bench) -> None:
    """Else a backend could ring all the time, whenever the guest does not look at its card."""
    started.taking = 0
    started.back.deliver(frame(60))
    assert started.front.on_receive(started.pair.queue)
    for _ in range(3):
        assert not started.front.on_receive(started.pair.queue)
    started.front.resume()
    assert started.front.keeps


def test_a_backend_that_never_stops_is_not_served_all_day(started: Bench) -> None:
    """It has the next frames as soon as it has pages: others on the loop are to have their turn in between."""
    later, endless = started.later, 2000

    def more() -> None:
        nonlocal endless
        endless -= 1
        assert endless, "it was served until it had enough"
        started.back.deliver(*[frame(60, endless & 0xFF)] * started.back.take_posted())

    started.pair.rx_port.other = more
    more()
    started.front.on_receive(started.pair.queue)
    first = len(started.got)
    assert 256 <= first <= 1024 and len(later) == 1
    started.front.on_receive(started.pair.queue)            # an event, as well
    assert len(later) == 1, "however often it is called, there is one call to come"
    second = len(started.got)
    later.pop()()
    assert len(started.got) > second > first and len(later) == 1
    started.pair.rx_port.other = nothing
    while later:
        later.pop()()
    assert not started.front.on_receive(started.pair.queue)


def test_slots_that_are_no_frames_are_work_as_well(started: Bench) -> None:
    """A chain of nothing that never ends, fed as fast as it is read."""
    later, endless = started.later, 2000

    def more() -> None:
        nonlocal endless
        endless -= 1
        assert endless, "it was served until it had enough"
        started.back.take_posted()
        started.back.respond(*[started.back.fill(b"", RX_MORE) for _ in range(len(started.back.posted))])

    started.pair.rx_port.other = more
    more()
    started.front.on_receive(started.pair.queue)
    assert len(later) == 1 and started.got == []
    started.front.abandon()
    later.pop()()
    assert not later


CUT = st.integers(0, PAGE)


@st.composite
def incoming(draw: st.DrawFn) -> tuple[list[int], int, list[tuple[int, bytes]], str]:
    """A frame's pieces, its flags, its extra infos, and what is wrong with it."""
    kind = draw(st.sampled_from(["small"] * 6 + ["any", "any", "long", "too long"]))
    if kind == "small":
        cuts = [draw(st.integers(14, 1514))]
    elif kind == "any":
        cuts = draw(st.lists(CUT, min_size=1, max_size=18))
    else:
        cuts = [PAGE] * 15 + [PAGE - 1 if kind == "long" else PAGE]
    extras = [
        (draw(st.sampled_from([GSO, MCAST_ADD, MCAST_DEL, HASH])), draw(st.binary(min_size=6, max_size=6)))
        for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2, 5])))
    ]
    wrong = draw(st.sampled_from([""] * 8 + ["status", "offset", "end"]))
    return cuts, draw(st.integers(0, 3)), extras, wrong


def expected(cuts: list[int], flags: int, extras: list[tuple[int, bytes]], wrong: str) -> dict[str, int] | None:
    """What NetReceive says of it; None when it is dropped."""
    if wrong or not 14 <= sum(cuts) <= MOST:
        return None
    info = {"length": sum(cuts), "flags": flags, "gso_size": 0, "gso_type": 0, "hash_type": 0, "parts": 0, "hash": 0}
    for kind, body in extras:
        if kind == GSO:
            info["gso_size"], info["gso_type"] = struct.unpack_from("<HB", body)
        elif kind == HASH:
            info["hash_type"], info["hash"] = struct.unpack("<BxI", body)
    return info


def spoil(slots: list[bytes], which: int, wrong: str) -> None:
    """Make one of a frame's responses nonsense that costs the frame."""
    id_, offset, flags, status = struct.unpack("<HHHh", slots[which])
    offset, status = {"status": (offset, -1 - status), "offset": (PAGE + 1, 0), "end": (PAGE, 1)}[wrong]
    slots[which] = response(id_, offset, flags, status)


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_receive_like_a_plain_model(data: st.DataObject) -> None:
    """Frames in any pieces, some of them nonsense, cut anywhere between two looks: those that are whole come in as sent."""
    with tempfile.TemporaryDirectory() as directory:
        index = data.draw(st.sampled_from([0, LAST, 0xFFFFFFFF, 77]), "index")
        bench = Bench(Path(directory), index=index, buffers=data.draw(st.sampled_from([256, 40, 300]), "buffers"))
        receive, back = bench.pair.receive, bench.back
        wanted: list[tuple[bytes, dict[str, int]]] = []
        got: list[tuple[bytes, dict[str, int]]] = []
        dropped = 0

        def look() -> None:
            got.extend(bench.pair.take())
            receive.post(data.draw(st.sampled_from([0xFFFFFFFF, 3]), "limit"))
            receive.push()

        receive.post()
        receive.push()
        for number, (cuts, flags, extras, wrong) in enumerate(data.draw(st.lists(incoming(), max_size=12), "frames")):
            while back.take_posted() < len(cuts) + len(extras):
                look()
            body = frame(sum(cuts), number)
            slots = back.slots(body, cuts, flags, tuple(bytes([kind]) + rest for kind, rest in extras))
            if wrong:
                which = data.draw(st.integers(0, len(cuts) - 1), "which")
                spoil(slots, which + (len(extras) if which else 0), wrong)
            info = expected(cuts, flags, extras, wrong)
            dropped += info is None
            if info is not None:
                wanted.append((body, info))
            at = 0
            for edge in sorted(data.draw(st.sets(st.integers(0, len(slots)), max_size=3), "edges")):
                back.respond(*slots[at:edge])
                at = edge
                look()
            back.put(*slots[at:])
        back.rx.push()
        look()
        assert [one for one, _ in got] == [one for one, _ in wanted]
        assert got == wanted
        assert (receive.frames, receive.dropped, receive.bytes) == (len(wanted), dropped, sum(len(one) for one, _ in wanted))
        assert receive.posted_buffers + bench.pair.rx_pages.nr_spare == bench.pair.rx_pages.count
        bench.close()


def test_more_buffers_than_slots_and_fewer(tmp_path: Path) -> None:
    for name, buffers in (("a", 300), ("b", 2)):
        (tmp_path / name).mkdir()
        bench = Bench(tmp_path / name, buffers=buffers)
        bench.front.start()
        assert bench.back.take_posted() == min(256, buffers)
        for index in range(600):
            bench.back.deliver(frame(60, index & 0xFF))
            bench.front.on_receive(bench.pair.queue)
        assert len(bench.got) == 600
        bench.close()


def test_a_receiver_in_a_circle_is_collected_whole(tmp_path: Path) -> None:
    """Its buffers are let go of, too: a mapping that is exported still cannot be closed, nor a bytearray be resized."""
    bench = Bench(tmp_path)
    circle: list[object] = [bench.pair.receive]
    circle.append(circle)
    data, info = bench.pair.receive.data, bench.pair.receive.info
    bench.close()
    del bench, circle
    gc.collect()
    data.close()
    info.append(1)


# -- lies
def failed(bench: Bench, reason: str) -> None:
    """The device failed once, for that reason. It takes and gives nothing any more, and nobody is left waiting."""
    assert len(bench.failures) == 1 and reason in bench.failures[0], bench.failures
    got, notified = len(bench.got), bench.pair.tx_port.notified + bench.pair.rx_port.notified
    assert bench.front.room()
    bench.front.send(frame(60))
    bench.front.on_receive(bench.pair.queue)
    bench.front.on_transmit()
    bench.front.resume()
    assert not bench.front.keeps
    assert len(bench.got) == got and bench.pair.tx_port.notified + bench.pair.rx_port.notified == notified
    assert len(bench.failures) == 1


def fill(bench: Bench) -> list[Sent]:
    """Send until somebody waits for room; the frames."""
    while bench.front.room():
        bench.front.send(frame(65535))
    return bench.back.sent()


@pytest.mark.parametrize("ahead", [257, 1 << 31, 0xFFFFFFFF])
@pytest.mark.parametrize("ring", ["tx", "rx"])
def test_rsp_prod_too_far_ahead(started: Bench, ring: str, ahead: int) -> None:
    fill(started)
    page = started.back.tx_page if ring == "tx" else started.back.rx_page
    now = int.from_bytes(page[8:12], "little")
    page[8:12] = (now + ahead & 0xFFFFFFFF).to_bytes(4, "little")
    if ring == "tx":
        started.front.on_transmit()
    else:
        started.front.on_receive(started.pair.queue)
    failed(started, "rsp_prod")


@pytest.mark.parametrize("id_", [0, 256, 0xFFFF])
def test_an_unknown_transmit_id(bench: Bench, id_: int) -> None:
    while bench.front.room():
        bench.front.send(frame(60))
    assert id_ not in {one for sent in bench.back.sent() for one in sent.ids}
    bench.back.answer((id_, OKAY))
    bench.front.on_transmit()
    failed(bench, f"transmit request {id_}, which is not out")


def test_a_transmit_request_answered_twice(bench: Bench) -> None:
    first = fill(bench)[0]
    bench.back.answer((first.ids[0] or 0, OKAY), (first.ids[0] or 0, OKAY))
    bench.front.on_transmit()
    failed(bench, "not out")


@pytest.mark.parametrize("how", [READING, WRITING, READING | WRITING])
def test_a_transmit_grant_that_is_still_mapped(bench: Bench, how: int) -> None:
    first = fill(bench)[0]
    gref = bench.pair.tx_grants[first.ids[0] or 0][0]
    bench.back.keep_mapped(gref, how)
    spare = bench.pair.tx_pages.nr_spare
    bench.back.answer_sent(first)
    bench.front.on_transmit()
    failed(bench, f"transmit grant {gref} is still mapped")
    assert bench.pair.tx_pages.nr_spare == spare, "the page is not used again"


def test_null_for_a_request_that_is_no_extra_info(bench: Bench) -> None:
    """It has an id like any other, and is answered."""
    transmit = bench.pair.transmit
    transmit.put_frame(frame(60))
    transmit.push()
    (sent,) = bench.back.sent()
    bench.back.answer((sent.ids[0] or 0, NULL))
    assert transmit.take() == 1
    assert bench.pair.tx_pages.nr_spare == 256 and transmit.refused == 0, "which is no error"
    bench.back.take()
    with pytest.raises(ValueError, match="more responses"):
        bench.back.answer((0, NULL))


def test_null_in_another_ones_place_is_found_out_with_the_extra_infos_own(bench: Bench) -> None:
    transmit = bench.pair.transmit
    transmit.put_frame(frame(60), gso_type=1, gso_size=20)
    transmit.push()
    (sent,) = bench.back.sent()
    assert sent.ids[0] is not None
    bench.back.answer((sent.ids[0], NULL), (0xDEAD, NULL))
    with pytest.raises(RingError, match=f"transmit request {0xDEAD}, which is not out"):
        transmit.take()
    assert bench.pair.tx_pages.nr_spare == 255, "its page is still the backend's"


def test_an_extra_info_that_is_never_answered_null(bench: Bench) -> None:
    transmit = bench.pair.transmit
    transmit.put_frame(frame(60), gso_type=1, gso_size=20)
    transmit.push()
    (sent,) = bench.back.sent()
    bench.back.answer((sent.ids[0] or 0, OKAY), (sent.ids[0] or 0, OKAY))
    with pytest.raises(RingError, match="not out"):
        transmit.take()


def test_failing_while_room_is_asked_for(bench: Bench) -> None:
    """Who asks is in the middle of sending: it gets its answer, and is not called back from within."""
    fill_but_one = 0
    while bench.pair.transmit.fits(MOST):
        bench.front.send(frame(65535))
        fill_but_one += 1
    bench.back.sent()
    bench.back.answer((0x7777, OKAY))
    assert bench.front.room()
    assert bench.readied == 0
    failed(bench, "not out")
    assert bench.readied == 0


@pytest.mark.parametrize("how", ["transmit", "receive", "abandon"])
def test_who_waits_for_room_is_told_when_the_device_fails(started: Bench, how: str) -> None:
    fill(started)
    if how == "transmit":
        started.back.answer((0x7777, OKAY))
        started.front.on_transmit()
    elif how == "receive":
        started.back.take_posted()
        started.back.respond(response(0x7777, 0, 0, 60))
        started.front.on_receive(started.pair.queue)
    else:
        started.front.abandon()
        started.front.abandon()
        started.failures.append("closed")
    assert started.readied == 1
    failed(started, "closed" if how == "abandon" else "not out")
    assert started.readied == 1


@pytest.mark.parametrize("id_", [256, 0x7777, 0xFFFF])
def test_an_unknown_receive_id(started: Bench, id_: int) -> None:
    started.back.take_posted()
    started.back.respond(response(id_, 0, 0, 60))
    started.front.on_receive(started.pair.queue)
    failed(started, f"receive request {id_}, which is not out")
    assert started.got == []


def test_a_receive_request_answered_twice(started: Bench) -> None:
    back = started.back
    back.take_posted()
    once = back.fill(frame(60))
    back.respond(once, once)
    started.front.on_receive(started.pair.queue)
    failed(started, "not out")


@pytest.mark.parametrize("how", [READING, WRITING])
def test_a_receive_grant_that_is_still_mapped(started: Bench, how: int) -> None:
    back = started.back
    back.take_posted()
    id_, gref = back.posted[0]
    back.keep_mapped(gref, how)
    spare = started.pair.rx_pages.nr_spare
    back.respond(back.fill(frame(60)))
    started.front.on_receive(started.pair.queue)
    failed(started, f"receive request {id_} was answered with its grant still mapped")
    assert started.got == [] and started.pair.rx_pages.nr_spare == spare


@pytest.mark.parametrize(("offset", "status"), [
    (0, PAGE + 1), (1, PAGE), (PAGE - 13, 14), (PAGE, 1), (PAGE + 1, 0), (0xFFFF, 1), (0xFFFF, 0x7FFF), (0, 0x7FFF),
    (0, -1), (0, -32768), (0, 0), (0, 13), (PAGE, 0),
])
def test_a_fragment_beside_its_page_costs_that_frame(started: Bench, offset: int, status: int) -> None:
    back = started.back
    back.take_posted()
    back.respond(
        back.fill(frame(60)), back.fill(b"", 0, offset, status), back.fill(frame(61), RX_MORE), back.fill(b"", 0, PAGE + 1, 5),
        back.fill(frame(62)),
    )
    assert started.front.on_receive(started.pair.queue)
    assert started.got == [frame(60), frame(62)]
    assert started.pair.receive.dropped == 2 and not started.failures


@pytest.mark.parametrize(("offset", "status"), [(0, PAGE), (PAGE - 14, 14), (4000, 96)])
def test_a_fragment_up_to_the_end_of_its_page(started: Bench, offset: int, status: int) -> None:
    started.back.take_posted()
    started.back.respond(started.back.fill(frame(status), 0, offset))
    started.front.on_receive(started.pair.queue)
    assert started.got == [frame(status)]


@pytest.mark.parametrize("size", [0, 1, PAGE])
def test_a_chain_that_never_ends(started: Bench, size: int) -> None:
    """It takes no memory and hands nothing over, however long it is; when it ends after all, the next frame is whole."""
    back, receive = started.back, started.pair.receive
    room = len(receive.data), len(receive.info)
    for _ in range(300):
        back.take_posted()
        back.respond(*[back.fill(b"x" * size, RX_MORE) for _ in range(256)])
        assert not started.front.on_receive(started.pair.queue), "nothing came of it"
    assert (len(receive.data), len(receive.info)) == room and not started.failures and not started.got
    back.take_posted()
    back.respond(back.fill(b""), back.fill(frame(60)))
    started.front.on_receive(started.pair.queue)
    assert started.got == [frame(60)] and receive.dropped == 1


@pytest.mark.parametrize("kind", [0, 5, 6, 255])
def test_an_extra_info_of_no_known_type(started: Bench, kind: int) -> None:
    back = started.back
    back.take_posted()
    back.respond(*back.slots(frame(60), extras=(bytes([kind]),)))
    started.front.on_receive(started.pair.queue)
    failed(started, "an extra info of no known type")
    assert started.got == []


def test_extra_infos_without_end(started: Bench) -> None:
    back = started.back
    back.take_posted()
    head = back.fill(frame(60), 8)
    back.respond(head, *[back.extra(GSO, b"\0" * 6, more=True) for _ in range(255)])
    for _ in range(20):
        assert not started.front.on_receive(started.pair.queue)
        back.take_posted()
        back.respond(*[back.extra(1 + number % 4, b"\xff" * 6, more=True) for number in range(len(back.posted))])
    started.front.on_receive(started.pair.queue)
    assert not started.got and not started.failures
    back.take_posted()
    back.respond(back.extra(HASH), back.fill(frame(61)))
    started.front.on_receive(started.pair.queue)
    assert started.got == [frame(60), frame(61)]


def test_responses_out_of_order(started: Bench) -> None:
    back = started.back
    back.take_posted()
    back.posted.reverse()
    back.respond(back.fill(frame(60, 1)), back.fill(frame(60, 2)))
    started.front.on_receive(started.pair.queue)
    assert started.got == [frame(60, 1), frame(60, 2)]
    assert back.take_posted() == 256 and len(set(back.posted)) == 256


@pytest.mark.parametrize("trouble", ["mapped", "answered"])
def test_the_page_that_an_extra_info_stands_for(started: Bench, trouble: str) -> None:
    back = started.back
    back.take_posted()
    head_id, extra_id = back.posted[0][0], back.posted[1][0]
    if trouble == "mapped":
        back.keep_mapped(back.posted[1][1])
        back.respond(*back.slots(frame(60), extras=(bytes([HASH]),)))
        reason = f"receive request {extra_id} was answered with its grant still mapped"
    else:                               # the second slot's page in the first, and the first's where the extra info is next
        back.posted[0], back.posted[1] = back.posted[1], back.posted[0]
        back.respond(back.fill(frame(60), 8), struct.pack("<BB6x", HASH, 0))
        reason = f"receive request {extra_id}, which is not out"
    started.front.on_receive(started.pair.queue)
    assert head_id != extra_id
    failed(started, reason)


def test_what_was_kept_goes_with_the_device(started: Bench) -> None:
    started.taking = 0
    started.back.deliver(frame(60), frame(61))
    started.front.on_receive(started.pair.queue)
    assert started.front.keeps
    started.front.abandon()
    assert not started.front.keeps
    started.taking = 10
    started.front.resume()
    assert started.got == []


def test_abandoned_by_whoever_receives(started: Bench) -> None:
    """In the middle of a batch, and of what was kept."""
    started.taking = 0
    started.back.deliver(*[frame(60, index) for index in range(5)])
    started.front.on_receive(started.pair.queue)

    def give_up(data: bytes) -> bool:
        started.got.append(data)
        started.front.abandon()
        return True

    started.front.received = give_up
    started.front.resume()
    assert started.got == [frame(60, 0)] and not started.front.keeps


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 64), index=st.sampled_from([0, LAST]))
def test_any_bytes_in_the_rings(seed: int, index: int) -> None:
    """Whatever the backend writes there, the device goes on or fails with a reason, and no page is lost or had twice."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), index=index)
        bench.front.start()
        pair = bench.pair
        for _ in range(chance.randrange(1, 12)):
            while bench.front.room() and chance.random() < 0.9 and not bench.failures:
                bench.front.send(frame(chance.choice([60, 1514, 9000, 65535])))
            for page, ring in ((bench.back.tx_page, pair.transmit), (bench.back.rx_page, pair.receive)):
                out = ring.outstanding if isinstance(ring, _core.NetTransmit) else ring.posted_buffers
                for at in range(64, PAGE, 8):
                    if chance.random() < 0.5:           # half likely: ids that are out, nearly right lengths
                        page[at : at + 8] = response(
                            chance.randrange(260), chance.choice([0, 0, PAGE, 99]), chance.choice([0, 0, 1, 4, 8, 12]),
                            chance.choice([60, 1514, -1, PAGE, PAGE + 1]),
                        )
                    elif chance.random() < 0.1:
                        page[at : at + 8] = chance.randbytes(8)
                now = int.from_bytes(page[8:12], "little")
                page[8:12] = (now + min(out, chance.choice([0, 1, 2, 300])) & 0xFFFFFFFF).to_bytes(4, "little")
            bench.front.on_transmit()
            bench.front.on_receive(pair.queue)
        assert len(bench.failures) <= 1
        assert all(14 <= len(one) <= MOST for one in bench.got)
        assert pair.tx_pages.nr_spare <= 256 and pair.rx_pages.nr_spare <= 256
        bench.close()


def test_the_pair_of_a_bench_is_honest(tmp_path: Path) -> None:
    """What the lies above differ from."""
    bench = Bench(tmp_path, split=False)
    pair: Pair = bench.pair
    assert pair.queue.transmit_port is pair.queue.receive_port
    bench.front.start()
    bench.front.send(frame(9000))
    (sent,) = bench.back.sent()
    bench.back.answer_sent(sent)
    bench.back.deliver(sent.data)
    bench.front.on_receive(pair.queue)
    assert bench.got == [frame(9000)]
    bench.close()
