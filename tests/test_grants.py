"""Grants: the rules of mapping, the counts and in-use bits, I/O straight into granted frames, and what a killed mapper held."""
import errno
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from miniguest.ring._core import (
    IO_BAD_GRANT,
    IO_BAD_SEGMENT,
    IO_FAILED,
    GrantedIO,
    GrantTable,
    Mapper,
    end_access,
    grant_access,
    grant_copy,
    load64,
    store64,
)
from miniguest.ring.abi import grant_table as gt
from miniguest.ring.errors import PeerError
from miniguest.ring.grants import GRANT_ENTRIES, Grants
from miniguest.ring.memory import Memory

GRANTER, MAPPING, OTHER = 1, 2, 3
FRAMES = 16
PAGE = 4096
IN_USE = gt.GTF_reading | gt.GTF_writing


def shared(size: int) -> memoryview:
    return memoryview(mmap.mmap(-1, size))


class Ground:
    """A granting domain of FRAMES frames, its table of 512 entries, and mappers of domain 2 in processes of their own."""

    def __init__(self, handles: int = 64) -> None:
        self.memory, self.entries, self.pins = shared(FRAMES * PAGE), shared(PAGE), shared(PAGE)
        self.table = GrantTable(self.entries, self.pins, FRAMES, GRANTER)
        self.tracks = [shared(handles * 8) for _ in range(2)]
        self.mappers = [Mapper(track, MAPPING, index + 1) for index, track in enumerate(self.tracks)]
        self.mapper = self.mappers[0]

    def grant(self, gref: int, frame: int | None = None, readonly: bool = False, domid: int = MAPPING) -> int:
        grant_access(self.entries, gref, domid, gref if frame is None else frame, readonly)
        return gref

    def flags(self, gref: int) -> int:
        return int(struct.unpack_from("<H", self.entries, gref * 8)[0])


@pytest.fixture
def ground() -> Ground:
    return Ground()


def test_an_entry_is_grant_entry_v1(ground: Ground) -> None:
    ground.grant(9, 5, readonly=True)
    assert bytes(ground.entries[72:80]) == struct.pack("<HHI", gt.GTF_permit_access | gt.GTF_readonly, MAPPING, 5)


@pytest.mark.parametrize(("readonly", "bits"), [(True, gt.GTF_reading), (False, IN_USE)])
def test_map_and_unmap(ground: Ground, readonly: bool, bits: int) -> None:
    ground.grant(9, 5)
    handle, frame = ground.mapper.map(ground.table, 9, readonly)
    assert handle >= 0 and frame == 5
    assert ground.flags(9) == gt.GTF_permit_access | bits
    assert not end_access(ground.entries, 9), "a grant in use cannot be revoked"
    assert ground.mapper.unmap(ground.table, handle) == gt.GNTST_okay
    assert ground.flags(9) == gt.GTF_permit_access and ground.table.pinned(9) == (0, 0)
    assert end_access(ground.entries, 9) and ground.flags(9) == 0


def test_bits_go_with_the_last_mapping_that_needs_them(ground: Ground) -> None:
    ground.grant(9)
    first, second = ground.mappers
    write, read = first.map(ground.table, 9)[0], second.map(ground.table, 9, True)[0]
    assert ground.table.pinned(9) == (1, 1) and ground.flags(9) & IN_USE == IN_USE
    first.unmap(ground.table, write)
    assert ground.table.pinned(9) == (1, 0) and ground.flags(9) & IN_USE == gt.GTF_reading
    second.unmap(ground.table, read)
    assert ground.flags(9) & IN_USE == 0


