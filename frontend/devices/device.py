"""What a device model is, what it may be given, and how its state is saved.

A device is registers and nothing else. `Model` gives it the two accessors; a wrapper outside attaches them to a bus,
syncs the interrupt line with `irq()`, supplies memory, disk and clocks, and calls `tick()` at `deadline()`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any, ClassVar, Protocol

from miniguest.frontend.devices.regmap import MASKS, RegMap

Clock = Callable[[], int]
"""Nanoseconds, monotonic."""

WallClock = Callable[[], float]
"""Seconds since the epoch, UTC."""

Line = Callable[[int, bool], None]
"""Sets interrupt input number n to a level."""


class Device(Protocol):
    """A range of registers. `offset` counts from the start of the range; `size` is 1, 2 or 4 bytes. Never raises."""

    def read(self, offset: int, size: int) -> int: ...

    def write(self, offset: int, size: int, value: int) -> None: ...


class GuestMemory(Protocol):
    """Guest-physical memory for DMA. Addresses out of range read as ones and drop writes."""

    def read(self, gpa: int, size: int) -> bytes: ...

    def write(self, gpa: int, data: bytes | memoryview) -> None: ...


class Disk(Protocol):
    """Sectors of 512 bytes. `done` is called later from the event loop, or at once from within the call."""

    @property
    def sectors(self) -> int: ...

    @property
    def read_only(self) -> bool: ...

    def read(self, sector: int, count: int, done: Callable[[bytes | None], None]) -> None: ...

    def write(self, sector: int, data: bytes, done: Callable[[bool], None]) -> None: ...

    def flush(self, done: Callable[[bool], None]) -> None: ...


def nothing() -> None:
    """The callback of somebody who does not care."""


class Model:
    """Base of every device model: table-driven accessors, state, and the hooks around saving it.

    A subclass has `regs`, a slots dataclass `State` with `KIND = (name, version)`, and `self.state`. It calls
    `self.changed()` after changing state outside `read` and `write`; the wrapper replaces it. `buffered`: its writes have no
    effect that a guest could see but by reading from it, so nobody need wait for them.
    """

    regs: ClassVar[RegMap]
    buffered: ClassVar[bool] = False
    state: Any
    changed: Callable[[], None] = staticmethod(nothing)

    def read(self, offset: int, size: int) -> int:
        """Read `size` bytes (1, 2 or 4) at `offset`."""
        reader = self.regs.readers.get(offset << 4 | size)
        if reader is not None:
            return reader(self)
        return self.regs.read_apart(self, offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the low `size` bytes (1, 2 or 4) of `value` at `offset`."""
        writer = self.regs.writers.get(offset << 4 | size)
        if writer is not None:
            writer(self, value & MASKS[size])
        else:
            self.regs.write_apart(self, offset, size, value)

    def reader(self, offset: int, size: int) -> Callable[[], int]:
        """What does the same as `read(offset, size)`, for who reads there often: of a register, its own method."""
        method = self.regs.readers.get(offset << 4 | size)
        if method is None or type(self).read is not Model.read:
            return partial(self.read, offset, size)
        return MethodType(method, self)

    def writer(self, offset: int, size: int) -> Callable[[int], None]:
        """What does the same as `write(offset, size, value)` for a value of `size` bytes."""
        method = self.regs.writers.get(offset << 4 | size)
        if method is None or type(self).write is not Model.write:
            return partial(self.write, offset, size)
        return MethodType(method, self)

    def unmapped(self, offset: int, writing: bool) -> None:
        """Called for a byte that is no register; for devices with an error bit for that."""

    def saving(self) -> None:
        """Called before the state is taken: a device that keeps times notes what time it is."""

    def restored(self) -> None:
        """Called after the state was put back: rebuild what follows from it and issue again what was in flight."""


class Window:
    """A part of a device's registers as a device of its own, for devices that answer in several places.

    Accesses that run past the window's end find nothing there.
    """

    def __init__(self, model: Device, first: int, size: int) -> None:
        self.model = model
        self.first = first
        self.size = size

    def read(self, offset: int, size: int) -> int:
        if offset >= 0 and offset + size <= self.size:
            return self.model.read(self.first + offset, size)
        value = 0
        for i in range(size):
            inside = 0 <= offset + i < self.size
            value |= (self.model.read(self.first + offset + i, 1) if inside else 0xFF) << 8 * i
        return value

    def reader(self, offset: int, size: int) -> Callable[[], int]:
        """Model.reader's."""
        if offset >= 0 and offset + size <= self.size:
            return reader_of(self.model, self.first + offset, size)
        return partial(self.read, offset, size)

    def writer(self, offset: int, size: int) -> Callable[[int], None]:
        """Model.writer's."""
        if offset >= 0 and offset + size <= self.size:
            return writer_of(self.model, self.first + offset, size)
        return partial(self.write, offset, size)

    def read_string(self, offset: int, size: int, count: int) -> bytes:
        """`count` reads as one; a model with a data port does it in one go."""
        block = getattr(self.model, "read_string", None)
        if block is not None and offset >= 0 and offset + size <= self.size:
            data: bytes = block(self.first + offset, size, count)
            return data
        return b"".join(self.read(offset, size).to_bytes(size, "little") for _ in range(count))

    def write_string(self, offset: int, size: int, data: bytes) -> None:
        """Writes of `size` bytes each as one."""
        block = getattr(self.model, "write_string", None)
        if block is not None and offset >= 0 and offset + size <= self.size:
            block(self.first + offset, size, data)
            return
        for at in range(0, len(data), size):
            self.write(offset, size, int.from_bytes(data[at : at + size], "little"))

    def write(self, offset: int, size: int, value: int) -> None:
        if offset >= 0 and offset + size <= self.size:
            self.model.write(self.first + offset, size, value)
            return
        for i in range(size):
            if 0 <= offset + i < self.size:
                self.model.write(self.first + offset + i, 1, value >> 8 * i & 0xFF)


def reader_of(device: Device, offset: int, size: int) -> Callable[[], int]:
    """What reads `size` bytes at `offset` of a device, by the shortest way that it has."""
    return device.reader(offset, size) if isinstance(device, Model | Window) else partial(device.read, offset, size)


def writer_of(device: Device, offset: int, size: int) -> Callable[[int], None]:
    """What writes a value of `size` bytes at `offset` of a device, by the shortest way that it has."""
    return device.writer(offset, size) if isinstance(device, Model | Window) else partial(device.write, offset, size)
