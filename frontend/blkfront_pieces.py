"""What blkfront cuts requests into, and what each piece needs while it is out."""
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Features:
    """What the backend offers."""

    sectors: int
    read_only: bool = False
    persistent: bool = False
    flush: bool = False
    discard: bool = False
    indirect_segments: int = 0


@dataclass(slots=True)
class Page:
    """A frame, and the gref it is granted by."""

    frame: int
    gref: int


@dataclass(slots=True)
class Operation:
    """What a user of the disk asked for: `left` ring requests are still out. `parts` collects what was read."""

    done: Callable[[bytes | None], None]
    left: int = 0
    failed: bool = False
    parts: dict[int, bytes] = field(default_factory=dict)


@dataclass(slots=True)
class Piece:
    """One ring request: `count` sectors from `sector` on, of an operation; `data` is what it writes."""

    operation: Operation
    kind: int
    sector: int
    count: int
    data: bytes = b""
    pages: list[Page] = field(default_factory=list)
    indirect: Page | None = None

    @property
    def all_pages(self) -> list[Page]:
        """Its data pages and the indirect one."""
        return [*self.pages, self.indirect] if self.indirect else self.pages