@pytest.mark.parametrize(
    ("flags", "domid", "frame", "readonly", "status"),
    [
        (gt.GTF_invalid, MAPPING, 1, False, gt.GNTST_general_error),
        (gt.GTF_accept_transfer, MAPPING, 1, False, gt.GNTST_general_error),
        (gt.GTF_transitive, MAPPING, 1, False, gt.GNTST_general_error),
        (gt.GTF_permit_access, OTHER, 1, False, gt.GNTST_general_error),
        (gt.GTF_permit_access | gt.GTF_readonly, MAPPING, 1, False, gt.GNTST_general_error),
        (gt.GTF_permit_access | gt.GTF_readonly, MAPPING, 1, True, gt.GNTST_okay),
        (gt.GTF_permit_access, MAPPING, FRAMES, False, gt.GNTST_bad_page),
        (gt.GTF_permit_access, MAPPING, 0xFFFFFFFF, True, gt.GNTST_bad_page),
    ],
)
def test_what_may_be_mapped(ground: Ground, flags: int, domid: int, frame: int, readonly: bool, status: int) -> None:
    struct.pack_into("<HHI", ground.entries, 80, flags, domid, frame)
    handle, _ = ground.mapper.map(ground.table, 10, readonly)
    if status == gt.GNTST_okay:
        assert ground.mapper.unmap(ground.table, handle) == 0
    else:
        assert handle == status
    assert ground.flags(10) == flags and ground.mapper.mapped == 0
    assert not any(ground.pins) and not any(ground.tracks[0])


@pytest.mark.parametrize("gref", [512, 0xFFFFFFFF])
def test_a_gref_beyond_the_table(ground: Ground, gref: int) -> None:
    assert ground.mapper.map(ground.table, gref)[0] == gt.GNTST_bad_gntref
    for call in (ground.table.pinned, ground.table.holder):
        with pytest.raises(IndexError):
            call(gref)
    with pytest.raises(IndexError):
        end_access(ground.entries, gref)
    with pytest.raises(IndexError):
        grant_access(ground.entries, gref, 0, 0, False)


def test_handles_run_out_and_come_back() -> None:
    ground = Ground(handles=3)
    ground.grant(9)
    handles = [ground.mapper.map(ground.table, 9)[0] for _ in range(4)]
    assert sorted(handles) == [gt.GNTST_no_device_space, 0, 1, 2]
    assert ground.table.pinned(9) == (0, 3)
    assert ground.mapper.unmap(ground.table, handles[0]) == 0
    assert ground.mapper.map(ground.table, 9)[0] == handles[0]


def test_a_handle_is_unmapped_once_and_by_its_table(ground: Ground) -> None:
    ground.grant(9)
    handle, _ = ground.mapper.map(ground.table, 9)
    other = GrantTable(shared(PAGE), shared(PAGE), FRAMES, OTHER)
    assert ground.mapper.unmap(other, handle) == gt.GNTST_bad_handle
    assert ground.mapper.unmap(ground.table, handle) == gt.GNTST_okay
    assert ground.mapper.unmap(ground.table, handle) == gt.GNTST_bad_handle
    assert ground.mapper.unmap(ground.table, 64) == gt.GNTST_bad_handle
    assert ground.table.pinned(9) == (0, 0)


@pytest.mark.parametrize(("readonly", "full"), [(True, 0xFFFF), (False, 0xFFFF0000)])
def test_counts_do_not_run_over(ground: Ground, readonly: bool, full: int) -> None:
    ground.grant(9)
    store64(ground.pins, 9, full)
    assert ground.mapper.map(ground.table, 9, readonly)[0] == gt.GNTST_no_device_space
    assert load64(ground.pins, 9) == full


def test_an_owner_has_a_number() -> None:
    with pytest.raises(MemoryError):
        Mapper(shared(64), MAPPING, 0)


# -- a mapper killed at any moment
INTENT, COMING, HELD, GOING = 1, 2, 3, 4
READONLY = 8


