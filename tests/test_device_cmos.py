"""The MC146818 against its datasheet and against the calendar of the standard library."""

import calendar
import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniguest.frontend.devices import rtc_time
from miniguest.frontend.devices.cmos import Cmos, cmos_map
from miniguest.frontend.devices.rtc_time import next_match

BASE = 1_700_000_000  # 14 November 2023, 22:13:20, a Tuesday
REGISTERS = (0, 2, 4, 6, 7, 8, 9, 0x32)


class Board:
    def __init__(self, seconds: float = BASE) -> None:
        self.now = 5_000_000_000
        self.start = seconds
        self.cmos = Cmos(lambda: self.now, lambda: self.start + (self.now - 5_000_000_000) / 1e9)

    def get(self, index: int) -> int:
        self.cmos.write(0, 1, index | 0x80)
        return self.cmos.read(1, 1)

    def put(self, index: int, value: int) -> None:
        self.cmos.write(0, 1, index)
        self.cmos.write(1, 1, value)

    def times(self) -> list[int]:
        return [self.get(index) for index in REGISTERS]

    def wait(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)

    def run(self, seconds: float) -> list[float]:
        """Tick at every deadline, acknowledging each interrupt; gives when the line was up."""
        end, seen = self.now + round(seconds * 1e9), []
        while (due := self.cmos.deadline()) is not None and due <= end:
            self.now = max(due, self.now)
            self.cmos.tick()
            if self.cmos.irq():
                seen.append((self.now - 5_000_000_000) / 1e9)
                self.get(0x0C)
        self.now = end
        return seen


