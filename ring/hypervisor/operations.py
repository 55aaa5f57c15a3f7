"""The hypercalls: one method each, its keyword arguments are the hypercall's. HypercallError refuses one."""
import itertools
import os
import select
from pathlib import Path
from typing import Any

from miniguest.ring import _core
from miniguest.ring.abi.ioreq import IOREQ
from miniguest.ring.doorbell import VCPU_MASK, Bells
from miniguest.ring.errors import HypercallError
from miniguest.ring.events import HYPERVISOR_SIDE
from miniguest.ring.grants import TRACK_ENTRIES, track_path
from miniguest.ring.hypervisor.burial import Remains, grant_remains, raise_and_close
from miniguest.ring.hypervisor.domain import Domain, Vcpu
from miniguest.ring.hypervisor.event_channels import VCPUS, EventChannels
from miniguest.ring.memory import FRAME_SIZE
from miniguest.ring.ranges import MEMORY, PORT, Range, write_ranges
from miniguest.ring.words import map_words


def is_dead(pid: int) -> bool:
    """Whether a process ended, be it reaped or not."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(0))
    finally:
        os.close(fd)


class Operations:
    """The hypervisor's state and every hypercall on it."""

    def __init__(self, runtime: Path, bells: Bells) -> None:
        self.runtime = runtime
        self.bells = bells
        self.domains: dict[int, Domain] = {}
        self.channels = EventChannels(self.domains)
        self.unreleased: list[Remains] = []     # of the dead, behind locks of the living
        self._owners = itertools.count(1)

    # -- domains
    def create_domain(self, domid: int, name: str, ram_frames: int) -> None:
        """Make a domain with `ram_frames` frames of RAM."""
        if domid in self.domains:
            raise HypercallError("EEXIST", f"domain {domid} exists")
        self.domains[domid] = Domain.create(self.runtime, domid, name, ram_frames)

    def destroy_domain(self, domid: int) -> None:
        """Close its channels and remove its files."""
        domain = self.channels.domain(domid)
        for vcpu, item in domain.vcpus.items():
            raise HypercallError("EBUSY", f"{item.name} is still vcpu {vcpu} of domain {domid}")
        for vcpu in range(VCPUS):
            raise_and_close(self.channels, self.domains, self.bells, domid, vcpu)
        del self.domains[domid]
        domain.destroy(self.runtime)

    def domain_info(self, domid: int) -> dict[str, Any]:
        """{"domid", "name", "ram_frames", "shutdown", "vcpus": {vcpu: pid}}."""
        domain = self.channels.domain(domid)
        return {
            "domid": domid,
            "name": domain.name,
            "ram_frames": domain.memory.ram_frames,
            "shutdown": domain.shutdown,
            "vcpus": {vcpu: item.pid for vcpu, item in domain.vcpus.items()},
        }

    def shutdown(self, domid: int, reason: int) -> None:
        """SCHEDOP_shutdown on behalf of a domain: its vCPUs stop at the next look. The first reason stays."""
        domain = self.channels.domain(domid)
        if domain.shutdown == 0:
            domain.shutdown = 1 + reason
        self._kick(domain)

    def pause_domain(self, domid: int) -> None:
        """XEN_DOMCTL_pausedomain, before its vCPUs start: they wait then."""
        self.channels.domain(domid).paused = True

    def unpause_domain(self, domid: int) -> None:
        """XEN_DOMCTL_unpausedomain: its vCPUs run."""
        domain = self.channels.domain(domid)
        domain.paused = False
        self._kick(domain)

    def _kick(self, domain: Domain) -> None:
        """Have its vCPUs look at their domain's words."""
        for vcpu in domain.vcpus:
            _core.kick_vcpu(domain.memory.info_pages, vcpu)
            self.bells.ring(domain.domid, vcpu)

    def set_param(self, domid: int, index: int, value: int) -> None:
        """HVMOP_set_param."""
        self.channels.domain(domid).params[index] = value

    def get_param(self, domid: int, index: int) -> int:
        """HVMOP_get_param; ENOENT when it was never set."""
        params = self.channels.domain(domid).params
        if index not in params:
            raise HypercallError("ENOENT", f"HVM parameter {index} of domain {domid} is not set")
        return params[index]

    # -- processes
    def register(self, domid: int, vcpu: int, pid: int, name: str) -> int:
        """A process is vCPU `vcpu` of a domain from now on; the number that stands for it in grant locks."""
        domain = self.channels.domain(domid)
        if not 0 <= vcpu < VCPUS:
            raise HypercallError("EINVAL", f"no vcpu {vcpu}")
        if vcpu in domain.vcpus:
            raise HypercallError("EBUSY", f"vcpu {vcpu} of domain {domid} is {domain.vcpus[vcpu].name}")
        track_path(self.runtime, domid, vcpu).unlink(missing_ok=True)
        map_words(track_path(self.runtime, domid, vcpu), TRACK_ENTRIES, create=True)
        domain.vcpus[vcpu] = Vcpu(pid, name, next(self._owners))
        return domain.vcpus[vcpu].owner

    def bury(self, pid: int) -> list[str]:
        """A process died: raise the ports it may have been about to ring, close its channels, release its grants."""
        names = []
        for domain in list(self.domains.values()):
            for vcpu, item in list(domain.vcpus.items()):
                if item.pid == pid:
                    names.append(item.name)
                    del domain.vcpus[vcpu]
                    remains = grant_remains(self.runtime, self.domains, domain.domid, vcpu, item.owner)
                    self.unreleased += [held for held in remains if not held.release(self._locked_out)]
                    raise_and_close(self.channels, self.domains, self.bells, domain.domid, vcpu)
                    self.bells.forget(domain.domid, vcpu & VCPU_MASK)
        return names

    def release(self) -> None:
        """Try again what a living process had locked when its holder was buried."""
        held_up, self.unreleased = self.unreleased, []
        self.unreleased += [held for held in held_up if not held.release(self._locked_out)]

    def _locked_out(self, owner: int) -> bool:
        """A grant's lock is held by `owner`, for a moment unless it died as well: then bury it now. False: no process."""
        for domain in self.domains.values():
            for item in domain.vcpus.values():
                if item.owner == owner:
                    if is_dead(item.pid):
                        self.bury(item.pid)
                    else:
                        os.sched_yield()
                    return True
        return False

    # -- event channels
    def evtchn_alloc_unbound(self, domid: int, vcpu: int, remote_domid: int) -> int:
        """EVTCHNOP_alloc_unbound."""
        return self.channels.alloc_unbound(domid, vcpu, remote_domid)

    def evtchn_bind_interdomain(self, domid: int, vcpu: int, remote_domid: int, remote_port: int) -> int:
        """EVTCHNOP_bind_interdomain."""
        return self.channels.bind_interdomain(domid, vcpu, remote_domid, remote_port)

    def evtchn_bind_vcpu(self, domid: int, port: int, vcpu: int) -> None:
        """EVTCHNOP_bind_vcpu."""
        self.channels.bind_vcpu(domid, port, vcpu)

    def evtchn_close(self, domid: int, port: int) -> None:
        """EVTCHNOP_close."""
        self.channels.close(domid, port)

    def evtchn_status(self, domid: int, port: int) -> list[int]:
        """EVTCHNOP_status: [state, vcpu, remote domid, remote port]."""
        return list(self.channels.status(domid, port))

    # -- ioreq servers
    def create_ioreq_server(self, domid: int, dm_domid: int, vcpus: int) -> list[int]:
        """XEN_DMOP_create_ioreq_server: a port for each vCPU, unbound for the device model, in its slot's vp_eport."""
        domain = self.channels.domain(domid)
        if vcpus > HYPERVISOR_SIDE:
            raise HypercallError("EINVAL", f"{vcpus} vcpus, a domain has at most {HYPERVISOR_SIDE}")
        page = domain.memory.frame(domain.memory.special("ioreq"))
        ports = []
        for vcpu in range(vcpus):
            port = self.channels.alloc_unbound(domid, vcpu + HYPERVISOR_SIDE, dm_domid)
            offset = vcpu * IOREQ.size + IOREQ.offset["vp_eport"]
            page[offset : offset + 4] = port.to_bytes(4, "little")
            ports.append(port)
        return ports

    def map_io_range(
        self, domid: int, kind: int, start: int, end: int, name: str, frame: int = 0, buffered: int = 0
    ) -> None:
        """XEN_DMOP_map_io_range_to_ioreq_server: `start` to `end`, both included. EEXIST when some of it is claimed.

        frame: 0, or the first of the domain's `roms` frames that the guest is to read there (XENMEM_add_to_physmap).
        buffered: writes there go through the page of buffered requests; in Xen a whole ioreq server is asked for that.
        """
        domain = self.channels.domain(domid)
        new = Range(kind, start, end, name, frame=frame, buffered=bool(buffered))
        if kind not in (PORT, MEMORY) or not 0 <= start <= end < 1 << 64:
            raise HypercallError("EINVAL", f"no such range {start:#x}..{end:#x}")
        if frame and not self._holds_rom(domain, new):
            raise HypercallError("EINVAL", f"no frames {frame:#x} to be read at {start:#x}..{end:#x}")
        for old in domain.ranges:
            if old.overlaps(new):
                raise HypercallError("EEXIST", f"{start:#x}..{end:#x} of {name} is claimed by {old.name}")
        self._publish_ranges(domain, [*domain.ranges, new])

    @staticmethod
    def _holds_rom(domain: Domain, item: Range) -> bool:
        frames = (item.end + 1 - item.start) // FRAME_SIZE
        whole = item.start % FRAME_SIZE == 0 and (item.end + 1) % FRAME_SIZE == 0
        return item.kind == MEMORY and whole and domain.memory.special("roms") <= item.frame <= domain.memory.nr_frames - frames

    def unmap_io_range(self, domid: int, kind: int, start: int, end: int) -> None:
        """XEN_DMOP_unmap_io_range_from_ioreq_server; ENOENT when it was not mapped so."""
        domain = self.channels.domain(domid)
        kept = [item for item in domain.ranges if (item.kind, item.start, item.end) != (kind, start, end)]
        if len(kept) == len(domain.ranges):
            raise HypercallError("ENOENT", f"{start:#x}..{end:#x} is not claimed")
        self._publish_ranges(domain, kept)

    def _publish_ranges(self, domain: Domain, ranges: list[Range]) -> None:
        write_ranges(domain.memory.frame(domain.memory.special("ranges")), ranges)
        domain.ranges[:] = ranges       # only now: a table that is too long changes nothing


OPERATIONS = frozenset(name for name in vars(Operations) if not name.startswith("_") and name not in ("bury", "release"))