@pytest.mark.parametrize("readonly", [True, False])
@pytest.mark.parametrize(
    ("state", "locked", "counted"),
    [
        (INTENT, False, 0), (INTENT, True, 0),      # before and after it took the lock
        (COMING, True, 0), (COMING, False, 1),      # before and after it let go, which counts it
        (HELD, False, 1), (HELD, True, 1),          # before and after it took the lock to unmap
        (GOING, True, 1), (GOING, False, 0),        # before and after it let go
    ],
)
def test_release_after_death_at_any_moment(ground: Ground, state: int, locked: bool, counted: int, readonly: bool) -> None:
    """One other mapping of the living, one older one of the dead; the entry's bits as a mapper sets them under the lock."""
    ground.grant(9)
    living = ground.mappers[1].map(ground.table, 9, True)[0]
    ground.mapper.map(ground.table, 9, readonly)
    unit = 1 if readonly else 1 << 16
    store64(ground.pins, 9, load64(ground.pins, 9) + counted * unit | (1 << 32 if locked else 0))
    struct.pack_into("<H", ground.entries, 72, gt.GTF_permit_access | IN_USE)
    record = 9 << 32 | GRANTER << 16 | (READONLY if readonly else 0)
    assert ground.table.release(9, 1, [record | HELD, record | state])
    assert ground.table.pinned(9) == (1, 0) and ground.table.holder(9) == 0
    assert ground.flags(9) == gt.GTF_permit_access | gt.GTF_reading
    assert ground.mappers[1].unmap(ground.table, living) == 0
    assert ground.flags(9) == gt.GTF_permit_access


def test_release_waits_for_a_lock_and_breaks_only_a_dead_ones(ground: Ground) -> None:
    ground.grant(9)
    ground.mapper.map(ground.table, 9)
    store64(ground.pins, 9, load64(ground.pins, 9) | 2 << 32)
    assert not ground.table.release(9, 1, [9 << 32 | GRANTER << 16 | HELD])
    assert ground.table.holder(9) == 2 and ground.table.pinned(9) == (0, 1)
    ground.table.break_lock(9, 3)
    assert ground.table.holder(9) == 2
    ground.table.break_lock(9, 2)
    assert ground.table.release(9, 1, [9 << 32 | GRANTER << 16 | HELD])
    assert ground.table.pinned(9) == (0, 0)


def test_records_say_more_than_was_counted(ground: Ground) -> None:
    """A track full of lies takes back no more than there is."""
    ground.grant(9)
    assert ground.table.release(9, 1, [HELD, HELD | READONLY, HELD])
    assert ground.table.pinned(9) == (0, 0)


class Counts(RuleBasedStateMachine):
    """Two processes map and unmap, the granter revokes and grants, against counters."""

    @initialize()
    def start(self) -> None:
        self.ground = Ground(handles=8)
        self.allowed: dict[int, tuple[int, bool]] = {}
        self.held: list[tuple[int, int, int, bool]] = []

    @rule(gref=st.integers(0, 3), frame=st.integers(0, FRAMES - 1), readonly=st.booleans())
    def give(self, gref: int, frame: int, readonly: bool) -> None:
        if gref not in self.allowed:
            self.ground.grant(gref, frame, readonly)
            self.allowed[gref] = (frame, readonly)

    @rule(gref=st.integers(0, 3))
    def end(self, gref: int) -> None:
        in_use = any(held[2] == gref for held in self.held)
        assert end_access(self.ground.entries, gref) is not in_use
        if not in_use:
            self.allowed.pop(gref, None)

    @rule(who=st.integers(0, 1), gref=st.integers(0, 4), readonly=st.booleans())
    def map(self, who: int, gref: int, readonly: bool) -> None:
        handle, frame = self.ground.mappers[who].map(self.ground.table, gref, readonly)
        full = sum(held[0] == who for held in self.held) == 8
        allowed = self.allowed.get(gref)
        if full:
            assert handle == gt.GNTST_no_device_space
        elif allowed and (readonly or not allowed[1]):
            assert handle >= 0 and frame == allowed[0]
            self.held.append((who, handle, gref, readonly))
        else:
            assert handle == gt.GNTST_general_error

    @rule(data=st.data())
    def unmap(self, data: st.DataObject) -> None:
        if self.held:
            who, handle, _, _ = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
            assert self.ground.mappers[who].unmap(self.ground.table, handle) == 0

    @rule(who=st.integers(0, 1))
    def die(self, who: int) -> None:
        """Killed between two operations; a successor starts with an empty track."""
        track = self.ground.tracks[who].cast("Q")
        by_gref: dict[int, list[int]] = {}
        for record in track:
            if record:
                by_gref.setdefault(record >> 32, []).append(record)
        for gref, records in by_gref.items():
            assert self.ground.table.release(gref, who + 1, records)
        self.held = [held for held in self.held if held[0] != who]
        self.ground.tracks[who][:] = bytes(64)
        self.ground.mappers[who] = Mapper(self.ground.tracks[who], MAPPING, who + 1)

    @invariant()
    def counted(self) -> None:
        if hasattr(self, "ground"):
            for gref in range(4):
                reading = sum(held[2] == gref and held[3] for held in self.held)
                writing = sum(held[2] == gref and not held[3] for held in self.held)
                assert self.ground.table.pinned(gref) == (reading, writing)
                bits = (gt.GTF_reading if reading or writing else 0) | (gt.GTF_writing if writing else 0)
                assert self.ground.flags(gref) & IN_USE == bits


