"""Numbers to be handed out: grefs, frames."""


class Numbers:
    """The numbers from `first` up to `end`, without it. Who was given back last is next; otherwise the lowest.

    Those that nobody took yet take up no memory: a domain has tens of thousands of grefs and uses a few hundred.
    """

    def __init__(self, first: int, end: int) -> None:
        self._next = first
        self._end = end
        self._returned: list[int] = []

    def take(self) -> int | None:
        """One of them; None when all are taken."""
        if self._returned:
            return self._returned.pop()
        if self._next == self._end:
            return None
        self._next += 1
        return self._next - 1

    def give(self, number: int) -> None:
        """It is free again."""
        self._returned.append(number)

    def __len__(self) -> int:
        """How many are free."""
        return len(self._returned) + self._end - self._next
