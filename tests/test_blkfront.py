"""blkfront's data path against a backend driven step by step, lies included, and against a model disk."""
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniguest.frontend.blkfront import MOST_PAGES, Blkfront
from miniguest.frontend.blkfront_pieces import Features
from miniguest.frontend.pages import Pages
from miniguest.ring import _core
from miniguest.ring.grants import Grants
from miniguest.ring.memory import Memory

SECTOR = 512
SECTORS = 4096
READ, WRITE, FLUSH, DISCARD, INDIRECT = 0, 1, 3, 5, 6
OKAY, ERROR, EOPNOTSUPP = 0, -1, -2
PERMIT, READONLY, READING, WRITING = 1, 4, 8, 16
SLOT = 112


@dataclass
class Asked:
    """A request as the backend took it: segments are (gref, first, last)."""

    id: int
    operation: int
    kind: int
    sector: int
    segments: list[tuple[int, int, int]] = field(default_factory=list)
    nr_sectors: int = 0


class Backend:
    """The other end of the ring: takes requests, executes them on `disk`, answers when and how it is told."""

    def __init__(self, memory: Memory, frames: list[int]) -> None:
        self.memory = memory
        self.page = memoryview(memory.side_by_side(frames))
        self.ring = _core.BackRing(self.page, SLOT, 16)
        self.disk = bytearray(SECTORS * SECTOR)
        self.pending: list[Asked] = []

    def take(self) -> list[Asked]:
        """Take what there is in the ring; all that is pending."""
        while True:
            for index in range(self.ring.take()):
                self.pending.append(self._parse(bytes(self.ring.requests[index * SLOT : (index + 1) * SLOT])))
            if not self.ring.final_check():
                return self.pending

    def _parse(self, slot: bytes) -> Asked:
        operation, count, _, id_, sector = struct.unpack_from("<BBHxxxxQQ", slot)
        if operation == INDIRECT:
            _, kind, count, id_, sector, _, gref = struct.unpack_from("<BBHxxxxQQHxxI", slot)
            assert 11 < count <= 512
            entries = bytes(self.granted(gref, False))
            return Asked(id_, operation, kind, sector, self._segments(entries, 0, count))
        if operation == DISCARD:
            return Asked(id_, operation, operation, sector, nr_sectors=struct.unpack_from("<Q", slot, 24)[0])
        assert count <= 11
        return Asked(id_, operation, operation, sector, self._segments(slot, 24, count))

    def _segments(self, data: bytes, at: int, count: int) -> list[tuple[int, int, int]]:
        return [struct.unpack_from("<IBB", data, at + index * 8) for index in range(count)]

    def entry(self, gref: int) -> tuple[int, int, int]:
        found: tuple[int, int, int] = struct.unpack_from("<HHI", self.memory.grant_entries, gref * 8)
        return found

    def granted(self, gref: int, writing: bool) -> memoryview:
        """The frame behind a gref, which has to allow that."""
        flags, domid, frame = self.entry(gref)
        assert flags & 3 == PERMIT and domid == 0 and not (writing and flags & READONLY), (gref, flags, domid)
        return self.memory.frame(frame)

    def keep_mapped(self, gref: int) -> None:
        self.memory.grant_entries[gref * 8] |= READING | WRITING

    def execute(self, asked: Asked) -> None:
        """Do what is asked, on the model disk."""
        at = asked.sector * SECTOR
        for gref, first, last in asked.segments:
            assert first <= last <= 7
            size = (last - first + 1) * SECTOR
            part = self.granted(gref, asked.kind == READ)[first * SECTOR : first * SECTOR + size]
            assert at + size <= len(self.disk)
            if asked.kind == READ:
                part[:] = self.disk[at : at + size]
            else:
                self.disk[at : at + size] = part
            at += size
        if asked.kind == FLUSH:         # ids grow: what was asked for before it has been answered, if it writes
            assert not [other for other in self.pending if other.kind == WRITE and other.id < asked.id]
        if asked.kind == DISCARD:
            self.disk[at : at + asked.nr_sectors * SECTOR] = bytes(asked.nr_sectors * SECTOR)

    def answer(self, asked: Asked, status: int = OKAY) -> bool:
        """Respond; whether the frontend is to be notified."""
        self.pending.remove(asked)
        return self.respond(asked.id, asked.operation, status)

    def respond(self, id_: int, operation: int, status: int) -> bool:
        struct.pack_into("<QBxh", self.ring.responses, 0, id_, operation, status)
        self.ring.put(1)
        return self.ring.push()

    def serve(self) -> bool:
        """Execute and answer all that is pending, the last one first; whether to notify."""
        notify = False
        for asked in reversed(self.take()[:]):
            self.execute(asked)
            notify |= self.answer(asked)
        return notify


