"""Interrupt lines between device models and the vCPU's interrupt controllers, in a frame of the domain.

One u64 a line: how often it changed, so that bit 0 is its level. A reader that comes late still sees that there was
an edge (XEN_DMOP_set_isa_irq_level and set_pci_intx_level do this as hypercalls). Lines 0..15 are the ISA IRQs.
One writer a line.
"""
from itertools import compress
from operator import ne
from typing import Final

from miniguest.ring import _core

ISA_LINES: Final = 16


class LineDriver:
    """The device model's end."""

    def __init__(self, page: memoryview) -> None:
        self._page = page
        self._changes = [_core.load64(page, line) for line in range(ISA_LINES)]

    def set(self, line: int, level: bool) -> bool:
        """Drive a line; True when that changed it, and the vCPU is to be told."""
        if self._changes[line] & 1 == level:
            return False
        self._changes[line] += 1
        _core.store64(self._page, line, self._changes[line])
        return True


class LineWatcher:
    """The vCPU's end."""

    def __init__(self, page: memoryview) -> None:
        self._counts = page[: ISA_LINES * 8].cast("Q")
        self._seen = [0] * ISA_LINES

    def changes(self) -> list[tuple[int, bool]]:
        """(line, level) of the changes since the last call; a change and back again is told as both.

        At most three are told of a line, which hold an edge each way whenever there was one.
        """
        now = self._counts.tolist()
        if now == self._seen:
            return []
        before, self._seen = self._seen, now
        return [
            (line, level)
            for line in compress(range(ISA_LINES), map(ne, now, before)) for level in _levels(now[line], now[line] - before[line])
        ]


def _levels(count: int, changes: int) -> tuple[bool, ...]:
    """What is told of so many changes, the last of which was the `count`th: at most three. A count that went back is a
    writer's that started anew."""
    level = bool(count & 1)
    if changes == 1:
        return (level,)
    return (not level, level) if not changes & 1 else (level, not level, level)
