"""A device model under a stepped clock: its timers, its disks, and the notes of what it read."""
from collections.abc import Callable
from pathlib import Path

import pytest

from miniguest.frontend.stepped import CountedDisk, NotedMemory, Outstanding, StepTimers
from miniguest.ring.guest_clock import SECOND, GuestClock
from miniguest.ring.memory import FRAME_SIZE
from miniguest.ring.ram_notes import NoteReader, NoteWriter, notes_path


@pytest.fixture
def clock() -> GuestClock:
    return GuestClock.create(memoryview(bytearray(FRAME_SIZE)), 0)


def test_timers_run_by_the_guests_time_in_its_order(clock: GuestClock) -> None:
    timers, seen = StepTimers(clock), list[str]()
    for seconds, name in ((0.002, "b"), (0.001, "a"), (0.002, "c"), (1.0, "late")):
        timers.call_later(seconds, lambda name=name: seen.append(name))     # type: ignore[misc]
    timers.run()
    timers.publish()
    assert (seen, clock.deadline) == ([], SECOND // 1000)
    clock.set(SECOND // 500)
    timers.run()
    timers.publish()
    assert (seen, clock.deadline) == (["a", "b", "c"], SECOND)


def test_a_cancelled_timer_is_no_deadline(clock: GuestClock) -> None:
    timers, seen = StepTimers(clock), list[str]()
    timers.call_later(0, lambda: second.cancel())
    second = timers.call_later(0, lambda: seen.append("second"))
    third = timers.call_later(2, lambda: seen.append("third"))
    timers.run()
    third.cancel()
    timers.publish()
    assert (seen, clock.deadline) == ([], None)


def test_a_timer_that_is_always_due_runs_once_a_call(clock: GuestClock) -> None:
    timers, calls = StepTimers(clock), list[int]()

    def again() -> None:
        calls.append(clock.now())
        timers.call_later(-1, again)

    again()
    timers.run()
    timers.run()
    assert len(calls) == 3


def test_nanoseconds_survive_the_way_through_seconds(clock: GuestClock) -> None:
    timers = StepTimers(clock)
    clock.set(123_456_789)
    for delay in (1, 999_999_999, 86_400 * SECOND + 1):
        timers.call_later(delay / 1e9, lambda: None)
        timers.publish()
        assert clock.deadline == 123_456_789 + delay
        clock.deadline = None
        timers._timers.clear()


class SlowDisk:
    """Answers when told."""

    sectors = 8
    read_only = False

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def read(self, sector: int, count: int, done: Callable[[bytes | None], None]) -> None:
        self.waiting.append(lambda: done(bytes(512 * count)))

    def write(self, sector: int, data: bytes, done: Callable[[bool], None]) -> None:
        self.waiting.append(lambda: done(True))

    def flush(self, done: Callable[[bool], None]) -> None:
        done(True)


def test_a_request_that_begins_another_is_one_story() -> None:
    ends: list[str] = []
    slow = SlowDisk()
    outstanding = Outstanding()
    disk = CountedDisk(slow, outstanding)
    assert (disk.sectors, disk.read_only) == (8, False)
    disk.read(0, 1, lambda data: disk.write(1, data or b"", lambda good: ends.append(f"written {good}")))
    slow.waiting.pop()()
    assert (ends, outstanding.count) == ([], 1)
    slow.waiting.pop()()
    assert (ends, outstanding.count) == (["written True"], 0)
    disk.flush(lambda good: ends.append("flushed"))
    assert (ends[1:], outstanding.count) == (["flushed"], 0)


def test_what_was_read_is_noted_in_order_and_once(tmp_path: Path) -> None:
    (tmp_path / "dom1").mkdir()
    path = notes_path(tmp_path, 1)
    with pytest.raises(FileNotFoundError):
        NoteWriter(path)
    reader, writer = NoteReader(path), NoteWriter(path)

    class Ram:
        def read(self, gpa: int, size: int) -> bytes:
            return bytes(gpa + index & 0xFF for index in range(size))

        def write(self, gpa: int, data: bytes | memoryview) -> None:
            pass

    memory = NotedMemory(Ram(), writer)
    memory.write(0, b"x")
    memory.read(5, 2)
    memory.read(9, 1)
    assert reader.take() == []
    writer.flush()
    assert reader.take() == [(5, b"\x05\x06"), (9, b"\x09")]
    writer.flush()
    assert reader.take() == []
    memory.read(1, 1)
    writer.flush()
    assert reader.take() == [(1, b"\x01")]
    reader.close()
