"""Frames put by reference and frames looked at in place, against a backend driven step by step, lies included, and models."""
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from netbench import BATCH, ERROR, NULL, OKAY, PAGE, READING, RX_MORE, WRITING, Bench, Sent, frame, response

from miniguest.frontend.netfront import INFO
from miniguest.frontend.netfront_batch import Batch, Looking
from miniguest.ring import _core
from miniguest.ring.errors import RingError

LAST = 0xFFFFFFF0               # where a ring's indices start so that they wrap before long
MOST = 65535
OWN = 256                       # pages of the ring's own, whose ids come before the batch's


@pytest.fixture(params=[0, LAST], ids=["from 0", "wrapping"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path, index=request.param)
    yield made
    made.close()


@pytest.fixture
def batch(bench: Bench) -> Batch:
    return bench.pair.queue.batch(BATCH)


def numbers(*each: int) -> numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.uint32]]:
    return numpy.array(each, numpy.uint32)


def put(batch: Batch, *frames: bytes) -> list[int]:
    """Place, fill and put frames, for which there is room; their first pages."""
    sizes = numbers(*map(len, frames))
    firsts = batch.place(sizes)
    assert len(firsts) == len(frames)
    for first, data in zip(firsts.tolist(), frames, strict=True):
        batch.frame(first, len(data))[:] = numpy.frombuffer(data, numpy.uint8)
    assert batch.put(firsts, sizes) == len(frames)
    return firsts.tolist()


def sent(bench: Bench) -> list[Sent]:
    bench.pair.transmit.push()
    return bench.back.sent()


def taken(batch: Batch) -> list[tuple[int, int]]:
    firsts, statuses = batch.take()
    return list(zip(firsts.tolist(), statuses.tolist(), strict=True))


# -- put by reference
def test_a_frame_is_sent_from_where_it_lies(bench: Bench, batch: Batch) -> None:
    frames = [frame(60), frame(65535), frame(4096), frame(4097)]
    firsts = put(batch, *frames)
    assert firsts == [0, 1, 17, 18] and batch.outstanding == 4
    found = sent(bench)
    assert [one.data for one in found] == frames and [len(one.ids) for one in found] == [1, 16, 1, 2]
    assert [one.ids[0] for one in found] == [OWN + first for first in firsts]
    bench.back.answer_sent(*found[:2], status=OKAY)
    bench.back.answer_sent(*found[2:], status=ERROR)
    assert not taken(batch)
    assert bench.pair.transmit.take() == 20
    assert taken(batch) == [(0, OKAY), (1, OKAY), (17, ERROR), (18, ERROR)] and not taken(batch)
    assert batch.outstanding == 0 and bench.pair.transmit.refused == 3
    assert (bench.pair.transmit.frames, bench.pair.transmit.bytes) == (4, sum(map(len, frames)))


def test_a_frame_is_sent_again_as_it_is(bench: Bench, batch: Batch) -> None:
    (first,) = put(batch, frame(9000))
    for _ in range(3):
        (one,) = sent(bench)
        assert one.data == frame(9000)
        with pytest.raises(ValueError, match="pages are not free"):
            batch.put(numbers(first), numbers(9000))
        bench.back.answer_sent(one)
        bench.pair.transmit.take()
        with pytest.raises(ValueError, match="pages are not free"):
            batch.put(numbers(first), numbers(9000))
        assert taken(batch) == [(first, OKAY)]
        assert batch.put(numbers(first), numbers(9000)) == 1


def test_copies_and_references_share_a_ring(bench: Bench, batch: Batch) -> None:
    assert bench.pair.transmit.put_frame(frame(5000))
    put(batch, frame(5001))
    assert bench.pair.transmit.put_frame(frame(5002), 0, 1, 1448)
    found = sent(bench)
    assert [one.data for one in found] == [frame(5000), frame(5001), frame(5002)]
    bench.back.answer_sent(*reversed(found))
    assert bench.pair.transmit.take() == 7 and taken(batch) == [(0, OKAY)]
    assert bench.pair.tx_pages.nr_spare == OWN


@pytest.mark.parametrize(("first", "size"), [
    (0, 13), (0, 0), (0, MOST + 1), (BATCH, 60), (BATCH - 1, 4097), (1 << 31, 60), (0xFFFFFFFF, 8000),
])
def test_what_is_no_frame_or_no_page_is_refused(bench: Bench, batch: Batch, first: int, size: int) -> None:
    with pytest.raises(ValueError, match=f"a frame of {size} bytes"):
        batch.put(numbers(first), numbers(size))
    assert batch.put(numbers(3, first), numbers(60, size)) == 1, "those before it are put"
    assert len(sent(bench)) == 1


