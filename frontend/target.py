"""The domain that a mini-guest serves: its RAM for DMA, and the ranges of its addresses that the mini-guest answers."""
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from miniguest.ring.hypercalls import Call
from miniguest.ring.memory import Memory
from miniguest.ring.modified import ModifiedWriter
from miniguest.ring.process import Process


class TargetMemory:
    """The guest's RAM for DMA; every write is told to the vCPU, which may hold code translated from it."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._modified = ModifiedWriter(memory.frame(memory.special("modified")))

    def read(self, gpa: int, size: int) -> bytes:
        """As Memory.read."""
        return self._memory.read(gpa, size)

    def write(self, gpa: int, data: bytes | memoryview) -> None:
        """As Memory.write, and noted."""
        if gpa < 0:                     # a string that went down past zero
            return
        self._memory.write(gpa, data)
        self._modified.note(gpa, min(len(data), max(0, self._memory.ram_size - gpa)))


class HypervisorClaims:
    """Tells the hypervisor which ranges the bus answers."""

    def __init__(self, process: Process, target: int) -> None:
        self._hypercalls = process.hypercalls
        self._target = target
        self._collected: list[Call] | None = None

    def map(self, kind: int, start: int, end: int, name: str, frame: int = 0, buffered: bool = False) -> None:
        """Claim a range."""
        self._do(
            "map_io_range", domid=self._target, kind=kind, start=start, end=end, name=name, frame=frame, buffered=int(buffered)
        )

    def unmap(self, kind: int, start: int, end: int) -> None:
        """Give it up."""
        self._do("unmap_io_range", domid=self._target, kind=kind, start=start, end=end)

    def _do(self, op: str, **args: Any) -> None:
        if self._collected is None:
            self._hypercalls.call(op, **args)
        else:
            self._collected.append((op, args))

    @contextmanager
    def together(self) -> Iterator[None]:
        """All that is claimed within takes effect at the end, where what is refused raises HypercallError."""
        collected: list[Call] = []
        self._collected = collected
        try:
            yield
        finally:
            self._collected = None
        if collected:
            self._hypercalls.multicall(*collected)
