"""Which accesses to a DP8390 are idle polling: a driver that looks at its ring looks in several registers.

Such a look is: ISR, RSR, BNRY, page 1, CURR, page 0 (or the last of these alone). What it was is known only at its
end, so its accesses are counted provisionally until then.
"""

from __future__ import annotations

from typing import Protocol


class Counted(Protocol):
    """What has the sum."""

    idle: int


class Polls:
    """Counts them in `card.idle`. Any access that is not of a look is reported as `work`."""

    def __init__(self, card: Counted) -> None:
        self.card = card
        self._look = 0  # accesses of the look that goes on
        self._begun = False  # by a status read, with nothing after it
        self._leaving = False  # an empty look ends by going back to page 0

    def work(self) -> None:
        """Something else is done: the look, if any, led to it."""
        if self._look or self._leaving:
            self._look = 0
            self._begun = self._leaving = False

    def waits(self) -> None:
        """A status was read that is not ready."""
        self.card.idle += 1

    def status(self, value: int) -> None:
        """ISR was read. One that was read before and led to nothing was an idle look, and a zero is one at once."""
        if self._begun:
            self.card.idle += self._look
        self._look, self._begun, self._leaving = 1, True, False
        if not value:
            self.empty()

    def step(self) -> None:
        """A look goes on."""
        self._look += 1
        self._begun = self._leaving = False

    def empty(self) -> None:
        """A look ends: it found nothing, by the access counted last."""
        self.card.idle += self._look
        self._look, self._begun = 0, False

    def ring_empty(self) -> None:
        """CURR was read and the ring has nothing."""
        self._look += 1
        self.empty()
        self._leaving = True

    def page(self, number: int) -> None:
        """CR was written only to select a page."""
        if number == 0 and self._leaving:
            self.card.idle += 1
            self._leaving = False
        elif number == 1:
            self.step()
        else:
            self.work()
