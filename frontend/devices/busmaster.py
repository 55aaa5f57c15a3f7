"""Bus master IDE (Intel 290550, section 2.7; "Programming Interface for Bus Master IDE Controller" 1.0), 16 ports.

Two channels of 8 ports: command, status, and the address of the descriptor table. A descriptor is an address and a
length of 16 bits where 0 means 64 KiB; bit 31 of its second half ends the table. The direction is the drive's: the
command register's direction bit is kept but not looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from miniguest.frontend.devices.device import GuestMemory, Model, nothing
from miniguest.frontend.devices.regmap import RegMap

START, TO_MEMORY = 0x01, 0x08
ACTIVE, ERROR, INTERRUPT, CAPABLE = 0x01, 0x02, 0x04, 0x60
END_OF_TABLE = 0x80000000
TABLE_LIMIT = 0x10000  # a table must not cross 64 KiB


@dataclass(slots=True)
class ChannelState:
    """One channel. `address` and `left` say where in the current descriptor's buffer the transfer is."""

    command: int = 0
    status: int = 0
    table: int = 0
    next: int = 0  # address of the next descriptor
    address: int = 0
    left: int = 0
    last: bool = False  # the current descriptor ends the table


class DmaChannel:
    """One channel's engine, as the drive uses it. `started` is called when the guest sets the start bit."""

    def __init__(self, memory: GuestMemory, state: ChannelState) -> None:
        self.memory = memory
        self.state = state
        self.started: Callable[[], None] = nothing

    @property
    def active(self) -> bool:
        """Whether the engine will move data now."""
        return bool(self.state.status & ACTIVE)

    def put(self, data: bytes | bytearray, start: int) -> int:
        """Write data[start:] to guest memory; gives the bytes taken, fewer when the table ended first."""
        at = start
        while at < len(data) and self._ready():
            s = self.state
            size = min(s.left, len(data) - at)
            self.memory.write(s.address, bytes(data[at : at + size]))
            self._moved(size)
            at += size
        return at - start

    def get(self, size: int) -> bytes:
        """Read up to `size` bytes from guest memory; fewer when the table ended first."""
        parts = []
        while size and self._ready():
            s = self.state
            part = self.memory.read(s.address, min(s.left, size))
            self._moved(len(part))
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def interrupt(self) -> None:
        """The drive's interrupt line rose. A table that was used up to its end is then finished."""
        self.state.status |= INTERRUPT

    def _moved(self, size: int) -> None:
        s = self.state
        s.address += size
        s.left -= size
        if not s.left and s.last:
            s.status &= ~ACTIVE

    def _ready(self) -> bool:
        """Whether there is room in the current descriptor, or in the next one."""
        s = self.state
        if not s.status & ACTIVE:
            return False
        if s.left:
            return True
        if s.next - (s.table & -TABLE_LIMIT) >= TABLE_LIMIT:
            s.status = s.status & ~ACTIVE | ERROR
            return False
        entry = self.memory.read(s.next, 8)
        s.address = int.from_bytes(entry[:4], "little") & 0xFFFFFFFE
        control = int.from_bytes(entry[4:], "little")
        s.left = control & 0xFFFE or 0x10000
        s.last = bool(control & END_OF_TABLE)
        s.next += 8
        return True

    def write_command(self, value: int) -> None:
        """Start from the table's beginning, or stop and forget how far the transfer was."""
        s = self.state
        starts = value & ~s.command & START
        s.command = value & (START | TO_MEMORY)
        if starts:
            s.status |= ACTIVE
            s.next, s.left, s.last = s.table, 0, False
            self.started()
        elif not value & START:
            s.status &= ~ACTIVE


class BusMaster(Model):
    """Both channels' registers. `channels` are given to the IDE channels."""

    regs = RegMap(size=16)

    @dataclass(slots=True)
    class State:
        KIND: ClassVar = ("bus-master-ide", 1)
        channels: list[ChannelState] = field(default_factory=lambda: [ChannelState(), ChannelState()])

    state: State

    def __init__(self, memory: GuestMemory) -> None:
        self.state = self.State()
        self.channels = tuple(DmaChannel(memory, each) for each in self.state.channels)

    def _write_status(self, index: int, value: int) -> None:
        """Interrupt and error are cleared by ones; the capable bits are the guest's notes."""
        s = self.channels[index].state
        s.status = s.status & ~(value & (INTERRUPT | ERROR)) & ~CAPABLE | value & CAPABLE

    def restored(self) -> None:
        for channel, state in zip(self.channels, self.state.channels, strict=True):
            channel.state = state

    @regs.read(0, "BMICP")
    def read_primary_command(self) -> int:
        return self.channels[0].state.command

    @regs.read(8, "BMICS")
    def read_secondary_command(self) -> int:
        return self.channels[1].state.command

    @regs.write(0, "BMICP")
    def write_primary_command(self, value: int) -> None:
        self.channels[0].write_command(value)

    @regs.write(8, "BMICS")
    def write_secondary_command(self, value: int) -> None:
        self.channels[1].write_command(value)

    @regs.read(2, "BMISP")
    def read_primary_status(self) -> int:
        return self.channels[0].state.status

    @regs.read(10, "BMISS")
    def read_secondary_status(self) -> int:
        return self.channels[1].state.status

    @regs.write(2, "BMISP")
    def write_primary_status(self, value: int) -> None:
        self._write_status(0, value)

    @regs.write(10, "BMISS")
    def write_secondary_status(self, value: int) -> None:
        self._write_status(1, value)

    @regs.read(4, "BMIDTPP", 4)
    def read_primary_table(self) -> int:
        return self.channels[0].state.table

    @regs.read(12, "BMIDTPS", 4)
    def read_secondary_table(self) -> int:
        return self.channels[1].state.table

    @regs.write(4, "BMIDTPP", 4)
    def write_primary_table(self, value: int) -> None:
        self.channels[0].state.table = value & ~3

    @regs.write(12, "BMIDTPS", 4)
    def write_secondary_table(self, value: int) -> None:
        self.channels[1].state.table = value & ~3
