"""The vifs and links of a topology: what cannot be run is found here, before anything is started."""
from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec

from miniguest.backend.netback.links import LinkConfig, LinkError
from miniguest.backend.netback.links import check as check_link
from miniguest.deploy import option_rom
from miniguest.deploy.errors import FirmwareError, TopologyError
from miniguest.deploy.files import Files

if TYPE_CHECKING:
    from miniguest.deploy.topology import Link, Topology, Vif

MTU: Final = range(68, 65521 + 1)       # bytes: RFC 791's least, and what 65,535 bytes of frame leave
MOST_VIFS: Final = 8                    # of a guest: PCI slots 3 to 10
OUI: Final = "00:16:3e"                 # Xensource's, which xl takes addresses from
KEYS: Final = {                         # of a link, by its kind: what it must have one of, and what it may have
    "switch": ((), ()), "null": ((), ()), "tap": (("device",), ("address",)), "pcap": (("file", "replay"), ()),
    "socket": (("path", "address"), ()),
}
_ALWAYS: Final = ("kind", "mtu", "capture")
_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_RATE: Final = re.compile(r"([0-9]{1,18})([GMK]?)([Bb])/s(?:@([0-9]{1,18})(us|ms|s))?")
_FACTORS: Final = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3}
_MICROSECONDS: Final = {"us": 1, "ms": 1000, "s": 1000**2}
_INTERVAL: Final = 50_000               # microseconds between credits, as in xl's vif rate


