"""When a link asks its loop to be called, with a loop and a switch that do nothing but tell."""
from collections.abc import Callable

from miniguest.backend.netback.link import Link
from miniguest.backend.netback.links import LinkConfig
from miniguest.ring.loop import Timer
from miniguest.ring.statistics import LINK_FIELDS


class Patient:
    """A loop that only notes who wants to be called, and a switch that only says when."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []
        self.timers: list[tuple[float, Timer]] = []
        self.deadline, self.now, self.trouble = -1, 0, False

    def call_soon(self, fn: Callable[[], None]) -> None:
        self.soon.append(fn)

    def call_later(self, seconds: float, fn: Callable[[], None]) -> Timer:
        self.timers.append((seconds, Timer(0.0, fn)))
        return self.timers[-1][1]

    def run(self, _: int) -> bool:
        return False

    def turn(self, deadline: int) -> list[float]:
        """One run after which the switch has that deadline; the seconds of the timers that wait."""
        self.deadline = deadline
        self.link.wake()
        self.soon.pop()()
        assert not self.soon
        return [seconds for seconds, timer in self.timers if timer.fn]

    def ring(self) -> None:
        """The only timer's time is up."""
        ((_, timer),) = [each for each in self.timers if each[1].fn]
        self.timers.clear()
        assert timer.fn
        timer.fn()

    @classmethod
    def make(cls) -> "Patient":
        made = cls()
        counters = memoryview(bytearray(8 * len(LINK_FIELDS)))
        made.link = Link("lan", LinkConfig(), made, counters, clock=lambda: made.now)     # type: ignore[arg-type]
        made.link.switch = made                             # type: ignore[assignment]
        return made

    link: Link


def test_a_deadline_that_moves_away_leaves_the_timer_alone() -> None:
    it = Patient.make()
    assert it.turn(-1) == []
    assert it.turn(5_000_000) == [0.005]
    assert it.turn(9_000_000) == it.turn(-1) == it.turn(5_000_000) == [0.005] and len(it.timers) == 1
    assert it.turn(2_000_000) == [0.002]                    # but one that comes nearer does not
    it.now = 2_000_000
    it.deadline = 9_000_000
    it.ring()
    it.soon.pop()()
    assert [seconds for seconds, _ in it.timers] == [0.007]
    it.now = 9_000_000
    it.deadline = -1
    it.ring()
    it.soon.pop()()
    assert it.timers == []
