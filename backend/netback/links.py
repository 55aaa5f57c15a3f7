"""What a link is made of, and whether it can be had: looked at before anything starts."""
import errno
import ipaddress
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from miniguest.backend.netback import tap
from miniguest.backend.netback.pcap import PcapError, packets
from miniguest.ring.errors import MiniguestError

Kind = Literal["switch", "tap", "pcap", "socket", "null"]
KINDS: Final = ("switch", "tap", "pcap", "socket", "null")
MTU_LEAST: Final = 68                   # RFC 791
MTU_MOST: Final = 65535 - 14          # netif's longest packet, without its Ethernet header


class LinkError(MiniguestError):
    """A link cannot be as its configuration says. `key` is what to look at; the message says what to do."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key
        self.message = message


@dataclass(frozen=True, slots=True)
class LinkConfig:
    """A link: a switch between its vifs, and what else hangs on it.

    kind       "switch" nothing, "tap" a TAP, "pcap" a file, "socket" QEMU's stream socket, "null" counts and drops
    mtu        bytes; advertised to frontends and set on a TAP that is made
    device     tap: its name; made, and gone with netback, unless it is there already
    address    tap: "10.77.0.1/24" for the host's end of one that is made; socket: "host:port" of a TCP listener
    path       socket: of a UNIX listener
    file       pcap: every frame the vifs send there, appended to nothing: an old file is replaced
    replay     pcap: a file whose packets come in, at the pace of its timestamps, once the first vif is connected
    capture    any kind: a pcap file of everything that crosses the link
    """

    kind: Kind = "switch"
    mtu: int = 1500
    device: str | None = None
    address: str | None = None
    path: Path | None = None
    file: Path | None = None
    replay: Path | None = None
    capture: Path | None = None


def check(config: LinkConfig) -> None:
    """LinkError when the link could not be made here and now; nothing is left behind."""
    if config.kind not in KINDS:
        raise LinkError("kind", f"{config.kind!r} is none of {', '.join(KINDS)}")
    if not MTU_LEAST <= config.mtu <= MTU_MOST:
        raise LinkError("mtu", f"{config.mtu} is not {MTU_LEAST} to {MTU_MOST}")
    for key in ("device", "address", "path", "file", "replay"):
        if getattr(config, key) and key not in _KEYS[config.kind]:
            raise LinkError(key, f'means nothing to a link of kind = "{config.kind}"')
    {"tap": _check_tap, "pcap": _check_pcap, "socket": _check_socket}.get(config.kind, lambda _: None)(config)
    if config.capture:
        _check_writable("capture", config.capture)


_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "switch": (), "null": (), "tap": ("device", "address"), "pcap": ("file", "replay"), "socket": ("path", "address"),
}


def _check_tap(config: LinkConfig) -> None:
    if not config.device or len(config.device.encode()) > tap.NAME_MAX or "/" in config.device or config.device in (".", ".."):
        raise LinkError("device", f"{config.device!r} is no name for a TAP: 1 to {tap.NAME_MAX} bytes, without a slash")
    if config.address:
        try:
            ipaddress.ip_interface(config.address)
        except ValueError:
            raise LinkError("address", f"{config.address!r} is no address with its prefix, such as 10.77.0.1/24") from None
    try:
        with tap.Tap(config.device, config.address, config.mtu):
            pass
    except OSError as error:
        raise tap_error(config, error) from None


def tap_error(config: LinkConfig, error: OSError) -> LinkError:
    """What the kernel's refusal means to whoever wrote the configuration."""
    if error.filename == tap.CLONE_DEVICE:
        hint = "load the module tun" if error.errno in (errno.ENOENT, errno.ENODEV) else "run as root, or give access to it"
        return LinkError("device", f"cannot open {tap.CLONE_DEVICE}: {error.strerror}: {hint}")
    hint = {
        errno.EPERM: "run as root, or as the owner of a TAP made before (ip tuntap add mode tap user ...)",
        errno.EBUSY: "somebody else has it open",
        errno.EINVAL: "it exists and is no TAP of one queue",
    }.get(error.errno or 0, "")
    return LinkError("device", f"{config.device}: {error.strerror}" + (f": {hint}" if hint else ""))


def _check_pcap(config: LinkConfig) -> None:
    if not config.file and not config.replay:
        raise LinkError("file", "missing: a pcap link has a file to write, or one to replay")
    if config.file:
        _check_writable("file", config.file)
    if config.replay:
        try:
            for _ in packets(config.replay):
                pass
        except PcapError as error:
            raise LinkError("replay", str(error)) from None
        if config.file and config.file.exists() and config.file.samefile(config.replay):
            raise LinkError("replay", f"{config.replay} is the file to be written as well")


def _check_writable(key: str, path: Path) -> None:
    try:
        if stat.S_ISREG(path.stat().st_mode) and os.access(path, os.W_OK):
            return
        raise LinkError(key, f"{path} cannot be written: it is no file, or not ours")
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise LinkError(key, f"{path} cannot be written: there is no directory {path.parent}") from None
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise LinkError(key, f"{path} cannot be written: no permission for {path.parent}") from None
    except OSError as error:
        raise LinkError(key, f"{path} cannot be written: {error.strerror}") from None


def _check_socket(config: LinkConfig) -> None:
    if bool(config.path) == bool(config.address):
        raise LinkError("path", "a socket link has either a path (UNIX) or an address (TCP host:port)")
    key = "path" if config.path else "address"
    family, address = socket_address(config)
    try:
        # A UNIX socket is asked as one of another type, which the kernel refuses in its own way when one is there: a peer
        # that takes a single connection is not to lose it to this.
        with socket.socket(family, socket.SOCK_DGRAM if family == socket.AF_UNIX else socket.SOCK_STREAM) as probe:
            probe.settimeout(2)
            probe.connect(address)
    except OSError as error:
        if error.errno != errno.EPROTOTYPE:
            where, why = config.path or config.address, error.strerror or error
            raise LinkError(key, f"nobody listens on {where}: {why}: start that end first") from None


def socket_address(config: LinkConfig) -> tuple[int, str | tuple[str, int]]:
    """The family and the address of a socket link. LinkError when there is none."""
    if config.path:
        if len(os.fsencode(config.path)) > 107:
            raise LinkError("path", f"{config.path} is longer than the 107 bytes that a UNIX socket's path may have")
        return socket.AF_UNIX, str(config.path)
    host, _, port = (config.address or "").rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise LinkError("address", f"{config.address!r} is no host:port")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise LinkError("address", f"{host}: {error.strerror}") from None
    return found[0], (str(found[4][0]), int(port))