TestCounts = Counts.TestCase
TestCounts.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)


# -- the granting side's list
def test_grefs_are_given_once(tmp_path: Path) -> None:
    memory = Memory.create(tmp_path / "memory", 1)
    grants = Grants(memory)
    given_out = [grants.give(MAPPING, 0) for _ in range(GRANT_ENTRIES - 8)]
    assert sorted(given_out) == list(range(8, GRANT_ENTRIES))
    with pytest.raises(PeerError, match="in use"):
        grants.give(MAPPING, 0)
    struct.pack_into("<H", memory.grant_entries, given_out[0] * 8, gt.GTF_permit_access | gt.GTF_reading)
    assert not grants.end(given_out[0]), "still mapped: neither the gref nor its frame is used again"
    assert grants.end(given_out[1])
    assert grants.give(MAPPING, 0) == given_out[1]
    memory.close()


# -- grant copy
@pytest.mark.parametrize("to_grant", [True, False])
def test_grant_copy(ground: Ground, to_grant: bool) -> None:
    ground.grant(9, 5)
    ground.memory[5 * PAGE : 6 * PAGE] = b"g" * PAGE
    local = bytearray(b"l" * 100)
    assert grant_copy(ground.table, ground.memory, 9, PAGE - 100, local, to_grant, ground.mapper) == gt.GNTST_okay
    assert local == (b"l" if to_grant else b"g") * 100
    assert bytes(ground.memory[5 * PAGE : 6 * PAGE]) == b"g" * (PAGE - 100) + (b"l" if to_grant else b"g") * 100
    assert ground.table.pinned(9) == (0, 0) and ground.mapper.mapped == 0 and not any(ground.tracks[0])


def test_grant_copy_is_refused(ground: Ground) -> None:
    ground.grant(9, 5, readonly=True)
    buffer = bytearray(8)
    for gref, offset, to_grant, status in (
        (9, PAGE - 7, False, gt.GNTST_bad_copy_arg), (9, 0xFFFFFFFF, False, gt.GNTST_bad_copy_arg),
        (9, 0, True, gt.GNTST_general_error), (10, 0, False, gt.GNTST_general_error), (600, 0, False, gt.GNTST_bad_gntref),
    ):
        assert grant_copy(ground.table, ground.memory, gref, offset, buffer, to_grant, ground.mapper) == status
    assert grant_copy(ground.table, ground.memory[: 5 * PAGE], 9, 0, buffer, False, ground.mapper) == gt.GNTST_bad_page
    assert ground.mapper.mapped == 0 and not any(ground.pins)


# -- I/O straight into granted frames
SECTOR = 512
FILE_SECTORS = 64
SEGMENT = struct.Struct("<IBBH")


