"""Byte streams of the xenstore and console pages against plain byte strings: wrap-around, limits and lying indices."""
import mmap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from miniguest.ring._core import ByteRing
from miniguest.ring.console import IN_SIZE, OUT_SIZE, input_ring, output_ring
from miniguest.ring.errors import RingError

SIZE, DATA, CONS, PROD = 1024, 512, 4, 8


class Stream(RuleBasedStateMachine):
    """A writer and a reader on one page, and the bytes that are between them."""

    @initialize(index=st.sampled_from([0, 0xFFFFFFFF, 0xFFFFFF00, 0x7FFFFFFF, 1023]))
    def start(self, index: int) -> None:
        self.page = memoryview(mmap.mmap(-1, 4096))
        words = self.page.cast("I")
        words[CONS // 4] = words[PROD // 4] = index
        self.outside = bytes(self.page[:CONS]) + bytes(self.page[DATA + SIZE :])
        self.writer = ByteRing(self.page, DATA, SIZE, CONS, PROD)
        self.reader = ByteRing(self.page, DATA, SIZE, CONS, PROD)
        self.held = b""

    @rule(data=st.binary(max_size=1500))
    def write(self, data: bytes) -> None:
        room = SIZE - len(self.held)
        assert self.writer.writable == room
        assert self.writer.write(data) == min(room, len(data))
        self.held += data[:room]

    @rule(limit=st.integers(-1, 1200))
    def read(self, limit: int) -> None:
        count = len(self.held) if limit < 0 else limit
        assert self.reader.read(limit) == self.held[:count]
        self.held = self.held[count:]

    @invariant()
    def nothing_outside(self) -> None:
        if hasattr(self, "page"):
            assert self.reader.readable == len(self.held)
            assert bytes(self.page[:CONS]) + bytes(self.page[DATA + SIZE :]) == self.outside


TestStream = Stream.TestCase
TestStream.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


@given(cons=st.integers(0, 0xFFFFFFFF), prod=st.integers(0, 0xFFFFFFFF) | st.integers(-1100, 1100))
def test_indices_that_lie(cons: int, prod: int) -> None:
    page = memoryview(mmap.mmap(-1, 4096))
    prod = prod & 0xFFFFFFFF if prod > 1100 else (cons + prod) & 0xFFFFFFFF
    words = page.cast("I")
    words[CONS // 4], words[PROD // 4] = cons, prod
    stream = ByteRing(page, DATA, SIZE, CONS, PROD)
    held = (prod - cons) & 0xFFFFFFFF
    if held <= SIZE:
        assert stream.readable == held
        assert stream.write(b"x" * SIZE) == SIZE - held
        assert len(stream.read()) == SIZE
        return
    before = bytes(page)
    for call in (stream.read, lambda: stream.write(b"x"), lambda: stream.readable, lambda: stream.writable):
        with pytest.raises(RingError, match=f"hold {held} bytes"):
            call()
    assert bytes(page) == before


@pytest.mark.parametrize(
    ("data", "size", "cons", "prod"),
    [(0, 1000, 0, 0), (3584, 1024, 0, 0), (0, 1024, 4093, 0), (0, 1024, 0, 4096)],
)
def test_a_stream_fits_its_page(data: int, size: int, cons: int, prod: int) -> None:
    with pytest.raises(ValueError, match="fit"):
        ByteRing(bytearray(4096), data, size, cons, prod)


def test_the_console_page() -> None:
    """xen/io/console.h: in[1024], out[2048], in_cons, in_prod, out_cons, out_prod."""
    page = memoryview(mmap.mmap(-1, 4096))
    into, out = input_ring(page), output_ring(page)
    assert into.write(b"i" * 4096) == IN_SIZE and out.write(b"o" * 4096) == OUT_SIZE
    assert bytes(page[:3072]) == b"i" * 1024 + b"o" * 2048
    assert page[3072:3088].cast("I").tolist() == [0, 1024, 0, 2048]
    assert not any(page[3088:])
