"""RTL8139C+: transmission, by four descriptors in registers or by rings (datasheet 1.6, sections 6.3, 6.8 and 8.3).

The wire is ideal: a frame is sent as soon as the wire has room, and then done.
"""

from __future__ import annotations

import struct

from miniguest.frontend.devices import rtl8139_cplus as cplus
from miniguest.frontend.devices import rtl8139_registers as r
from miniguest.frontend.devices.device import Clock, GuestMemory
from miniguest.frontend.devices.ethernet import fcs
from miniguest.frontend.devices.nic import Wire
from miniguest.frontend.devices.rtl8139_receiver import Rtl8139Receiver

SHORTEST = 14  # an Ethernet header
HIGH, NORMAL = range(2)
RINGS = ((HIGH, r.HPQ, 2), (NORMAL, r.NPQ, 0))  # TPPoll's bit, and where in TSAD its address is


class Rtl8139Transmitter(Rtl8139Receiver):
    """The transmitting half; in loopback it feeds the other."""

    regs = Rtl8139Receiver.regs

    def __init__(self, mac: bytes, memory: GuestMemory, wire: Wire, clock: Clock) -> None:
        super().__init__(mac, memory, clock)
        self.wire = wire

    def wire_ready(self) -> None:
        """Go on with what waited for the wire."""
        before = self.state.isr
        self._transmit()
        if self.state.isr != before:
            self.changed()

    def _transmit(self) -> None:
        s = self.state
        if not s.command & r.TE:
            return
        if not s.cpcr & r.CPTX:
            self._transmit_classic()
            return
        for queue, bit, at in RINGS:
            if s.polled & bit:
                if not self._drain(s.queues[queue], s.tsad[at] | s.tsad[at + 1] << 32):
                    return
                s.polled &= ~bit

    def _transmit_classic(self) -> None:
        """The four descriptors take turns, beginning with the first one after a reset."""
        s = self.state
        while not s.tsd[s.tx_next] & r.TSD_OWN and self._room():
            status = s.tsd[s.tx_next]
            self._emit(self.memory.read(s.tsad[s.tx_next], status & r.TSD_SIZE))
            s.tsd[s.tx_next] = status | r.TSD_OWN | r.TSD_TOK
            s.tx_next = s.tx_next + 1 & 3
            self._count(r.SENT)
            self._tell(r.TOK)

    def _drain(self, queue: r.QueueState, base: int) -> bool:
        """Send the frames of the ring at `base`. False when the wire has no room for the next one.

        Once around at most: a ring in no memory has no end.
        """
        left = cplus.RING
        while left > 0:
            packet = cplus.gather(self.memory, base, queue.index)
            if packet is None:
                self._tell(r.TDU)
                break
            if not self._send(packet, queue):
                return False
            left -= len(packet.descriptors)
        return True

    def _send(self, packet: cplus.Packet, queue: r.QueueState) -> bool:
        """Send a frame, or what is left of a large send, and give its descriptors back. False for no room."""
        for number, frame in enumerate(packet.frames()):
            if number < queue.segment:
                continue
            if not self._room():
                queue.segment = number
                return False
            self._emit(frame)
        cplus.finish(self.memory, packet)
        queue.index, queue.segment = packet.next, 0
        self._count(r.SENT)
        self._tell(r.TER if packet.frame is None else r.TOK)
        return True

    def _room(self) -> bool:
        return self._loops() or self.wire.room()

    def _emit(self, frame: bytes) -> None:
        """Onto the wire, or back. Without an FCS appended the frame's last four bytes are one: a wrong one is lost."""
        if self.state.tcr & r.TCR_NO_CRC:
            frame, check = frame[:-4], frame[-4:]
            if check != fcs(frame):
                return
        if len(frame) < SHORTEST:
            return
        if not self._loops():
            self.wire.send(frame)
        elif self.state.command & r.RE and not self._take(frame):
            self.state.refused = False  # nobody will offer it again

    # Registers

    @regs.read(0x10, "TSD", 4, count=4)
    def read_tsd(self, index: int) -> int:
        s = self.state
        if s.cpcr & r.CPTX and index < 2:
            return s.dtccr[index]
        if not s.tsd[index] & r.TSD_OWN:
            self.idle += 1
        return s.tsd[index]

    @regs.write(0x10, "TSD", 4, count=4)
    def write_tsd(self, index: int, value: int) -> None:
        s = self.state
        if s.cpcr & r.CPTX and index < 2:
            self._write_dtccr(index, value)
        elif s.tsd[index] & r.TSD_OWN:
            s.tsd[index] = value & r.TSD_WRITABLE
            if not s.cpcr & r.CPTX:
                self._transmit()

    @regs.read(0x20, "TSAD", 4, count=4)
    def read_tsad(self, index: int) -> int:
        return self.state.tsad[index]

    @regs.write(0x20, "TSAD", 4, count=4)
    def write_tsad(self, index: int, value: int) -> None:
        """In C+ mode the rings' addresses, normal priority first: a new ring is used from its start."""
        s = self.state
        s.tsad[index] = value
        queue = s.queues[NORMAL if index < 2 else HIGH]
        queue.index = queue.segment = 0

    @regs.read(0x60, "TSADS", 2)
    def read_tsads(self) -> int:
        """Transmit status of all descriptors: OWN, TABT, TUN and TOK, four bits each."""
        value = 0
        for index, status in enumerate(self.state.tsd):
            bits = (r.TSD_OWN, r.TSD_TABT, r.TSD_TUN, r.TSD_TOK)
            value |= sum(bool(status & bit) << 4 * place for place, bit in enumerate(bits)) << index
        if value & 0xF != 0xF:
            self.idle += 1
        return value

    @regs.write(0xD9, "TPPOLL")
    def write_tppoll(self, value: int) -> None:
        self.state.polled |= value & (r.HPQ | r.NPQ)
        if value & r.FSWINT:
            self._tell(r.SWINT)
        self._transmit()

    @regs.read(0x40, "TCR", 4)
    def read_tcr(self) -> int:
        return self.state.tcr | r.VERSION

    @regs.write(0x40, "TCR", 4)
    def write_tcr(self, value: int) -> None:
        self.state.tcr = value & r.TCR_WRITABLE

    def _write_dtccr(self, index: int, value: int) -> None:
        """Dump tally counter command: 64 bytes to an address in C+ mode. It is over at once."""
        s = self.state
        s.dtccr[index] = value & (~0x3F if index == 0 else -1) & 0xFFFFFFFF
        if index == 0 and value & r.DTCCR_DUMP:
            self.memory.write(s.dtccr[0] | s.dtccr[1] << 32, self._counters())

    def _counters(self) -> bytes:
        """TxOk RxOk TxErr RxErr MissPkt FAE Tx1Col TxMCol RxOkPhy RxOkBrd RxOkMul TxAbt TxUndrn."""
        c = [each & 0xFFFFFFFFFFFFFFFF for each in self.state.counters]
        return struct.pack(
            "<QQQIHHIIQQIHH", c[r.SENT], c[r.RECEIVED], 0, c[r.RX_ERRORS] & 0xFFFFFFFF, self.state.mpc & 0xFFFF, 0, 0, 0,
            c[r.RECEIVED_MINE], c[r.RECEIVED_BROADCAST], c[r.RECEIVED_MULTICAST] & 0xFFFFFFFF, 0, 0,
        )  # fmt: skip
