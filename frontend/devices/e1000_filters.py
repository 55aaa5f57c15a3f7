"""Which frames the 82540EM takes: addresses, hashes and VLANs (sections 3.2.1, 9.3, 13.4.22, 13.5.1-13.5.4).

Sections are of the manual that `e1000_registers` names. Frames are without FCS.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from miniguest.frontend.devices import e1000_registers as r

ADDRESSES = 16
BROADCAST = b"\xff" * 6
REJECTED, EXACT, INEXACT = range(3)


@dataclass(slots=True)
class FilterState:
    """RA as pairs of low and high register, MTA and VFTA as 128 registers each, VET."""

    ra: list[int] = field(default_factory=lambda: [0] * 2 * ADDRESSES)
    mta: list[int] = field(default_factory=lambda: [0] * 128)
    vfta: list[int] = field(default_factory=lambda: [0] * 128)
    vet: int = 0


class Filters:
    """Decides on frames. `refresh` is called after RA, VET or the whole state changed."""

    def __init__(self, state: FilterState) -> None:
        self.state = state
        self.refresh()

    def refresh(self) -> None:
        """Note the exact addresses as bytes: those compared with the destination and those with the source."""
        ra = self.state.ra
        entries: list[tuple[bytes, int]] = []
        for low, high in zip(ra[::2], ra[1::2], strict=True):
            if high & r.RAH_AV:
                entries.append((low.to_bytes(4, "little") + (high & 0xFFFF).to_bytes(2, "little"), high & r.RAH_AS))
        self.destinations = frozenset(address for address, select in entries if select == 0)
        self.sources = frozenset(address for address, select in entries if select == 0x10000)
        self.tag_type = self.state.vet.to_bytes(2, "big") if self.state.vet else b"none"

    def load_address(self, mac: bytes) -> None:
        """The first exact address, as it comes from the EEPROM."""
        self.state.ra[0:2] = [int.from_bytes(mac[:4], "little"), int.from_bytes(mac[4:6], "little") | r.RAH_AV]
        self.refresh()

    def tagged(self, frame: bytes) -> bool:
        """Whether a frame has a VLAN tag of type VET."""
        return frame[12:14] == self.tag_type

    def judge(self, frame: bytes, rctl: int) -> int:
        """REJECTED, EXACT, or INEXACT: software has to look whether it wants it (RDESC.PIF)."""
        verdict = self._address(frame, rctl)
        if verdict and rctl & r.RCTL_VFE and self.tagged(frame) and not self._vlan(frame, rctl):
            return REJECTED
        return verdict

    def _address(self, frame: bytes, rctl: int) -> int:
        destination = frame[:6]
        if destination in self.destinations:
            return EXACT
        if destination[0] & 1:
            if destination == BROADCAST and rctl & r.RCTL_BAM:
                return EXACT
            if rctl & r.RCTL_MPE or self._hashed(destination, rctl >> 12 & 3):
                return INEXACT
        elif rctl & r.RCTL_UPE:
            return INEXACT
        return EXACT if self.sources and frame[6:12] in self.sources else REJECTED

    def _hashed(self, destination: bytes, offset: int) -> bool:
        """MTA: twelve bits of the last two bytes; MO 0-3 takes bits 47:36, 46:35, 45:34 or 43:32."""
        bits = int.from_bytes(destination[4:6], "little") >> (4, 3, 2, 0)[offset] & 0xFFF
        return bool(self.state.mta[bits >> 5] >> (bits & 31) & 1)

    def _vlan(self, frame: bytes, rctl: int) -> bool:
        """VFTA has a bit for each VLAN; RCTL.CFIEN demands a CFI."""
        tag = frame[14] << 8 | frame[15]
        if rctl & r.RCTL_CFIEN and bool(tag & 0x1000) != bool(rctl & r.RCTL_CFI):
            return False
        return bool(self.state.vfta[tag >> 5 & 0x7F] >> (tag & 31) & 1)
