"""The frontend's end of a vif's control ring, and static grants asked for over it (xen/io/netif.h, control messages)."""
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from miniguest.ring import _core
from miniguest.ring.abi.netif import (
    CTRL_REQUEST,
    CTRL_RESPONSE,
    GREF,
    XEN_NETIF_CTRL_STATUS_SUCCESS,
    XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING,
    XEN_NETIF_CTRLF_GREF_readonly,
)
from miniguest.ring.errors import RingError
from miniguest.ring.memory import FRAME_SIZE

LIST_MOST: Final = FRAME_SIZE // GREF.size          # grants in a list, which is one page
Answered = Callable[[int, int], None]               # status, data


class Kept(Protocol):
    """Pages that may be static grants: while they are, it is no lie of the backend's to have them mapped."""

    static: bool


class Control:
    """Asks now, and is told later. notify: tells the backend."""

    def __init__(self, ring: _core.FrontRing, notify: Callable[[], None]) -> None:
        self._ring = ring
        self._notify = notify
        self._asked: dict[int, tuple[int, Answered]] = {}
        self._number = 0

    def ask(self, kind: int, data: tuple[int, int, int], answered: Answered) -> bool:
        """Put a request; False when the ring is full of such that were not answered."""
        if not self._ring.free:
            return False
        self._number = self._number + 1 & 0xFFFF
        self._asked[self._number] = kind, answered
        CTRL_REQUEST.struct.pack_into(self._ring.requests, 0, self._number, kind, *data)
        if self._ring.send(1):
            self._notify()
        return True

    def on_event(self) -> bool:
        """The backend notified; whether it has answered anything. RingError when it lies."""
        found = 0
        while True:
            count = self._ring.take()
            for index in range(count):
                number, kind, status, data = CTRL_RESPONSE.struct.unpack_from(self._ring.responses, index * CTRL_RESPONSE.size)
                asked, answered = self._asked.pop(number, (-1, None))
                if answered is None or asked != kind:
                    raise RingError(f"a response to control request {number} of type {kind}, which is not out")
                answered(status, data)
            found += count
            if not self._ring.final_check():
                return found > 0

    def keep_mapped(self, queue: int, grefs: Sequence[int], readonly: bool, pages: Kept, gref: int, page: memoryview) -> None:
        """Ask that the grants of `pages` stay mapped. It goes without: what is not is mapped slot by slot.

        gref, page: for the list of them, and granted for writing; the backend's until it has answered.
        """
        if len(grefs) > LIST_MOST:
            return

        def answered(status: int, _: int) -> None:
            pages.static = status == XEN_NETIF_CTRL_STATUS_SUCCESS

        for index, each in enumerate(grefs):
            GREF.struct.pack_into(page, index * GREF.size, each, XEN_NETIF_CTRLF_GREF_readonly if readonly else 0, 0)
        # From now on: the backend maps them some time before we hear of it.
        pages.static = self.ask(XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING, (queue, gref, len(grefs)), answered)
