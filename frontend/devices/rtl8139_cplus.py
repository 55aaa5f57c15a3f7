"""RTL8139C+: descriptor rings (datasheet 1.6, section 8.3 "C+ mode").

A descriptor has 16 bytes: command or status, VLAN tag, address of the buffer. A ring has 64 at most and ends with
the one whose EOR is set. OWN says whose it is: it is read before all else and written after all else, for the guest
runs while frames come in and would otherwise see a descriptor that is its own again and not yet filled.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from miniguest.frontend.devices import rtl8139_offload as offload
from miniguest.frontend.devices import rtl8139_registers as r
from miniguest.frontend.devices.device import GuestMemory
from miniguest.frontend.devices.ethernet import fcs
from miniguest.frontend.devices.nic import MIN_FRAME

OWN, EOR, FS, LS, LGSEN = 1 << 31, 1 << 30, 1 << 29, 1 << 28, 1 << 27
RING = 64
ETHERNET = 14  # bytes of header
FRAME_LIMIT = 65535
PACKET_LIMIT = ETHERNET + 65535  # of a large send: the longest IP packet
TES, TX_LENGTH = 1 << 23, 0xFFFF
RWT, RES = 1 << 21, 1 << 20
KIND_SHIFT = 11  # from the classic header's BAR, PAM and MAR to the descriptor's
RX_LENGTH = 0x1FFF


class Descriptor(NamedTuple):
    """One as it was read: where it lies, its command, its tag, its buffer's address."""

    at: int
    command: int
    tag: int
    buffer: int


def fetch(memory: GuestMemory, at: int) -> Descriptor | None:
    """The descriptor at an address; None when it is the guest's."""
    command = int.from_bytes(memory.read(at, 4), "little")
    if not command & OWN:
        return None
    rest = memory.read(at + 4, 12)
    return Descriptor(at, command, int.from_bytes(rest[:4], "little"), int.from_bytes(rest[4:], "little"))


def chain(memory: GuestMemory, base: int, index: int) -> Iterator[tuple[int, Descriptor | None]]:
    """From a ring's descriptor `index` on, each with the index that follows it: once around, to the guest's first."""
    first = index
    for _ in range(RING):
        found = fetch(memory, base + 16 * index)
        index = 0 if index == RING - 1 or (found is not None and found.command & EOR) else index + 1
        yield index, found
        if found is None or index == first:
            return


def release(memory: GuestMemory, each: Descriptor, status: int) -> None:
    """Give a descriptor back to the guest."""
    memory.write(each.at, (each.command & EOR | status).to_bytes(4, "little"))


class Packet(NamedTuple):
    """A frame to be sent: its descriptors, the index behind them, its bytes (None: it is none)."""

    descriptors: list[Descriptor]
    next: int
    frame: bytes | None

    def frames(self) -> Iterator[bytes]:
        """What goes on the wire: several frames of a large send."""
        if self.frame is None or len(self.frame) < ETHERNET:
            return
        last = self.descriptors[-1]
        if last.command & LGSEN:
            pieces = offload.segments(self.frame, last.command >> 16 & 0x7FF)
        else:
            pieces = iter((offload.fill(self.frame, last.command),))
        for piece in pieces:
            frame = offload.tagged(piece, last.tag).ljust(MIN_FRAME, b"\0")
            if len(frame) <= FRAME_LIMIT:
                yield frame


def gather(memory: GuestMemory, base: int, index: int) -> Packet | None:
    """The frame that starts at a ring's descriptor `index`; None while the guest has not given all of it.

    A ring without any last segment is one frame that cannot be sent.
    """
    taken: list[Descriptor] = []
    data = bytearray()
    behind = index
    for behind, each in chain(memory, base, index):
        if each is None:
            return None
        if each.command & FS:
            data.clear()
        taken.append(each)
        if len(data) <= PACKET_LIMIT:
            data += memory.read(each.buffer, each.command & TX_LENGTH)
        if each.command & LS:
            return Packet(taken, behind, bytes(data) if len(data) <= PACKET_LIMIT else None)
    return Packet(taken, behind, None)


def finish(memory: GuestMemory, packet: Packet) -> None:
    """Give a sent frame's descriptors back, the first one last: a driver that finds it done takes all of them."""
    error = TES if packet.frame is None else 0
    for each in reversed(packet.descriptors):
        release(memory, each, each.command & (FS | LS | TX_LENGTH) | error)


def receive(memory: GuestMemory, base: int, index: int, frame: bytes, kind: int, cpcr: int) -> tuple[int, int]:
    """Put a frame into a ring's buffers from descriptor `index` on.

    Gives the next index and what happened, in ISR's words: ROK, RER (a frame that is too long or the whole ring too
    small for it; the latter is lost), or 0 when the descriptors there are too few now.
    """
    tail = fcs(frame)
    frame, tag = offload.untagged(frame) if cpcr & r.RXVLAN else (frame, 0)
    data = frame + tail
    room = 0
    taken: list[Descriptor] = []
    for behind, each in chain(memory, base, index):
        if each is None:
            return index, 0
        taken.append(each)
        room += each.command & RX_LENGTH
        if room >= len(data):
            sums = offload.verdict(frame) if cpcr & r.RXCHKSUM else 0
            return behind, _complete(memory, taken, data, kind << KIND_SHIFT | sums, tag)
    return index, r.RER


def _complete(memory: GuestMemory, taken: list[Descriptor], data: bytes, status: int, tag: int) -> int:
    """Fill buffers and give their descriptors back with the frame's status: what happened, in ISR's words."""
    if len(data) > RX_LENGTH:
        return r.RER  # its length would not fit
    status |= LS | len(data)
    if len(data) > r.LONGEST:
        status |= RWT | RES
    _scatter(memory, taken, data, status, tag)
    return r.RER if status & RES else r.ROK


def _scatter(memory: GuestMemory, taken: list[Descriptor], data: bytes, status: int, tag: int) -> None:
    """Fill buffers, then give the descriptors back, the first one last."""
    at = 0
    for each in taken:
        size = each.command & RX_LENGTH
        memory.write(each.buffer, data[at : at + size])
        at += size
    for each in reversed(taken):
        first = FS if each is taken[0] else 0
        memory.write(each.at + 4, tag.to_bytes(4, "little"))
        release(memory, each, first | (status if each is taken[-1] else each.command & RX_LENGTH))
