"""16550A UART with FIFOs (National PC16550D datasheet, section 8), eight ports.

The line is ideal: a byte written is sent at once, so the transmitter is always empty when the guest looks; the
receiver keeps the character times that the time-out interrupt is defined in. On a PC the interrupt goes through a
gate that OUT2 opens, so `irq()` includes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from miniguest.frontend.devices.device import Clock, Model
from miniguest.frontend.devices.regmap import RegMap

FIFO = 16
TRIGGERS = (1, 4, 8, 14)
IER_RX, IER_THRE, IER_LINE, IER_MODEM = 1, 2, 4, 8
IIR_NONE, IIR_MODEM, IIR_THRE, IIR_RX, IIR_LINE, IIR_TIMEOUT = 0x01, 0x00, 0x02, 0x04, 0x06, 0x0C
LSR_DR, LSR_OE, LSR_BI, LSR_THRE, LSR_TEMT, LSR_FIFO_ERROR = 0x01, 0x02, 0x10, 0x20, 0x40, 0x80
LCR_BREAK, LCR_DLAB = 0x40, 0x80
MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOP = 1, 2, 4, 8, 16
MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = 0x10, 0x20, 0x40, 0x80
CONNECTED = MSR_CTS | MSR_DSR | MSR_DCD
INPUT_CLOCK = 1_843_200


class Uart(Model):
    """A serial port. `transmit` gets each byte sent; `receive` takes what arrives, `room()` bytes at most."""

    regs = RegMap(size=8)

    @dataclass(slots=True)
    class State:
        KIND: ClassVar = ("uart-16550a", 1)
        ier: int = 0
        fcr: int = 0  # as last written, without the reset bits
        lcr: int = 0
        mcr: int = 0
        scratch: int = 0
        divisor: int = 12  # 9600 baud
        received: bytearray = field(default_factory=bytearray)
        breaks: bytearray = field(default_factory=bytearray)  # 1 beside each received byte that was a break
        overrun: bool = False
        line_event: bool = False  # an error arrived since LSR was last read
        inputs: int = CONNECTED  # modem lines, in MSR's places
        deltas: int = 0
        thre: bool = False  # a THRE interrupt is waiting
        timed_out: bool = False
        touched: int = 0  # ns of the last byte in or out of the receive FIFO
        now: int = 0  # the clock when saved

    state: State

    def __init__(self, transmit: Callable[[bytes], None], clock: Clock) -> None:
        self.transmit = transmit
        self.clock = clock
        self.state = self.State()

    # The line's side

    def room(self) -> int:
        """Bytes that `receive` can take without an overrun; 0 in loopback, where the line is cut off."""
        s = self.state
        return 0 if s.mcr & MCR_LOOP else max(self._depth() - len(s.received), 0)

    def receive(self, data: bytes) -> None:
        """Bytes arrive on the line; those beyond `room()` are lost and set the overrun bit."""
        if not self.state.mcr & MCR_LOOP and data:
            for byte in data:
                self._arrive(byte)
            self.changed()

    def receive_break(self) -> None:
        """A break arrives: a zero byte with LSR's break bit."""
        if not self.state.mcr & MCR_LOOP:
            self._arrive(0, broken=1)
            self.changed()

    def set_modem(self, lines: int) -> None:
        """Set the modem inputs: MSR_CTS, MSR_DSR, MSR_RI and MSR_DCD."""
        before = self._modem()
        self.state.inputs = lines & 0xF0
        self._note_modem(before)
        self.changed()

    def irq(self) -> bool:
        """The interrupt line behind OUT2's gate."""
        mcr = self.state.mcr
        return bool(mcr & MCR_OUT2) and not mcr & MCR_LOOP and self._cause() != IIR_NONE

    def deadline(self) -> int | None:
        """When the receive time-out comes, in ns."""
        s = self.state
        if not s.fcr & 1 or not s.received or s.timed_out:
            return None
        return s.touched + 4 * self._character()

    def tick(self) -> None:
        """Raise the time-out interrupt if it is due."""
        due = self.deadline()
        if due is not None and self.clock() >= due:
            self.state.timed_out = True

    # Inside

    def _depth(self) -> int:
        return FIFO if self.state.fcr & 1 else 1

    def _character(self) -> int:
        """Nanoseconds of one character: start, data, parity and stop bits."""
        s = self.state
        bits = 1 + 5 + (s.lcr & 3) + bool(s.lcr & 8) + 1 + bool(s.lcr & 4)
        return bits * 16 * (s.divisor or 0x10000) * 1_000_000_000 // INPUT_CLOCK

    def _arrive(self, byte: int, broken: int = 0) -> None:
        s = self.state
        if len(s.received) >= self._depth():
            s.overrun = s.line_event = True
            if s.fcr & 1:
                return  # the FIFO keeps what it has; without it the new byte overwrites the old
            s.received.clear()
            s.breaks.clear()
        s.received.append(byte)
        s.breaks.append(broken)
        s.line_event = s.line_event or bool(broken)
        s.touched = self.clock()
        s.timed_out = False

    def _cause(self) -> int:
        """The interrupt with the highest priority, as IIR's low four bits."""
        s = self.state
        if s.ier & IER_LINE and s.line_event:
            return IIR_LINE
        if s.ier & IER_RX and s.received:
            if not s.fcr & 1 or len(s.received) >= TRIGGERS[s.fcr >> 6]:
                return IIR_RX
            if s.timed_out:
                return IIR_TIMEOUT
        if s.ier & IER_THRE and s.thre:
            return IIR_THRE
        if s.ier & IER_MODEM and s.deltas:
            return IIR_MODEM
        return IIR_NONE

    def _modem(self) -> int:
        """MSR's high four bits: the inputs, or in loopback the outputs of MCR."""
        mcr = self.state.mcr
        if not mcr & MCR_LOOP:
            return self.state.inputs
        looped = (mcr & MCR_RTS) << 3 | (mcr & MCR_DTR) << 5
        return looped | (mcr & MCR_OUT1) << 4 | (mcr & MCR_OUT2) << 4

    def _note_modem(self, before: int) -> None:
        """Set the delta bits for what changed; RI counts only when it ends."""
        after = self._modem()
        changed = (before ^ after) & ~MSR_RI | before & ~after & MSR_RI
        self.state.deltas |= changed >> 4

    def _send(self, value: int) -> None:
        s = self.state
        value &= 0xFF >> 3 - (s.lcr & 3)
        if s.mcr & MCR_LOOP:
            self._arrive(value)
        else:
            self.transmit(bytes((value,)))
        s.thre = True  # empty again at once

    # Registers

    @regs.read(0, "RBR")
    def read_data(self) -> int:
        s = self.state
        if s.lcr & LCR_DLAB:
            return s.divisor & 0xFF
        if not s.received:
            return 0
        s.timed_out = False
        s.touched = self.clock()
        s.breaks.pop(0)
        return s.received.pop(0)

    @regs.write(0, "THR")
    def write_data(self, value: int) -> None:
        s = self.state
        if s.lcr & LCR_DLAB:
            s.divisor = s.divisor & 0xFF00 | value
        else:
            self._send(value)

    @regs.read(1, "IER")
    def read_ier(self) -> int:
        s = self.state
        return s.divisor >> 8 if s.lcr & LCR_DLAB else s.ier

    @regs.write(1, "IER")
    def write_ier(self, value: int) -> None:
        s = self.state
        if s.lcr & LCR_DLAB:
            s.divisor = s.divisor & 0xFF | value << 8
            return
        if value & ~s.ier & IER_THRE:
            s.thre = True  # enabling it while the transmitter is empty interrupts
        s.ier = value & 0x0F

    @regs.read(2, "IIR")
    def read_iir(self) -> int:
        cause = self._cause()
        if cause == IIR_THRE:
            self.state.thre = False
        return cause | (0xC0 if self.state.fcr & 1 else 0)

    @regs.write(2, "FCR")
    def write_fcr(self, value: int) -> None:
        s = self.state
        if (value ^ s.fcr) & 1 or value & 2:
            s.received.clear()
            s.breaks.clear()
            s.timed_out = False
        s.fcr = value & 0xC9 if value & 1 else 0

    @regs.read(3, "LCR")
    def read_lcr(self) -> int:
        return self.state.lcr

    @regs.write(3, "LCR")
    def write_lcr(self, value: int) -> None:
        s = self.state
        starts = value & ~s.lcr & LCR_BREAK
        s.lcr = value
        if starts and s.mcr & MCR_LOOP:
            self._arrive(0, broken=1)

    @regs.read(4, "MCR")
    def read_mcr(self) -> int:
        return self.state.mcr

    @regs.write(4, "MCR")
    def write_mcr(self, value: int) -> None:
        before = self._modem()
        self.state.mcr = value & 0x1F
        self._note_modem(before)

    @regs.read(5, "LSR")
    def read_lsr(self) -> int:
        s = self.state
        value = LSR_THRE | LSR_TEMT
        if s.received:
            value |= LSR_DR | (LSR_BI if s.breaks[0] else 0)
            if s.fcr & 1 and any(s.breaks):
                value |= LSR_FIFO_ERROR
            s.breaks[0] = 0
        if s.overrun:
            value |= LSR_OE
        s.overrun = s.line_event = False
        return value

    @regs.read(6, "MSR")
    def read_msr(self) -> int:
        value = self._modem() | self.state.deltas
        self.state.deltas = 0
        return value

    @regs.read(7, "SCR")
    def read_scr(self) -> int:
        return self.state.scratch

    @regs.write(7, "SCR")
    def write_scr(self, value: int) -> None:
        self.state.scratch = value

    def saving(self) -> None:
        self.state.now = self.clock()

    def restored(self) -> None:
        self.state.touched += self.clock() - self.state.now
