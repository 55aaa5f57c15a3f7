"""What a dead process leaves: ports it may have been about to ring, open event channels, mapped grants."""
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from miniguest.ring import _core
from miniguest.ring.abi.event_channel import EVTCHNSTAT_interdomain
from miniguest.ring.doorbell import Bells
from miniguest.ring.grants import TRACK_ENTRIES, track_path
from miniguest.ring.hypervisor.domain import Domain
from miniguest.ring.hypervisor.event_channels import EventChannels
from miniguest.ring.words import map_words

PATIENCE: Final = 1000                 # tries for a lock before its holder is left alone for a while


def mapped_by(runtime: Path, domid: int, vcpu: int) -> dict[tuple[int, int], list[int]]:
    """What a process has mapped, from its map track: its entries by (granting domid, gref)."""
    found: dict[tuple[int, int], list[int]] = {}
    try:
        track = map_words(track_path(runtime, domid, vcpu), TRACK_ENTRIES)
    except FileNotFoundError:
        return found
    for record in track.cast("Q"):
        if record:
            found.setdefault((record >> 16 & 0xFFFF, record >> 32), []).append(record)
    return found


@dataclass(frozen=True, slots=True)
class Remains:
    """What the dead process `owner` had of one gref: its map track entries."""

    table: _core.GrantTable
    gref: int
    owner: int
    records: list[int]

    def release(self, locked_out: Callable[[int], bool]) -> bool:
        """Take it back. False when a living process holds the entry's lock for long, as one that is stopped does.

        locked_out: called with the owner of a lock that is in the way; False when that owner is no process at all.
        """
        for _ in range(PATIENCE):
            if self.table.release(self.gref, self.owner, self.records):
                return True
            holder = self.table.holder(self.gref)
            if holder not in (0, self.owner) and not locked_out(holder):
                self.table.break_lock(self.gref, holder)
        return False


def grant_remains(runtime: Path, domains: dict[int, Domain], domid: int, vcpu: int, owner: int) -> list[Remains]:
    """Every mapping that a dead process had, by gref.

    What it died locking comes first: two that died at the same time then never wait for each other.
    """
    remains = [
        Remains(domains[granter].grants, gref, owner, records)
        for (granter, gref), records in mapped_by(runtime, domid, vcpu).items()
        if granter in domains and gref < domains[granter].grants.nr_entries
    ]
    track_path(runtime, domid, vcpu).unlink(missing_ok=True)
    return sorted(remains, key=lambda item: item.table.holder(item.gref) != owner)


def raise_and_close(channels: EventChannels, domains: dict[int, Domain], bells: Bells, domid: int, vcpu: int) -> None:
    """Raise every port at the other end of a dead process's channels, then close them.

    A sender killed between setting the pending bit and ringing would leave that port silent for ever.
    """
    for port, state, remote_domid, remote_port in channels.of_vcpu(domid, vcpu):
        if state == EVTCHNSTAT_interdomain and remote_domid in domains:
            _, remote_vcpu, _, _ = channels.status(remote_domid, remote_port)
            pages = domains[remote_domid].memory.info_pages
            _core.raise_port(pages, remote_vcpu, remote_port)
            # The pending bit may have been set by the dead one already: wake the receiver whatever it says.
            _core.kick_vcpu(pages, remote_vcpu)
            bells.ring(remote_domid, remote_vcpu)
        channels.close(domid, port)
