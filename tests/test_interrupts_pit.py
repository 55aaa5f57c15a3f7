"""The 8254 against the datasheet's formulas, on a clock that the test turns."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniguest.frontend.interrupts.pit import QUEUE, SPACING, Pit, to_ns, to_ticks


class Board:
    """A PIT, its clock in ticks, and the times of counter 0's edges."""

    def __init__(self) -> None:
        self.now = to_ns(1000)
        self.edges: list[int] = []
        self.pit = Pit(lambda: self.now, lambda: self.edges.append(self.now))

    def wait(self, ticks: int) -> None:
        self.now = to_ns(to_ticks(self.now) + ticks)

    def program(self, counter: int, mode: int, count: int, bcd: bool = False) -> None:
        self.pit.write(3, 1, counter << 6 | 0x30 | mode << 1 | bcd)
        self.load(counter, count)

    def load(self, counter: int, count: int) -> None:
        self.pit.write(counter, 1, count & 0xFF)
        self.pit.write(counter, 1, count >> 8)

    def count(self, counter: int) -> int:
        self.pit.write(3, 1, counter << 6)
        return self.pit.read(counter, 1) | self.pit.read(counter, 1) << 8

    def out(self, counter: int) -> bool:
        self.pit.write(3, 1, 0xE0 | 2 << counter)
        return bool(self.pit.read(counter, 1) & 0x80)

    def gate(self, on: bool) -> None:
        self.pit.write(4, 1, on)

    def run(self, until: int) -> None:
        """Tick at every deadline up to a time in ns."""
        while (due := self.pit.deadline()) is not None and due <= until:
            self.now = max(self.now, due)
            self.pit.tick()
        self.now = max(self.now, until)


def test_the_clock_is_exact() -> None:
    assert to_ticks(88_000 * 10**9) == 105 * 10**9
    assert all(to_ticks(to_ns(n)) == n and to_ticks(to_ns(n) - 1) == n - 1 for n in range(1, 5000))


@settings(max_examples=200, deadline=None)
@given(mode=st.sampled_from([0, 2, 3, 4]), count=st.integers(2, 0x10000), ticks=st.integers(0, 300_000))
def test_count_and_output_are_functions_of_time(mode: int, count: int, ticks: int) -> None:
    board = Board()
    board.program(0, mode, count & 0xFFFF)
    board.wait(ticks)
    phase, high = ticks % count, (count + 1) // 2
    expected = {
        0: ((count - ticks) % 0x10000, ticks >= count),
        2: (count - phase, phase != count - 1),
        3: ((count & ~1) - 2 * (phase if phase < high else phase - high), phase < high),
        4: ((count - ticks) % 0x10000, ticks != count),
    }[mode]
    assert (board.count(0), board.out(0)) == (expected[0] & 0xFFFF, expected[1])


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 9999), ticks=st.integers(0, 30_000))
def test_bcd_counts_in_tens(count: int, ticks: int) -> None:
    board = Board()
    board.program(2, 0, int(str(count), 16), bcd=True)
    board.gate(True)
    board.wait(ticks)
    assert board.count(2) == int(str((count - ticks) % 10000), 16)


@pytest.mark.parametrize("mode", [1, 5])
def test_modes_1_and_5_wait_for_the_gate_and_start_again_with_it(mode: int) -> None:
    board = Board()
    board.program(2, mode, 100)
    board.wait(50)
    assert board.out(2)
    board.gate(True)
    assert board.out(2) == (mode == 5)
    board.wait(60)
    board.gate(False)
    board.gate(True)
    board.wait(99)
    assert board.out(2) == (mode == 5)
    assert board.count(2) == 1
    board.wait(1)
    assert board.out(2) == (mode == 1)
    board.wait(1)
    assert board.out(2)


def test_the_gate_holds_mode_0_and_starts_mode_2_again() -> None:
    board = Board()
    board.program(2, 0, 100)
    board.gate(True)
    board.wait(30)
    board.gate(False)
    board.wait(500)
    assert board.count(2) == 70
    board.gate(True)
    board.wait(10)
    assert board.count(2) == 60
    board.program(2, 2, 100)
    board.wait(30)
    board.gate(False)
    assert board.out(2)
    board.wait(30)
    board.gate(True)
    board.wait(5)
    assert board.count(2) == 95


