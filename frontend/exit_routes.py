"""Where exits go: to a register beside the vCPU, to the device model, or to nobody; and the counter that each is on."""
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from miniguest.frontend.devices.device import Device
from miniguest.frontend.platform import Platform
from miniguest.ring._core import ExitPath
from miniguest.ring.exits import UNCLAIMED, ExitCounters, ExitKind
from miniguest.ring.memory import FRAME_SIZE
from miniguest.ring.ranges import MEMORY, PORT, Ranges

ROUTES: Final = 1 << 15         # addresses whose way is remembered: a guest can name four billion
SPACE: Final = {ExitKind.PIO_IN: PORT, ExitKind.PIO_OUT: PORT, ExitKind.MMIO_READ: MEMORY, ExitKind.MMIO_WRITE: MEMORY}
Pieces = list[tuple[int, int, int]]


@dataclass(slots=True)
class Route:
    """Where exits of one kind, address and size go, and the counter they are on."""

    row: int
    device: Device | None = None
    offset: int = 0
    claimed: bool = False


class ExitRoutes:
    """The routes of one vCPU. show_memory: told what the guest reads without an exit (Engine.show_memory).

    What no device here answers is made known to the exit path, which then needs nobody to ask.
    """

    def __init__(
        self, platform: Platform, ranges: Ranges, counters: ExitCounters, path: ExitPath, show_memory: Callable[[Pieces], None]
    ) -> None:
        self._platform = platform
        self._ranges = ranges
        self._counters = counters
        self._path = path
        self._show_memory = show_memory
        self._routes: dict[tuple[ExitKind, int, int], Route] = {}
        self._cpu_rows: dict[tuple[ExitKind, int], int] = {}
        ranges.refresh()
        self._take_ranges()

    def find(self, kind: ExitKind, address: int, size: int) -> Route:
        """An exit's route."""
        if self._ranges.refresh():
            self._routes = {key: route for key, route in self._routes.items() if route.device}
            self._take_ranges()
        return self._routes.get((kind, address, size)) or self._new(kind, address, size)

    def clear(self, platform: Platform) -> None:
        """The machine was reset: other devices are beside the vCPU."""
        self._platform = platform
        self._routes.clear()
        self._path.clear(self._ranges.version)

    def cpu_row(self, kind: ExitKind, address: int) -> int:
        """The counter of exits that concern nobody but the processor."""
        row = self._cpu_rows.get((kind, address))
        if row is None:
            row = self._counters.row(kind, "cpu", address, 0)
            if len(self._cpu_rows) < ROUTES:
                self._cpu_rows[kind, address] = row
        return row

    def _take_ranges(self) -> None:
        self._path.clear(self._ranges.version)
        self._show_memory([
            (item.start, item.frame * FRAME_SIZE, item.end + 1 - item.start) for item in self._ranges.read_only_memory()
        ])

    def _new(self, kind: ExitKind, address: int, size: int) -> Route:
        local = self._platform.find(SPACE[kind], address)
        if local:
            name, device, offset = local
            route = Route(self._counters.row(kind, name, address, size), device, offset)
        else:
            claimed = self._ranges.find(SPACE[kind], address)
            row = self._counters.row(kind, claimed.name if claimed else UNCLAIMED, address, size)
            route = Route(row, claimed=claimed is not None)
            self._path.add(kind, address, size, row, route.claimed, claimed is not None and claimed.buffered)
        if len(self._routes) < ROUTES:
            self._routes[kind, address, size] = route
        return route
