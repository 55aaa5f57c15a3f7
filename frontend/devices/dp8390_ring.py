"""DP8390: the receive buffer ring (DP8390D datasheet, section 7, "Packet reception").

Pages PSTART to PSTOP of the buffer memory. CURR is where the next frame goes, BNRY the page that the driver has not
read yet; the two are equal only when the driver made them so, in an empty ring. Each frame starts on a page, with a
header of its status, the page after it and its count of bytes, FCS included.
"""

from __future__ import annotations

from miniguest.frontend.devices import dp8390_registers as d
from miniguest.frontend.devices.dp8390_registers import Dp8390State
from miniguest.frontend.devices.ethernet import fcs

TAKEN, FULL, IMPOSSIBLE = range(3)


def pages(frame: bytes) -> int:
    """How many pages a frame takes with header and FCS."""
    return (d.HEADER + len(frame) + 4 + d.PAGE - 1) // d.PAGE


def room(s: Dp8390State) -> int:
    """Pages that a frame may take now; 0 with registers that make no ring."""
    whole = s.pstop - s.pstart
    if not s.pstart <= s.curr < s.pstop:
        return 0
    if not s.pstart <= s.bnry < s.pstop:
        return whole - 1
    return ((s.bnry - s.curr) % whole or whole) - 1


def empty(s: Dp8390State) -> bool:
    """Whether a driver that keeps BNRY on the next frame's page, or one page before it, finds none."""
    behind = s.bnry + 1
    return s.curr in (s.bnry, s.pstart if behind >= s.pstop else behind)


def put(s: Dp8390State, frame: bytes, status: int) -> int:
    """A frame into the ring: TAKEN, FULL (now) or IMPOSSIBLE (there is no ring, or none that big)."""
    needed = pages(frame)
    if needed > room(s):
        return FULL if needed <= s.pstop - s.pstart - 2 and s.pstart <= s.curr < s.pstop else IMPOSSIBLE
    count = len(frame) + 4
    following = s.curr + needed
    if following >= s.pstop:
        following -= s.pstop - s.pstart
    data = bytes((status, following)) + count.to_bytes(2, "little") + frame + fcs(frame)
    before = (s.pstop - s.curr) * d.PAGE
    store(s, s.curr * d.PAGE, data[:before])
    store(s, s.pstart * d.PAGE, data[before:])
    s.curr = following
    return TAKEN


def store(s: Dp8390State, address: int, data: bytes) -> None:
    """Write where there is buffer memory, and drop the rest."""
    start, end = max(address, d.RAM), min(address + len(data), d.RAM_END)
    if start < end:
        s.ram[start - d.RAM : end - d.RAM] = data[start - address : end - address]


def load(s: Dp8390State, address: int, size: int) -> bytes:
    """Read buffer memory; where there is none, ones."""
    start, end = max(address, d.RAM), min(address + size, d.RAM_END)
    if start >= end:
        return b"\xff" * size
    return bytes(s.ram[start - d.RAM : end - d.RAM]).rjust(end - address, b"\xff").ljust(size, b"\xff")
