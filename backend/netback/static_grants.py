"""Static grants: what a frontend asks to be kept mapped (xen/io/netif.h, XEN_NETIF_CTRL_TYPE_*_GREF_MAPPING)."""
from typing import Final

from miniguest.backend.netback.answers import INVALID, OKAY, Answer, CopyGrant
from miniguest.ring import _core
from miniguest.ring.abi.netif import (
    GREF,
    XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER,
    XEN_NETIF_CTRL_STATUS_SUCCESS,
    XEN_NETIF_CTRLF_GREF_readonly,
)
from miniguest.ring.memory import FRAME_SIZE

LIST_MOST: Final = FRAME_SIZE // GREF.size          # a list is one page
STATUS: Final = GREF.offset["status"]


class StaticGrantRequests:
    """Answers the requests of a vif's frontend that are about static grants. Any number in them may be a lie."""

    def __init__(self, vif: _core.Vif, copy_grant: CopyGrant) -> None:
        self._vif = vif
        self._copy_grant = copy_grant

    def size(self, queue: int, *_: int) -> Answer:
        """How many more there can be."""
        return (OKAY[0], self._vif.queues[queue].static_grants.room) if queue < self._vif.nr_queues else INVALID

    def add(self, queue: int, gref: int, count: int) -> Answer:
        """Map all grants of a list, or none."""
        entries = self._list(queue, gref, count)
        if entries is None:
            return INVALID
        wanted = [(ref, flags) for ref, flags, _ in GREF.struct.iter_unpack(entries)]
        if any(flags & ~XEN_NETIF_CTRLF_GREF_readonly for _, flags in wanted):
            return INVALID
        return OKAY if self._vif.queues[queue].static_grants.add(wanted) else INVALID

    def remove(self, queue: int, gref: int, count: int) -> Answer:
        """Unmap what there is of a list, and write into it which that was; the number."""
        entries = self._list(queue, gref, count)
        # It must be writable. Nothing is unmapped when it is not, nor when nobody could be told.
        if entries is None or (count and self._copy_grant(gref, entries, to_grant=True)):
            return INVALID
        removed = 0
        for at in range(0, len(entries), GREF.size):
            found = self._vif.queues[queue].static_grants.remove(int.from_bytes(entries[at : at + 4], "little"))
            status = XEN_NETIF_CTRL_STATUS_SUCCESS if found else XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER
            entries[at + STATUS : at + STATUS + 2] = status.to_bytes(2, "little")
            removed += found
        if count:
            self._copy_grant(gref, entries, to_grant=True)
        return OKAY[0], removed

    def _list(self, queue: int, gref: int, count: int) -> bytearray | None:
        """A private copy of a list; None when there is no such queue, or it cannot be read."""
        if queue >= self._vif.nr_queues or count > LIST_MOST:
            return None
        entries = bytearray(count * GREF.size)
        return None if count and self._copy_grant(gref, entries) else entries
