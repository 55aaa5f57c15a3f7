"""Peers that lie through the shared page: RingError or nothing, never anything outside the ring, never a second look."""
import mmap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniguest.ring._core import BackRing, FrontRing
from miniguest.ring.errors import RingError

NEAR_WRAP = 0xFFFFFFF0
REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT = range(4)
LONG = 3_600_000_000_000
WORD = st.integers(0, 0xFFFFFFFF)


def ring(index: int = NEAR_WRAP) -> tuple[FrontRing, BackRing, memoryview]:
    """Both ends of a blkif ring of 32 slots, and its four u32 words."""
    page = memoryview(mmap.mmap(-1, 4096))
    return FrontRing(page, 112, 16, index=index), BackRing(page, 112, 16, index=index), page.cast("I")


def wrapped(value: int) -> int:
    return value & 0xFFFFFFFF


@pytest.mark.parametrize("ahead", [33, 1000, 1 << 31, -1, -32])
def test_req_prod_ahead_or_moving_back(ahead: int) -> None:
    _, back, words = ring()
    words[REQ_PROD] = wrapped(NEAR_WRAP + ahead)
    for take in (back.take, lambda: back.take_within(LONG, 32, 1), lambda: back.exchange(0, LONG, 32, 1)):
        with pytest.raises(RingError, match="req_prod"):
            take()
    assert back.unanswered == 0


def test_req_prod_moves_back_over_what_was_taken() -> None:
    front, back, words = ring()
    front.put(10)
    front.push()
    assert back.take() == 10
    back.put(10)
    back.push()
    words[REQ_PROD] = wrapped(NEAR_WRAP + 9)
    with pytest.raises(RingError, match="moved back"):
        back.take()


def test_req_prod_moves_back_over_what_was_seen_only() -> None:
    """A partial take has seen the index: it may not go below that, even if nobody took those requests yet."""
    front, back, words = ring()
    front.put(10)
    front.push()
    assert back.take(4) == 4
    words[REQ_PROD] = wrapped(NEAR_WRAP + 5)
    with pytest.raises(RingError, match="moved back"):
        back.take()


def test_a_full_ring_is_no_lie_and_one_more_is() -> None:
    front, back, words = ring()
    assert front.put(100) == 32
    front.push()
    assert back.take() == 32
    words[REQ_PROD] = wrapped(NEAR_WRAP + 33)
    with pytest.raises(RingError):
        back.take()


@pytest.mark.parametrize("ahead", [1, 33, 1 << 31, -1])
def test_rsp_prod_ahead_of_nothing(ahead: int) -> None:
    front, _, words = ring()
    words[RSP_PROD] = wrapped(NEAR_WRAP + ahead)
    for take in (front.take, lambda: front.take_within(LONG, 32, 1), lambda: front.exchange(0, LONG, 32, 1)):
        with pytest.raises(RingError, match="rsp_prod"):
            take()
    assert front.outstanding == 0


def test_rsp_prod_moves_back() -> None:
    front, back, words = ring()
    front.put(4)
    front.push()
    back.take()
    back.put(3)
    back.push()
    assert front.take() == 3
    words[RSP_PROD] = wrapped(NEAR_WRAP + 2)
    with pytest.raises(RingError):
        front.take()


def test_rsp_prod_moves_back_over_what_was_seen_only() -> None:
    front, back, words = ring()
    front.send(10)
    back.take()
    back.respond(10)
    assert front.take(4) == 4
    words[RSP_PROD] = wrapped(NEAR_WRAP + 5)
    with pytest.raises(RingError, match="moved back"):
        front.take()


def test_nobody_waits_for_more_than_can_come() -> None:
    """A watchdog would be no test: a spin of an hour that is not cut short does not end."""
    front, back, _ = ring()
    assert front.take_within(LONG, 5) == 0              # nothing was sent
    front.send(3)
    assert back.take_within(LONG, 3) == 3
    back.respond(3)
    assert front.take_within(LONG, 5) == 3              # no more than three are on their way
    front.send(32)
    assert back.take(2) == 2
    assert back.take_within(LONG, 40, 30) == 30         # and no more than the ring holds can be asked for
    assert back.take_within(LONG, 1) == 0


def test_a_spin_ends_when_its_time_is_up() -> None:
    front, back, _ = ring()
    front.send(3)
    assert front.take_within(1000, 1) == 0
    assert back.take_within(1000, 4) == 3
    assert back.take_within(-1, 1) == 0


def test_more_requests_than_room_are_our_own_mistake() -> None:
    front, _, _ = ring()
    assert front.send(30)
    with pytest.raises(ValueError, match="more requests"):
        front.send(3)
    assert front.outstanding == 30
    assert not front.send(2)


