"""Grants: the granting side's table of free grefs, and where the mapping side's records are (xen/grant_table.h, v1)."""
from pathlib import Path
from typing import Final

from miniguest.ring import _core
from miniguest.ring.abi.grant_table import GNTTAB_NR_RESERVED_ENTRIES
from miniguest.ring.errors import PeerError
from miniguest.ring.memory import FRAME_SIZE, GRANT_FRAMES, Memory, domain_directory
from miniguest.ring.numbers import Numbers

GRANT_ENTRIES: Final = GRANT_FRAMES * FRAME_SIZE // 8
TRACK_ENTRIES: Final = 8192             # grants that one process may have mapped at a time


def pins_path(runtime: Path, domid: int) -> Path:
    """How often each gref of a domain is mapped: one u64 a gref (see _core.GrantTable)."""
    return domain_directory(runtime, domid) / "pins"


def track_path(runtime: Path, domid: int, vcpu: int) -> Path:
    """What a process has mapped: one u64 a handle (see _core.Mapper). The hypervisor reads it when the process dies."""
    return domain_directory(runtime, domid) / f"maptrack{vcpu}"


class Grants:
    """A domain's own grant table: gives frames to other domains and takes them back. free: the grefs that are in no use."""

    def __init__(self, memory: Memory) -> None:
        self._entries = memory.grant_entries
        self.free = Numbers(GNTTAB_NR_RESERVED_ENTRIES, GRANT_ENTRIES)

    def give(self, domid: int, frame: int, readonly: bool = False) -> int:
        """A new gref that lets `domid` map `frame`. PeerError when every gref is in use."""
        gref = self.free.take()
        if gref is None:
            raise PeerError(f"all {GRANT_ENTRIES} grant references are in use")
        _core.grant_access(self._entries, gref, domid, frame, readonly)
        return gref

    def end(self, gref: int) -> bool:
        """Take a grant back. False when the other side still has it mapped: the frame must then not be used again."""
        if not _core.end_access(self._entries, gref):
            return False
        self.free.give(gref)
        return True