def test_a_new_count_waits_for_the_end_of_the_cycle() -> None:
    board = Board()
    board.program(0, 2, 100)
    board.wait(30)
    board.load(0, 50)
    assert board.count(0) == 70
    board.wait(69)
    assert board.count(0) == 1
    board.wait(1)
    assert board.count(0) == 50
    board.program(0, 3, 100)
    board.wait(10)
    board.load(0, 20)
    board.wait(39)
    assert board.out(0)
    board.wait(1)  # the high half is over: the low half is the new count's
    assert not board.out(0)
    board.wait(10)
    assert board.out(0)
    board.wait(10)
    assert not board.out(0)


def test_latches_and_read_back() -> None:
    board = Board()
    board.program(0, 2, 0x1234)
    board.pit.write(3, 1, 0x00)
    board.wait(100)
    board.pit.write(3, 1, 0x00)  # ignored: one is latched
    assert board.pit.read(0, 1) | board.pit.read(0, 1) << 8 == 0x1234
    board.pit.write(3, 1, 0xC2)  # status and count of counter 0
    board.wait(100)
    assert board.pit.read(0, 1) == 0x80 | 0x34
    assert board.pit.read(0, 1) | board.pit.read(0, 1) << 8 == 0x1234 - 100
    board.pit.write(3, 1, 0x34)
    board.pit.write(3, 1, 0xE2)
    assert board.pit.read(0, 1) & 0x40  # null count: none was loaded
    board.pit.write(3, 1, 0x14)  # low byte only
    board.pit.write(0, 1, 80)
    board.wait(3)
    assert [board.pit.read(0, 1) for _ in range(2)] == [77, 77]


def test_edges_do_not_drift() -> None:
    board = Board()
    board.program(0, 2, 11932)
    start = to_ticks(board.now)
    board.run(board.now + 10_000_000_000)
    assert board.edges == [to_ns(start + n * 11932) for n in range(1, len(board.edges) + 1)]
    assert len(board.edges) == 10**10 * 105 // 88000 // 11932


def test_missed_edges_are_owed_up_to_the_queue_and_half_a_period_apart() -> None:
    board = Board()
    board.program(0, 3, 0)
    period = to_ns(65536)
    board.now += 100 * period
    resumed = board.now
    for _ in range(50):
        board.pit.tick()
    assert len(board.edges) == 1
    board.run(resumed + 20 * period)
    owed = [at for at in board.edges if at <= resumed + (QUEUE // 2) * period]
    assert len(board.edges) <= 20 + QUEUE
    assert QUEUE <= len(owed) <= QUEUE + 1 + QUEUE // 2
    assert min(b - a for a, b in zip(board.edges, board.edges[1:], strict=False)) >= period // 2 - 1000  # a tick of rounding


def test_a_hostile_count_does_not_stop_the_machine() -> None:
    board = Board()
    for mode in (2, 3):
        for count in (1, 2):
            board.program(0, mode, count)
            board.edges.clear()
            board.run(board.now + 1_000_000)
            assert 1 <= len(board.edges) <= 1_000_000 // SPACING + 1


def test_mode_0_gives_one_edge() -> None:
    board = Board()
    board.program(0, 0, 1000)
    start = to_ticks(board.now)
    board.run(board.now + 10_000_000)
    assert board.edges == [to_ns(start + 1000)]
    assert board.pit.deadline() is None


def test_port_61_shows_counter_2_and_the_refresh() -> None:
    board = Board()
    board.program(2, 3, 100)
    board.gate(True)
    seen = set()
    for _ in range(200):
        board.now += 7_000
        value = board.pit.read(4, 1)
        assert bool(value & 0x20) == board.out(2)
        assert value & 0xCF == 1
        seen.add(value & 0x30)
    assert len(seen) == 4
    board.pit.write(4, 1, 0xFE)
    assert board.pit.read(4, 1) & 0xCF == 0x0E
