"""The domain that a mini-guest serves: its RAM for DMA, and the ranges of its addresses that the mini-guest answers."""
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
        self._call = process.hypercalls.call
        self._target = target

    def map(self, kind: int, start: int, end: int, name: str, frame: int = 0, buffered: bool = False) -> None:
        """Claim a range."""
        self._call(
            "map_io_range", domid=self._target, kind=kind, start=start, end=end, name=name, frame=frame, buffered=int(buffered)
        )

    def unmap(self, kind: int, start: int, end: int) -> None:
        """Give it up."""
        self._call("unmap_io_range", domid=self._target, kind=kind, start=start, end=end)
