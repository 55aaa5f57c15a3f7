"""blkfront's batches against a backend driven step by step, lies included, and against a model disk."""
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_blkfront import ERROR, FEATURES, FLUSH, INDIRECT, OKAY, READ, SECTOR, SECTORS, WRITE, Bench, fresh

from miniguest.frontend.blkfront_batch import Batch
from miniguest.ring.errors import PeerError


@pytest.fixture(params=FEATURES)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path, fresh(request.param))
    made.back.disk[:] = b"".join(sector.to_bytes(4, "little") * (SECTOR // 4) for sector in range(SECTORS))
    yield made
    made.close()


def read(batch: Batch, sectors: list[int], buffers: list[int]) -> int:
    return batch.read(numpy.array(sectors, numpy.uint64), numpy.array(buffers, numpy.uint32))


def write(batch: Batch, sectors: list[int], buffers: list[int]) -> int:
    return batch.write(numpy.array(sectors, numpy.uint64), numpy.array(buffers, numpy.uint32))


def taken(batch: Batch) -> dict[int, int]:
    buffers, statuses = batch.take()
    return dict(zip(buffers.tolist(), statuses.tolist(), strict=True))


def test_what_is_read_is_in_the_buffers(bench: Bench) -> None:
    batch = bench.front.batch(4, 13)
    assert read(batch, [100, 3, 4000], [2, 0, 1]) == 3
    assert batch.outstanding == bench.front.outstanding == 3 and not taken(batch)
    bench.settle()
    assert taken(batch) == {2: OKAY, 0: OKAY, 1: OKAY}
    for buffer, sector in ((2, 100), (0, 3), (1, 4000)):
        assert batch.buffer(buffer) == bench.back.disk[sector * SECTOR : (sector + 13) * SECTOR]
    assert batch.outstanding == 0 and not taken(batch)
    with pytest.raises(IndexError):
        batch.buffer(4)


def test_what_is_in_the_buffers_is_written(bench: Bench) -> None:
    batch = bench.front.batch(3, 8)
    for number in range(3):
        batch.buffer(number)[:] = bytes([65 + number]) * 4096
    assert write(batch, [0, 8, 80], [1, 2, 0]) == 3
    bench.settle()
    assert taken(batch) == {0: OKAY, 1: OKAY, 2: OKAY}
    assert bench.back.disk[: 16 * SECTOR] == b"B" * 4096 + b"C" * 4096
    assert bench.back.disk[80 * SECTOR : 88 * SECTOR] == b"A" * 4096


@pytest.mark.parametrize("sectors", [1, 7, 8, 88, 89, 500])
def test_a_request_is_one_of_the_rings(tmp_path: Path, sectors: int) -> None:
    """Direct up to 11 segments, indirect above; the last segment no longer than it has to be."""
    bench = Bench(tmp_path, fresh("indirect"))
    batch = bench.front.batch(1, sectors)
    read(batch, [5], [0])
    (asked,) = bench.back.take()
    assert asked.operation == (INDIRECT if sectors > 88 else READ) and asked.sector == 5
    assert sum(last - first + 1 for _, first, last in asked.segments) == sectors
    assert len(asked.segments) == -(-sectors // 8)
    bench.close()


def test_more_than_the_ring_has_slots(bench: Bench) -> None:
    batch = bench.front.batch(50, 1)
    attended = []
    batch.attend = lambda: attended.append(len(taken(batch)))
    bench.read("one", 9, 1)
    assert read(batch, list(range(50)), list(range(50))) == 31
    assert read(batch, [1], [49]) == 0
    bench.settle()
    assert sum(attended) == 31 and len(bench.results["one"]) == 1
    assert read(batch, list(range(31, 50)), list(range(31, 50))) == 19
    bench.settle()
    assert sum(attended) == 50


@pytest.mark.parametrize("buffers", [[0, 0], [1, 3], [0, 1, 4], [2, 7, 1], [0xFFFFFFFF]])
def test_a_buffer_that_is_busy_or_none(bench: Bench, buffers: list[int]) -> None:
    """Nothing of the call is put, and what it named before that is as free as it was."""
    batch = bench.front.batch(4, 1)
    read(batch, [0], [3])
    with pytest.raises(ValueError, match="not there"):
        read(batch, [0] * len(buffers), buffers)
    assert batch.outstanding == 1 and len(bench.back.take()) == 1
    assert read(batch, [1, 2, 3], [0, 1, 2]) == 3
    bench.settle()
    with pytest.raises(ValueError, match="not taken"):
        read(batch, [0], [3])
    assert set(taken(batch)) == {0, 1, 2, 3}
    assert read(batch, [0], [3]) == 1


def test_an_error_is_its_requests_alone(bench: Bench) -> None:
    batch = bench.front.batch(3, 1)
    read(batch, [1, 2, 3], [0, 1, 2])
    for asked, status in zip(bench.back.take()[:], (OKAY, ERROR, -2), strict=True):
        bench.back.answer(asked, status)
    bench.front.on_event()
    assert taken(batch) == {0: OKAY, 1: ERROR, 2: -2}
    assert not bench.failures


def test_a_flush_waits_for_the_writes_of_a_batch(bench: Bench) -> None:
    batch = bench.front.batch(2, 8)
    write(batch, [0, 8], [0, 1])
    bench.flush("f")
    first, second = bench.back.take()
    for asked in (first, second):
        assert asked.kind == WRITE and "f" in bench.results and not bench.results["f"]
        bench.back.execute(asked)
        bench.back.answer(asked)
        bench.front.on_event()
    assert [asked.kind for asked in bench.back.take()] == [FLUSH]
    bench.settle()
    assert bench.results == {"f": [True]}


def test_there_is_one_and_only_while_there_are_pages(bench: Bench) -> None:
    before = len(bench.pages)
    with pytest.raises(PeerError, match="pages"):
        bench.front.batch(1000, 88)
    assert len(bench.pages) == before
    for sectors in (0, max(11, bench.front._features.indirect_segments) * 8 + 1):
        with pytest.raises(ValueError, match="at a time"):
            bench.front.batch(1, sectors)
    bench.front.batch(2, 8)
    before = len(bench.pages)
    with pytest.raises(PeerError, match="one batch"):
        bench.front.batch(2, 8)
    assert len(bench.pages) == before


# -- lies and ends
def test_a_response_given_twice(bench: Bench) -> None:
    batch = bench.front.batch(2, 1)
    read(batch, [1, 2], [0, 1])
    asked = bench.back.take()[0]
    bench.back.execute(asked)
    bench.back.respond(asked.id, READ, OKAY)
    bench.back.respond(asked.id, READ, OKAY)
    bench.front.on_event()
    assert len(bench.failures) == 1 and "not out" in bench.failures[0]
    assert taken(batch) == {0: OKAY, 1: ERROR}


@pytest.mark.parametrize("id_", [0, 1, 2, 63, 64, 65535, 2 << 16, (1 << 16) + 64, (1 << 64) - 1])
def test_ids_of_nothing(bench: Bench, id_: int) -> None:
    batch = bench.front.batch(1, 1)
    read(batch, [1], [0])
    assert bench.back.take()[0].id != id_
    struct.pack_into("<QBxh", bench.back.ring.responses, 0, id_, READ, OKAY)
    bench.back.ring.put(1)
    bench.back.ring.push()
    bench.front.on_event()
    assert len(bench.failures) == 1 and f"request {id_}, which is not out" in bench.failures[0]
    assert taken(batch) == {0: ERROR}


def test_a_page_that_is_still_mapped(tmp_path: Path) -> None:
    bench = Bench(tmp_path, fresh("indirect-not-persistent"))
    batch = bench.front.batch(2, 160)
    read(batch, [0, 200], [0, 1])
    first, second = bench.back.take()
    bench.back.execute(first)
    bench.back.keep_mapped(first.segments[7][0])
    bench.back.answer(first)
    bench.front.on_event()
    assert len(bench.failures) == 1 and f"[{first.segments[7][0]}] are still mapped" in bench.failures[0]
    assert taken(batch) == {0: ERROR, 1: ERROR}
    bench.front.release()
    bench.front.release()
    assert len(bench.pages) == bench.free_at_first - 1
    assert second.segments
    bench.close()


def test_abandoned_with_requests_out(bench: Bench) -> None:
    batch = bench.front.batch(5, 20)
    attended: list[dict[int, int]] = []
    batch.attend = lambda: attended.append(taken(batch))
    read(batch, [0, 20, 40], [4, 2, 0])
    bench.read("r", 100, 5)
    bench.front.abandon()
    bench.front.abandon()
    assert attended == [{4: ERROR, 2: ERROR, 0: ERROR}] and bench.results == {"r": [None]}
    with pytest.raises(PeerError, match="gone"):
        read(batch, [0], [1])
    with pytest.raises(PeerError, match="gone"):
        bench.front.batch(1, 1)
    bench.front.release()
    assert len(bench.pages) == bench.free_at_first


# -- beside a model
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_like_a_plain_bytearray(data: st.DataObject) -> None:
    """A batch on one half of a disk and single requests on the other, served in any order."""
    half = SECTORS // 2
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), fresh(data.draw(st.sampled_from(sorted(FEATURES)), "features")))
        size = data.draw(st.integers(1, 88 if bench.front._features.indirect_segments == 0 else 200), "size")
        batch = bench.front.batch(data.draw(st.integers(1, 6), "buffers"), size)
        model, expected = bytearray(SECTORS * SECTOR), {}
        out: dict[int, tuple[bool, int, bytes]] = {}
        for step in range(data.draw(st.integers(1, 30), "steps")):
            action = data.draw(st.sampled_from(["read", "write", "single", "serve", "serve", "take"]), "action")
            buffer, place = data.draw(st.integers(0, batch.buffers - 1)), data.draw(st.integers(0, half // size - 1)) * size
            busy = buffer in out or any(place == other for _, other, _ in out.values())
            if action in ("read", "write") and not busy:
                part = slice(place * SECTOR, (place + size) * SECTOR)
                if action == "write":
                    model[part] = bytes([step + 1]) * (size * SECTOR)
                    batch.buffer(buffer)[:] = model[part]
                    put = write(batch, [place], [buffer])
                else:
                    put = read(batch, [place], [buffer])
                assert put == 1
                out[buffer] = (action == "read", place, bytes(model[part]))
            elif action == "single":
                expected[f"{step}"] = bytes(SECTOR)
                bench.read(f"{step}", half + step, 1)
            elif action == "serve" and (pending := bench.back.take()):
                asked = data.draw(st.sampled_from(pending), "asked")
                bench.back.execute(asked)
                bench.back.answer(asked)
                bench.front.on_event()
            elif action == "take":
                check(batch, out)
        bench.settle()
        check(batch, out)
        assert not out and bench.back.disk == model and not bench.failures
        assert bench.results == {name: [result] for name, result in expected.items()}
        bench.front.abandon()
        bench.front.release()
        assert len(bench.pages) == bench.free_at_first
        assert not any(bench.memory.grant_entries[at * 8] for at in range(8, 2000))
        bench.close()


def check(batch: Batch, out: dict[int, tuple[bool, int, bytes]]) -> None:
    for buffer, status in taken(batch).items():
        was_read, _, wanted = out.pop(buffer)
        assert status == OKAY and (not was_read or batch.buffer(buffer) == wanted)


