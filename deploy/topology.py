"""Topology files: which guests, with which disks and network interfaces, and what links those.

    name = "first-light"
    doorbell = "zmq"             # zmq | fifo: what rings for a process that sleeps
    clock = "real"               # real | virtual: the guests' time goes on with the host's, or with their own work
    [[guest]]
    name = "hvm0"
    memory = 128                 # MiB
    vcpus = 1
    engine = "auto"              # auto | unicorn | kvm | replay
    trace = "hvm0.trace"         # what replay plays: written by `miniguest run --record`
    firmware = "seabios"         # found where distributions put it, or a path
    serial = "stdio"             # or "pty", or a file; lines of several guests on stdio begin with the guest's name
    boot = "c"                   # in what order: c hard disks, n network
    disk = [{ image = "grub.img", vdev = "hda", access = "rw", format = "raw" }]
    vif = [{ model = "e1000", mac = "00:16:3e:00:00:01", link = "lan0", rom = "auto", rate = "100Mb/s" }]
    [link.lan0]
    kind = "switch"              # switch | tap | pcap | socket | null
    mtu = 1500
    capture = "lan0.pcap"        # everything that crosses the link

The model is rtl8139, e1000 or ne2k_pci; the option ROM "auto" (iPXE's, where distributions put it), "none" or a path. A tap
has a `device` and may have an `address`; a pcap has a `file` to write, a `replay` to read, or both; a socket, which speaks
QEMU's stream protocol, has a `path` or an `address`.

TOML; the words are xl.cfg's where it has them. Relative paths start at the topology file's directory.
"""
from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import msgspec

from miniguest.deploy import checks
from miniguest.deploy.errors import TopologyError

Access = Literal["rw", "ro"]
Format = Literal["raw"]
Engine = Literal["auto", "unicorn", "kvm", "replay"]
Clock = Literal["real", "virtual"]
Doorbell = Literal["zmq", "fifo"]
Model = Literal["rtl8139", "e1000", "ne2k_pci"]
Kind = Literal["switch", "tap", "pcap", "socket", "null"]
_CHOICES = {"access": Access, "format": Format, "engine": Engine, "doorbell": Doorbell, "clock": Clock, "model": Model,
            "kind": Kind}
_T = TypeVar("_T", bound=msgspec.Struct)
SIZE_MAX = 1 << 20          # bytes of a topology file