def test_what_was_not_pushed_cannot_be_answered() -> None:
    front, _, words = ring()
    front.put(3)
    front.push()
    front.put(5)
    words[RSP_PROD] = wrapped(NEAR_WRAP + 4)
    with pytest.raises(RingError):
        front.take()


def test_a_request_changed_after_the_copy_changes_nothing() -> None:
    front, back, words = ring()
    front.requests[:112] = b"a" * 112
    front.put(1)
    front.push()
    back.take()
    memoryview(words).cast("B")[64:] = b"x" * (4096 - 64)
    assert back.requests[:112] == b"a" * 112


def test_a_response_changed_after_the_copy_changes_nothing() -> None:
    front, back, words = ring()
    front.put(1)
    front.push()
    back.take()
    back.responses[:16] = b"r" * 16
    back.put(1)
    back.push()
    front.take()
    memoryview(words).cast("B")[64:] = b"x" * (4096 - 64)
    assert front.responses[:16] == b"r" * 16


def test_more_responses_than_requests_is_our_own_mistake() -> None:
    front, back, _ = ring()
    front.put(2)
    front.push()
    back.take(1)
    with pytest.raises(ValueError, match="more responses"):
        back.put(2)


@given(st.lists(st.tuples(st.integers(0, 3), WORD, st.integers(0, 40)), max_size=30))
def test_whatever_the_words_say(steps: list[tuple[int, int, int]]) -> None:
    """Either end may write any word at any time: calls answer, or raise RingError; nobody counts past the ring."""
    front, back, words = ring()
    for word, value, count in steps:
        words[word] = value
        front.put(count)
        front.push()
        for end in (back, front):
            try:
                assert end.take() <= 32
            except RingError:
                continue
            end.final_check()
        back.put(min(count, back.unanswered))
        back.push()
        assert 0 <= back.unanswered <= 32
        assert 0 <= front.free <= 32


@given(index=WORD, near=st.integers(-40, 40))
def test_requests_are_accepted_exactly_within_the_ring(index: int, near: int) -> None:
    _, back, words = ring(index)
    words[REQ_PROD] = wrapped(index + near)
    if 0 <= near <= 32:
        assert back.take() == near
    else:
        with pytest.raises(RingError):
            back.take()


@given(index=WORD, event=WORD, count=st.integers(0, 32))
def test_notify_is_the_headers_rule_for_any_event(index: int, event: int, count: int) -> None:
    front, _, words = ring(index)
    words[REQ_EVENT] = event
    front.put(count)
    assert front.push() is (wrapped(index + count - event) < count)


@given(index=WORD, event=WORD, count=st.integers(0, 32))
def test_notify_of_responses_too(index: int, event: int, count: int) -> None:
    front, back, words = ring(index)
    front.put(32)
    front.push()
    back.take()
    words[RSP_EVENT] = event
    back.put(count)
    assert back.push() is (wrapped(index + count - event) < count)


def test_only_the_front_initialises() -> None:
    page = memoryview(mmap.mmap(-1, 4096))
    BackRing(page, 112, 16)
    FrontRing(page, 112, 16, attach=True)
    assert bytes(page) == bytes(4096)
    FrontRing(page, 112, 16, index=7)
    assert page.cast("I")[:4].tolist() == [7, 8, 7, 8]


@pytest.mark.parametrize(("size", "slots"), [(64 + 112, 1), (64 + 111, 0), (64, 0), (4096, 32), (16 * 4096, 512)])
def test_room(size: int, slots: int) -> None:
    page = memoryview(mmap.mmap(-1, 16 * 4096))[:size]
    if slots:
        assert FrontRing(page, 112, 16).slots == slots
    else:
        with pytest.raises(RingError, match="no room"):
            FrontRing(page, 112, 16)


def test_a_slot_has_a_size() -> None:
    with pytest.raises(ValueError, match="empty"):
        FrontRing(bytearray(4096), 0, 0)


def test_a_ring_is_writable_memory() -> None:
    with pytest.raises(BufferError):
        BackRing(memoryview(bytes(4096)), 112, 16)      # type: ignore[arg-type]


def test_an_exchange_is_a_send_and_a_take() -> None:
    front, back, _ = ring()
    front.requests[0:8] = b"question"
    assert front.exchange(2, 1000, 1) == 0                  # sent, and nobody has answered
    assert back.exchange(0, LONG, 2) == 2 and bytes(back.requests[0:8]) == b"question"
    back.responses[0:6] = b"answer"
    assert back.exchange(2, 1000, 1) == 0                   # answered, and there are no more
    assert front.exchange(3, LONG, 2, 2) == 2 and bytes(front.responses[0:6]) == b"answer"
    assert (back.take(), front.outstanding) == (3, 3)
    with pytest.raises(ValueError, match="more requests"):
        front.exchange(30, 1000)
    with pytest.raises(ValueError, match="more responses"):
        back.exchange(4, 1000)