class Bench:
    """A Blkfront and its Backend on one memory file."""

    def __init__(self, directory: Path, features: Features, order: int = 0, ram_frames: int = 1024) -> None:
        self.memory = Memory.create(directory / "memory", ram_frames)
        self.pages, self.grants = Pages(self.memory), Grants(self.memory)
        frames = [self.pages.alloc() for _ in range(1 << order)]
        self.notified = 0
        self.failures: list[str] = []
        self.results: dict[str, list[bytes | bool | None]] = {}
        ring = _core.FrontRing(self.memory.side_by_side(frames), SLOT, 16)
        self.free_at_first = len(self.pages)
        self.front = Blkfront(ring, self.pages, self.grants, 0, features, self._notify, self.failures.append)
        self.back = Backend(self.memory, frames)

    def _notify(self) -> None:
        self.notified += 1

    def read(self, name: str, sector: int, count: int) -> None:
        self.front.read(sector, count, self.results.setdefault(name, []).append)

    def write(self, name: str, sector: int, data: bytes) -> None:
        self.front.write(sector, data, self.results.setdefault(name, []).append)

    def flush(self, name: str) -> None:
        self.front.flush(self.results.setdefault(name, []).append)

    def settle(self) -> None:
        """Serve until nothing is out, notifying only when the ring asks for it."""
        while self.back.take():
            if self.back.serve():
                self.front.on_event()
        assert self.front.outstanding == 0

    def close(self) -> None:
        self.memory.close()


FEATURES = {
    "plain": Features(SECTORS, flush=True, discard=True),
    "persistent": Features(SECTORS, persistent=True, flush=True, discard=True),
    "indirect": Features(SECTORS, persistent=True, flush=True, discard=True, indirect_segments=64),
    "indirect-not-persistent": Features(SECTORS, flush=True, discard=True, indirect_segments=256),
}


def fresh(name: str) -> Features:
    features = FEATURES[name]
    return Features(
        features.sectors, features.read_only, features.persistent, features.flush, features.discard, features.indirect_segments
    )


@pytest.fixture(params=FEATURES)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path, fresh(request.param))
    yield made
    made.close()


# -- honest backends
def test_requests_are_cut(bench: Bench) -> None:
    data = bytes(range(256)) * 2 * 2500
    bench.write("w", 7, data)
    bench.settle()
    assert bench.results == {"w": [True]}
    assert bench.back.disk[7 * SECTOR : 2507 * SECTOR] == data
    bench.read("r", 0, 3000)
    bench.settle()
    assert bench.results["r"] == [bytes(bench.back.disk[: 3000 * SECTOR])]


def test_a_request_takes_as_many_segments_as_the_backend_does(bench: Bench) -> None:
    bench.read("r", 0, 4000)
    most = max(len(asked.segments) for asked in bench.back.take())
    features = bench.front._features
    assert most == max(11, features.indirect_segments)
    assert {asked.operation for asked in bench.back.pending} <= {INDIRECT, READ}
    bench.settle()


def test_nothing_at_all(bench: Bench) -> None:
    bench.read("r", 5, 0)
    bench.write("w", 5, b"")
    assert bench.results == {"r": [b""], "w": [True]}
    assert bench.back.take() == []


def test_more_than_the_ring_holds(bench: Bench) -> None:
    for sector in range(500):
        bench.write(f"w{sector}", sector, sector.to_bytes(2, "little") * 256)
    assert len(bench.back.take()) == 32
    assert bench.front.outstanding == 500
    bench.settle()
    assert all(result == [True] for result in bench.results.values())
    for sector in range(500):
        bench.read(f"r{sector}", sector, 1)
    bench.settle()
    assert all(bench.results[f"r{sector}"] == [sector.to_bytes(2, "little") * 256] for sector in range(500))


