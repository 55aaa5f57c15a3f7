"""One ATA disk: moves sectors between the host's data register or bus master and a disk (ATA/ATAPI-6, chapter 9).

A command is a task (what it does) in a phase: DISK, a request is with the disk (BSY); DATA, a DRQ block is open at
the data register; DMA, the bus master is to move the buffer; DONE, the disk has answered and the next step is to be
taken. `advance` takes steps until somebody else has to act.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from miniguest.frontend.devices import ide_registers as r
from miniguest.frontend.devices.busmaster import DmaChannel
from miniguest.frontend.devices.device import Disk, nothing
from miniguest.frontend.devices.ide_address import write_sector
from miniguest.frontend.devices.ide_identify import identify
from miniguest.frontend.devices.ide_registers import SECTOR, DriveState


class Drive:
    """A disk behind its task file. `line()` is called when INTRQ may have risen, `changed()` after a completion."""

    def __init__(self, disk: Disk, state: DriveState, serial: str, dma: DmaChannel | None) -> None:
        self.disk = disk
        self.state = state
        self.serial = serial
        self.dma = dma
        self.line: Callable[[], None] = nothing
        self.changed: Callable[[], None] = nothing
        self._request = 0  # number of the request with the disk: answers to older ones are late
        self._answer: bytes | bool | None = None
        self._advancing = False

    # Ends of commands

    def complete(self) -> None:
        """The command succeeded; INTRQ tells."""
        self._end(r.READY, 0)
        self.raise_interrupt()

    def fail(self, error: int) -> None:
        """The command failed with these error bits; INTRQ tells."""
        self._end(r.READY | r.ERR, error)
        self.raise_interrupt()

    def _end(self, status: int, error: int) -> None:
        s = self.state
        s.status, s.error = status, error
        s.phase, s.task = r.IDLE, r.NONE
        s.buffer = bytearray()
        s.position = s.end = s.left = 0

    def raise_interrupt(self) -> None:
        """INTRQ is pending until the status is read or the next command begins."""
        self.state.interrupt = True
        self.line()

    # Beginnings

    def start(self, task: str, sector: int, count: int, block: int = 1) -> None:
        """Begin a command over `count` sectors, in DRQ blocks of `block` sectors. The range was checked; the drive is idle."""
        s = self.state
        s.task, s.next, s.left, s.block = task, sector, count, block
        if task == r.PIO_OUT:
            self._open_block(interrupt=False)
        elif task == r.DMA_OUT:
            s.phase, s.status = r.DMA, r.READY | r.DRQ
            self.advance()
        else:
            self._ask()

    def start_flush(self) -> None:
        """Begin FLUSH CACHE."""
        self.state.task = r.FLUSH
        self._ask()

    def start_identify(self) -> None:
        """Open the IDENTIFY DEVICE block."""
        s = self.state
        s.task, s.block, s.left, s.position = r.IDENTIFY, 1, 0, 0
        s.buffer = bytearray(identify(s, self.disk.sectors, self.serial, self.dma is not None))
        self._open_block(interrupt=True)

    def abandon(self) -> None:
        """A reset or a new command ends what is going on. Blocks the host was told are taken go to the disk."""
        s = self.state
        if s.task == r.PIO_OUT and s.phase == r.DATA and (taken := s.position - s.position % (s.block * SECTOR)):
            self.disk.write(s.next, bytes(s.buffer[:taken]), lambda good: None)
        self._request += 1
        self._end(r.READY, s.error)
        s.interrupt = False

    # The disk

    def _chunk(self) -> int:
        return min(self.state.left, r.CHUNK)

    def _ask(self) -> None:
        """Give the disk the next request of the task."""
        s = self.state
        s.phase, s.status = r.DISK, r.BSY
        self._request += 1
        if s.task in (r.PIO_OUT, r.DMA_OUT):
            self.disk.write(s.next, bytes(s.buffer), partial(self._done, self._request))
        elif s.task == r.FLUSH:
            self.disk.flush(partial(self._done, self._request))
        else:
            self.disk.read(s.next, self._chunk(), partial(self._done, self._request))

    def _done(self, request: int, answer: bytes | bool | None) -> None:
        """The disk's answer, at once or later; steps follow. An answer to a request that was abandoned says nothing."""
        if request != self._request or self.state.phase != r.DISK:
            return
        self._answer = answer
        self.state.phase = r.DONE
        if not self._advancing:
            self.advance()
            self.changed()

    def advance(self) -> None:
        """Take steps until the disk, the host or the bus master has to act. A loop, since a disk may answer at once."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while self._step():
                pass
        finally:
            self._advancing = False

    def _step(self) -> bool:
        s = self.state
        if s.phase == r.DONE:
            self._answered(self._answer)
            return True
        if s.phase == r.DMA and self.dma is not None and self.dma.active:
            return self._move_in(self.dma) if s.task == r.DMA_IN else self._move_out(self.dma)
        return False

    def _answered(self, answer: bytes | bool | None) -> None:
        s = self.state
        self._answer = None
        if s.task == r.FLUSH:
            if answer:
                self.complete()
            else:
                self.fail(r.ABRT)
        elif s.task in (r.PIO_OUT, r.DMA_OUT):
            self._stored(bool(answer))
        elif not isinstance(answer, bytes) or len(answer) != self._chunk() * SECTOR:
            self._failed_at(s.next)
        else:
            self._fetched(answer)

    def _failed_at(self, sector: int) -> None:
        """The disk failed somewhere in the chunk: the registers name its first sector."""
        s = self.state
        write_sector(s, sector)
        self.fail(r.UNC if s.task not in (r.PIO_OUT, r.DMA_OUT) else r.ABRT)

    def _fetched(self, data: bytes) -> None:
        s = self.state
        self._next_chunk()
        s.buffer, s.position = bytearray(data), 0
        if s.task == r.PIO_IN:
            self._open_block(interrupt=True)
        elif s.task == r.DMA_IN:
            s.phase, s.status = r.DMA, r.READY | r.DRQ
        elif s.left:
            self._ask()
        else:
            self._finish()

    def _stored(self, good: bool) -> None:
        s = self.state
        if not good:
            self._failed_at(s.next)
            return
        self._next_chunk()
        s.buffer, s.position = bytearray(), 0
        if not s.left:
            self._finish()
        elif s.task == r.PIO_OUT:
            self._open_block(interrupt=True)
        else:
            s.phase, s.status = r.DMA, r.READY | r.DRQ

    def _next_chunk(self) -> None:
        s = self.state
        count = self._chunk()
        s.next += count
        s.left -= count

    def _finish(self) -> None:
        """All sectors moved: the registers name the last one, and the command is complete."""
        write_sector(self.state, self.state.next - 1)
        self.complete()

    # The bus master

    def _move_in(self, dma: DmaChannel) -> bool:
        s = self.state
        moved = dma.put(s.buffer, s.position)
        s.position += moved
        if s.position == len(s.buffer):
            if s.left:
                self._ask()
            else:
                self._finish()
        return moved > 0

    def _move_out(self, dma: DmaChannel) -> bool:
        s = self.state
        wanted = self._chunk() * SECTOR
        data = dma.get(wanted - len(s.buffer))
        s.buffer += data
        if len(s.buffer) == wanted:
            self._ask()
        return len(data) > 0

    # The data register

    def _open_block(self, interrupt: bool) -> None:
        """Open the DRQ block that begins at the buffer's position."""
        s = self.state
        size = len(s.buffer) if s.task != r.PIO_OUT else self._chunk() * SECTOR
        if s.task == r.PIO_OUT and len(s.buffer) < size:
            s.buffer = s.buffer.ljust(size, b"\0")
        s.end = min(s.position + s.block * SECTOR, size)
        s.phase, s.status = r.DATA, r.READY | r.DRQ
        if interrupt:
            self.raise_interrupt()

    def available(self, writing: bool) -> int:
        """Bytes that the open DRQ block still moves in that direction; 0 when none is open."""
        s = self.state
        if s.phase != r.DATA or writing != (s.task == r.PIO_OUT):
            return 0
        return s.end - s.position

    def take(self, size: int) -> bytes:
        """The next bytes of the open block, `size` at most `available`."""
        s = self.state
        data = bytes(s.buffer[s.position : s.position + size])
        s.position += size
        if s.position == s.end:
            self._block_read()
        return data

    def give(self, data: bytes) -> None:
        """The next bytes for the open block, at most `available`."""
        s = self.state
        s.buffer[s.position : s.position + len(data)] = data
        s.position += len(data)
        if s.position == s.end:
            self._block_written()

    def _block_read(self) -> None:
        s = self.state
        if s.position < len(s.buffer):
            self._open_block(interrupt=True)
        elif s.left:
            self._ask()
        else:
            if s.task == r.PIO_IN:
                write_sector(s, s.next - 1)
            self._end(r.READY, 0)  # a read ends with its data, without another interrupt

    def _block_written(self) -> None:
        if self.state.position < self._chunk() * SECTOR:
            self._open_block(interrupt=True)
        else:
            self._ask()

    # Resets

    def signature(self) -> None:
        """The registers after a reset or a diagnostic: an ATA disk that passed."""
        s = self.state
        s.count, s.lba0, s.lba1, s.lba2, s.device = 1, 1, 0, 0, 0
        s.status, s.error, s.power, s.asleep = r.READY, r.DIAGNOSTIC_PASSED, 0xFF, False

    def restored(self) -> None:
        """Issue again what was with the disk: a read or a write done twice leaves the same."""
        if self.state.phase in (r.DISK, r.DONE):
            self._ask()
        self.advance()
