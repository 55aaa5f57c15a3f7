"""An ATA channel with up to two disks (ATA/ATAPI-6, chapters 7 and 9).

Register range: 0-7 command block (ports 0x1F0 or 0x170), 8 device control and alternate status (0x3F6 or 0x376).
Both drives hear every write to the task file; the one that the device register selects answers. Disk 0 alone answers
for disk 1 with a status of 0. With nobody selected to answer the bus floats: 0x7F in the status (bit 7 is pulled
down) and ones elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from miniguest.frontend.devices import ide_registers as r
from miniguest.frontend.devices.busmaster import DmaChannel
from miniguest.frontend.devices.device import Disk, Model, Window
from miniguest.frontend.devices.ide_commands import DIAGNOSTIC, execute
from miniguest.frontend.devices.ide_drive import Drive
from miniguest.frontend.devices.ide_registers import DriveState
from miniguest.frontend.devices.regmap import RegMap

FLOATING = 0x7F


class IdeChannel(Model):
    """One channel. `disks` are drive 0 and drive 1, None where there is none; `dma` is the bus master's half."""

    regs = RegMap(size=9)

    @dataclass(slots=True)
    class State:
        KIND: ClassVar = ("ide-channel", 1)
        control: int = 0
        device: int = 0  # as last written, for an empty channel too
        line: bool = False  # INTRQ as the bus master last saw it
        drives: list[DriveState] = field(default_factory=lambda: [DriveState(), DriveState()])

    state: State

    def __init__(self, disks: tuple[Disk | None, Disk | None], dma: DmaChannel | None = None, serial: str = "MG") -> None:
        self.state = self.State()
        self.dma = dma
        self.drives: list[Drive | None] = [None, None]
        for number, disk in enumerate(disks):
            if disk is not None:
                drive = Drive(disk, self.state.drives[number], f"{serial}{number:05d}", dma)
                drive.line = self._line_moved
                drive.changed = lambda: self.changed()
                drive.signature()
                self.drives[number] = drive
        if dma is not None:
            dma.started = self._dma_started
        self.command_block = Window(self, 0, 8)
        self.control_block = Window(self, 8, 1)

    # Lines

    def irq(self) -> bool:
        """INTRQ: the selected drive's, unless nIEN lets the line float."""
        drive = self.drives[self.state.device >> 4 & 1]
        return drive is not None and drive.state.interrupt and not self.state.control & r.NIEN

    def _line_moved(self) -> None:
        """Tell the bus master of a rising edge."""
        level = self.irq()
        if level and not self.state.line and self.dma is not None:
            self.dma.interrupt()
        self.state.line = level

    def _dma_started(self) -> None:
        """The bus master's start bit, in somebody else's registers: whoever watches this channel must be told."""
        drive = self._selected()
        if drive is not None:
            drive.advance()
            self.changed()

    # Who answers

    def _selected(self) -> Drive | None:
        return self.drives[self.state.device >> 4 & 1]

    def _answering(self) -> Drive | None:
        """The selected drive, or drive 0 in the place of a drive 1 that is not there."""
        return self.drives[self.state.device >> 4 & 1] or self.drives[0]

    def _heard(self) -> list[Drive]:
        """Drives that take a write to the task file: a busy one does not."""
        return [drive for drive in self.drives if drive is not None and not drive.state.status & r.BSY]

    def waiting(self) -> bool:
        """Whether the selected drive is busy with its disk."""
        drive = self.drives[self.state.device >> 4 & 1]
        return drive is not None and bool(drive.state.status & r.BSY) and not self.state.control & r.SRST

    def _field(self, value: int) -> int:
        """One byte of a 16-bit task file register, the earlier one while HOB is set."""
        return value >> 8 if self.state.control & r.HOB else value & 0xFF

    # Data register

    @regs.read(0, "DATA", 2)
    def read_data(self) -> int:
        drive = self._selected()
        if drive is not None and drive.available(False) >= 2:
            return int.from_bytes(drive.take(2), "little")
        return 0xFFFF

    @regs.read(0, "DATA", 4)
    def read_data_dword(self) -> int:
        drive = self._selected()
        if drive is not None and drive.available(False) >= 4:
            return int.from_bytes(drive.take(4), "little")
        low = self.read_data()  # across the end of a block it is two words
        return low | self.read_data() << 16

    @regs.read(0, "DATA", 1)
    def read_data_byte(self) -> int:
        """The bus has 16 bits whatever the CPU wants of them: a byte access moves a word."""
        return self.read_data() & 0xFF

    @regs.write(0, "DATA", 2)
    def write_data(self, value: int) -> None:
        drive = self._selected()
        if drive is not None and drive.available(True) >= 2:
            drive.give(value.to_bytes(2, "little"))

    @regs.write(0, "DATA", 4)
    def write_data_dword(self, value: int) -> None:
        self.write_data(value & 0xFFFF)
        self.write_data(value >> 16)

    @regs.write(0, "DATA", 1)
    def write_data_byte(self, value: int) -> None:
        self.write_data(value)

    def read_string(self, offset: int, size: int, count: int) -> bytes:
        """`count` reads of `size` bytes at `offset` as one: whole runs of an open block at a time."""
        parts: list[bytes] = []
        while count:
            drive = self._selected()
            run = 0
            if offset == 0 and size > 1 and drive is not None:
                run = min(count, drive.available(False) // size)
            if run and drive is not None:
                parts.append(drive.take(run * size))
            else:
                run = 1
                parts.append(self.read(offset, size).to_bytes(size, "little"))
            count -= run
        return b"".join(parts)

    def write_string(self, offset: int, size: int, data: bytes) -> None:
        """Writes of `size` bytes each at `offset` as one."""
        at = 0
        while at < len(data):
            drive = self._selected()
            run = 0
            if offset == 0 and size > 1 and drive is not None:
                run = min(len(data) - at, drive.available(True)) // size * size
            if run and drive is not None:
                drive.give(data[at : at + run])
            else:
                run = size
                self.write(offset, size, int.from_bytes(data[at : at + size], "little"))
            at += run

    # Task file

    @regs.read(1, "ERROR")
    def read_error(self) -> int:
        drive = self._answering()
        return drive.state.error if drive is not None else 0xFF

    @regs.read(2, "SECTOR_COUNT")
    def read_count(self) -> int:
        drive = self._answering()
        return self._field(drive.state.count) if drive is not None else 0xFF

    @regs.read(3, "LBA_LOW")
    def read_lba_low(self) -> int:
        drive = self._answering()
        return self._field(drive.state.lba0) if drive is not None else 0xFF

    @regs.read(4, "LBA_MID")
    def read_lba_mid(self) -> int:
        drive = self._answering()
        return self._field(drive.state.lba1) if drive is not None else 0xFF

    @regs.read(5, "LBA_HIGH")
    def read_lba_high(self) -> int:
        drive = self._answering()
        return self._field(drive.state.lba2) if drive is not None else 0xFF

    @regs.read(6, "DEVICE")
    def read_device(self) -> int:
        drive = self._answering()
        return drive.state.device | 0xA0 if drive is not None else 0xFF

    @regs.write(1, "FEATURES")
    def write_features(self, value: int) -> None:
        self.state.control &= ~r.HOB
        for drive in self._heard():
            drive.state.feature = drive.state.feature << 8 & 0xFF00 | value

    @regs.write(2, "SECTOR_COUNT")
    def write_count(self, value: int) -> None:
        self.state.control &= ~r.HOB
        for drive in self._heard():
            drive.state.count = drive.state.count << 8 & 0xFF00 | value

    @regs.write(3, "LBA_LOW")
    def write_lba_low(self, value: int) -> None:
        self.state.control &= ~r.HOB
        for drive in self._heard():
            drive.state.lba0 = drive.state.lba0 << 8 & 0xFF00 | value

    @regs.write(4, "LBA_MID")
    def write_lba_mid(self, value: int) -> None:
        self.state.control &= ~r.HOB
        for drive in self._heard():
            drive.state.lba1 = drive.state.lba1 << 8 & 0xFF00 | value

    @regs.write(5, "LBA_HIGH")
    def write_lba_high(self, value: int) -> None:
        self.state.control &= ~r.HOB
        for drive in self._heard():
            drive.state.lba2 = drive.state.lba2 << 8 & 0xFF00 | value

    @regs.write(6, "DEVICE")
    def write_device(self, value: int) -> None:
        """Selects a drive. A selected drive that is busy keeps the channel."""
        self.state.control &= ~r.HOB
        drive = self._selected()
        if drive is not None and drive.state.status & r.BSY:
            return
        self.state.device = value
        for each in self._heard():
            each.state.device = value
        self._line_moved()

    # Commands and control

    @regs.read(7, "STATUS")
    def read_status(self) -> int:
        """Reading the status clears the selected drive's interrupt."""
        drive = self._selected()
        if drive is not None:
            drive.state.interrupt = False
            self.state.line = False
        return self._status(drive)

    @regs.read(8, "ALTERNATE_STATUS")
    def read_alternate_status(self) -> int:
        return self._status(self._selected())

    def _status(self, drive: Drive | None) -> int:
        if drive is None:
            return 0 if self.drives[0] is not None else FLOATING
        return r.BSY if self.state.control & r.SRST else drive.state.status

    @regs.write(7, "COMMAND")
    def write_command(self, value: int) -> None:
        """A busy drive takes no command, and none is taken while SRST holds the drives in reset."""
        self.state.control &= ~r.HOB
        drive = self._selected()
        if self.state.control & r.SRST:
            return
        if value == DIAGNOSTIC:
            self._diagnose()
        elif drive is not None and not drive.state.status & r.BSY:
            drive.state.interrupt = False
            self.state.line = False
            execute(drive, value)

    def _diagnose(self) -> None:
        """EXECUTE DEVICE DIAGNOSTIC: both drives, whichever is selected; drive 0 answers."""
        if any(drive is not None and drive.state.status & r.BSY for drive in self.drives):
            return
        self._reset_drives()
        first = self.drives[0]
        if first is not None:
            first.raise_interrupt()

    def _reset_drives(self) -> None:
        self.state.device = 0
        self.state.line = False
        for drive in self.drives:
            if drive is not None:
                drive.abandon()
                drive.signature()

    @regs.write(8, "DEVICE_CONTROL")
    def write_control(self, value: int) -> None:
        """nIEN, HOB, and SRST: setting it stops both drives, clearing it leaves their signatures."""
        before = self.state.control
        self.state.control = value & (r.HOB | r.SRST | r.NIEN)
        if value & ~before & r.SRST:
            self._reset_drives()
        self._line_moved()

    def restored(self) -> None:
        for number, drive in enumerate(self.drives):
            if drive is not None:
                drive.state = self.state.drives[number]
                drive.restored()
