"""The compiled end of blkback beside a model in plain Python: any slots at all, in the layout of either machine."""
import contextlib
import mmap
import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from miniguest.backend.blkback.formats import FORMATS, Format
from miniguest.ring import _core
from miniguest.ring.statistics import FIELDS

SECTOR, PAGE = 512, 4096
SECTORS, FRAMES, PAGES = 128, 24, 20
READ, WRITE, FLUSH, INDIRECT = 0, 1, 3, 6
REFUSED = 77                            # a status of the caller's own
FIRST = 8                               # gref, of frame 0
INDIRECT_PAGE = FIRST + 19
READONLY = {FIRST + 3, FIRST + 4}       # granted so


def shared(size: int) -> memoryview:
    return memoryview(mmap.mmap(-1, size))


class Ground:
    """A frontend's memory and table, the image, and the server."""

    def __init__(self, format: Format, persistent: bool, read_only: bool = False) -> None:
        self.format = format
        self.memory, entries, pins = shared(FRAMES * PAGE), shared(PAGE), shared(PAGE)
        table = _core.GrantTable(entries, pins, FRAMES, 1)
        self.mapper = _core.Mapper(shared(64 * 8), 0, 9)
        for frame in range(PAGES):
            _core.grant_access(entries, FIRST + frame, 0, frame, FIRST + frame in READONLY)
        self.fd = os.memfd_create("image")
        os.write(self.fd, b"".join(bytes([sector]) * SECTOR for sector in range(SECTORS)))
        page = shared(2 * PAGE)
        self.front = _core.FrontRing(page, format.request_size, format.response.size)
        ring = _core.BackRing(page, format.request_size, format.response.size)
        self.counters = shared(len(FIELDS) * 8)
        self.io = _core.GrantedIO(self.mapper, table, self.memory, persistent)
        self.server = _core.BlkServer(ring, self.io, self.fd, SECTORS, read_only, self.counters)

    def put(self, *slots: bytes) -> None:
        for slot in slots:
            self.front.requests[: len(slot)] = slot
            assert self.front.put(1) == 1
        self.front.push()

    def serve(self, left: int = 1 << 30) -> list[int]:
        """Serve all there is, refusing what is the caller's: why each of those was."""
        problems = []
        self.server.left = left
        while (reason := self.server.serve()) != _core.BLK_IDLE:
            if reason == _core.BLK_RARE:
                problems.append(self.server.problem)
                self.server.answer(REFUSED)
            elif reason == _core.BLK_MORE:
                break
        return problems

    def responses(self) -> list[tuple[int, int, int]]:
        size = self.format.response.size
        return [self.format.response.unpack_from(self.front.responses, index * size) for index in range(self.front.take())]

    def close(self) -> None:
        os.close(self.fd)

    def image(self) -> bytes:
        return os.pread(self.fd, SECTORS * SECTOR, 0)

    def count(self) -> dict[str, int]:
        return dict(zip(FIELDS, self.counters.cast("B").cast("Q"), strict=True))


def plain(format: Format, operation: int, id_: int, sector: int, segments: list[tuple[int, int, int]], count: int = -1) -> bytes:
    head = format.head.pack(operation, len(segments) if count < 0 else count, 0, id_, sector)
    return (head + b"".join(struct.pack("<IBBH", *each, 0xABCD) for each in segments)).ljust(format.request_size, b"\xee")


@pytest.fixture(params=FORMATS)
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    with contextlib.closing(Ground(FORMATS[request.param], False)) as made:
        yield made


def test_answers_come_in_parts_and_in_order(ground: Ground) -> None:
    """Each part is shown as soon as it is done; whoever sleeps is notified of the first alone."""
    segments = [(FIRST + 9, 0, 7)] * 11
    ground.put(*[plain(ground.format, READ, id_, 0, segments) for id_ in range(10)])
    ground.server.left = 1 << 30
    assert ground.server.serve() == _core.BLK_NOTIFY
    first = ground.responses()
    assert 0 < len(first) < 10
    assert ground.server.serve() == _core.BLK_IDLE
    assert first + ground.responses() == [(id_, READ, 0) for id_ in range(10)]
    counted = ground.count()
    assert counted["requests"] == counted["responses"] == 10 and counted["bytes_read"] == 10 * 11 * PAGE
    assert counted["notifications_sent"] == 1 and counted["notifications_saved"] > 0


