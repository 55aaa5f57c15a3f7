"""The values of a topology: what cannot be run is found here, before anything is started."""
from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import msgspec

from miniguest.deploy import engines, firmware
from miniguest.deploy.errors import FirmwareError, TopologyError
from miniguest.deploy.files import Files
from miniguest.deploy.network import NetworkChecker

if TYPE_CHECKING:
    from miniguest.deploy.topology import Disk, Guest, Topology

SECTOR = 512                            # bytes
MEMORY = range(16, 3072 + 1)            # MiB: enough for SeaBIOS, and below the PCI hole
BOOT = "cn"
VDEVS = ("hda", "hdb", "hdc", "hdd")    # what the two channels of a PIIX3 can hold
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")


def check(topology: Topology, file: Path) -> Topology:
    """The topology with its paths absolute. Raises TopologyError, with `file` and the key, at the first wrong value."""
    checker = _Checker(file)
    checker.name("name", topology.name)
    if not topology.guest:
        checker.fail("guest", "at least one [[guest]] is needed")
    for name in topology.link:
        checker.name("link", name)
    network = NetworkChecker(file, topology, checker.files)
    links = network.links()
    return msgspec.structs.replace(topology, guest=checker.all(topology.guest, network, topology.clock), link=links)


def check_added(topology: Topology, guests: tuple[Guest, ...], file: Path, base: Path) -> tuple[Guest, ...]:
    """Guests for a topology that was checked and runs, with their paths absolute. base: where relative paths start.

    Raises TopologyError, with `file` and the key, at the first wrong value.
    """
    checker = _Checker(file, base)
    if not guests:
        checker.fail("guest", "at least one [[guest]] is needed")
    network = NetworkChecker(file, topology, checker.files, base)
    network.remember_links(topology.name)
    for guest in topology.guest:
        checker.remember(f"{topology.name}/{guest.name}", guest, network)
    return checker.all(guests, network, topology.clock)


def as_name(text: str) -> str:
    """The nearest thing to `text` that may be a name."""
    text = re.sub(r"[^A-Za-z0-9._-]", "-", text).lstrip("._-")[:32]
    return text or "guest"


def image_trouble(image: Path, access: str) -> str:
    """Why `image` cannot be a disk with this access ("rw" or "ro"), or "" when it can."""
    try:
        mode = image.stat().st_mode
        if stat.S_ISDIR(mode):
            return "is a directory, not an image"
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            return "neither a file nor a block device"
        # Opened as blkback will: permissions, read-only file systems and swallowed media show up here.
        with _opened(image, access) as fd:
            size = os.lseek(fd, 0, os.SEEK_END)
    except OSError as error:
        hint = ' (access = "ro" may do)' if access == "rw" and _readable(image) else ""
        return f"cannot be opened {access}: {error.strerror}{hint}"
    if size == 0:
        return "is empty"
    if size % SECTOR:
        return f"has {size} bytes, which is no multiple of {SECTOR}"
    return ""


