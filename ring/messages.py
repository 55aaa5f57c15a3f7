"""Message-signalled interrupts between device models and the vCPU's local APIC, in the frame of the interrupt lines.

What HVMOP_inject_msi does as a hypercall. From byte 128 on: a u64 of messages so far; from byte 2048 on a u64 for each
vector. Messages of one vector that come faster than the vCPU looks are one, as they are in a local APIC's IRR.
One writer, one vCPU.
"""
from typing import Final

from miniguest.ring import _core
from miniguest.ring.lines import ISA_LINES

_TOTAL: Final = ISA_LINES
_VECTORS: Final = 256
_COUNTS: Final = slice(2048, 2048 + _VECTORS * 8)
ADDRESS: Final = 0xFEE                  # bits 20-31 of a message's address (Intel SDM volume 3, 11.11.1)
FIXED, LOWEST_PRIORITY = 0, 1           # delivery modes: bits 8-10 of its data (11.11.2)


def vector_of(address: int, data: int) -> int | None:
    """The vector of a message that is an interrupt; None for one that is not, or whose mode is not fixed or lowest
    priority. Any destination is the one vCPU there is."""
    if address >> 20 != ADDRESS or data >> 8 & 7 not in (FIXED, LOWEST_PRIORITY) or data & 0xFF < 16:
        return None
    return data & 0xFF


class MessageSender:
    """The device model's end."""

    def __init__(self, page: memoryview) -> None:
        self._page = page
        self._total = _core.load64(page, _TOTAL)
        self._counts = page[_COUNTS]

    def send(self, vector: int) -> None:
        """Send a message; the vCPU is then to be told."""
        _core.store64(self._counts, vector, _core.load64(self._counts, vector) + 1)
        # The total last: who sees it changed sees the vector's count changed, too.
        self._total += 1
        _core.store64(self._page, _TOTAL, self._total)


class MessageWatcher:
    """The vCPU's end."""

    def __init__(self, page: memoryview) -> None:
        self._page = page
        self._total = _core.load64(page, _TOTAL)
        self._seen = bytes(page[_COUNTS])

    def take(self) -> list[int]:
        """The vectors of messages that came since the last call."""
        total = _core.load64(self._page, _TOTAL)
        if total == self._total:
            return []
        self._total = total
        before, self._seen = self._seen, bytes(self._page[_COUNTS])
        return [vector for vector in range(_VECTORS) if before[vector * 8 :][:8] != self._seen[vector * 8 :][:8]]
