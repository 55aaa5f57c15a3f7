"""What a dead process leaves: ports it may have been about to ring, open event channels, mapped grants."""
from pathlib import Path

from miniguest.ring import _core
from miniguest.ring.abi.event_channel import EVTCHNSTAT_interdomain
from miniguest.ring.doorbell import Bells
from miniguest.ring.grants import TRACK_ENTRIES, track_path
from miniguest.ring.hypervisor.domain import Domain
from miniguest.ring.hypervisor.event_channels import EventChannels
from miniguest.ring.words import map_words


def mapped_by(runtime: Path, domid: int, vcpu: int) -> dict[tuple[int, int], list[int]]:
    """What a process has mapped, from its map track: (granting domid, gref) to [reading only, writing]."""
    found: dict[tuple[int, int], list[int]] = {}
    try:
        track = map_words(track_path(runtime, domid, vcpu), TRACK_ENTRIES)
    except FileNotFoundError:
        return found
    for record in track.cast("Q"):
        if record & 1:
            counts = found.setdefault((record >> 16 & 0xFFFF, record >> 32), [0, 0])
            counts[0 if record & 2 else 1] += 1
    return found


def release_grants(runtime: Path, domains: dict[int, Domain], domid: int, vcpu: int) -> None:
    """Count anew, among the living, the mappings of every gref that a dead process had mapped."""
    dead = mapped_by(runtime, domid, vcpu)
    if not dead:
        return
    living = [mapped_by(runtime, domain.domid, other) for domain in domains.values() for other in domain.vcpus]
    for granter, gref in dead:
        if granter in domains:
            counts = [held.get((granter, gref), [0, 0]) for held in living]
            domains[granter].grants.repin(gref, sum(c[0] for c in counts), sum(c[1] for c in counts))
    track_path(runtime, domid, vcpu).unlink(missing_ok=True)


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
