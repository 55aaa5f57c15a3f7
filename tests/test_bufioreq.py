"""The page of buffered requests against a queue, and against what a writer may lie in it."""
import struct
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniguest.ring._core import BufferedPage
from miniguest.ring.abi.ioreq import BUFFERED_IOPAGE, IOREQ_BUFFER_SLOT_NUM
from miniguest.ring.errors import RingError

SIZES = {1: 0, 2: 1, 4: 2, 8: 3}
Write = tuple[int, int, int, int]
WRITES = st.tuples(st.integers(0, 1), st.integers(0, (1 << 20) - 1), st.sampled_from([1, 2, 4]), st.integers(0, (1 << 32) - 1))


def slot(page: bytearray, index: int, control: int, data: int) -> None:
    """A slot as another writer leaves it."""
    struct.pack_into("<II", page, BUFFERED_IOPAGE.offset["buf_ioreq"] + 8 * index, control, data)


def pointers(page: bytearray, *new: int) -> tuple[int, int]:
    if new:
        struct.pack_into("<II", page, 0, *new)
    read, write = struct.unpack_from("<II", page)
    return read, write


@given(st.lists(st.one_of(st.none(), st.lists(WRITES, min_size=1, max_size=400)), max_size=12))
def test_what_is_put_is_taken_in_order(steps: list[list[Write] | None]) -> None:
    page = bytearray(4096)
    writer, reader = BufferedPage(page), BufferedPage(page)
    model: deque[Write] = deque()
    for step in steps:
        if step is None:
            assert reader.take() == list(model)
            model.clear()
        for type_, address, size, data in step or ():
            fits = len(model) < IOREQ_BUFFER_SLOT_NUM
            assert writer.put(type_, address, size, data) == fits
            if fits:
                model.append((type_, address, size, data & (1 << 8 * size) - 1))
        assert pointers(page)[0] < 2 * IOREQ_BUFFER_SLOT_NUM, "they never come near to where they would wrap"
    assert reader.take() == list(model)


def test_a_slot_is_laid_out_as_in_the_header() -> None:
    page = bytearray(4096)
    BufferedPage(page).put(1, 0xABCDE, 4, 0x12345678)
    assert pointers(page) == (0, 1)
    assert struct.unpack_from("<II", page, 8) == (1 | SIZES[4] << 10 | 0xABCDE << 12, 0x12345678)


def test_eight_bytes_are_two_slots() -> None:
    page = bytearray(4096)
    slot(page, 510, SIZES[8] << 10 | 1 | 0x10 << 12, 0x11223344)
    slot(page, 0, SIZES[8] << 10 | 1 | 0x10 << 12, 0x55667788)
    slot(page, 1, 0x80 << 12, 0xFFFFFF05)
    pointers(page, 510, 513)
    assert BufferedPage(page).take() == [(1, 0x10, 8, 0x5566778811223344), (0, 0x80, 1, 5)]


@pytest.mark.parametrize(("read", "write", "control", "words"), [
    (0, 512, 0, "512 ahead"), (5, 4, 0, "4294967295 ahead"),
    (0, 1, 1 << 9, "no write"), (0, 1, SIZES[8] << 10, "no write"),
])
def test_lies_are_told_once_and_dropped(read: int, write: int, control: int, words: str) -> None:
    page = bytearray(4096)
    slot(page, 0, control, 0)
    pointers(page, read, write)
    reader = BufferedPage(page)
    with pytest.raises(RingError, match=words):
        reader.take()
    assert reader.take() == []


def test_sizes_that_a_write_cannot_have() -> None:
    with pytest.raises(ValueError, match="8 bytes"):
        BufferedPage(bytearray(4096)).put(0, 0, 8, 0)
    with pytest.raises(ValueError, match="frame"):
        BufferedPage(bytearray(64))
