"""The local APIC's timer (Intel SDM volume 3, section 11.5.4): one-shot and periodic, one bus tick a nanosecond.

A periodic timer that was not looked at for several periods gives one interrupt, because IRR has one bit a vector.
Periods shorter than SPACING expire at most every SPACING ns.
"""

from __future__ import annotations

from dataclasses import dataclass

SPACING = 20_000  # ns


@dataclass(slots=True)
class TimerState:
    """`start` is the ns at which `remaining` counts were left; `armed` while an expiry is still to come."""

    initial: int = 0
    divide: int = 0  # divide configuration register
    start: int = 0
    remaining: int = 0
    armed: bool = False
    last: int = -SPACING


def divisor(t: TimerState) -> int:
    """2 to 128 by bits 3, 1 and 0, and 7 means 1."""
    code = t.divide >> 1 & 4 | t.divide & 3
    return 1 << (code + 1 & 7)


def set_initial(t: TimerState, value: int, now: int) -> None:
    """Start counting down from `value`; 0 stops the timer."""
    t.initial = t.remaining = value
    t.start = now
    t.armed = value != 0


def set_divide(t: TimerState, value: int, periodic: bool, now: int) -> None:
    """Change the divider; what is left to count stays."""
    t.remaining = current(t, periodic, now)
    t.start = now
    t.divide = value & 0x0B


def current(t: TimerState, periodic: bool, now: int) -> int:
    """The current count register."""
    counted = (now - t.start) // divisor(t)
    if counted < t.remaining:
        return t.remaining - counted
    if not periodic or not t.initial:
        return 0
    return t.initial - (counted - t.remaining) % t.initial


def deadline(t: TimerState) -> int | None:
    """When the count next reaches 0, in ns."""
    return max(t.start + t.remaining * divisor(t), t.last + SPACING) if t.armed else None


def expire(t: TimerState, periodic: bool, now: int) -> bool:
    """Whether the count has reached 0; arms the next period, or none."""
    due = deadline(t)
    if due is None or now < due:
        return False
    t.last = now
    if periodic:
        t.remaining, t.start = current(t, True, now), now - (now - t.start) % divisor(t)
    else:
        t.armed, t.remaining = False, 0
    return True
