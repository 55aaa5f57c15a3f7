"""The frontend's end of a control ring, which asks what it is told to (xen/io/netif.h, control messages)."""
import struct

from netpeer import Vif
from peer import Ring

SUCCESS, NOT_SUPPORTED, INVALID, OVERFLOW = range(4)
GET_FLAGS, SET_FLAGS, SET_KEY, GET_MAPPING_SIZE, SET_MAPPING_SIZE, SET_MAPPING, SET_ALGORITHM = range(1, 8)
GET_GREFS, ADD_GREFS, DEL_GREFS = range(8, 11)


class Controlled:
    """A vif with a control ring."""

    def __init__(self, vif: Vif, queues: int = 1, buffers: int = 64) -> None:
        self.vif, domain = vif, vif.domain
        self.ring = Ring(domain, 16)
        self.port = domain.events.alloc_unbound(0)
        vif.connect(queues, buffers=buffers, ctrl_ring_ref=self.ring.gref, event_channel_ctrl=self.port.number)
        self.number = 0

    def ask(self, kind: int, *data: int) -> tuple[int, int]:
        """(status, data) of a request's response."""
        self.number += 1
        self.ring.put(struct.pack("<HHIII", self.number, kind, *data, *[0] * (3 - len(data))))
        self.ring.push()
        self.port.notify()
        self.ring.wait(1)
        number, kind_too, status, value = struct.unpack("<HHII", self.ring.take(12))
        assert (number, kind_too) == (self.number, kind)
        return status, value

    def page(self, data: bytes, readonly: bool = True) -> int:
        """A granted page that begins with `data`."""
        return self.shared(data, readonly)[0]

    def shared(self, data: bytes, readonly: bool) -> tuple[int, memoryview]:
        """The same, and its bytes."""
        frame = self.vif.domain.pages.alloc()
        page = self.vif.domain.memory.frame(frame)
        page[: len(data)] = data
        return self.vif.domain.grants.give(0, frame, readonly), page
