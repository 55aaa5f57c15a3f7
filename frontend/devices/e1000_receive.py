"""The 82540EM's receiver: from a frame to descriptors and buffers in guest memory.

Sections 3.2, 13.4.22-13.4.31 and 13.5 of the manual that `e1000_registers` names. The receive FIFO is one frame, which
whoever offers it holds: a frame that finds no descriptor counts in RNBC and as an overrun once, and is not lost.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

from miniguest.frontend.devices import e1000_registers as r
from miniguest.frontend.devices import e1000_statistics as statistics
from miniguest.frontend.devices.device import Clock, GuestMemory
from miniguest.frontend.devices.e1000_filters import INEXACT, REJECTED, Filters
from miniguest.frontend.devices.e1000_interrupts import Delay, DelayState, Interrupts
from miniguest.frontend.devices.e1000_offload import verify
from miniguest.frontend.devices.nic import MIN_FRAME
from miniguest.ring._core import checksum_sum

STATUS = struct.Struct("<HHBBH")        # length, packet checksum, status, errors, special
UNUSED = STATUS.pack(0, 0, r.RXD_DD, 0, 0)
SCATTERED = 256                         # descriptors of one frame
FCS = 4
SHORT_LIMIT, LONG_LIMIT = 1522, 16384   # with FCS; RCTL.LPE
OFFLOADS = r.RXCSUM_IPOFL | r.RXCSUM_TUOFL
MAC_CONTROL, PAUSE = 0x8808, 0x0001


@dataclass(slots=True)
class ReceiveState:
    control: int = 0                    # RCTL
    low: int = 0                        # RDBAL
    high: int = 0
    length: int = 0                     # of the ring in bytes
    head: int = 0
    tail: int = 0
    rxcsum: int = 0
    rsrpd: int = 0
    fct: int = 0
    stripping: bool = False             # CTRL.VME
    waiting: bool = False               # the frame offered last found no descriptor
    delay: DelayState = field(default_factory=DelayState)


class Receiver:
    """`counters` are the statistics registers."""

    def __init__(
        self, state: ReceiveState, memory: GuestMemory, clock: Clock, interrupts: Interrupts, filters: Filters,
        counters: list[int],
    ) -> None:
        self.state = state
        self.memory = memory
        self.interrupts = interrupts
        self.filters = filters
        self.counters = counters
        self.delay = Delay(state.delay, clock, interrupts, r.RXT0)

    def buffer_size(self) -> int:
        """Bytes of each receive buffer (RCTL.BSIZE, BSEX)."""
        control = self.state.control
        size = 2048 >> (control >> 16 & 3)
        return min(size << 4, 16384) if control & r.RCTL_BSEX else size

    def receive(self, frame: bytes) -> bool:
        """A frame without FCS from the line; False when it has to wait for descriptors."""
        s = self.state
        if not s.control & r.RCTL_EN:
            return True
        if len(frame) < MIN_FRAME:
            frame = frame.ljust(MIN_FRAME, b"\0")   # a sender pads; one that did not is forgiven
        verdict = self.filters.judge(frame, s.control)
        if frame[12:14] == b"\x88\x08" and s.fct == MAC_CONTROL:
            verdict = self._mac_control(frame, verdict)
        if verdict == REJECTED or self._oversize(frame):
            statistics.heard(self.counters, len(frame))
            return True
        if not self._deliver(frame, verdict == INEXACT):
            return self._no_room()
        s.waiting = False
        statistics.heard(self.counters, len(frame))
        statistics.received(self.counters, frame)
        return True

    def _mac_control(self, frame: bytes, verdict: int) -> int:
        """RCTL.DPF keeps pause frames away; RCTL.PMCF lets other MAC control frames by the filters."""
        control = self.state.control
        if int.from_bytes(frame[14:16], "big") == PAUSE:
            return REJECTED if control & r.RCTL_DPF else verdict
        return verdict or (INEXACT if control & r.RCTL_PMCF else REJECTED)

    def _oversize(self, frame: bytes) -> bool:
        """Too long for RCTL.LPE, or for all the descriptors that the ring can ever have."""
        s = self.state
        if len(frame) + FCS > (LONG_LIMIT if s.control & r.RCTL_LPE else SHORT_LIMIT):
            self.counters[statistics.ROC] += 1
            self.counters[statistics.RLEC] += 1
            return True
        count = s.length >> 4
        if count and len(frame) + FCS > (count - 1) * self.buffer_size():
            self.lost()
            return True
        return False

    def lost(self) -> None:
        """A frame that nobody can keep."""
        self.state.waiting = False
        self.counters[statistics.MPC] += 1
        self.interrupts.cause(r.RXO)

    def _no_room(self) -> bool:
        s = self.state
        if not s.waiting:
            s.waiting = True
            self.counters[statistics.RNBC] += 1
            self.interrupts.cause(r.RXO)
        return False

    def _deliver(self, frame: bytes, inexact: bool) -> bool:
        """Write a frame into the next descriptors' buffers, if there are enough of them."""
        s = self.state
        status, special = r.RXD_DD | r.RXD_EOP, 0
        tagged = self.filters.tagged(frame)
        fcs = b"" if s.control & r.RCTL_SECRC else zlib.crc32(frame).to_bytes(FCS, "little")
        if tagged and s.stripping:
            special = frame[14] << 8 | frame[15]
            status |= r.RXD_VP
            frame = frame[:12] + frame[16:]
            tagged = False
        data = frame + fcs
        places = self._places(len(data))
        if places is None:
            return False
        checked, errors = verify(frame, s.rxcsum, tagged) if s.rxcsum & OFFLOADS else (r.RXD_IXSM, 0)
        checksum = ~checksum_sum(data[s.rxcsum & 0xFF :]) & 0xFFFF
        self._store(data, places, checksum, status | checked | (r.RXD_PIF if inexact else 0), errors, special)
        self._tell(len(data), places)
        return True

    def _places(self, size: int) -> list[tuple[int, int]] | None:
        """(descriptor index, buffer address) for so many bytes. None: there are not enough.

        A null address holds nothing. Those before the first buffer go back at once, and so does what is scattered among
        too many of them: else a ring full of them would be searched again for each frame.
        """
        s = self.state
        count = s.length >> 4
        if s.head >= count or s.tail >= count:
            return None
        base, buffer, left = s.high << 32 | s.low, self.buffer_size(), size
        places: list[tuple[int, int]] = []
        index = s.head
        while left > 0:
            if index == s.tail:
                return None
            address = int.from_bytes(self.memory.read(base + 16 * index, 8), "little")
            places.append((index, address))
            left -= buffer if address else 0
            index = index + 1 if index + 1 < count else 0
            if not places[0][1] or len(places) > SCATTERED:
                for unused, _ in places:
                    self.memory.write(base + 16 * unused + 8, UNUSED)
                places, left, s.head = [], size, index
        return places

    def _store(
        self, data: bytes, places: list[tuple[int, int]], checksum: int, status: int, errors: int, special: int
    ) -> None:
        """Buffers first, then each descriptor: a driver that sees DD reads the buffer."""
        s = self.state
        base, buffer, start = s.high << 32 | s.low, self.buffer_size(), 0
        for index, address in places:
            part = data[start : start + buffer] if address else b""
            if part:
                self.memory.write(address, part)
            start += len(part)
            if start < len(data):
                written = STATUS.pack(len(part), 0, r.RXD_DD, 0, 0)
            else:
                written = STATUS.pack(len(part), checksum, status, errors, special)
            self.memory.write(base + 16 * index + 8, written)

    def _tell(self, size: int, places: list[tuple[int, int]]) -> None:
        """Move the head and raise what is due: packet, small packet, few descriptors left."""
        s = self.state
        count = s.length >> 4
        before = (s.tail - s.head) % count
        s.head = (places[-1][0] + 1) % count
        causes = 0
        if (s.tail - s.head) % count <= count >> 1 + (s.control >> 8 & 3) < before:
            causes = r.RXDMT0
        if size <= s.rsrpd:
            self.delay.stop()
            causes |= r.SRPD
        elif s.delay.delay:
            self.delay.event()
        else:
            causes |= r.RXT0
        self.interrupts.cause(causes)