@contextmanager
def _opened(image: Path, access: str) -> Iterator[int]:
    fd = os.open(image, (os.O_RDWR if access == "rw" else os.O_RDONLY) | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _readable(image: Path) -> bool:
    try:
        with closing(open(image, "rb")):
            return True
    except OSError:
        return False


class _Checker:
    """One pass over a topology; remembers what must not occur twice."""

    def __init__(self, file: Path, base: Path | None = None) -> None:
        self.file = file
        self.base = base or file.absolute().parent
        self.guests: dict[str, str] = {}                # name -> key
        self.files = Files()
        self.images: dict[tuple[int, int], tuple[str, str]] = {}    # (device, inode) -> (key, access)

    def fail(self, key: str, message: str) -> NoReturn:
        raise TopologyError(self.file, key, message)

    def all(self, guests: tuple[Guest, ...], network: NetworkChecker, clock: str) -> tuple[Guest, ...]:
        """Every guest of the file, then whether its engine can be had."""
        checked = tuple(self.guest(f"guest[{i}]", guest, network) for i, guest in enumerate(guests))
        for i, guest in enumerate(checked):
            if trouble := engines.trouble(guest, clock):
                key, message = trouble
                self.fail(f"guest[{i}].{key}", message)
        return checked

    def remember(self, key: str, guest: Guest, network: NetworkChecker) -> None:
        """A guest that was checked when it started: what it has cannot be another's."""
        self.guests[guest.name] = key
        network.remember(key, guest.vif)
        if guest.serial not in ("stdio", "pty"):
            self.files.write(key, Path(guest.serial))
        for path in [each for each in (Path(guest.firmware), guest.trace) if each]:
            self.files.read(key, path)
        for disk in guest.disk:
            self.files.read(key, disk.image)
            if disk.image.exists():
                found = disk.image.stat()
                self.images.setdefault((found.st_dev, found.st_ino), (key, disk.access))

    def name(self, key: str, name: str) -> None:
        if not NAME.fullmatch(name):
            self.fail(key, f"{name!r} is no name: 1 to 32 letters, digits, '.', '_' or '-', a letter or digit first")

    def guest(self, key: str, guest: Guest, network: NetworkChecker) -> Guest:
        self.name(f"{key}.name", guest.name)
        if (other := self.guests.setdefault(guest.name, key)) != key:
            self.fail(f"{key}.name", f"{guest.name!r} is the name of {other} already")
        if guest.memory not in MEMORY:
            self.fail(f"{key}.memory", f"{guest.memory} MiB: give {MEMORY.start} to {MEMORY.stop - 1}")
        self.vcpus(f"{key}.vcpus", guest.vcpus)
        self.boot(f"{key}.boot", guest)
        return msgspec.structs.replace(
            guest,
            firmware=str(self.firmware(f"{key}.firmware", guest.firmware)),
            serial=self.serial(f"{key}.serial", guest.serial),
            trace=self.trace(f"{key}.trace", guest),
            disk=self.disks(f"{key}.disk", guest.disk),
            vif=network.vifs(f"{key}.vif", guest.name, guest.vif),
        )

    def boot(self, key: str, guest: Guest) -> None:
        if not guest.boot or set(guest.boot) - set(BOOT) or len(set(guest.boot)) < len(guest.boot):
            self.fail(key, f'{guest.boot!r} is no boot order: give "c" (disk), "n" (network), "cn" or "nc"')
        if "n" in guest.boot and not any(vif.rom != "none" for vif in guest.vif):
            self.fail(key, f"{guest.boot!r} needs a vif with an option ROM to boot from")

    def vcpus(self, key: str, vcpus: int) -> None:
        if vcpus < 1:
            self.fail(key, f"{vcpus} vCPUs: give 1")
        if vcpus > 1:
            # Two processes that emulate a locked instruction each do so as a load and a store.
            self.fail(key, f"{vcpus} vCPUs need an engine with real atomics, and unicorn has none: give 1")

    def firmware(self, key: str, word: str) -> Path:
        try:
            return firmware.find(word, self.base)
        except FirmwareError as error:
            raise TopologyError(self.file, key, str(error)) from None

    def trace(self, key: str, guest: Guest) -> Path | None:
        if guest.engine == "replay" and guest.trace is None:
            self.fail(key, 'missing: engine = "replay" plays a trace')
        if guest.trace is None:
            return None
        if guest.engine != "replay":
            self.fail(key, 'only engine = "replay" plays a trace')
        path = self.base / guest.trace
        if trouble := self.files.read(key, path):
            self.fail(key, trouble)
        return path

    def serial(self, key: str, word: str) -> str:
        if word in ("stdio", "pty"):
            return word
        if not word:
            self.fail(key, 'is empty: give "stdio", "pty" or a file')
        path = self.base / word
        if path.is_dir():
            self.fail(key, f"{path}: is a directory")
        target = path if path.exists() else path.parent
        if not os.access(target, os.W_OK):
            self.fail(key, f"{path}: cannot be written" if target.exists() else f"{target}: no such directory")
        if trouble := self.files.write(key, path):
            self.fail(key, trouble)
        return str(path)

    def disks(self, key: str, disks: tuple[Disk, ...]) -> tuple[Disk, ...]:
        seen: dict[str, str] = {}
        for i, disk in enumerate(disks):
            here = f"{key}[{i}].vdev"
            if disk.vdev not in VDEVS:
                self.fail(here, f"{disk.vdev!r} is none of {', '.join(VDEVS)}")
            if disk.vdev in seen:
                self.fail(here, f"{disk.vdev} is taken by {seen[disk.vdev]}")
            seen[disk.vdev] = f"{key}[{i}]"
        return tuple(self.disk(f"{key}[{i}]", disk) for i, disk in enumerate(disks))

    def disk(self, key: str, disk: Disk) -> Disk:
        image = self.base / disk.image
        if trouble := image_trouble(image, disk.access):
            self.fail(f"{key}.image", f"{image}: {trouble}")
        if trouble := self.files.read(f"{key}.image", image):
            self.fail(f"{key}.image", trouble)
        found = image.stat()
        other, access = self.images.setdefault((found.st_dev, found.st_ino), (key, disk.access))
        if other != key and "rw" in (access, disk.access):
            self.fail(f"{key}.image", f'{image}: {other} uses it too: both need access = "ro"')
        return msgspec.structs.replace(disk, image=image)
