"""The 82540EM's transmitter: from descriptors in guest memory to frames on the wire.

Sections 3.3-3.5 and 13.4.32-13.4.44 of the manual that `e1000_registers` names. A packet's data is fetched as its
descriptors come; the descriptor that ends it is done when the last frame made of it is on the wire, and until the wire
has room it stays where it is. Whatever a descriptor says, a packet holds at most `PACKET_LIMIT` bytes (a block to be
segmented `BLOCK_LIMIT`), and one go is at most `BURST` descriptors and frames; the rest follows at `resume`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from miniguest.frontend.devices import e1000_registers as r
from miniguest.frontend.devices import e1000_statistics as statistics
from miniguest.frontend.devices.device import Clock, GuestMemory
from miniguest.frontend.devices.e1000_interrupts import Delay, DelayState, Interrupts
from miniguest.frontend.devices.e1000_offload import Context, context, finish, insert_checksum, segment
from miniguest.frontend.devices.nic import MIN_FRAME

DESCRIPTOR = struct.Struct("<QII")
HEADER = 14                             # the least that is a frame
PACKET_LIMIT = 16288
BLOCK_LIMIT = 256 << 10
BATCH = 64                              # descriptors read at once
BURST = 1024
CONTROL_BITS = 0x037FFFFA
BLOCK = r.TXD_DEXT | r.TXD_TSE          # of a packet's first descriptor: it is to be segmented


class Port(Protocol):
    """Where frames go: the wire, or back into the receiver."""

    def room(self) -> bool: ...

    def send(self, frame: bytes) -> None: ...


@dataclass(slots=True)
class TransmitState:
    control: int = 0                    # TCTL
    low: int = 0                        # TDBAL
    high: int = 0
    length: int = 0                     # of the ring in bytes
    head: int = 0
    tail: int = 0
    txdctl: int = 0
    tagging: bool = False               # CTRL.VME
    tag_type: int = 0                   # VET
    delay: DelayState = field(default_factory=DelayState)
    checksums: Context = field(default_factory=Context)
    segmentation: Context = field(default_factory=Context)
    packet: bytearray = field(default_factory=bytearray)
    begun: bool = False                 # a packet's first descriptor was seen
    first: int = 0                      # its command and length dword,
    options: int = 0                    # and the one behind
    too_long: bool = False
    gathered: bool = False              # all of a block to be segmented is there
    position: int = 0                   # payload of it that was sent
    resume: int = 0                     # ns when a long go continues; 0 = nothing left to do


class Transmitter:
    """`choose` gives the port of each go, `counters` are the statistics registers."""

    port: Port

    def __init__(
        self, state: TransmitState, memory: GuestMemory, choose: Callable[[], Port], clock: Clock, interrupts: Interrupts,
        counters: list[int],
    ) -> None:
        self.state = state
        self.memory = memory
        self.choose = choose
        self.clock = clock
        self.interrupts = interrupts
        self.counters = counters
        self.delay = Delay(state.delay, clock, interrupts, r.TXDW)
        self.running = False
        self.budget = 0
        self.causes = 0

    def run(self) -> None:
        """Process what lies between head and tail, as far as the wire has room."""
        s = self.state
        s.resume = 0
        count = s.length >> 4
        if s.head == s.tail or self.running or not s.control & r.TCTL_EN or s.head >= count or s.tail >= count:
            return
        self.port, self.running, self.budget, self.causes = self.choose(), True, BURST, 0
        before = (s.tail - s.head) % count
        try:
            self._process(count)
        finally:
            self.running = False
        if s.head == s.tail:
            self.causes |= r.TXQE
        elif self.budget <= 0:
            s.resume = max(self.clock(), 1)
        if (s.tail - s.head) % count <= s.txdctl >> 25 << 3 < before:
            self.causes |= r.TXD_LOW
        self.interrupts.cause(self.causes)

    def control(self, value: int) -> None:
        """A write to TCTL."""
        self.state.control = value & CONTROL_BITS
        if value & r.TCTL_EN:
            self.run()
        else:
            self.forget()

    def forget(self) -> None:
        """A packet of which only a part was fetched is given up."""
        s = self.state
        s.packet = bytearray()
        s.begun = s.too_long = s.gathered = False
        s.position = s.resume = 0

    def _process(self, count: int) -> None:
        s = self.state
        base = s.high << 32 | s.low
        while s.head != s.tail and self.budget > 0:
            run = min((s.tail if s.tail > s.head else count) - s.head, BATCH)
            table = self.memory.read(base + 16 * s.head, 16 * run)
            for first, lower, upper in DESCRIPTOR.iter_unpack(table):
                if not self._descriptor(first, lower, upper):
                    return
                if lower & (r.TXD_RS | r.TXD_RPS):
                    self._report(base + 16 * s.head, lower)
                s.head = s.head + 1 if s.head + 1 < count else 0
                self.budget -= 1

    def _report(self, descriptor: int, lower: int) -> None:
        """Status goes back, after the data was fetched: a driver that sees DD reuses the buffer."""
        self.memory.write(descriptor + 12, bytes((r.TXD_DD,)))
        if lower & r.TXD_IDE and self.state.delay.delay:
            self.delay.event()
        else:
            self.delay.stop()
            self.causes |= r.TXDW

    def _descriptor(self, first: int, lower: int, upper: int) -> bool:
        """Whether the descriptor is done; False while there is no room for its frames."""
        if lower & r.TXD_DEXT and not lower >> 20 & 15:
            which = context(first, lower, upper)
            if lower & r.TUCMD_TSE:
                self.state.segmentation = which
            else:
                self.state.checksums = which
            return True
        return self._data(first, lower, upper)

    def _data(self, address: int, lower: int, upper: int) -> bool:
        s = self.state
        if not s.begun:
            s.begun, s.first, s.options = True, lower, upper
        block = s.first & BLOCK == BLOCK
        last = lower & r.TXD_EOP
        if not s.gathered:
            if last and not block and not self.port.room():
                return False
            self._gather(address, lower & (0xFFFFF if lower & r.TXD_DEXT else 0xFFFF), BLOCK_LIMIT if block else PACKET_LIMIT)
        if not last:
            return True
        s.gathered = block
        if block and not self._segments():
            return False
        if not block:
            self._frame(lower, upper)
        self.forget()
        return True

    def _gather(self, address: int, length: int, limit: int) -> None:
        """Fetch a buffer; a null address has no data. A packet beyond the limit is dropped when it ends."""
        s = self.state
        if not address or not length or s.too_long:
            return
        if len(s.packet) + length > limit:
            s.too_long = True
            s.packet.clear()
        else:
            s.packet += self.memory.read(address, length)

    def _frame(self, lower: int, upper: int) -> None:
        """The packet as one frame. Tag and FCS go by its last descriptor, CSS and POPTS by the first."""
        s = self.state
        packet, options = s.packet, s.options >> 8 & 0xFF
        if s.first & r.TXD_DEXT:
            finish(packet, s.checksums, options)
        elif lower & r.TXD_IC:
            insert_checksum(packet, options, 0, lower >> 16 & 0xFF)
        self._emit(packet, lower, upper >> 16)

    def _segments(self) -> bool:
        """The packet as frames of MSS bytes each; False when there is no room, or this go is long enough."""
        s = self.state
        c = s.segmentation
        payload = len(s.packet) - c.hdrlen
        if not c.mss or c.hdrlen < HEADER or payload <= 0 or c.hdrlen + min(c.mss, payload) > PACKET_LIMIT:
            self.counters[statistics.TSCTFC] += 1
            return True
        while s.position < payload:
            if self.budget <= 0 or not self.port.room():
                return False
            self.budget -= 1
            self._emit(segment(s.packet, c, s.position, s.options >> 8 & 0xFF), s.first, s.options >> 16)
            s.position += c.mss
        self.counters[statistics.TSCTC] += 1
        return True

    def _emit(self, frame: bytearray, lower: int, tag: int) -> None:
        """Take off an FCS that software put there, tag, pad, and send. What is shorter than a header is no frame."""
        s = self.state
        tagged = lower & r.TXD_VLE and s.tagging
        if not lower & r.TXD_IFCS and not tagged and zlib.crc32(frame[:-4]) == int.from_bytes(frame[-4:], "little"):
            del frame[-4:]  # without IFCS the packet has its FCS; one that has none after all is sent as it is
        if len(frame) < HEADER:
            return
        if tagged:
            frame[12:12] = struct.pack(">HH", s.tag_type, tag)
        if len(frame) < MIN_FRAME and s.control & r.TCTL_PSP:
            frame.extend(bytes(MIN_FRAME - len(frame)))
        data = bytes(frame)
        statistics.sent(self.counters, data)
        self.port.send(data)
