"""Events for nothing: sixteen are free, then the port stays masked longer and longer, up to a second, until there is work."""
from collections.abc import Callable
from typing import cast

from miniguest.ring.events import Port
from miniguest.ring.late_eoi import LateEoi
from miniguest.ring.loop import Loop


class Timer:
    def __init__(self, seconds: float, fn: Callable[[], None]) -> None:
        self.seconds, self.fn = seconds, fn
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Bench:
    """A loop by hand, with one port on it; `work` is what the handler will find."""

    number = 7

    def __init__(self) -> None:
        self.upcall = self
        self.masked = False
        self.work = False
        self.handler: Callable[[], None] | None = None
        self.timers: list[Timer] = []
        self.eoi = LateEoi(cast(Loop, self), cast(Port, self), lambda: self.work)

    def on_port(self, port: object, handler: Callable[[], None]) -> None:
        assert port is self
        self.handler = handler

    def off_port(self, port: object) -> None:
        self.handler = None

    def mask_port(self, number: int) -> None:
        assert number == 7 and not self.masked
        self.masked = True

    def unmask_port(self, number: int) -> None:
        assert number == 7 and self.masked
        self.masked = False

    def call_later(self, seconds: float, fn: Callable[[], None]) -> Timer:
        self.timers.append(Timer(seconds, fn))
        return self.timers[-1]

    def event(self, work: bool = False) -> None:
        assert self.handler and not self.masked
        self.work = work
        self.handler()


def test_sixteen_in_a_row_are_free() -> None:
    bench = Bench()
    for _ in range(3):
        for _ in range(16):
            bench.event()
        bench.event(work=True)
    assert not bench.timers and not bench.masked


def test_each_further_one_is_delayed_twice_as_long_up_to_a_second() -> None:
    bench = Bench()
    for _ in range(16):
        bench.event()
    for _ in range(40):
        bench.event()
        assert bench.masked
        bench.timers[-1].fn()
        assert not bench.masked
    assert [timer.seconds for timer in bench.timers] == [min(0.001 * 2**i, 1.0) for i in range(40)]


def test_work_makes_good_for_all_of_it() -> None:
    bench = Bench()
    for _ in range(20):
        bench.event()
        if bench.masked:
            bench.timers[-1].fn()
    bench.event(work=True)
    for _ in range(16):
        bench.event()
    assert len(bench.timers) == 4 and not bench.masked


def test_closed_while_masked() -> None:
    bench = Bench()
    for _ in range(17):
        bench.event()
    bench.eoi.close()
    assert bench.timers[-1].cancelled and not bench.masked and bench.handler is None
