"""A page allocator over a domain's RAM, for frames that are granted to others."""
from miniguest.ring.errors import PeerError
from miniguest.ring.memory import Memory
from miniguest.ring.numbers import Numbers


class Pages:
    """Frames of a domain's RAM. The first one is never given out: frame 0 stays free to mean none."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self._free = Numbers(1, memory.ram_frames)

    def alloc(self) -> int:
        """A frame number. PeerError when there is none left."""
        frame = self._free.take()
        if frame is None:
            raise PeerError(f"the domain's {self.memory.ram_frames} frames are all in use")
        return frame

    def free(self, frame: int) -> None:
        """Give a frame back."""
        self._free.give(frame)

    def __len__(self) -> int:
        return len(self._free)