class NetworkChecker:
    """One pass over the vifs and links of a topology file; remembers what must not occur twice."""

    def __init__(self, file: Path, topology: Topology, files: Files, base: Path | None = None) -> None:
        self.file = file
        self.files = files
        self.base = base or file.absolute().parent
        self.topology = topology
        self.macs: dict[str, str] = {}              # address -> key
        self.devices: dict[str, str] = {}           # TAP -> key

    def fail(self, key: str, message: str) -> NoReturn:
        raise TopologyError(self.file, key, message)

    def remember(self, key: str, vifs: tuple[Vif, ...]) -> None:
        """The vifs of a guest that was checked before."""
        for vif in vifs:
            self.macs[vif.mac] = key
            if vif.rom:
                self.files.read(key, Path(vif.rom))

    def remember_links(self, name: str) -> None:
        """The topology's links, which were checked before."""
        for link_name, link in self.topology.link.items():
            for field in ("file", "capture"):
                if path := getattr(link, field):
                    self.files.write(f"{name}/{link_name}", path)
            if link.replay:
                self.files.read(f"{name}/{link_name}", link.replay)

    # -- vifs
    def vifs(self, key: str, guest: str, vifs: tuple[Vif, ...]) -> tuple[Vif, ...]:
        if len(vifs) > MOST_VIFS:
            self.fail(key, f"{len(vifs)} vifs: give up to {MOST_VIFS}")
        checked = tuple(self.vif(f"{key}[{i}]", f"{guest}/{i}", vif) for i, vif in enumerate(vifs))
        if trouble := option_rom.room_trouble([Path(vif.rom) for vif in checked if vif.rom]):
            self.fail(key, trouble)
        return checked

    def vif(self, key: str, place: str, vif: Vif) -> Vif:
        return msgspec.structs.replace(
            vif, mac=self.mac(f"{key}.mac", vif.mac, place), link=self.link_name(f"{key}.link", vif.link),
            rom=self.rom(f"{key}.rom", vif.rom, vif.model), rate=self.rate(f"{key}.rate", vif.rate),
        )

    def mac(self, key: str, word: str, place: str) -> str:
        mac = word.lower()
        if not mac:                     # the same on every run, and hardly that of another vif
            number = zlib.crc32(f"{self.topology.name}/{place}".encode()) & 0xFFFFFF
            mac = f"{OUI}:{number >> 16:02x}:{number >> 8 & 255:02x}:{number & 255:02x}"
        if not _MAC.fullmatch(mac):
            self.fail(key, f'{word!r} is no Ethernet address: give one like "00:16:3e:00:00:01"')
        if int(mac[:2], 16) & 1:
            self.fail(key, f"{mac} is a group address: the first byte must be even")
        if mac == "00:00:00:00:00:00":
            self.fail(key, f"{mac} is nobody's address")
        if (other := self.macs.setdefault(mac, key)) != key:
            self.fail(key, f"{mac} is the address of {other.removesuffix('.mac')} already")
        return mac

    def link_name(self, key: str, name: str) -> str:
        links = self.topology.link
        if name and name not in links:
            known = f"known are {', '.join(links)}" if links else f"there is no [link.{name}]"
            self.fail(key, f"{name!r} is no link: {known}")
        if not name and len(links) != 1:
            self.fail(key, "missing: " + (f"give one of {', '.join(links)}" if links else "there is no [link.NAME] to be on"))
        return name or next(iter(links))

    def rom(self, key: str, word: str, model: str) -> str:
        try:
            found = option_rom.find(word, model, self.base)
        except FirmwareError as error:
            self.fail(key, str(error))
        if found and (trouble := self.files.read(key, found)):
            self.fail(key, trouble)
        return str(found) if found else ""

    def rate(self, key: str, word: str) -> str:
        """xl-network-configuration(5): bytes or bits a second, and how often credit is given."""
        if not word:
            return ""
        match = _RATE.fullmatch(word)
        if not match:
            self.fail(key, f'{word!r} is no rate: give one like "100Mb/s", "10MB/s" or "1Mb/s@20ms"')
        number, factor, unit, every, scale = match.groups()
        interval = int(every) * _MICROSECONDS[scale] if every else _INTERVAL
        per_second = int(number) * _FACTORS[factor] // (8 if unit == "b" else 1)
        credit = per_second * interval // 1_000_000
        if not 0 < credit < 1 << 32 or not 0 < interval < 1 << 32:
            self.fail(key, f"{word!r} is {credit} bytes every {interval} us: give more than none and less than all")
        return f"{credit},{interval}"

    # -- links
    def links(self) -> dict[str, Link]:
        return {name: self.link(f"link.{name}", name, link) for name, link in self.topology.link.items()}

    def link(self, key: str, name: str, link: Link) -> Link:
        needed, optional = KEYS[link.kind]
        given = [field for field in link.__struct_fields__ if field not in _ALWAYS and getattr(link, field) is not None]
        for field in given:
            if field not in (*needed, *optional):
                self.fail(f"{key}.{field}", f"a {link.kind} has none")
        if needed and not set(needed) & set(given):
            self.fail(f"{key}.{needed[0]}", f"missing: a {link.kind} needs {' or '.join(needed)}")
        if link.kind == "socket" and len(given) > 1:
            self.fail(f"{key}.address", "a socket has a path or an address, not both")
        if link.mtu not in MTU:
            self.fail(f"{key}.mtu", f"{link.mtu} bytes: give {MTU.start} to {MTU.stop - 1}")
        link = msgspec.structs.replace(link, **{
            field: self.base / path for field in ("file", "replay", "path", "capture") if (path := getattr(link, field))
        })
        self.own(key, link)
        try:
            check_link(link_config(link))
        except LinkError as error:
            self.fail(f"{key}.{error.key}", str(error))
        return link

    def own(self, key: str, link: Link) -> None:
        """Files that are written, and TAPs, are one link's."""
        for field in ("file", "capture"):
            if (path := getattr(link, field)) and (trouble := self.files.write(f"{key}.{field}", path)):
                self.fail(f"{key}.{field}", trouble)
        if link.replay and (trouble := self.files.read(f"{key}.replay", link.replay)):
            self.fail(f"{key}.replay", trouble)
        if link.replay and link.replay.exists() and not link.replay.is_file():
            self.fail(f"{key}.replay", f"{link.replay}: is not a file")
        if link.device and (other := self.devices.setdefault(link.device, key)) != key:
            self.fail(f"{key}.device", f"{link.device} is {other}'s already")


def link_config(link: Link) -> LinkConfig:
    """A checked link as netback is told of it."""
    return LinkConfig(**{field: getattr(link, field) for field in link.__struct_fields__})
