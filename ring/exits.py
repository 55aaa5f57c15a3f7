"""VM exits, counted in shared memory as hardware would take them; a reader may sample while the guest runs.

One row per kind, device, address and size (see _core.ExitTable). A string instruction is one exit of many elements.
"""
import mmap
import os
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

import numpy

from miniguest.ring import _core
from miniguest.ring.memory import Memory, domain_directory

UNCLAIMED: Final = "unclaimed"
SIZE: Final = 64 + 64 * 4095
ROW: Final = numpy.dtype(
    [("exits", "<u8"), ("elements", "<u8"), ("total", "<u8"), ("min", "<u8"), ("max", "<u8"), ("address", "<u8"),
     ("kind", "u1"), ("size", "u1"), ("device", "S14")]
)


class ExitKind(IntEnum):
    """What left the guest."""

    PIO_IN = 0
    PIO_OUT = 1
    MMIO_READ = 2
    MMIO_WRITE = 3
    HLT = 4
    CPUID = 5
    MSR = 6
    HYPERCALL = 7
    IRQ_WINDOW = 8


@dataclass(frozen=True, slots=True)
class ExitRow:
    """One counter. Times in nanoseconds; `address` is a port, a guest-physical address, an MSR or a leaf."""

    kind: ExitKind
    device: str
    address: int
    size: int
    exits: int
    elements: int
    total_ns: int
    min_ns: int
    max_ns: int


def exits_path(runtime: Path, domid: int) -> Path:
    """A domain's exit counters in the runtime directory."""
    return domain_directory(runtime, domid) / "exits"


class ExitCounters:
    """The writing end, in the vCPU's process."""

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, SIZE)
            self._table = _core.ExitTable(mmap.mmap(fd, SIZE))
        finally:
            os.close(fd)
        self.count = self._table.count          # (row, elements, nanoseconds), called at every exit

    def path(self, slot: _core.IoreqSlot, upcall: _core.Upcall, memory: Memory) -> _core.ExitPath:
        """The compiled way of exits to the device model, counted here. memory: the domain's."""
        lines, modified, ranges, info, buffered = (
            memory.frame(memory.special(name)) for name in ("irq_lines", "modified", "ranges", "hypervisor_info", "bufioreq")
        )
        return _core.ExitPath(slot, upcall, self._table, lines, modified, ranges, info, buffered)

    def row(self, kind: ExitKind, device: str, address: int, size: int) -> int:
        """A new row. When the table is full everything else is counted on its last row."""
        return self._table.add_row(kind, size, address, device.encode("ascii", "replace"))


def read_exits(path: Path) -> list[ExitRow]:
    """Every row of a domain's counters as they stand; empty when its vCPU has not started."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return []
    if len(raw) < 64:
        return []
    used = int.from_bytes(raw[:8], "little")
    rows = numpy.frombuffer(raw, ROW, count=min(used, (len(raw) - 64) // ROW.itemsize), offset=64)
    return [
        ExitRow(
            ExitKind(int(row["kind"])), row["device"].decode(), int(row["address"]), int(row["size"]), int(row["exits"]),
            int(row["elements"]), int(row["total"]), int(row["min"]), int(row["max"]),
        )
        for row in rows
        if row["exits"]
    ]
