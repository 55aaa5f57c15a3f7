"""Rings against a model and against Xen's own macros: four pairs of ends take the same steps and must leave the same bytes.

ours - ours, ours - Xen's, Xen's - ours and Xen's - Xen's, each on a ring of its own. After every step what the ends
answered and all four shared rings must be equal; what passed through is checked against plain lists.
"""
import mmap
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from xen_ring import SIZES, XenBack, XenFront

from miniguest.ring._core import BackRing, FrontRing

NEAR_WRAP = 0xFFFFFFF0
WRAP = 1 << 32


class OurFront:
    """FrontRing with bytes in and out."""

    def __init__(self, kind: str, page: memoryview, index: int) -> None:
        self.ring = FrontRing(page, *SIZES[kind], index=index)
        self.slots = self.ring.slots
        self.push, self.final_check = self.ring.push, self.ring.final_check

    @property
    def free(self) -> int:
        return self.ring.free

    def put(self, requests: bytes) -> int:
        count = len(requests) // self.ring.req_size
        fits = requests[: len(self.ring.requests)]
        self.ring.requests[: len(fits)] = fits
        return self.ring.put(count)

    def take(self, limit: int = 1 << 20) -> bytes:
        return bytes(self.ring.responses[: self.ring.take(limit) * self.ring.rsp_size])

    def take_within(self, spin_ns: int, least: int, limit: int) -> bytes:
        return bytes(self.ring.responses[: self.ring.take_within(spin_ns, least, limit) * self.ring.rsp_size])

    def put_and_push(self, requests: bytes) -> bool:
        self.ring.requests[: len(requests)] = requests
        return self.ring.send(len(requests) // self.ring.req_size)


class OurBack:
    """BackRing with bytes in and out."""

    def __init__(self, kind: str, page: memoryview, index: int) -> None:
        self.ring = BackRing(page, *SIZES[kind], index=index)
        self.push, self.final_check = self.ring.push, self.ring.final_check

    def take(self, limit: int) -> bytes:
        return bytes(self.ring.requests[: self.ring.take(limit) * self.ring.req_size])

    def take_within(self, spin_ns: int, least: int, limit: int) -> bytes:
        return bytes(self.ring.requests[: self.ring.take_within(spin_ns, least, limit) * self.ring.req_size])

    def put(self, responses: bytes) -> None:
        self.ring.responses[: len(responses)] = responses
        self.ring.put(len(responses) // self.ring.rsp_size)

    def put_and_push(self, responses: bytes) -> bool:
        self.ring.responses[: len(responses)] = responses
        return self.ring.respond(len(responses) // self.ring.rsp_size)


class FourPairs(RuleBasedStateMachine):
    """Requests and responses are numbered bytes; the model knows which are where."""

    @initialize(
        kind=st.sampled_from(sorted(SIZES)), pages=st.integers(1, 16),
        index=st.sampled_from([NEAR_WRAP, 0, 0xFFFFFFFF, 0x7FFFFFFE]),
    )
    def start(self, kind: str, pages: int, index: int) -> None:
        self.req_size, self.rsp_size = SIZES[kind]
        self.pages = [memoryview(mmap.mmap(-1, pages * 4096)) for _ in range(4)]
        a, b, c, d = self.pages
        self.fronts = [OurFront(kind, a, index), OurFront(kind, b, index), XenFront(kind, c, index), XenFront(kind, d, index)]
        self.backs = [OurBack(kind, a, index), XenBack(kind, b, index), OurBack(kind, c, index), XenBack(kind, d, index)]
        self.slots = self.fronts[3].slots
        self.made = 0
        self.put: list[bytes] = []              # by the front, not pushed
        self.visible: list[bytes] = []          # pushed, not taken by the back
        self.taken: list[bytes] = []            # by the back, not answered
        self.answered: list[bytes] = []         # not pushed
        self.returned: list[bytes] = []         # pushed, not taken by the front
        self.req_prod = self.rsp_prod = self.req_cons = self.rsp_cons = index
        self.req_event = self.rsp_event = (index + 1) % WRAP

    def same(self, answers: list[object]) -> object:
        assert answers[1:] == answers[:-1], answers
        return answers[0]

    def numbered(self, count: int, size: int) -> list[bytes]:
        self.made += count
        return [(self.made - count + i).to_bytes(4, "little") * (size // 4) for i in range(count)]

    @property
    def outstanding(self) -> int:
        return sum(map(len, (self.put, self.visible, self.taken, self.answered, self.returned)))

    @rule(count=st.integers(0, 400))
    def front_puts(self, count: int) -> None:
        items = self.numbered(count, self.req_size)
        free = self.slots - self.outstanding
        assert self.same([front.free for front in self.fronts]) == free
        assert self.same([front.put(b"".join(items)) for front in self.fronts]) == min(count, free)
        self.put += items[:free]

    @rule()
    def front_pushes(self) -> None:
        old, self.req_prod = self.req_prod, (self.req_prod + len(self.put)) % WRAP
        crossed = (self.req_prod - self.req_event) % WRAP < (self.req_prod - old) % WRAP
        assert self.same([front.push() for front in self.fronts]) is crossed
        self.visible += self.put
        self.put = []

    @rule(count=st.integers(0, 40))
    def front_puts_and_pushes(self, count: int) -> None:
        items = self.numbered(min(count, self.slots - self.outstanding), self.req_size)
        self.put += items
        old, self.req_prod = self.req_prod, (self.req_prod + len(self.put)) % WRAP
        crossed = (self.req_prod - self.req_event) % WRAP < (self.req_prod - old) % WRAP
        assert self.same([front.put_and_push(b"".join(items)) for front in self.fronts]) is crossed
        self.visible += self.put
        self.put = []

    @rule(limit=st.integers(0, 40) | st.just(1 << 20), least=st.integers(0, 40), spin=st.none() | st.integers(-1, 3000))
    def back_takes(self, limit: int, least: int, spin: int | None) -> None:
        taken = self.same([self.take(back, limit, least, spin) for back in self.backs])
        count = min(limit, len(self.visible))
        assert taken == b"".join(self.visible[:count])
        self.taken += self.visible[:count]
        del self.visible[:count]
        self.req_cons = (self.req_cons + count) % WRAP

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def back_answers(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, len(self.taken)))
        items = self.numbered(count, self.rsp_size)
        for back in self.backs:
            back.put(b"".join(items))
        del self.taken[:count]
        self.answered += items

    @rule()
    def back_pushes(self) -> None:
        old, self.rsp_prod = self.rsp_prod, (self.rsp_prod + len(self.answered)) % WRAP
        crossed = (self.rsp_prod - self.rsp_event) % WRAP < (self.rsp_prod - old) % WRAP
        assert self.same([back.push() for back in self.backs]) is crossed
        self.returned += self.answered
        self.answered = []

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def back_answers_and_pushes(self, data: st.DataObject) -> None:
        items = self.numbered(data.draw(st.integers(0, len(self.taken))), self.rsp_size)
        del self.taken[: len(items)]
        self.answered += items
        old, self.rsp_prod = self.rsp_prod, (self.rsp_prod + len(self.answered)) % WRAP
        crossed = (self.rsp_prod - self.rsp_event) % WRAP < (self.rsp_prod - old) % WRAP
        assert self.same([back.put_and_push(b"".join(items)) for back in self.backs]) is crossed
        self.returned += self.answered
        self.answered = []

    @rule(limit=st.integers(0, 40) | st.just(1 << 20), least=st.integers(0, 40), spin=st.none() | st.integers(-1, 3000))
    def front_takes(self, limit: int, least: int, spin: int | None) -> None:
        taken = self.same([self.take(front, limit, least, spin) for front in self.fronts])
        count = min(limit, len(self.returned))
        assert taken == b"".join(self.returned[:count])
        self.rsp_cons = (self.rsp_cons + count) % WRAP
        del self.returned[:count]

    def take(self, end: Any, limit: int, least: int, spin: int | None) -> bytes:
        """Take; ours by the call that spins, unless spin is None. Nobody is there to wait for: it takes the same."""
        spins = spin is not None and isinstance(end, OurFront | OurBack)
        return bytes(end.take_within(spin, least, limit) if spins else end.take(limit))

    @rule()
    def front_checks_finally(self) -> None:
        assert self.same([front.final_check() for front in self.fronts]) is bool(self.returned)
        if not self.returned:
            self.rsp_event = (self.rsp_cons + 1) % WRAP

    @rule()
    def back_checks_finally(self) -> None:
        assert self.same([back.final_check() for back in self.backs]) is bool(self.visible)
        if not self.visible:
            self.req_event = (self.req_cons + 1) % WRAP

    @invariant()
    def rings_are_equal(self) -> None:
        if hasattr(self, "pages"):
            assert self.pages[0] == self.pages[1] == self.pages[2] == self.pages[3]
            indices = FrontRing(self.pages[0], self.req_size, self.rsp_size, attach=True).indices
            assert indices == (self.req_prod, self.req_event, self.rsp_prod, self.rsp_event)


TestFourPairs = FourPairs.TestCase
TestFourPairs.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.mark.parametrize("kind", sorted(SIZES))
@pytest.mark.parametrize("pages", range(1, 17))
def test_as_many_slots_as_xen(kind: str, pages: int) -> None:
    page = memoryview(mmap.mmap(-1, pages * 4096))
    assert FrontRing(page, *SIZES[kind]).slots == XenFront(kind, page, 0).slots


@pytest.mark.parametrize("kind", sorted(SIZES))
def test_every_lie_that_xen_tells_is_told_by_us(kind: str) -> None:
    """RING_REQUEST_PROD_OVERFLOW and RING_RESPONSE_PROD_OVERFLOW are the least that a ring must refuse."""
    page = memoryview(mmap.mmap(-1, 4096))
    front, xen_front, xen_back = OurFront(kind, page, NEAR_WRAP), XenFront(kind, page, NEAR_WRAP), XenBack(kind, page, NEAR_WRAP)
    words = page.cast("I")
    for lie in (*range(-3, 4), front.slots, front.slots + 1, 1 << 31, (1 << 31) + 1):
        words[0] = words[2] = (NEAR_WRAP + lie) % WRAP
        for end, lied_to in ((OurBack(kind, page, NEAR_WRAP), xen_back.lied_to), (front, xen_front.lied_to)):
            if lied_to:
                with pytest.raises(Exception, match="_prod"):
                    end.take() if end is front else end.take(1 << 20)
