"""Event channel operations on the domains' tables (xen/event_channel.h). Data moves without us: see _core.Channel."""
from typing import Final

from miniguest.ring import _core
from miniguest.ring.abi.event_channel import (
    EVTCHN_2L_NR_CHANNELS,
    EVTCHNSTAT_closed,
    EVTCHNSTAT_interdomain,
    EVTCHNSTAT_unbound,
)
from miniguest.ring.abi.xen import DOMID_SELF
from miniguest.ring.errors import HypercallError
from miniguest.ring.hypervisor.domain import Domain

VCPUS: Final = 64


def pack(state: int, vcpu: int, remote_domid: int, remote_port: int) -> int:
    """One table entry."""
    return state | vcpu << 8 | remote_domid << 16 | remote_port << 32


def unpack(entry: int) -> tuple[int, int, int, int]:
    """(state, vcpu, remote domid, remote port) of a table entry."""
    return entry & 0xFF, entry >> 8 & 0xFF, entry >> 16 & 0xFFFF, entry >> 32


class EventChannels:
    """The operations. HypercallError with Xen's errno names when one is refused."""

    def __init__(self, domains: dict[int, Domain]) -> None:
        self._domains = domains

    def domain(self, domid: int) -> Domain:
        """A domain by number, ESRCH when there is none."""
        if domid not in self._domains:
            raise HypercallError("ESRCH", f"no domain {domid}")
        return self._domains[domid]

    def status(self, domid: int, port: int) -> tuple[int, int, int, int]:
        """(state, vcpu, remote domid, remote port)."""
        if not 0 < port < EVTCHN_2L_NR_CHANNELS:
            raise HypercallError("EINVAL", f"no port {port}")
        return unpack(_core.load64(self.domain(domid).channels, port))

    def alloc_unbound(self, domid: int, vcpu: int, remote_domid: int) -> int:
        """A new port of `domid`, for `remote_domid` to bind to; events on it go to `vcpu`."""
        port = self._free(domid, vcpu)
        remote = domid if remote_domid == DOMID_SELF else remote_domid
        self._set(domid, port, EVTCHNSTAT_unbound, vcpu, remote, 0)
        return port

    def bind_interdomain(self, domid: int, vcpu: int, remote_domid: int, remote_port: int) -> int:
        """A new port of `domid` connected to a port that `remote_domid` left unbound for it."""
        remote_domid = domid if remote_domid == DOMID_SELF else remote_domid
        state, remote_vcpu, wanted, _ = self.status(remote_domid, remote_port)
        if state != EVTCHNSTAT_unbound or wanted != domid:
            raise HypercallError("EINVAL", f"port {remote_port} of domain {remote_domid} is not unbound for domain {domid}")
        port = self._free(domid, vcpu)
        self._set(domid, port, EVTCHNSTAT_interdomain, vcpu, remote_domid, remote_port)
        self._set(remote_domid, remote_port, EVTCHNSTAT_interdomain, remote_vcpu, domid, port)
        return port

    def bind_vcpu(self, domid: int, port: int, vcpu: int) -> None:
        """Events on `port` go to `vcpu` from now on."""
        state, _, remote_domid, remote_port = self.status(domid, port)
        if state == EVTCHNSTAT_closed or not 0 <= vcpu < VCPUS:
            raise HypercallError("EINVAL", f"port {port} is closed, or there is no vcpu {vcpu}")
        self._set(domid, port, state, vcpu, remote_domid, remote_port)

    def close(self, domid: int, port: int) -> None:
        """Close a port; the other end becomes unbound again, as Xen leaves it."""
        state, _, remote_domid, remote_port = self.status(domid, port)
        if state == EVTCHNSTAT_closed:
            raise HypercallError("EINVAL", f"port {port} is closed")
        self._set(domid, port, EVTCHNSTAT_closed, 0, 0, 0)
        if state == EVTCHNSTAT_interdomain and remote_domid in self._domains:
            remote_state, remote_vcpu, _, _ = self.status(remote_domid, remote_port)
            if remote_state == EVTCHNSTAT_interdomain:
                self._set(remote_domid, remote_port, EVTCHNSTAT_unbound, remote_vcpu, domid, 0)

    def of_vcpu(self, domid: int, vcpu: int) -> list[tuple[int, int, int, int]]:
        """(port, state, remote domid, remote port) of every open port whose events go to `vcpu`."""
        table = self.domain(domid).channels.cast("B").cast("Q")
        found = []
        for port in range(1, EVTCHN_2L_NR_CHANNELS):
            state, owner, remote_domid, remote_port = unpack(table[port])
            if state != EVTCHNSTAT_closed and owner == vcpu:
                found.append((port, state, remote_domid, remote_port))
        return found

    def _free(self, domid: int, vcpu: int) -> int:
        if not 0 <= vcpu < VCPUS:
            raise HypercallError("EINVAL", f"no vcpu {vcpu}")
        domain = self.domain(domid)
        for port in range(domain.lowest_free, EVTCHN_2L_NR_CHANNELS):
            if _core.load64(domain.channels, port) & 0xFF == EVTCHNSTAT_closed:
                domain.lowest_free = port
                return port
        raise HypercallError("ENOSPC", f"domain {domid} has no free port")

    def _set(self, domid: int, port: int, state: int, vcpu: int, remote_domid: int, remote_port: int) -> None:
        domain = self._domains[domid]
        if state == EVTCHNSTAT_closed:
            domain.lowest_free = min(domain.lowest_free, port)
        _core.store64(domain.channels, port, pack(state, vcpu, remote_domid, remote_port))
