"""The Internet checksum against RFC 1071's own example, its definition, and the parts it may be summed in."""
from hypothesis import given
from hypothesis import strategies as st

from miniguest.ring import _core


def by_definition(data: bytes, initial: int = 0) -> int:
    padded = data + bytes(len(data) % 2)
    total = initial + sum(int.from_bytes(padded[i : i + 2], "big") for i in range(0, len(padded), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def test_the_example_of_rfc_1071() -> None:
    assert _core.checksum_sum(bytes.fromhex("0001f203f4f5f6f7")) == 0xDDF2


@given(st.binary(max_size=100), st.integers(0, 0xFFFF))
def test_as_defined(data: bytes, initial: int) -> None:
    assert _core.checksum_sum(data, initial) == by_definition(data, initial)


@given(st.binary(max_size=60).filter(lambda data: len(data) % 2 == 0), st.binary(max_size=60))
def test_in_parts(first: bytes, second: bytes) -> None:
    assert _core.checksum_sum(second, _core.checksum_sum(first)) == _core.checksum_sum(first + second)


def test_a_long_one_of_ones() -> None:
    assert _core.checksum_sum(b"\xff" * 65535) == by_definition(b"\xff" * 65535)
