"""A page allocator over a domain's RAM, for frames that are granted to others."""
from miniguest.ring.errors import PeerError
from miniguest.ring.memory import Memory


class Pages:
    """Frames of a domain's RAM. The first one is never given out: frame 0 stays free to mean none."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self._free = list(range(memory.ram_frames - 1, 0, -1))

    def alloc(self) -> int:
        """A frame number. PeerError when there is none left."""
        if not self._free:
            raise PeerError(f"the domain's {self.memory.ram_frames} frames are all in use")
        return self._free.pop()

    def free(self, frame: int) -> None:
        """Give a frame back."""
        self._free.append(frame)

    def __len__(self) -> int:
        return len(self._free)