def test_without_sg_a_frame_is_one_page(tmp_path: Path) -> None:
    bench = Bench(tmp_path, sg=False)
    batch = bench.pair.queue.batch(4)
    with pytest.raises(ValueError, match="4097"):
        batch.put(numbers(0), numbers(4097))
    put(batch, frame(4096))
    assert len(sent(bench)) == 1
    bench.close()


def test_places_are_given_once_and_in_turn(bench: Bench, batch: Batch) -> None:
    assert batch.place(numbers(*[MOST] * 3)).tolist() == [0, 16], "the third would begin in the last 8 pages"
    assert batch.place(numbers(8 * PAGE, 1)).tolist() == [32]
    assert batch.place(numbers(1)).tolist() == []
    sizes = numbers(MOST)
    assert batch.put(numbers(0), sizes) == 1
    bench.back.answer_sent(*sent(bench))
    bench.pair.transmit.take()
    assert batch.place(numbers(1)).tolist() == [], "answered, but not taken"
    assert taken(batch) == [(0, OKAY)]
    assert batch.place(numbers(60, 60)).tolist() == [0, 1]
    for size in (0, BATCH * PAGE + 1, 0xFFFFFFFF):
        with pytest.raises(ValueError, match=f"a frame of {size} bytes"):
            batch.place(numbers(size))


def test_a_batch_is_put_as_far_as_the_ring_has_slots(bench: Bench, batch: Batch) -> None:
    while bench.pair.transmit.put_frame(frame(60)) and bench.pair.transmit.outstanding < 253:
        pass
    firsts = batch.place(numbers(60, 8192, 60))
    assert batch.put(firsts, numbers(60, 8192, 60)) == 2
    assert batch.put(firsts[2:], numbers(60)) == 0