def test_a_turn_ends_when_it_is_used_up(ground: Ground) -> None:
    slots = 32
    ground.put(*[plain(ground.format, READ, id_, 0, [(FIRST, 0, 7)]) for id_ in range(slots)])
    ground.serve(1)
    assert len(ground.responses()) == slots, "what was taken is answered"
    ground.put(plain(ground.format, READ, 1, 0, [(FIRST, 0, 7)]))
    ground.server.left = 0
    assert ground.server.serve() == _core.BLK_MORE and not ground.responses()


def test_the_callers_requests_are_in_their_turn(ground: Ground) -> None:
    write = plain(ground.format, WRITE, 1, 5, [(FIRST, 0, 0)])
    flush = plain(ground.format, FLUSH, 2, 6, [(FIRST + 1, 2, 3)])
    ground.memory[:SECTOR] = b"w" * SECTOR
    ground.memory[PAGE + 2 * SECTOR : PAGE + 4 * SECTOR] = b"f" * 2 * SECTOR
    ground.put(write, flush, plain(ground.format, WRITE, 3, 7, [(FIRST, 0, 0)]))
    ground.server.left = 1 << 20
    assert ground.server.serve() == _core.BLK_NOTIFY
    assert ground.responses() == [(1, WRITE, 0)]
    assert ground.server.serve() == _core.BLK_RARE
    assert ground.server.problem == _core.BLK_OTHER and ground.server.slot == flush
    assert ground.image()[7 * SECTOR : 8 * SECTOR] == bytes([7]) * SECTOR, "what comes behind it has to wait"
    assert ground.server.transfer()
    ground.server.answer(0)
    ground.serve()
    assert ground.responses() == [(2, FLUSH, 0), (3, WRITE, 0)]
    assert ground.image()[5 * SECTOR : 8 * SECTOR] == b"w" * SECTOR + b"f" * SECTOR + b"w" * SECTOR
    for nothing_there in (lambda: ground.server.answer(0), ground.server.transfer):
        with pytest.raises(ValueError, match="no request"):
            nothing_there()


def test_a_file_that_ends_early(ground: Ground) -> None:
    os.truncate(ground.fd, 10 * SECTOR)
    ground.put(plain(ground.format, READ, 4, 8, [(FIRST, 0, 7)]))
    assert ground.serve() == [_core.BLK_FAILED]
    assert (ground.server.detail, ground.server.error) == (8, 0)
    assert ground.mapper.mapped == 0


def test_not_a_ring_of_blkif(ground: Ground) -> None:
    ring = _core.BackRing(shared(PAGE), 64, 16)
    with pytest.raises(ValueError, match="not a blkif ring"):
        _core.BlkServer(ring, ground.io, 0, 1, False, ground.counters)
    ring = _core.BackRing(shared(PAGE), 112, 16)
    with pytest.raises(ValueError, match="counters"):
        _core.BlkServer(ring, ground.io, 0, 1, False, shared(PAGE)[:48])


# -- beside the model
Segments = list[tuple[int, int, int]]


class Model:
    """What blkif.h says, on bytearrays."""

    def __init__(self, ground: Ground, read_only: bool) -> None:
        self.memory, self.disk = bytearray(ground.memory), bytearray(ground.image())
        self.read_only = read_only

    def problem(self, operation: int, most: int, count: int, sector: int, segments: Segments) -> int:
        """Do it and answer 0, or answer why it cannot be done."""
        if not 1 <= count <= most:
            return _core.BLK_BAD_COUNT
        if operation == WRITE and self.read_only:
            return _core.BLK_READ_ONLY
        if sector >= SECTORS:
            return _core.BLK_BAD_SECTOR
        segments = segments[:count]
        sizes = [last - first + 1 for _, first, last in segments]
        if any(first > last or last > 7 for _, first, last in segments) or sector + sum(sizes) > SECTORS:
            return _core.BLK_BAD_SEGMENT
        for gref, _, _ in segments:
            if not FIRST <= gref < FIRST + PAGES or (operation == READ and gref in READONLY):
                return _core.BLK_BAD_GRANT
        at = sector * SECTOR
        for (gref, first, _), size in zip(segments, sizes, strict=True):
            start, length = (gref - FIRST) * PAGE + first * SECTOR, size * SECTOR
            if operation == READ:
                self.memory[start : start + length] = self.disk[at : at + length]
            else:
                self.disk[at : at + length] = self.memory[start : start + length]
            at += length
        return 0


