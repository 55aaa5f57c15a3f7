"""What blkfront cuts requests into, and what each piece needs while it is out."""
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class Features:
    """What the backend offers."""

    sectors: int
    read_only: bool = False
    persistent: bool = False
    flush: bool = False
    discard: bool = False
    indirect_segments: int = 0


class Operation:
    """What a user of the disk asked for: `left` ring requests are still out. `parts` collects what was read, by sector."""

    __slots__ = ("done", "failed", "left", "parts")

    def __init__(self, done: Callable[[bytes | None], None], left: int) -> None:
        self.done = done
        self.left = left
        self.failed = False
        self.parts: dict[int, bytes] = {}


class Piece:
    """One ring request: `count` sectors from `sector` on, of an operation; a write's are in `data`, from `offset` on."""

    __slots__ = ("count", "data", "kind", "offset", "operation", "sector")

    def __init__(
        self, operation: Operation, kind: int, sector: int, count: int, data: bytes | None = None, offset: int = 0
    ) -> None:
        self.operation = operation
        self.kind = kind
        self.sector = sector
        self.count = count
        self.data = data
        self.offset = offset
