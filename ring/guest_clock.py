"""The guest's clock: CLOCK_MONOTONIC, or a word that the vCPU sets and the device model reads.

A stepped clock stands still while an exit is handled, so that both ends of it see one time, and goes on only when the
vCPU says so: what recording, replaying and virtual time are built on. Four u64 in the domain's hypervisor_info frame,
behind the shutdown word:

    stepped     1 when the clock is this word. Set when the domain is made, and never changed
    now         the guest's time, nanoseconds since the domain began; written by the vCPU only
    deadline    when a timer of the device model is next due, NEVER for none; written by the device model only
    wall        nanoseconds since the epoch when the guest's time was 0
"""
import time
from typing import Final

from miniguest.ring import _core
from miniguest.ring.memory import SHUTDOWN_OFFSET

OFFSET: Final = SHUTDOWN_OFFSET + 64
SIZE: Final = 32
NEVER: Final = (1 << 64) - 1
SECOND: Final = 1_000_000_000
_STEPPED, _NOW, _DEADLINE, _WALL = range(4)


class GuestClock:
    """One domain's clock. info: its hypervisor_info frame.

    `now` gives nanoseconds, monotonic; `wall` seconds since the epoch. Both as device models want them.
    """

    def __init__(self, info: memoryview) -> None:
        self._words = info[OFFSET : OFFSET + SIZE]
        self.stepped = bool(_core.load64(self._words, _STEPPED))
        self.now = self._stepped_now if self.stepped else _core.now_ns
        self.wall = self._stepped_wall if self.stepped else time.time

    @classmethod
    def create(cls, info: memoryview, wall_ns: int) -> "GuestClock":
        """Make a domain's clock a stepped one, before its processes start. Untouched frames say real time."""
        words = info[OFFSET : OFFSET + SIZE]
        for index, value in ((_NOW, 0), (_DEADLINE, NEVER), (_WALL, wall_ns), (_STEPPED, 1)):
            _core.store64(words, index, value)
        return cls(info)

    def _stepped_now(self) -> int:
        return _core.load64(self._words, _NOW)

    def _stepped_wall(self) -> float:
        return (_core.load64(self._words, _WALL) + self._stepped_now()) / SECOND

    def set(self, now: int) -> None:
        """The vCPU's: what time it is from now on. A time that has passed is not gone back to."""
        if now > self._stepped_now():
            # Released by the request that follows: who sees that request sees this time.
            _core.store64(self._words, _NOW, now)

    @property
    def deadline(self) -> int | None:
        """When a timer of the device model is next due, None for never."""
        due = _core.load64(self._words, _DEADLINE) if self.stepped else NEVER
        return None if due == NEVER else due

    @deadline.setter
    def deadline(self, due: int | None) -> None:
        # A device may be late already, or name a time before all times.
        _core.store64(self._words, _DEADLINE, NEVER if due is None else min(max(due, 0), NEVER - 1))