def test_pages_are_bounded_and_given_back(bench: Bench) -> None:
    for sector in range(0, 4096, 64):
        bench.write(f"w{sector}", sector, bytes(64 * SECTOR))
        bench.read(f"r{sector}", sector, 64)
        assert bench.free_at_first - len(bench.pages) <= MOST_PAGES
    bench.settle()
    assert all(len(result) == 1 and result[0] for result in bench.results.values())
    bench.front.release()
    assert len(bench.pages) == bench.free_at_first


def test_no_memory_fails_the_request_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path, fresh("indirect"), ram_frames=20)
    bench.read("large", 0, 512)
    assert bench.results == {"large": [None]}
    bench.read("small", 0, 8)
    bench.settle()
    assert bench.results["small"] == [bytes(8 * SECTOR)]
    assert not bench.failures
    bench.close()


def test_one_notification_for_many_requests(bench: Bench) -> None:
    bench.back.take()
    for sector in range(10):
        bench.read(f"{sector}", sector, 1)
    assert bench.notified == 1
    bench.settle()


def test_a_flush_waits_for_the_writes_before_it(bench: Bench) -> None:
    """A backend may execute a flush before a write that is under way: it is to cover that write all the same."""
    bench.write("w", 0, b"x" * SECTOR)
    bench.flush("f")
    bench.write("later", 1, b"y" * SECTOR)
    (write,) = bench.back.take()
    assert write.kind == WRITE
    bench.back.execute(write)
    assert bench.back.answer(write)
    bench.front.on_event()
    assert [asked.kind for asked in bench.back.take()] == [FLUSH, WRITE]
    bench.settle()
    assert bench.results == {"w": [True], "f": [True], "later": [True]}


@pytest.mark.parametrize("what", ["flush", "discard"])
def test_what_the_backend_has_not_after_all(bench: Bench, what: str) -> None:
    """EOPNOTSUPP at any time (blkif.h): as if it had never been offered."""
    results: list[bool] = []
    for expected in (1, 0):
        getattr(bench.front, what)(*((3, 8) if what == "discard" else ()), results.append)
        asked = bench.back.take()[:]
        assert len(asked) == expected
        for one in asked:
            bench.back.answer(one, EOPNOTSUPP)
        bench.front.on_event()
    assert results == [True, True]


def test_an_error_fails_the_whole_request_once(bench: Bench) -> None:
    bench.read("r", 0, 4000)
    first = True
    while bench.back.take():
        asked = bench.back.pending[0]
        bench.back.execute(asked)
        if bench.back.answer(asked, ERROR if first else OKAY):
            bench.front.on_event()
        first = False
    assert bench.results == {"r": [None]}
    assert not bench.failures
    bench.read("next", 0, 1)
    bench.settle()
    assert bench.results["next"] == [bytes(SECTOR)]


def test_a_user_who_goes_on_when_called_back(bench: Bench) -> None:
    seen: list[bytes | None] = []

    def go_on(data: bytes | None) -> None:
        seen.append(data)
        if len(seen) < 100:
            bench.front.read(len(seen), 1, go_on)

    bench.front.read(0, 1, go_on)
    bench.settle()
    assert seen == [bytes(SECTOR)] * 100


# -- lies
def failed(bench: Bench, reason: str, *names: str) -> None:
    """The device failed once, for that reason; each of these got an error, once; and so does whoever asks again."""
    assert len(bench.failures) == 1 and reason in bench.failures[0], bench.failures
    for name in names:
        assert bench.results[name] in ([None], [False]), name
    bench.read("afterwards", 0, 1)
    bench.flush("flush afterwards")
    assert bench.results["afterwards"] == [None] and bench.results["flush afterwards"] == [False]
    bench.front.on_event()
    assert len(bench.failures) == 1


@pytest.mark.parametrize("ahead", [4, 33, 1 << 31, 0xFFFFFFFF])
def test_rsp_prod_too_far_ahead(bench: Bench, ahead: int) -> None:
    for name in "abc":
        bench.read(name, 0, 1)
    bench.back.page[8:12] = ahead.to_bytes(4, "little")
    bench.front.on_event()
    failed(bench, "rsp_prod", *"abc")


def test_an_unknown_id(bench: Bench) -> None:
    bench.read("a", 0, 1)
    bench.write("b", 0, bytes(SECTOR))
    asked = bench.back.take()[0]
    bench.back.respond(asked.id + 77, READ, OKAY)
    bench.front.on_event()
    failed(bench, "not out", "a", "b")