class Disk(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One disk. `image` is a raw file or block device, absolute once loaded."""

    image: Path
    vdev: str
    access: Access = "rw"
    format: Format = "raw"


class Vif(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One network interface and the card that the guest sees. Once loaded, `mac` and `link` are not empty, `rom` is an
    absolute path or empty, and `rate` is "BYTES,MICROSECONDS" or empty."""

    model: Model = "e1000"
    mac: str = ""
    link: str = ""
    rom: str = "auto"
    rate: str = ""


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What vifs are plugged into. Files are absolute once loaded."""

    kind: Kind = "switch"
    mtu: int = 1500
    device: str | None = None
    address: str | None = None
    file: Path | None = None
    replay: Path | None = None
    path: Path | None = None
    capture: Path | None = None


class Guest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One HVM guest. `memory` in MiB; `firmware`, `trace` and a `serial` that is a file are absolute once loaded."""

    name: str
    memory: int = 128
    vcpus: int = 1
    engine: Engine = "auto"
    trace: Path | None = None
    firmware: str = "seabios"
    serial: str = "stdio"
    boot: str = "c"
    disk: tuple[Disk, ...] = ()
    vif: tuple[Vif, ...] = ()


class Topology(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that one `miniguest run` starts. The name defaults to the file's."""

    guest: tuple[Guest, ...]
    name: str = ""
    doorbell: Doorbell = "zmq"
    clock: Clock = "real"
    link: dict[str, Link] = {}

    @property
    def memory(self) -> int:
        """MiB of all guests together."""
        return sum(guest.memory for guest in self.guest)


class Addition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is added to a topology that runs."""

    guest: tuple[Guest, ...]


def load(file: Path, disk: Path | None = None) -> Topology:
    """Read and check a topology file; `disk` takes the place of the first guest's first disk.

    Raises TopologyError for anything that could not be run.
    """
    topology = parse(file, _read(file))
    if not topology.name:
        topology = msgspec.structs.replace(topology, name=checks.as_name(file.stem))
    if disk is not None:
        topology = _with_disk(topology, disk)
    return checks.check(topology, file)


def load_guests(file: Path) -> tuple[Guest, ...]:
    """Read a file of [[guest]] tables, for a topology that runs already. The values are not looked at.

    Raises TopologyError.
    """
    return _convert(file, _tables(file, _read(file)), Addition).guest


def of_disk(disk: Path, name: str = "") -> Topology:
    """A topology of one default guest that boots the image `disk` from its first IDE disk.

    Raises TopologyError.
    """
    guest = Guest(name="hvm0", disk=(Disk(image=disk, vdev="hda"),))
    topology = Topology(name=name or checks.as_name(disk.stem), guest=(guest,))
    return checks.check(_with_disk(topology, disk), disk)


def parse(file: Path, text: str) -> Topology:
    """TOML to a Topology whose keys and types are right; the values are not looked at. `file` is for the messages."""
    tables = _tables(file, text)
    links = tables.get("link")
    if isinstance(links, dict):
        # One by one: msgspec does not say under which name of a table it found something wrong.
        for name, link in links.items():
            _convert(file, link, Link, f"link.{name}")
    return _convert(file, tables, Topology)


def _tables(file: Path, text: str) -> dict[str, Any]:
    try:
        tables = tomllib.loads(text)
        zeros = [(key, word) for key, word in _words(tables) if "\0" in word]
    except tomllib.TOMLDecodeError as error:
        message, where = _toml_error(str(error), text)
        raise TopologyError(file, where, f"not TOML: {message}") from None
    except RecursionError:
        raise TopologyError(file, "", "not a topology file: tables or lists within each other without end") from None
    for key, word in zeros:
        raise TopologyError(file, key, f"{word!r} has a zero byte in it, which no name has")
    return tables


def _words(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, string) for every string in a TOML document."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _words(item, _join(key, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _words(item, f"{key}[{index}]")


def _convert(file: Path, tables: Any, kind: type[_T], prefix: str = "") -> _T:
    try:
        return msgspec.convert(tables, kind, dec_hook=_decode)
    except msgspec.ValidationError as error:
        key, message = _explain(str(error), kind)
        raise TopologyError(file, _join(prefix, key) if prefix and key else prefix or key, message) from None


def _read(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            content = stream.read(SIZE_MAX + 1)
        if len(content) <= SIZE_MAX and b"\0" not in content:
            return content.decode()
    except UnicodeDecodeError:
        pass
    except OSError as error:
        raise TopologyError(file, "", f"cannot be read: {error.strerror}") from None
    raise TopologyError(file, "", "not a topology file: an image goes with --disk")


def _with_disk(topology: Topology, image: Path) -> Topology:
    guest, *guests = topology.guest or (Guest(name="hvm0"),)
    disk, *disks = guest.disk or (Disk(image=image, vdev="hda"),)
    # Looked at here, where the message can name the option instead of a key of the file.
    if trouble := checks.image_trouble(image, disk.access):
        raise TopologyError(image, "--disk", trouble)
    disk = msgspec.structs.replace(disk, image=image.absolute())
    guest = msgspec.structs.replace(guest, disk=(disk, *disks))
    return msgspec.structs.replace(topology, guest=(guest, *guests))


def pack_guests(guests: tuple[Guest, ...]) -> list[dict[str, Any]]:
    """Guests as plain values, for a message."""
    return [msgspec.to_builtins(guest, enc_hook=str) for guest in guests]


def unpack_guests(values: object) -> tuple[Guest, ...]:
    """What `pack_guests` made. ValueError for anything else."""
    try:
        return msgspec.convert(values, tuple[Guest, ...], dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


def _decode(kind: type, value: Any) -> Path:
    """msgspec knows no paths: what else a Path could come from than a string is a wrong type."""
    if kind is not Path or not isinstance(value, str):
        raise TypeError(f"Expected `str`, got `{type(value).__name__}`")
    return Path(value)


def _toml_error(error: str, text: str) -> tuple[str, str]:
    """The message and the place of a tomllib error."""
    if match := re.fullmatch(r"(.*) \(at (line \d+, column \d+)\)", error):
        return match[1], match[2]
    return error.removesuffix(" (at end of document)"), f"line {len(text.splitlines()) or 1}"


_TYPES = {"str": "a string", "int": "an integer", "array": "a list", "object": "a table", "float": "a fraction",
          "bool": "true or false", "datetime": "a date", "date": "a date", "time": "a time", "list": "a list",
          "dict": "a table"}
_KEYS: dict[str, type[msgspec.Struct]] = {"guest": Guest, "disk": Disk, "vif": Vif}


def _explain(error: str, kind: type[msgspec.Struct]) -> tuple[str, str]:
    """The key and the message of a msgspec error about a `kind`, in words for whoever wrote the file."""
    message, _, where = error.partition(" - at `$")
    path = where.rstrip("`").lstrip(".")
    word = re.sub(r"\[.*", "", path.rpartition(".")[2])
    if match := re.match(r"Object contains unknown field `(.*)`", message):
        known = ", ".join(_KEYS.get(word, kind).__struct_fields__)
        return _join(path, match[1]), f"unknown key: known are {known}"
    if match := re.match(r"Object missing required field `(.*)`", message):
        return _join(path, match[1]), "missing: it must be given"
    if match := re.match(r"Expected `(\w+)`, got `(\w+)`", message):
        return path, f"must be {_TYPES.get(match[1], match[1])}, not {_TYPES.get(match[2], match[2])}"
    if match := re.match(r"Invalid enum value (.*)", message):
        return path, f"{match[1]} is none of {', '.join(get_args(_CHOICES[word]))}"
    return path, message


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