def test_one_batch_for_a_ring_with_grants_that_there_are(bench: Bench, batch: Batch) -> None:
    entries = bench.memory.grant_entries
    with pytest.raises(ValueError, match="already"):
        _core.NetBatch(bench.pair.transmit, entries, [8])
    other = _core.NetTransmit(_core.FrontRing(bytearray(PAGE), 12, 4), bench.pair.tx_pages, True)
    with pytest.raises(ValueError, match="0 pages"):
        _core.NetBatch(other, entries, [])
    for gref in (-1, len(entries) // 8):
        with pytest.raises(IndexError):
            _core.NetBatch(other, entries, [8, gref])


# -- a backend that lies to a sender
@pytest.mark.parametrize("id_", [OWN + 1, OWN + BATCH - 1, OWN + BATCH, 0xFFFF])
def test_an_answer_for_a_page_that_is_not_out(bench: Bench, batch: Batch, id_: int) -> None:
    put(batch, frame(60))
    assert len(sent(bench)) == 1
    bench.back.answer((id_, OKAY))
    with pytest.raises(RingError, match=f"transmit request {id_}, which is not out"):
        bench.pair.transmit.take()


def test_a_page_answered_twice(bench: Bench, batch: Batch) -> None:
    put(batch, frame(8000))
    assert len(sent(bench)) == 1
    bench.back.answer((OWN, OKAY), (OWN, OKAY))
    with pytest.raises(RingError, match=f"{OWN}, which is not out"):
        bench.pair.transmit.take()
    assert not taken(batch), "the frame's other page is not answered"


@pytest.mark.parametrize("how", [READING, WRITING])
def test_a_page_that_is_still_mapped(bench: Bench, batch: Batch, how: int) -> None:
    put(batch, frame(8000))
    found = sent(bench)
    bench.back.keep_mapped(bench.pair.batch_grefs[1], how)
    bench.back.answer_sent(*found)
    with pytest.raises(RingError, match=f"grant {bench.pair.batch_grefs[1]} is still mapped"):
        bench.pair.transmit.take()
    assert not taken(batch)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_batches_like_a_plain_model(data: st.DataObject) -> None:
    """Frames of any size, answered in any order, slot by slot: all arrive, and no page is used while it is out."""
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), index=data.draw(st.sampled_from([0, LAST]), "index"))
        batch, out, wanted = bench.pair.queue.batch(BATCH), {}, []          # type: ignore[var-annotated]
        unanswered: list[int] = []
        for number in range(data.draw(st.integers(1, 25), "steps")):
            sizes = numbers(*data.draw(st.lists(st.sampled_from([14, 60, 4096, 4097, 9000, MOST]), max_size=4), "sizes"))
            for first, size in zip(batch.place(sizes).tolist(), sizes.tolist(), strict=False):
                pages = range(first, first - -size // PAGE)
                assert not any(page in other for other in out.values() for page in pages)
                batch.frame(first, size)[:] = numpy.frombuffer(frame(size, number), numpy.uint8)
                assert batch.put(numbers(first), numbers(size)) == 1
                out[first] = pages
                wanted.append(frame(size, number))
            for one in sent(bench):
                assert one.data == wanted.pop(0)
                unanswered += [id_ for id_ in one.ids if id_ is not None]
            now = data.draw(st.permutations(unanswered), "order")[: data.draw(st.integers(0, len(unanswered)), "count")]
            unanswered = [id_ for id_ in unanswered if id_ not in now]
            bench.back.answer(*[(id_, OKAY) for id_ in now])
            assert bench.pair.transmit.take() == len(now)
            done = {first for first, pages in out.items() if not any(OWN + page in unanswered for page in pages)}
            assert {first for first, _ in taken(batch)} == done
            for first in done:
                del out[first]
            assert batch.outstanding == len(out) and not wanted
        bench.close()


# -- looked at in place
@pytest.fixture
def looking(bench: Bench) -> Looking:
    post(bench)
    return bench.pair.queue.looking()


def post(bench: Bench) -> None:
    bench.pair.receive.post()
    bench.pair.receive.push()
    bench.back.take_posted()


def seen(bench: Bench, looking: Looking, count: int) -> list[bytes]:
    """The frames that the last look found, put together from their parts."""
    info = numpy.frombuffer(bench.pair.receive.info, INFO, count)
    parts, found = looking.parts, []
    assert len(parts) == info["parts"].sum()
    for index in range(count):
        mine = parts[parts["frame"] == index].tolist()
        found.append(b"".join(looking.bytes[page * PAGE + at : page * PAGE + at + size].tobytes() for page, at, size, _ in mine))
        assert len(mine) == info["parts"][index] and len(found[-1]) == info["length"][index]
    assert looking.copy().tobytes() == b"".join(found)
    return found


def test_frames_are_where_they_came_and_go_back(bench: Bench, looking: Looking) -> None:
    receive, frames = bench.pair.receive, [frame(60), frame(65535), frame(9000)]
    for _ in range(30):
        bench.back.deliver(*frames)
        assert looking.look() == 3 and seen(bench, looking, 3) == frames
        assert receive.posted_buffers == 236 and receive.post() == 0, "the pages are held"
        looking.give_back()
        assert receive.post() == 20 and receive.posted_buffers == 256
        receive.push()
    assert (receive.frames, receive.bytes, receive.dropped) == (90, 30 * sum(map(len, frames)), 0)


def test_pages_side_by_side_stay_so(bench: Bench, looking: Looking) -> None:
    """What is looked at, and what netback copies, is one piece as long as pages are given back in order."""
    for _ in range(40):
        bench.back.deliver(*[frame(65535)] * 3)
        assert looking.look() == 3
        pages = looking.parts["page"].reshape(3, 16).astype(int)
        looking.give_back()
        post(bench)
        assert (numpy.diff(pages, axis=1) == 1).sum() >= 44, "but where the pages begin again"


def test_a_frame_that_comes_in_two_looks(bench: Bench, looking: Looking) -> None:
    slots = bench.back.slots(frame(9000)) + bench.back.slots(frame(61))
    bench.back.respond(*slots[:2])
    assert looking.look() == 0 and len(looking.parts) == 0
    looking.give_back()
    bench.back.respond(*slots[2:])
    assert looking.look() == 2 and seen(bench, looking, 2) == [frame(9000), frame(61)]


def test_extra_infos_are_told_and_hold_no_page(bench: Bench, looking: Looking) -> None:
    bench.back.respond(*bench.back.slots(frame(5000), None, 3, (bytes([1]) + struct.pack("<HB3x", 1448, 1),)))
    assert looking.look() == 1 and seen(bench, looking, 1) == [frame(5000)]
    (info,) = numpy.frombuffer(bench.pair.receive.info, INFO, 1)
    assert (info["gso_size"], info["gso_type"], info["flags"]) == (1448, 1, 3)
    assert bench.pair.rx_pages.nr_spare == 1


def test_a_ring_is_taken_from_or_looked_at(bench: Bench, looking: Looking) -> None:
    looking.look()
    with pytest.raises(ValueError, match="not both"):
        bench.pair.receive.take()


@pytest.mark.parametrize("page", [2, 255, 256, 0xFFFF])
def test_only_pages_that_are_looked_at_are_given_back(bench: Bench, looking: Looking, page: int) -> None:
    bench.back.deliver(frame(60))
    looking.look()
    (held,) = looking.parts["page"].tolist()
    for wrong in ([page], [held, held]):
        with pytest.raises(ValueError, match="is not looked at"):
            bench.pair.receive.give_back(numpy.array(wrong, numpy.uint16))
    assert bench.pair.rx_pages.nr_spare == 1


# -- a backend that lies to who looks
def test_a_page_that_is_looked_at_cannot_be_answered_again(bench: Bench, looking: Looking) -> None:
    id_ = bench.back.posted[0][0]
    bench.back.deliver(frame(60))
    assert looking.look() == 1
    bench.back.respond(response(id_, 0, 0, 60))
    with pytest.raises(RingError, match=f"receive request {id_}, which is not out"):
        looking.look()


@pytest.mark.parametrize("how", [READING, WRITING])
def test_a_page_is_not_looked_at_while_it_is_mapped(bench: Bench, looking: Looking, how: int) -> None:
    id_, gref = bench.back.posted[0]
    bench.back.keep_mapped(gref, how)
    bench.back.deliver(frame(60))
    with pytest.raises(RingError, match=f"receive request {id_} was answered with its grant still mapped"):
        looking.look()


@pytest.mark.parametrize(("offset", "status"), [(0, PAGE + 1), (1, PAGE), (PAGE, 1), (0xFFFF, 0x7FFF), (0, -1), (0, 0), (0, 13)])
def test_what_lies_beside_its_page_costs_that_frame(bench: Bench, looking: Looking, offset: int, status: int) -> None:
    back = bench.back
    back.respond(
        back.fill(frame(60)), back.fill(b"", 0, offset, status), back.fill(frame(4096), RX_MORE), back.fill(b"", 0, PAGE + 1, 5),
        back.fill(frame(62)),
    )
    assert looking.look() == 2 and seen(bench, looking, 2) == [frame(60), frame(62)]
    assert bench.pair.receive.dropped == 2 and bench.pair.rx_pages.nr_spare == 3


@pytest.mark.parametrize("size", [0, 1, PAGE])
def test_a_chain_without_end_holds_a_bounded_number_of_pages(bench: Bench, looking: Looking, size: int) -> None:
    back, receive = bench.back, bench.pair.receive
    for _ in range(500):
        back.respond(*[back.fill(bytes(size), RX_MORE) for _ in range(min(9, len(back.posted)))])
        assert looking.look() == 0
        post(bench)
        assert receive.posted_buffers >= 128
    back.respond(back.fill(b""), *back.slots(frame(60)))
    assert looking.look() == 1 and seen(bench, looking, 1) == [frame(60)] and receive.dropped == 1
    looking.give_back()
    assert receive.posted_buffers + bench.pair.rx_pages.nr_spare == 256


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_looks_like_a_plain_model(data: st.DataObject) -> None:
    """Frames in any pieces, cut anywhere between two looks, pages given back in any order and late."""
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), index=data.draw(st.sampled_from([0, LAST]), "index"))
        looking, back, receive = bench.pair.queue.looking(), bench.back, bench.pair.receive
        wanted: list[bytes] = []
        got: list[bytes] = []
        held: list[int] = []

        def look() -> None:
            got.extend(seen(bench, looking, looking.look()))
            held.extend(looking.parts["page"].tolist())
            back_now = data.draw(st.permutations(held), "order")[: data.draw(st.integers(0, len(held)), "count")]
            receive.give_back(numpy.array(back_now, numpy.uint16))
            held[:] = [page for page in held if page not in back_now]
            post(bench)

        post(bench)
        for number in range(data.draw(st.integers(0, 10), "frames")):
            cuts = data.draw(st.lists(st.integers(0, PAGE), min_size=1, max_size=15), "cuts")
            body = frame(sum(cuts), number)
            if len(back.posted) < len(cuts):
                break
            if len(body) >= 14:
                wanted.append(body)
            slots, at = back.slots(body, cuts), 0
            for edge in sorted(data.draw(st.sets(st.integers(0, len(slots)), max_size=2), "edges")):
                back.respond(*slots[at:edge])
                at = edge
                look()
            back.respond(*slots[at:])
        look()
        assert got == wanted
        assert receive.posted_buffers + bench.pair.rx_pages.nr_spare + len(held) == 256
        bench.close()


def test_null_is_an_answer(bench: Bench, batch: Batch) -> None:
    put(batch, frame(60))
    assert len(sent(bench)) == 1
    bench.back.answer((OWN, NULL))
    assert bench.pair.transmit.take() == 1 and len(taken(batch)) == 1
