"""Stirred scheduling: pauses of random length, and waits that spin for a random time or not at all."""
import random
from typing import Final

from miniguest.ring import _core
from miniguest.ring.process import Process

SPINS: Final = (0, 0, 1_000, 20_000, 300_000)
MOST_PAUSE: Final = 30_000              # nanoseconds, about what the other end takes for one request
STIR: Final = 16                        # handler calls between changes of how long a wait spins


class Stirring:
    """One process's share of it; nothing at all unless `on`."""

    def __init__(self, process: Process, seed: int, on: bool) -> None:
        self.random = random.Random(seed)
        self.on = on
        self._upcall = process.loop.upcall
        self._calls = 0

    def stirred(self) -> None:
        """A handler is called: wait otherwise now and then."""
        self._calls += 1
        if self.on and self._calls % STIR == 0:
            self._upcall.spin_ns = self.random.choice(SPINS)

    def pause(self) -> None:
        """A random while before the final check, so that the other end pushes just then."""
        if self.on:
            until = _core.now_ns() + int(MOST_PAUSE * self.random.random())
            while _core.now_ns() < until:
                pass

    def part(self, count: int) -> int:
        """All of so many, or at random less."""
        return self.random.randint(1, count) if self.on and count else count
