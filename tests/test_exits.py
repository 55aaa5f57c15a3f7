"""Exit counters: rows, the row for everything else, and a reader that samples while the guest runs."""
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniguest.ring._core import ExitTable
from miniguest.ring.exits import ROW, SIZE, ExitCounters, ExitKind, read_exits

ROW_BYTES = 64


@given(counts=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1 << 20), st.integers(0, 1 << 40)), max_size=60))
@settings(deadline=None)
def test_counts_against_a_model(tmp_path_factory: pytest.TempPathFactory, counts: list[tuple[int, int, int]]) -> None:
    path = tmp_path_factory.mktemp("exits") / "exits"
    counters = ExitCounters(path)
    rows = [counters.row(ExitKind(index), f"device{index}", 0x100 + index, 1 << index % 3) for index in range(5)]
    for row, elements, ns in counts:
        counters.count(rows[row], elements, ns)
    seen = {row.device: row for row in read_exits(path)}
    assert set(seen) == {f"device{row}" for row, _, _ in counts}
    for index in range(5):
        mine = [(elements, ns) for row, elements, ns in counts if row == index]
        if mine:
            row = seen[f"device{index}"]
            assert (row.kind, row.address, row.size) == (ExitKind(index), 0x100 + index, 1 << index % 3)
            assert (row.exits, row.elements) == (len(mine), sum(elements for elements, _ in mine))
            times = [ns for _, ns in mine]
            assert (row.total_ns, row.min_ns, row.max_ns) == (sum(times), min(times), max(times))


def test_a_full_table_counts_the_rest_on_its_last_row(tmp_path: Path) -> None:
    counters = ExitCounters(tmp_path / "exits")
    capacity = (SIZE - 64) // ROW_BYTES
    rows = [counters.row(ExitKind.PIO_IN, "d", index, 1) for index in range(capacity + 3)]
    assert rows == [*range(capacity), capacity - 1, capacity - 1, capacity - 1]
    for row in rows:
        counters.count(row, 1, 10)
    seen = read_exits(tmp_path / "exits")
    assert len(seen) == capacity and sum(row.exits for row in seen) == capacity + 3 and seen[-1].exits == 4


def test_names_are_cut_not_spilled(tmp_path: Path) -> None:
    counters = ExitCounters(tmp_path / "exits")
    for name in ("x" * 13, "y" * 14, "z" * 500, "grüße"):
        counters.count(counters.row(ExitKind.MSR, name, 1, 8), 1, 1)
    assert [row.device for row in read_exits(tmp_path / "exits")] == ["x" * 13, "y" * 13, "z" * 13, "gr??e"]


def test_nothing_to_read(tmp_path: Path) -> None:
    assert read_exits(tmp_path / "none") == []
    (tmp_path / "short").write_bytes(b"\x05" * 20)
    assert read_exits(tmp_path / "short") == []
    (tmp_path / "cut").write_bytes((1 << 40).to_bytes(8, "little") + bytes(64 + 56))
    assert read_exits(tmp_path / "cut") == []


def test_the_layout_is_one_for_both_ends() -> None:
    assert ROW.itemsize == ROW_BYTES
    buffer = bytearray(64 + ROW_BYTES)
    table = ExitTable(buffer)
    assert table.capacity == 1 and table.add_row(3, 4, 0xFEC00000, b"ioapic") == 0
    table.count(0, 2, 50)
    words = memoryview(buffer)[64:].cast("Q")
    assert words[:6].tolist() == [1, 2, 50, 50, 50, 0xFEC00000]
    assert bytes(buffer[64 + 48 :]) == b"\3\4ioapic" + bytes(8)


def test_a_sample_is_never_impossible(tmp_path: Path) -> None:
    """A process counts 200 000 exits while we read: what we see only grows, and each row could be true."""
    path = tmp_path / "exits"
    counters = ExitCounters(path)
    total, kinds = 200_000, 8
    pid = os.fork()
    if pid == 0:
        try:
            chance = random.Random(5)
            rows = [counters.row(ExitKind.PIO_OUT, f"d{index}", index, 1) for index in range(kinds)]
            for _ in range(total):
                counters.count(rows[chance.randrange(kinds)], 3, chance.randint(100, 200))
        finally:
            os._exit(0)
    before: dict[int, int] = {}
    samples = 0
    ended = False
    while not ended:
        ended = os.waitpid(pid, os.WNOHANG)[0] == pid       # looked at before the last sample
        seen = read_exits(path)
        samples += 1
        for row in seen:
            assert row.device == f"d{row.address}" and row.exits >= before.get(row.address, 0)
            assert row.elements >= 3 * row.exits and 100 <= row.min_ns <= row.max_ns <= 200
            assert row.total_ns >= 100 * row.exits
            before[row.address] = row.exits
    assert samples > 1 and sum(before.values()) == total