SEGMENT = st.tuples(st.one_of(st.integers(FIRST, FIRST + PAGES - 1), st.integers(0, 40)), st.integers(0, 8), st.integers(0, 9))
GOOD = st.tuples(st.integers(FIRST, FIRST + 2), st.integers(0, 3), st.integers(3, 7))
PLACE = st.one_of(st.integers(0, SECTORS + 2), st.just((1 << 64) - 1))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), persistent=st.booleans(), read_only=st.booleans(), machine=st.sampled_from(sorted(FORMATS)))
def test_any_requests(data: st.DataObject, persistent: bool, read_only: bool, machine: str) -> None:
    with contextlib.closing(Ground(FORMATS[machine], persistent, read_only)) as ground:
        ask_and_compare(data, ground, read_only)


def draw_request(data: st.DataObject, ground: Ground, model: Model, id_: int) -> tuple[bytes, int]:
    """A slot, and what the model says to it."""
    operation, sector = data.draw(st.sampled_from([READ, READ, WRITE, WRITE, INDIRECT, FLUSH, 200])), data.draw(PLACE)
    segments = data.draw(st.lists(st.one_of(GOOD, GOOD, SEGMENT), max_size=11))
    if operation == INDIRECT:
        return draw_indirect(data, ground, model, id_, sector, segments)
    count = data.draw(st.sampled_from([len(segments)] * 4 + [0, 12, 255]))
    known = operation in (READ, WRITE)
    problem = model.problem(operation, 11, count, sector, segments) if known else _core.BLK_OTHER
    return plain(ground.format, operation, id_, sector, segments, count), problem


def draw_indirect(
    data: st.DataObject, ground: Ground, model: Model, id_: int, sector: int, segments: Segments
) -> tuple[bytes, int]:
    kind = data.draw(st.sampled_from([READ, WRITE, WRITE, INDIRECT]))
    gref = data.draw(st.sampled_from([INDIRECT_PAGE, INDIRECT_PAGE, 5]))
    count = data.draw(st.sampled_from([len(segments)] * 4 + [0, 257]))
    where = (INDIRECT_PAGE - FIRST) * PAGE
    packed = b"".join(struct.pack("<IBBH", *each, 0) for each in segments)
    for place in (ground.memory, model.memory):
        place[where : where + len(packed)] = packed
    if kind not in (READ, WRITE):
        problem = _core.BLK_BAD_NESTED
    elif not 1 <= count <= 256:
        problem = _core.BLK_BAD_COUNT
    elif gref != INDIRECT_PAGE:
        problem = _core.BLK_BAD_INDIRECT
    else:
        problem = model.problem(kind, 256, count, sector, segments)
    slot = ground.format.indirect.pack(INDIRECT, kind, count, id_, sector, 0, gref, *[0] * 7)
    return slot.ljust(ground.format.request_size, b"\xee"), problem


def ask_and_compare(data: st.DataObject, ground: Ground, read_only: bool) -> None:
    ground.memory[:] = bytes(frame * 7 % 251 for frame in range(FRAMES)) * PAGE
    model = Model(ground, read_only)
    slots, problems, statuses = [], [], []
    for id_ in range(data.draw(st.integers(1, 8), "requests")):
        slot, problem = draw_request(data, ground, model, id_)
        slots.append(slot)
        statuses.append((id_, slot[0], REFUSED if problem else 0))
        problems += [problem] if problem else []
        ground.put(slot)
        assert ground.serve() == ([problem] if problem else [])
    assert ground.responses() == statuses
    assert ground.image() == model.disk and ground.memory == model.memory
    counted = ground.count()
    assert counted["requests"] == counted["responses"] == len(slots) and counted["errors"] == len(problems)
    assert counted["notifications_sent"] + counted["notifications_saved"] == len(slots)
    assert ground.mapper.mapped == ground.io.nr_kept and (ground.io.persistent or not ground.io.nr_kept)
    ground.io.close()
    assert ground.mapper.mapped == 0
