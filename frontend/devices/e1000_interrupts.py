"""Interrupts of the 82540EM: causes and mask, throttling, and the delays of receive and transmit interrupts.

Sections 13.4.17-13.4.21 (ICR, ITR, ICS, IMS, IMC), 3.2.7 and 3.4.3 (delays) of the manual that `e1000_registers` names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from miniguest.frontend.devices.device import Clock
from miniguest.frontend.devices.e1000_registers import CAUSES, FPD

THROTTLE_UNIT = 256                     # ns
DELAY_UNIT = 1024


@dataclass(slots=True)
class InterruptState:
    icr: int = 0
    ims: int = 0
    itr: int = 0
    line: bool = False
    ready: int = 0                      # ns before which the line does not rise; 0 = at once


class Interrupts:
    """Causes that are set and enabled raise the line, no sooner than ITR after it last rose.

    `raised` is called each time the line rises: that is when an MSI is sent, and none is sent again before the causes
    were read (4.1.3).
    """

    def __init__(self, state: InterruptState, clock: Clock, raised: Callable[[], None]) -> None:
        self.state = state
        self.clock = clock
        self.raised = raised

    def cause(self, bits: int) -> None:
        """Events happened."""
        s = self.state
        s.icr |= bits
        if not s.line and s.icr & s.ims:
            self._raise()

    def _raise(self) -> None:
        s = self.state
        if s.itr or s.ready:
            now = self.clock()
            if now < s.ready:
                return
            s.ready = now + s.itr * THROTTLE_UNIT if s.itr else 0
        s.line = True
        self.raised()

    def read(self) -> int:
        """ICR: reading acknowledges everything."""
        s = self.state
        causes = s.icr
        s.icr = 0
        s.line = False
        return causes

    def acknowledge(self, bits: int) -> None:
        """A write to ICR: ones clear."""
        self.state.icr &= ~bits
        self._look()

    def enable(self, bits: int) -> None:
        """A write to IMS."""
        self.state.ims |= bits & CAUSES
        self.cause(0)

    def disable(self, bits: int) -> None:
        """A write to IMC."""
        self.state.ims &= ~bits
        self._look()

    def _look(self) -> None:
        s = self.state
        if not s.icr & s.ims:
            s.line = False

    def throttle(self, interval: int) -> None:
        """A write to ITR, in units of 256 ns; an interval that runs becomes no longer than the new one."""
        s = self.state
        s.itr = interval & 0xFFFF
        if s.ready:
            s.ready = min(s.ready, self.clock() + s.itr * THROTTLE_UNIT) if s.itr else 0
        self.cause(0)

    def deadline(self) -> int:
        """When a held-back interrupt comes, in ns; 0 if none is."""
        s = self.state
        return s.ready if not s.line and s.icr & s.ims else 0

    def tick(self) -> None:
        """Let a held-back interrupt out if it is due."""
        self.cause(0)


@dataclass(slots=True)
class DelayState:
    """RDTR and RADV, or TIDV and TADV; times in ns, 0 = not running."""

    delay: int = 0
    absolute: int = 0
    due: int = 0
    latest: int = 0


class Delay:
    """Holds a cause back: until nothing happened for `delay`, but no longer than `absolute` after the first event."""

    def __init__(self, state: DelayState, clock: Clock, interrupts: Interrupts, cause: int) -> None:
        self.state = state
        self.clock = clock
        self.interrupts = interrupts
        self.cause = cause

    def event(self) -> None:
        """Something happened that the cause tells of; without a delay it is told of at once."""
        s = self.state
        if not s.delay:
            self.expire()
            return
        now = self.clock()
        s.due = now + s.delay * DELAY_UNIT
        if s.absolute and not s.latest:
            s.latest = now + s.absolute * DELAY_UNIT

    def program(self, value: int) -> None:
        """A write to RDTR or TIDV; FPD tells now."""
        self.state.delay = value & 0xFFFF
        if value & FPD:
            self.expire()

    def expire(self) -> None:
        """Tell now; both timers stop."""
        self.stop()
        self.interrupts.cause(self.cause)

    def stop(self) -> None:
        self.state.due = self.state.latest = 0

    def deadline(self) -> int:
        """In ns, 0 when not running."""
        s = self.state
        return min(s.due, s.latest) if s.latest else s.due

    def tick(self) -> None:
        """Tell if it is time."""
        due = self.deadline()
        if due and self.clock() >= due:
            self.expire()


def moved(due: int, by: int) -> int:
    """A time in a saved state on another clock; one that is past stays past, 0 stays "not running"."""
    return max(due + by, 1) if due else 0
