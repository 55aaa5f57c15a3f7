"""The I/O ranges that device models claimed, in a frame of the domain: the hypervisor writes it, the vCPU reads it.

XEN_DMOP_map_io_range_to_ioreq_server's table (hvm/dm_op.h), with the device's name so that exits can be attributed.
Layout: u64 version (odd while it is being written), u64 count, then entries of 40 bytes:
start u64, end u64 (inclusive), kind u8 (bit 0: 0 port, 1 memory; bit 7: writes are buffered), server u8, name char[18],
frame u32. `frame` is not 0 for memory that the guest reads and executes without an exit: the first of the domain's frames
that are to appear there.
"""
import struct
from bisect import bisect_right
from dataclasses import dataclass
from typing import Final

from miniguest.ring import _core
from miniguest.ring.errors import PeerError

PORT: Final = 0
MEMORY: Final = 1
_ENTRY: Final = struct.Struct("<QQBB18sI")
_START: Final = 16
_BUFFERED: Final = 1 << 7
CAPACITY: Final = (4096 - _START) // _ENTRY.size


@dataclass(frozen=True, slots=True)
class Range:
    """Addresses `start` to `end`, both included, that `server` answers for the device `name`.

    With a `frame`, the guest finds read-only memory there, the domain's frames from that one on. buffered: the guest does
    not wait for writes there.
    """

    kind: int
    start: int
    end: int
    name: str
    server: int = 0
    frame: int = 0
    buffered: bool = False

    def overlaps(self, other: "Range") -> bool:
        """Whether both claim some address."""
        return self.kind == other.kind and self.start <= other.end and other.start <= self.end


def write_ranges(page: memoryview, ranges: list[Range]) -> None:
    """Publish the whole table. PeerError when it holds more than a frame can."""
    if len(ranges) > CAPACITY:
        raise PeerError(f"{len(ranges)} I/O ranges, of {CAPACITY} there is room for")
    version = _core.load64(page, 0)
    _core.store64(page, 0, version | 1)
    for index, item in enumerate(ranges):
        name = item.name.encode("ascii", "replace")[:17]
        kind = item.kind | _BUFFERED * item.buffered
        _ENTRY.pack_into(page, _START + index * _ENTRY.size, item.start, item.end, kind, item.server, name, item.frame)
    _core.store64(page, 1, len(ranges))
    _core.store64(page, 0, (version | 1) + 1)


class Ranges:
    """The table as the vCPU sees it, parsed again when its version changed."""

    def __init__(self, page: memoryview) -> None:
        self._page = page
        self.version = -1
        self._starts: tuple[list[int], list[int]] = ([], [])
        self._ranges: tuple[list[Range], list[Range]] = ([], [])

    def refresh(self) -> bool:
        """Take up a new version; whether there was one."""
        version = _core.load64(self._page, 0)
        if version == self.version or version & 1:
            return False
        count = min(_core.load64(self._page, 1), CAPACITY)
        found = [_ENTRY.unpack_from(self._page, _START + index * _ENTRY.size) for index in range(count)]
        if _core.load64(self._page, 0) != version:
            return False                # written meanwhile: the next look takes it
        self.version = version
        for kind in (PORT, MEMORY):
            ranges = [
                Range(kind, start, end, name.rstrip(b"\0").decode("ascii", "replace"), server, frame, bool(of & _BUFFERED))
                for start, end, of, server, name, frame in found if of & ~_BUFFERED == kind
            ]
            ranges.sort(key=lambda item: item.start)
            self._ranges[kind][:] = ranges
            self._starts[kind][:] = [item.start for item in ranges]
        return True

    def read_only_memory(self) -> list[Range]:
        """The ranges that the guest reads without an exit."""
        return [item for item in self._ranges[MEMORY] if item.frame]

    def find(self, kind: int, address: int) -> Range | None:
        """The range that holds an address; None when nobody claims it."""
        index = bisect_right(self._starts[kind], address) - 1
        if index < 0:
            return None
        found = self._ranges[kind][index]
        return found if address <= found.end else None
