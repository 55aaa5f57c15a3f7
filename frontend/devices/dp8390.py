"""National DP8390 network interface controller (DP8390D datasheet, sections 6 to 11; page 3 is left to others).

Four pages of 16 registers, selected in the command register. Frames are received into a ring in a buffer memory and
sent from it; the driver reaches that memory by remote DMA through a data port. The wire is ideal: a frame is sent as
soon as the wire has room. In every loopback mode the controller is cut off the wire.
"""

from __future__ import annotations

from miniguest.frontend.devices import dp8390_registers as d
from miniguest.frontend.devices import dp8390_ring as ring
from miniguest.frontend.devices.device import Model
from miniguest.frontend.devices.dp8390_polls import Polls
from miniguest.frontend.devices.ethernet import BROADCAST, GROUP, fcs, in_filter
from miniguest.frontend.devices.nic import MIN_FRAME, Wire
from miniguest.frontend.devices.regmap import RegMap

PORTS = 32
SHORTEST = 14  # an Ethernet header
PAGES = tuple(RegMap(size=PORTS) for _ in range(4))
PAGE0, PAGE1, PAGE2, PAGE3 = PAGES


class Dp8390(Model):
    """The controller. A subclass has the memory behind remote DMA: `peek` and `poke`."""

    regs = PAGE0
    state: d.Dp8390State

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.idle = 0
        self.polls = Polls(self)
        self.state = d.Dp8390State()

    # The page that is selected decides which table an access is looked up in.

    def read(self, offset: int, size: int) -> int:
        page = PAGES[self.state.command >> 6]
        reader = page.readers.get(offset << 4 | size)
        return reader(self) if reader is not None else page.read_apart(self, offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        page = PAGES[self.state.command >> 6]
        writer = page.writers.get(offset << 4 | size)
        if writer is not None:
            writer(self, value & (1 << 8 * size) - 1)
        else:
            page.write_apart(self, offset, size, value)

    def irq(self) -> bool:
        """INT. RST is a status and interrupts nobody."""
        return bool(self.state.isr & self.state.imr)

    def restored(self) -> None:
        s = self.state
        for name, size in (("ram", d.RAM_END - d.RAM), ("par", 6), ("mar", 8), ("fifo", 8)):
            setattr(s, name, getattr(s, name)[:size].ljust(size, b"\0"))

    def reset(self) -> None:
        """The RESET pin (section 9): stopped, nothing to do, no interrupts. The other registers stay."""
        s = self.state
        s.command = d.STP | d.RD_ABORT
        s.isr, s.imr, s.refused = d.RST, 0, False
        s.dcr |= 0x04
        s.tcr &= ~d.LB
        s.rbcr = 0

    # Reception

    def _online(self) -> bool:
        return not self.state.command & d.STP and not self.state.tcr & d.LB

    def receive(self, frame: bytes) -> bool:
        """A frame comes in. False while the ring has no room for it.

        A driver that recovers from an overflow stops the controller or cuts it off for a while: the frame that found
        no room waits until that is over, or until CURR is written because the ring is made anew.
        """
        s = self.state
        if not self._online():
            return not s.refused
        if not self._accepts(frame):
            return True
        before = s.isr
        taken = self._take(frame.ljust(MIN_FRAME, b"\0"))
        if s.isr != before:
            self.changed()
        return taken

    def _accepts(self, frame: bytes) -> bool:
        s = self.state
        address = frame[:6]
        if address == BROADCAST:
            return bool(s.rcr & d.AB)
        if address[0] & GROUP:
            return bool(s.rcr & d.AM) and in_filter(s.mar, address)
        return bool(s.rcr & d.PRO) or address == s.par

    def _take(self, frame: bytes) -> bool:
        s = self.state
        status = d.RSR_PRX | (d.RSR_PHY if frame[0] & GROUP else 0)
        if s.rcr & d.MON:
            s.rsr = status & ~d.RSR_PRX | d.RSR_MPA
            self._lose()
            return True
        outcome = ring.put(s, frame, status)
        if outcome == ring.FULL:
            if not s.refused:
                s.refused = True
                self.overflow()
            return False
        s.refused = False
        if outcome == ring.IMPOSSIBLE:
            self._lose()
            return True
        s.rsr = status
        s.isr |= d.PRX
        return True

    def overflow(self) -> None:
        """A frame finds no room. RSR goes on telling of the frames that are in the ring."""
        s = self.state
        s.isr |= d.OVW | d.RST
        s.rsr |= d.RSR_MPA
        self._lose()

    def _lose(self) -> None:
        s = self.state
        s.tally[d.LOST] = min(s.tally[d.LOST] + 1, d.TALLY_LIMIT)
        if s.tally[d.LOST] >= d.TALLY_INTERRUPT:
            s.isr |= d.CNT

    # Transmission

    def wire_ready(self) -> None:
        """Send the frame that waited for the wire."""
        before = self.state.isr
        self._transmit()
        if self.state.isr != before:
            self.changed()

    def _transmit(self) -> None:
        s = self.state
        if not s.command & d.TXP or s.command & d.STP:
            return
        looped = bool(s.tcr & d.LB)
        if not looped and not self.wire.room():
            return
        s.command &= ~d.TXP
        address = s.tpsr * d.PAGE
        if address < d.RAM or address + s.tbcr > d.RAM_END:
            s.tsr, s.isr = d.TSR_ABT, s.isr | d.TXE  # there is no such frame
            return
        self._emit(ring.load(s, address, s.tbcr), looped)
        s.tsr, s.isr = d.TSR_PTX, s.isr | d.PTX

    def _emit(self, frame: bytes, looped: bool) -> None:
        """Onto the wire, or into the FIFO. With its CRC inhibited a frame brings its own: a wrong one is lost."""
        check = fcs(frame)
        if self.state.tcr & d.CRC_INHIBITED:
            frame, check = frame[:-4], frame[-4:]
            if not looped and check != fcs(frame):
                return
        if looped:
            count = len(frame) + 4
            low, high = count & 0xFF, count >> 8
            self.state.fifo[:] = (bytes((low, high, high)) + frame[-1:].ljust(1, b"\0") + check.ljust(4, b"\0"))[:8]
            self.state.fifo_next = 0
        elif len(frame) >= SHORTEST:
            self.wire.send(frame)

    # Remote DMA

    def peek(self, address: int, size: int) -> bytes:
        """Memory as remote DMA reads it."""
        return ring.load(self.state, address, size)

    def poke(self, address: int, data: bytes) -> None:
        """Memory as remote DMA writes it."""
        ring.store(self.state, address, data)

    def _left(self) -> int:
        """Bytes that remote DMA has still to move: words go whole."""
        s = self.state
        return s.rbcr + (s.rbcr & s.dcr & d.WTS)

    def _moved(self, size: int) -> None:
        s = self.state
        s.rsar = s.rsar + size & 0xFFFF
        s.rbcr = max(s.rbcr - size, 0)
        if s.command & d.RD != d.RD_WRITE and s.rsar == s.pstop * d.PAGE:
            s.rsar = s.pstart * d.PAGE
        if not s.rbcr:
            self._complete()

    def _complete(self) -> None:
        """Remote DMA is done; after the send packet command the frame's pages are free."""
        s = self.state
        s.isr |= d.RDC
        if s.command & d.RD == d.RD_SEND:
            s.bnry = self.peek(s.bnry * d.PAGE + 1, 1)[0]

    def take(self, size: int) -> bytes:
        """Up to `size` bytes through the data port to the driver; what remote DMA does not give reads as ones."""
        self.polls.work()
        s = self.state
        parts = []
        wanted = size
        while wanted and s.rbcr and s.command & d.RD in (d.RD_READ, d.RD_SEND):
            end = s.pstop * d.PAGE if s.rsar < s.pstop * d.PAGE else 0x10000
            part = min(wanted, self._left(), end - s.rsar)
            parts.append(self.peek(s.rsar, part))
            self._moved(part)
            wanted -= part
        return b"".join(parts).ljust(size, b"\xff")

    def give(self, data: bytes) -> None:
        """Bytes through the data port from the driver; those remote DMA does not want are dropped."""
        self.polls.work()
        s = self.state
        at = 0
        while at < len(data) and s.rbcr and s.command & d.RD == d.RD_WRITE:
            part = min(len(data) - at, self._left(), 0x10000 - s.rsar)
            self.poke(s.rsar, data[at : at + part])
            self._moved(part)
            at += part

    # Command register, in every page

    @PAGE0.read(0, "CR")
    @PAGE1.read(0, "CR")
    @PAGE2.read(0, "CR")
    @PAGE3.read(0, "CR")
    def read_cr(self) -> int:
        if self.state.command & d.TXP:
            self.polls.waits()
        return self.state.command

    @PAGE0.write(0, "CR")
    @PAGE1.write(0, "CR")
    @PAGE2.write(0, "CR")
    @PAGE3.write(0, "CR")
    def write_cr(self, value: int) -> None:
        """Neither STP nor STA leaves things as they are, and so does a remote DMA command of 0, which is none."""
        s = self.state
        if value & (d.STP | d.TXP) or value & d.RD not in (0, d.RD_ABORT):
            self.polls.work()
        else:
            self.polls.page(value >> 6)
        running = value & (d.STP | d.STA) or s.command & (d.STP | d.STA)
        if running & d.STP:
            running = d.STP
            s.isr |= d.RST
        elif value & d.STA:
            s.isr &= ~d.RST
        remote = value & d.RD or s.command & d.RD
        s.command = value & d.PS | remote | (value | s.command) & d.TXP | running
        if value & d.RD:
            self._start_remote(remote)
        self._transmit()

    def _start_remote(self, remote: int) -> None:
        s = self.state
        if remote & d.RD_ABORT:
            s.command = s.command & ~d.RD | d.RD_ABORT
            return
        if remote == d.RD_SEND:
            s.rsar = s.bnry * d.PAGE
            s.rbcr = int.from_bytes(self.peek(s.rsar + 2, 2), "little")
        if not s.rbcr:
            self._complete()
