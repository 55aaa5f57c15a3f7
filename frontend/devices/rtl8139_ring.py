"""RTL8139: the classic receive buffer (datasheet 1.6, sections 5.6 and 6.7; programming guide V0.1, "Packet reception").

A ring of 8 to 64 KiB into which frames are written one behind another, each with a header of a status and a length
(with FCS) word and on a double word boundary. CAPR is where the guest reads, less 16; CBR is where the card writes.
They are equal when the ring is empty, so it is never filled to the last byte. With WRAP set a frame that starts
before the ring's end goes on beyond it, except with 64 KiB; the next one starts where it would have in any case.
"""

from __future__ import annotations

from miniguest.frontend.devices import rtl8139_registers as r
from miniguest.frontend.devices.device import GuestMemory
from miniguest.frontend.devices.ethernet import fcs

HEADER = 4
BEHIND = 16  # CAPR is this far behind
LARGEST = 0x10000


def size(rcr: int) -> int:
    """Bytes of the ring."""
    return 0x2000 << (rcr >> 11 & 3)


def empty(s: r.Rtl8139State) -> bool:
    """Whether the guest has read everything."""
    return not (s.capr + BEHIND ^ s.cbr) & size(s.rcr) - 1


def receive(memory: GuestMemory, s: r.Rtl8139State, frame: bytes, kind: int) -> int:
    """Put a frame into the ring. Gives what happened, in ISR's words: ROK, RER or 0 when there is no room now."""
    length = len(frame) + 4
    too_long = length > r.LONGEST
    whole, needed = size(s.rcr), HEADER + length + 3 & ~3
    if (too_long and not s.rcr & r.AER) or needed >= whole:
        return r.RER
    start = s.cbr & whole - 1
    if needed >= ((s.capr + BEHIND - start & whole - 1) or whole):
        return 0
    status = kind | (r.HEADER_LONG if too_long else r.HEADER_ROK)
    data = status.to_bytes(2, "little") + length.to_bytes(2, "little") + frame + fcs(frame)
    before = whole - start
    if len(data) <= before or (s.rcr & r.WRAP and whole < LARGEST):
        memory.write(s.rbstart + start, data)
    else:
        memory.write(s.rbstart + start, data[:before])
        memory.write(s.rbstart, data[before:])
    s.cbr = start + needed & whole - 1
    return r.RER if too_long else r.ROK