def content(first: int, count: int) -> bytes:
    return b"".join((first + i).to_bytes(4, "little") * (SECTOR // 4) for i in range(count))


@pytest.fixture
def image(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "image").write_bytes(content(0, FILE_SECTORS))
    fd = os.open(tmp_path / "image", os.O_RDWR)
    yield fd
    os.close(fd)


def segments(*items: tuple[int, int, int]) -> bytes:
    return b"".join(SEGMENT.pack(gref, first, last, 0) for gref, first, last in items)


def transfer(
    io: GrantedIO, fd: int, items: list[tuple[int, int, int]], write: bool = False, sector: int = 0, limit: int = 1 << 40
) -> int:
    return io.transfer(segments(*items), len(items), write, fd, sector * SECTOR, limit)


def test_sectors_land_where_the_segments_say(ground: Ground, image: int) -> None:
    io = GrantedIO(ground.mapper, ground.table, ground.memory)
    for gref in (1, 2, 3):
        ground.grant(gref, 10 - gref)
    assert transfer(io, image, [(3, 2, 5), (1, 0, 7), (3, 7, 7)], sector=11) == 13 * SECTOR
    third = bytes(ground.memory[7 * PAGE : 8 * PAGE])
    assert third == bytes(2 * SECTOR) + content(11, 4) + bytes(SECTOR) + content(23, 1)
    assert bytes(ground.memory[9 * PAGE : 10 * PAGE]) == content(15, 8)
    assert ground.mapper.mapped == 0 and not any(ground.pins)


@pytest.mark.parametrize("bad", [(1, 0, 8), (1, 0, 255), (1, 3, 2), (1, 8, 8)])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_bad_sectors_move_nothing(ground: Ground, image: int, bad: tuple[int, int, int], place: int) -> None:
    io = GrantedIO(ground.mapper, ground.table, ground.memory)
    ground.grant(1)
    items = [(1, 0, 7), (1, 0, 7)]
    items.insert(place, bad)
    assert transfer(io, image, items) == IO_BAD_SEGMENT
    assert not any(ground.memory) and ground.mapper.mapped == 0


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("place", range(4))
def test_a_bad_grant_unmaps_those_before_it(ground: Ground, image: int, place: int, persistent: bool) -> None:
    io = GrantedIO(ground.mapper, ground.table, ground.memory, persistent)
    for gref in (1, 2, 3):
        ground.grant(gref)
    items = [(1, 0, 7), (2, 0, 7), (3, 0, 7)]
    items.insert(place, (9, 0, 7))
    assert transfer(io, image, items) == IO_BAD_GRANT
    assert not any(ground.memory)
    io.close()
    assert ground.mapper.mapped == 0 and not any(ground.pins)


def test_limits_of_the_device(ground: Ground, image: int) -> None:
    io = GrantedIO(ground.mapper, ground.table, ground.memory)
    ground.grant(1)
    assert transfer(io, image, [(1, 0, 7)], limit=PAGE - 1) == IO_BAD_SEGMENT
    assert transfer(io, image, [(1, 0, 7)], limit=PAGE) == PAGE
    assert io.transfer(segments((1, 0, 7)), 2, False, image, 0, PAGE * 2) == IO_BAD_SEGMENT, "fewer bytes than it counts"
    assert io.transfer(bytes(8 * 257), 257, False, image, 0, 1 << 30) == IO_BAD_SEGMENT
    assert io.transfer(b"", 0, False, image, 0, 0) == 0


def test_a_read_only_grant_can_be_written_out_but_not_read_into(ground: Ground, image: int) -> None:
    for persistent in (False, True):
        io = GrantedIO(ground.mapper, ground.table, ground.memory, persistent)
        ground.grant(1, readonly=True)
        assert transfer(io, image, [(1, 0, 0)]) == IO_BAD_GRANT
        assert transfer(io, image, [(1, 0, 0)], write=True) == SECTOR
        assert ground.mapper.mapped == 0


def test_a_file_that_ends(ground: Ground, image: int) -> None:
    io = GrantedIO(ground.mapper, ground.table, ground.memory)
    ground.grant(1)
    assert transfer(io, image, [(1, 0, 7)], sector=FILE_SECTORS - 4) == IO_FAILED
    assert io.error == 0 and ground.mapper.mapped == 0


def test_a_failing_file(ground: Ground, image: int) -> None:
    io = GrantedIO(ground.mapper, ground.table, ground.memory)
    ground.grant(1)
    assert transfer(io, -1, [(1, 0, 7)]) == IO_FAILED and io.error == errno.EBADF
    assert transfer(io, image, [(1, 0, 7)], sector=-1) == IO_FAILED and io.error == errno.EINVAL
    assert ground.mapper.mapped == 0


def test_a_full_disk(ground: Ground) -> None:
    io = GrantedIO(ground.mapper, ground.table, ground.memory)
    ground.grant(1)
    with open("/dev/full", "r+b", buffering=0) as full:
        assert transfer(io, full.fileno(), [(1, 0, 7)], write=True) == IO_FAILED
        assert io.error == errno.ENOSPC


def test_persistent_grants_stay_mapped(ground: Ground, image: int) -> None:
    io = GrantedIO(ground.mapper, ground.table, ground.memory, persistent=True)
    for gref in (1, 2):
        ground.grant(gref)
    assert transfer(io, image, [(1, 0, 7), (2, 0, 7), (1, 0, 7)]) == 3 * PAGE
    assert io.nr_kept == 2 and ground.mapper.mapped == 2
    assert not end_access(ground.entries, 1)
    struct.pack_into("<I", ground.entries, 12, 7)       # the granter may not change it, and changes nothing
    assert transfer(io, image, [(1, 0, 7)], sector=8) == PAGE
    assert bytes(ground.memory[PAGE : 2 * PAGE]) == content(8, 8) and not any(ground.memory[7 * PAGE : 8 * PAGE])
    io.close()
    assert io.nr_kept == 0 and ground.mapper.mapped == 0 and end_access(ground.entries, 1)


def test_memory_holds_every_frame(ground: Ground) -> None:
    with pytest.raises(ValueError, match="frames"):
        GrantedIO(ground.mapper, ground.table, ground.memory[: PAGE * (FRAMES - 1)])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), persistent=st.booleans())