def test_a_response_given_twice(bench: Bench) -> None:
    for name in "abc":
        bench.read(name, 0, 1)
    asked = bench.back.take()[0]
    bench.back.execute(asked)
    bench.back.respond(asked.id, READ, OKAY)
    bench.back.respond(asked.id, READ, OKAY)
    bench.front.on_event()
    assert bench.results["a"] == [bytes(SECTOR)]
    failed(bench, "not out", "b", "c")


@pytest.mark.parametrize("what", ["data", "indirect"])
def test_a_grant_that_is_still_mapped(tmp_path: Path, what: str) -> None:
    bench = Bench(tmp_path, fresh("indirect-not-persistent"))
    bench.read("a", 0, 160)
    bench.write("b", 0, bytes(4000 * SECTOR))
    asked = bench.back.take()[0]
    grefs = {gref for gref, _, _ in asked.segments}
    permitted = {gref for gref in range(8, 1200) if bench.back.entry(gref)[0] & 3}
    indirect = min(permitted - {gref for one in bench.back.pending for gref, _, _ in one.segments})
    gref = max(grefs) if what == "data" else indirect
    frame = bench.back.entry(gref)[2]
    bench.back.execute(asked)
    bench.back.keep_mapped(gref)
    bench.back.answer(asked)
    bench.front.on_event()
    failed(bench, "still mapped", "b")
    assert len(bench.results["a"]) == 1
    bench.front.release()
    bench.front.release()
    assert len(bench.pages) == bench.free_at_first - (1 if gref in grefs or what == "indirect" else 0)
    assert frame not in [bench.pages.alloc() for _ in range(len(bench.pages))]
    bench.close()


def test_abandoned_with_requests_out(bench: Bench) -> None:
    names = [f"{sector}" for sector in range(100)]
    for name in names:
        bench.write(name, int(name), bytes(SECTOR))
    bench.read("many pieces", 0, 4096)
    bench.front.abandon()
    bench.front.abandon()
    assert all(bench.results[name] == [False] for name in names)
    assert bench.results["many pieces"] == [None]
    assert not bench.failures
    bench.front.release()
    assert len(bench.pages) == bench.free_at_first


# -- beside a model
def overlap(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_like_a_plain_bytearray(data: st.DataObject) -> None:
    """Several requests out at a time, none that overlaps a write, served in any order: what a bytearray would do."""
    features = fresh(data.draw(st.sampled_from(sorted(FEATURES)), "features"))
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), features, order=data.draw(st.integers(0, 1), "order"), ram_frames=1024)
        model = bytearray(SECTORS * SECTOR)
        expected: dict[str, bytes | bool] = {}
        out: dict[str, tuple[bool, range]] = {}
        for step in range(data.draw(st.integers(1, 40), "steps")):
            name = f"{step}"
            action = data.draw(st.sampled_from(["read", "write", "flush", "serve", "serve"]), "action")
            if action in ("read", "write"):
                sector = data.draw(st.integers(0, 300), "sector")
                wanted = range(sector, sector + data.draw(st.integers(1, 200), "count"))
                out = {key: value for key, value in out.items() if not bench.results[key]}
                if any(overlap(wanted, other) and (action == "write" or write) for write, other in out.values()):
                    continue
                part = slice(wanted.start * SECTOR, wanted.stop * SECTOR)
                out[name] = (action == "write", wanted)
                if action == "read":
                    expected[name] = bytes(model[part])
                    bench.read(name, sector, len(wanted))
                else:
                    model[part] = bytes([step + 1]) * (len(wanted) * SECTOR)
                    expected[name] = True
                    bench.write(name, sector, bytes(model[part]))
            elif action == "flush":
                expected[name] = True
                bench.flush(name)
            elif pending := bench.back.take():
                asked = data.draw(st.sampled_from(pending), "asked")
                bench.back.execute(asked)
                if bench.back.answer(asked):
                    bench.front.on_event()
        bench.settle()
        assert bench.results == {name: [result] for name, result in expected.items()}
        assert bench.back.disk == model
        assert not bench.failures
        bench.front.release()
        assert len(bench.pages) == bench.free_at_first
        for gref in range(8, 2000):
            flags, _, frame = bench.back.entry(gref)
            assert not flags, (gref, frame)
        bench.close()
