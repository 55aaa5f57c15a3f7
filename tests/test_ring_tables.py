"""What a frame tells between device models and vCPUs: I/O ranges, interrupt lines, modified memory. And ioreq slots."""
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniguest.ring import _core
from miniguest.ring._core import IoreqSlot, load64, store64
from miniguest.ring.abi.ioreq import IOREQ
from miniguest.ring.lines import ISA_LINES, LineDriver, LineWatcher
from miniguest.ring.modified import CAPACITY as LOG_CAPACITY
from miniguest.ring.modified import ModifiedReader, ModifiedWriter
from miniguest.ring.ranges import CAPACITY, MEMORY, PORT, Range, Ranges, write_ranges

FRAME = 4096


def frame() -> memoryview:
    return memoryview(bytearray(FRAME))


# -- ranges
@st.composite
def tables(draw: st.DrawFn) -> list[Range]:
    """Ranges that do not overlap, in any order."""
    found: list[Range] = []
    for kind in (PORT, MEMORY):
        edges = sorted(draw(st.sets(st.integers(0, 200) | st.integers((1 << 64) - 50, (1 << 64) - 1), max_size=40)))
        for start, end in zip(edges[::2], edges[1::2], strict=False):
            name = draw(st.text("abcdef0123", max_size=17))         # as long as there is room for
            server, frame = draw(st.integers(0, 255)), draw(st.sampled_from([0, 0, 1, 0xFFFFFFFF]))
            found.append(Range(kind, start, end, name, server, frame, draw(st.booleans())))
    return list(draw(st.permutations(found)))


ADDRESS = st.integers(0, 210) | st.integers((1 << 64) - 60, (1 << 64) - 1)


@given(table=tables(), probes=st.lists(st.tuples(st.sampled_from([PORT, MEMORY]), ADDRESS)))
def test_find_is_the_range_that_holds_the_address(table: list[Range], probes: list[tuple[int, int]]) -> None:
    page = frame()
    write_ranges(page, table)
    seen = Ranges(page)
    assert seen.refresh() and not seen.refresh()
    edges = [(item.kind, address) for item in table for address in (item.start, item.end)]
    for kind, address in probes + edges:
        holds = [item for item in table if item.kind == kind and item.start <= address <= item.end]
        assert seen.find(kind, address) == (holds[0] if holds else None)


@given(table=tables())
def test_what_is_read_without_an_exit_is_memory_with_frames(table: list[Range]) -> None:
    page = frame()
    write_ranges(page, table)
    seen = Ranges(page)
    assert seen.refresh()
    wanted = sorted((item for item in table if item.kind == MEMORY and item.frame), key=lambda item: item.start)
    assert seen.read_only_memory() == wanted


@pytest.mark.parametrize("kind", [PORT, MEMORY])
def test_a_range_says_whether_writes_are_buffered(kind: int) -> None:
    page = frame()
    ranges = [Range(kind, start, start + 3, "debug", 3, buffered=start == 8) for start in (0, 8, 16)]
    write_ranges(page, ranges)
    seen = Ranges(page)
    assert seen.refresh()
    assert [seen.find(kind, item.start) for item in ranges] == ranges
    assert seen.find(1 - kind, 8) is None


def test_a_long_name_is_cut_and_the_frame_behind_it_stays() -> None:
    page = frame()
    write_ranges(page, [Range(MEMORY, 0, 4095, "n" * 40, 7, 0x12345678), Range(MEMORY, 4096, 8191, "é", 255, 0xFFFFFFFF)])
    seen = Ranges(page)
    assert seen.refresh()
    assert seen.read_only_memory() == [
        Range(MEMORY, 0, 4095, "n" * 17, 7, 0x12345678), Range(MEMORY, 4096, 8191, "?", 255, 0xFFFFFFFF),
    ]


def test_a_table_is_not_taken_while_it_is_written() -> None:
    page = frame()
    seen = Ranges(page)
    assert seen.refresh() and seen.find(PORT, 5) is None
    write_ranges(page, [Range(PORT, 5, 5, "old")])
    assert seen.refresh()
    store64(page, 0, load64(page, 0) | 1)               # the writer is at it
    page[16:56] = bytes(40)
    assert not seen.refresh() and seen.find(PORT, 5) is not None
    write_ranges(page, [Range(PORT, 6, 6, "new")])      # and a next one finishes it
    assert seen.refresh()
    assert seen.find(PORT, 5) is None and seen.find(PORT, 6) is not None


@given(seed=st.integers(), count=st.integers(0, (1 << 64) - 1))
def test_a_table_of_nonsense_stays_in_the_frame(seed: int, count: int) -> None:
    view = memoryview(bytearray(random.Random(seed).randbytes(FRAME)))
    store64(view, 0, 2)
    store64(view, 1, count)
    for index in range(CAPACITY):
        view[16 + index * 40 + 16] &= 1
    seen = Ranges(view)
    assert seen.refresh()
    seen.find(PORT, 0)