def test_any_requests_against_a_model(image: int, data: st.DataObject, persistent: bool) -> None:
    ground = Ground()
    io = GrantedIO(ground.mapper, ground.table, ground.memory, persistent)
    granted = data.draw(st.dictionaries(st.integers(0, 5), st.tuples(st.integers(0, FRAMES), st.booleans())))
    for gref, (frame, readonly) in granted.items():
        ground.grant(gref, frame, readonly)
    memory = bytearray(data.draw(st.binary(min_size=8, max_size=8)) * (FRAMES * PAGE // 8))
    ground.memory[:] = memory
    os.pwrite(image, content(0, FILE_SECTORS), 0)
    os.ftruncate(image, FILE_SECTORS * SECTOR)
    disk = bytearray(content(0, FILE_SECTORS))
    item = st.tuples(st.integers(0, 5), st.integers(0, 8), st.integers(0, 8))
    for _ in range(data.draw(st.integers(1, 4))):
        items, write = data.draw(st.lists(item, max_size=12)), data.draw(st.booleans())
        sector = data.draw(st.integers(0, FILE_SECTORS + 4))
        total = sum(last - first + 1 for _, first, last in items) * SECTOR
        status = transfer(io, image, items, write, sector, max(0, FILE_SECTORS - sector) * SECTOR)
        if any(last > 7 or first > last for _, first, last in items) or total > max(0, FILE_SECTORS - sector) * SECTOR:
            assert status == IO_BAD_SEGMENT
            continue
        if any(gref not in granted or granted[gref][0] >= FRAMES or (granted[gref][1] and not write) for gref, _, _ in items):
            assert status == IO_BAD_GRANT
            continue
        assert status == total
        at = sector * SECTOR
        for gref, first, last in items:
            start, size = granted[gref][0] * PAGE + first * SECTOR, (last - first + 1) * SECTOR
            if write:
                disk[at : at + size] = memory[start : start + size]
            else:
                memory[start : start + size] = disk[at : at + size]
            at += size
    assert bytes(ground.memory) == memory
    assert os.pread(image, len(disk) + 1, 0) == disk
    assert ground.mapper.mapped == io.nr_kept
    io.close()
    assert ground.mapper.mapped == 0 and not any(ground.pins)
