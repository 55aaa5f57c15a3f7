"""How the time of a guest with a stepped clock goes on: with the host's, with the guest's own work, or as recorded.

The vCPU asks for the time at each exit and whenever its engine has stopped, and sets the guest's clock to it.
"""
from collections.abc import Callable
from typing import Final, Protocol

EXIT_NS: Final = 1000                   # of virtual time, for an exit
BLOCK_NS: Final = 20                    # and for a block of translated code
Wait = Callable[[float], None]
"""Sleeps until something happens, at most so many seconds (-1: for ever)."""


class Pace(Protocol):
    """Times are nanoseconds of the guest's clock, 0 at its start."""

    def at_exit(self) -> int:
        """The time of an exit that begins."""

    def at_stop(self) -> int:
        """The time after the engine stopped, or after `idle`."""

    def deadline(self, due: int) -> int:
        """What Engine.run is to be given so that it stops when the guest's time is `due` (0: never)."""

    def idle(self, due: int, wait: Wait) -> None:
        """The guest sleeps, at most until `due` (0: for ever)."""

    def end(self, how: str) -> None:
        """The guest ended."""


class RealPace:
    """The host's time: what a recorded guest has when its time is not virtual. clock: nanoseconds, monotonic."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._origin = clock()

    def at_exit(self) -> int:
        """As Pace."""
        return self._clock() - self._origin

    def at_stop(self) -> int:
        """As Pace."""
        return self._clock() - self._origin

    def deadline(self, due: int) -> int:
        """As Pace: CLOCK_MONOTONIC."""
        return due + self._origin if due else 0

    def idle(self, due: int, wait: Wait) -> None:
        """As Pace."""
        wait(max(0, due - self.at_stop()) / 1e9 if due else -1.0)

    def end(self, how: str) -> None:
        """As Pace."""


class VirtualPace:
    """Time that goes on with what the vCPU does: so much an exit and so much a block; sleep takes none.

    blocks: blocks executed so far; a u32 that wraps.
    """

    def __init__(self, blocks: Callable[[], int]) -> None:
        self._blocks = blocks
        self._seen = blocks()
        self._now = 0

    def at_exit(self) -> int:
        """As Pace."""
        self._now += EXIT_NS
        return self.at_stop()

    def at_stop(self) -> int:
        """As Pace."""
        blocks = self._blocks()
        self._now += (blocks - self._seen & 0xFFFFFFFF) * BLOCK_NS
        self._seen = blocks
        return self._now

    def deadline(self, due: int) -> int:
        """As Pace: in blocks, at least one, so that the guest moves."""
        return max(1, -(-(due - self._now) // BLOCK_NS)) if due else 0

    def idle(self, due: int, wait: Wait) -> None:
        """As Pace: straight to what is due; when nothing is, only something from outside can end it."""
        if due:
            self._now = max(self._now, due)
        else:
            wait(-1.0)

    def end(self, how: str) -> None:
        """As Pace."""
