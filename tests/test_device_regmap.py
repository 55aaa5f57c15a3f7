"""Register maps: exact accesses, accesses taken apart, and offsets with nothing behind them."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniguest.frontend.devices.device import Model
from miniguest.frontend.devices.regmap import RegMap


class Board(Model):
    """Two bytes, a word, a dword, a write-only byte, a hole, and an array."""

    regs = RegMap(size=16)

    def __init__(self) -> None:
        self.bytes = bytearray(range(0x10, 0x20))
        self.log: list[tuple[str, int]] = []
        self.outside: list[tuple[int, bool]] = []

    def unmapped(self, offset: int, writing: bool) -> None:
        self.outside.append((offset, writing))

    @regs.read(0, "A")
    def read_a(self) -> int:
        return self.bytes[0]

    @regs.write(0, "A")
    def write_a(self, value: int) -> None:
        self.log.append(("A", value))

    @regs.read(1, "B")
    def read_b(self) -> int:
        return self.bytes[1]

    @regs.write(1, "B")
    def write_b(self, value: int) -> None:
        self.log.append(("B", value))

    @regs.read(2, "W", size=2)
    def read_w(self) -> int:
        return 0x1312

    @regs.write(2, "W", size=2)
    def write_w(self, value: int) -> None:
        self.log.append(("W", value))

    @regs.read(4, "D", size=4)
    def read_d(self) -> int:
        return 0x17161514

    @regs.write(4, "D", size=4)
    def write_d(self, value: int) -> None:
        self.log.append(("D", value))

    @regs.write(8, "O", size=2)
    def write_o(self, value: int) -> None:
        self.log.append(("O", value))

    @regs.read(12, "N", count=4)
    def read_n(self, index: int) -> int:
        return self.bytes[12 + index]

    @regs.write(12, "N", count=4)
    def write_n(self, index: int, value: int) -> None:
        self.log.append((f"N{index}", value))


@given(offset=st.integers(-4, 20), size=st.sampled_from([1, 2, 4]))
def test_reads_of_any_place_and_width_see_the_same_bytes(offset: int, size: int) -> None:
    board = Board()
    seen = board.read(offset, size).to_bytes(size, "little")
    for at, byte in enumerate(seen, start=offset):
        assert byte == (board.bytes[at] if 0 <= at < 8 or 12 <= at < 16 else 0xFF)


@pytest.mark.parametrize(
    ("offset", "size", "value", "expected"),
    [
        (0, 1, 0x1FF, [("A", 0xFF)]),
        (0, 2, 0xBBAA, [("A", 0xAA), ("B", 0xBB)]),
        (0, 4, 0xDDCCBBAA, [("A", 0xAA), ("B", 0xBB), ("W", 0xDDCC)]),
        (2, 1, 0x99, [("W", 0x1399)]),
        (3, 1, 0x99, [("W", 0x9912)]),
        (5, 2, 0x8877, [("D", 0x17887714)]),
        (6, 4, 0x44332211, [("D", 0x22111514), ("O", 0x4433)]),
        (9, 1, 0x55, [("O", 0x5500)]),
        (13, 2, 0x6655, [("N1", 0x55), ("N2", 0x66)]),
        (15, 4, 0x44332211, [("N3", 0x11)]),
        (10, 2, 0x1234, []),
    ],
)
def test_writes_reach_the_registers_they_cover(offset: int, size: int, value: int, expected: list[tuple[str, int]]) -> None:
    board = Board()
    board.write(offset, size, value)
    assert board.log == expected


def test_nothing_there_is_told_once_for_each_offset(caplog: pytest.LogCaptureFixture) -> None:
    class Hole(Board):
        regs = RegMap(size=16)

    board = Hole()
    with caplog.at_level(logging.DEBUG, logger="miniguest"):
        for _ in range(3):
            board.read(10, 1)
            board.write(11, 1, 0)
    assert board.outside == [(10, False), (11, True)] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "Hole: no register to read at offset 0xa",
        "Hole: no register to write at offset 0xb",
    ]


def test_blank_is_what_a_hole_reads_as() -> None:
    class Quiet(Model):
        regs = RegMap(size=8, blank=0)

    assert Quiet().read(0, 4) == 0
    assert Quiet().read(6, 4) == 0