@given(seconds=st.integers(0, 4_102_444_800), twelve=st.booleans(), binary=st.booleans())
def test_the_time_is_the_calendar_s(seconds: int, twelve: bool, binary: bool) -> None:
    board = Board(seconds)
    board.put(0x0B, (0 if twelve else 2) | (4 if binary else 0))
    when = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    hour = (when.hour % 12 or 12) if twelve else when.hour
    weekday = when.isoweekday() % 7 + 1
    plain = [when.second, when.minute, hour, weekday, when.day, when.month, when.year % 100, when.year // 100]
    expected = plain if binary else [int(str(number), 16) for number in plain]
    if twelve and when.hour >= 12:
        expected[2] |= 0x80
    assert board.times() == expected


@given(st.dates(datetime.date(1970, 1, 1), datetime.date(2399, 12, 31)))
def test_civil_dates(date: datetime.date) -> None:
    days = calendar.timegm(date.timetuple()) // 86400
    assert rtc_time.days_from_civil(date.year, date.month, date.day) == days
    assert rtc_time.civil(days) == (date.year, date.month, date.day)


def test_setting_the_time_with_set_and_running_on_from_it() -> None:
    board = Board()
    board.put(0x0B, 0x82)
    values = [0x58, 0x59, 0x23, 0x03, 0x28, 0x02, 0x24, 0x20]
    for index, value in zip(REGISTERS, values, strict=True):
        board.put(index, value)
    board.wait(100)
    assert board.times() == values  # stopped
    board.put(0x0B, 0x02)
    board.wait(3)
    assert board.times() == [0x01, 0x00, 0x00, 0x04, 0x29, 0x02, 0x24, 0x20]  # a leap day; the guest's own weekday


def test_a_register_written_while_it_runs_moves_only_that_one() -> None:
    board = Board()
    before = board.times()
    board.put(4, 0x05)
    assert board.times() == [*before[:2], 5, *before[3:]]
    for index in REGISTERS:
        board.put(index, 0xFF)  # no date at all: nothing raises, and it runs on
    board.times()


def test_the_divider_in_reset_stops_the_clock() -> None:
    board = Board()
    board.put(0x0A, 0x66)
    before = board.times()
    board.wait(10)
    assert board.times() == before
    board.put(0x0A, 0x26)
    board.wait(1)
    assert board.times()[0] == before[0] + 1


def test_update_in_progress_comes_before_the_second_turns() -> None:
    board = Board()
    assert not board.get(0x0A) & 0x80
    board.wait(0.9970)
    assert not board.get(0x0A) & 0x80
    board.wait(0.0015)
    assert board.get(0x0A) & 0x80
    before = board.times()
    board.wait(0.0015)
    assert not board.get(0x0A) & 0x80
    assert board.times() != before
    board.wait(0.998)
    board.put(0x0B, 0x82)
    assert not board.get(0x0A) & 0x80


@pytest.mark.parametrize(("rate", "hertz"), [(15, 2), (6, 1024), (3, 8192), (1, 256), (2, 128)])
def test_periodic_interrupt(rate: int, hertz: int) -> None:
    board = Board()
    board.put(0x0A, 0x20 | rate)
    assert board.cmos.deadline() is None
    board.put(0x0B, 0x42)
    assert len(board.run(1.0)) == hertz
    board.wait(10)
    board.cmos.tick()
    assert board.cmos.irq()
    assert board.get(0x0C) == 0xD0  # update ended is flagged too, though not enabled
    assert board.get(0x0C) == 0
    assert not board.cmos.irq()
    board.put(0x0A, 0x20)
    board.wait(10)
    assert not board.get(0x0C) & 0x40  # rate 0: none


def test_update_ended_interrupt_each_second() -> None:
    board = Board(BASE + 0.25)
    board.put(0x0B, 0x12)
    seen = board.run(3.5)
    assert [round(at, 3) for at in seen] == [0.75, 1.75, 2.75]
    board.put(0x0B, 0x92)
    assert not board.get(0x0B) & 0x10  # SET turns it off


def test_alarm() -> None:
    board = Board()
    for index, value in ((1, 0x05), (3, 0x14), (5, 0xC0)):
        board.put(index, value)
    board.put(0x0B, 0x22)
    assert [round(at) for at in board.run(7300)] == [45, 3645, 7245]


@settings(max_examples=60, deadline=None)
@given(
    alarm=st.tuples(st.integers(0, 63), st.integers(0, 63), st.integers(0, 26)),
    wild=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    now=st.integers(0, 200_000),
)
def test_next_alarm_matches_a_search(alarm: tuple[int, int, int], wild: tuple[bool, bool, bool], now: int) -> None:
    registers = tuple(0xC0 if any_ else value for value, any_ in zip(alarm, wild, strict=True))
    wanted = None
    for wait in range(1, 86401):
        fields = ((now + wait) % 60, (now + wait) // 60 % 60, (now + wait) // 3600 % 24)
        if all(any_ or field == value for field, value, any_ in zip(fields, alarm, wild, strict=True)):
            wanted = wait
            break
    assert next_match((registers[0], registers[1], registers[2]), now, 6) == wanted


def test_status_and_ram() -> None:
    board = Board()
    assert board.get(0x0D) == 0x80
    board.put(0x0D, 0)
    board.put(0x0C, 0xFF)
    assert board.get(0x0D) == 0x80
    board.put(0x7F, 0xA5)
    assert board.get(0xFF) == 0xA5  # bit 7 is the NMI mask
    assert board.cmos.read(0, 1) == 0xFF  # the index cannot be read


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (16 << 20, {0x30: 0x00, 0x31: 0x3C, 0x34: 0, 0x35: 0, 0x5B: 0}),
        (64 << 20, {0x30: 0x00, 0x31: 0xFC, 0x34: 0x00, 0x35: 0x03}),
        (5 << 30, {0x17: 0xFF, 0x18: 0xFF, 0x34: 0x00, 0x35: 0xBF, 0x5B: 0x00, 0x5C: 0x80, 0x5D: 0x00}),
    ],
)
def test_memory_size(size: int, expected: dict[int, int]) -> None:
    ram = cmos_map(size, vcpus=2, boot="dcn")
    assert {index: ram[index] for index in expected} == expected
    assert (ram[0x15], ram[0x16], ram[0x5F]) == (0x80, 0x02, 1)
    assert (ram[0x3D], ram[0x38]) == (0x23, 0x40)
    assert ram[0x2E] << 8 | ram[0x2F] == sum(ram.get(index, 0) for index in range(0x10, 0x2E))