# -- lines
@given(steps=st.lists(st.one_of(st.tuples(st.integers(0, ISA_LINES - 1), st.booleans()), st.none())), first=st.booleans())
def test_no_edge_is_lost(steps: list[tuple[int, bool] | None], first: bool) -> None:
    """Between two looks each line that rose is told to rise, each that fell to fall, and the last told is its level."""
    page = frame()
    driver, watcher = LineDriver(page), LineWatcher(page)
    if first:
        driver.set(3, True)
        assert list(watcher.changes()) == [(3, True)]
    level = [first and line == 3 for line in range(ISA_LINES)]
    told = list(level)
    edges: list[set[bool]] = [set() for _ in range(ISA_LINES)]
    for step in [*steps, None]:
        if step is not None:
            line, now = step
            assert driver.set(line, now) is (level[line] != now)
            if level[line] != now:
                edges[line].add(now)
            level[line] = now
            continue
        seen: list[set[bool]] = [set() for _ in range(ISA_LINES)]
        for line, now in watcher.changes():
            assert told[line] != now, "only changes are told"
            seen[line].add(now)
            told[line] = now
        assert seen == edges and told == level
        edges = [set() for _ in range(ISA_LINES)]


def test_a_driver_that_starts_anew_goes_on() -> None:
    page = frame()
    watcher = LineWatcher(page)
    LineDriver(page).set(1, True)
    assert not LineDriver(page).set(1, True)
    assert LineDriver(page).set(1, False)
    assert list(watcher.changes()) == [(1, True), (1, False)]


# -- modified memory
@given(batches=st.lists(st.integers(0, LOG_CAPACITY + 5), max_size=6), start=st.integers(0, 2000))
@settings(deadline=None)
def test_everything_modified_is_told_or_told_to_be_too_much(batches: list[int], start: int) -> None:
    page = frame()
    store64(page, 0, start)
    writer, reader = ModifiedWriter(page), ModifiedReader(page)
    number = 0
    for batch in batches:
        for _ in range(batch):
            number += 1
            writer.note(number * FRAME + 5, FRAME)
        told = reader.take()
        if batch < LOG_CAPACITY:
            assert told == [(number - batch + 1 + i, 2) for i in range(batch)]
        else:
            assert told is None
        assert reader.take() == []


@given(gpa=st.integers(0, 1 << 43), size=st.integers(-1, 1 << 20))
def test_a_note_covers_every_frame(gpa: int, size: int) -> None:
    page = frame()
    writer, reader = ModifiedWriter(page), ModifiedReader(page)
    writer.note(gpa, size)
    if size <= 0:
        assert reader.take() == []
    else:
        [(first, count)] = reader.take() or []
        assert first == gpa >> 12 and first + count - 1 == (gpa + size - 1) >> 12


def test_an_entry_that_is_being_overwritten_is_not_told() -> None:
    """The writer puts an entry before it counts it: the oldest of a full ring may be the newest already."""
    page = frame()
    writer, reader = ModifiedWriter(page), ModifiedReader(page)
    for number in range(LOG_CAPACITY):
        writer.note(number * FRAME, 1)
    store64(page, 2, 1 << 32 | 99)
    assert reader.take() is None


@given(count=st.integers(0, (1 << 64) - 1))
def test_a_count_that_lies_is_bounded_work(count: int) -> None:
    page = frame()
    reader = ModifiedReader(page)
    store64(page, 0, count)
    assert len(reader.take() or []) < LOG_CAPACITY


# -- ioreq slots
def test_an_ioreq_goes_round() -> None:
    page = frame()
    vcpu, model = IoreqSlot(page, 5), IoreqSlot(page, 5)
    assert model.take() == 0
    page[5 * 32 + 24 : 5 * 32 + 28] = b"port"
    vcpu.start(1, 0xFEE00000, 0x1122334455667788, 3, 4, 1, True, True)
    assert IOREQ.size == 32
    for member, value in {"addr": 0xFEE00000, "data": 0x1122334455667788, "count": 3, "size": 4}.items():
        at = 5 * 32 + IOREQ.offset[member]
        assert int.from_bytes(page[at : at + 4], "little") == value & 0xFFFFFFFF
    assert vcpu.state == 1
    assert model.take() == (1, 0xFEE00000, 0x1122334455667788, 3, 4, 1, 1, 1)
    assert vcpu.state == 2 and model.take() == 2
    model.complete(0xAA)
    assert vcpu.state == 3 and model.take() == 3
    assert vcpu.finish() == 0xAA and vcpu.state == 0
    assert bytes(page[5 * 32 + 24 : 5 * 32 + 28]) == b"port", "vp_eport is the hypervisor's"
    assert not any(page[: 5 * 32]) and not any(page[6 * 32 :])


def test_an_ioreq_changed_after_the_copy_changes_nothing() -> None:
    page = frame()
    slot = IoreqSlot(page, 0)
    slot.start(0, 0x1F0, 7, 1, 2, 0)
    taken = slot.take()
    page[:24] = b"\xff" * 24
    assert taken == (0, 0x1F0, 7, 1, 2, 0, 0, 0)


@given(state=st.integers(0, 255))
def test_only_a_ready_ioreq_is_taken(state: int) -> None:
    page = frame()
    page[30] = state
    slot = _core.IoreqSlot(page, 0)
    assert slot.take() == ((0,) * 5 + (state >> 5 & 1, state >> 4 & 1, state >> 6 & 1) if state & 15 == 1 else state & 15)
    assert page[30] == (state & 0xF0 | 2 if state & 15 == 1 else state)
