"""A TAP: a network interface of the host whose frames a process reads and writes (linux/if_tun.h, netdevice(7))."""
import contextlib
import fcntl
import ipaddress
import os
import socket
import struct
from types import TracebackType
from typing import Final

CLONE_DEVICE: Final = "/dev/net/tun"
NAME_MAX: Final = 15                    # bytes: IFNAMSIZ with its zero
TUNSETIFF: Final = 0x400454CA
IFF_TAP: Final = 2
IFF_NO_PI: Final = 0x1000
IFF_UP: Final = 1
SIOCSIFFLAGS: Final = 0x8914
SIOCGIFFLAGS: Final = 0x8913
SIOCSIFADDR: Final = 0x8916
SIOCSIFNETMASK: Final = 0x891C
SIOCSIFMTU: Final = 0x8922
_IFREQ: Final = struct.Struct("16s24s")


class Tap:
    """An open TAP, not blocking. One that is not there is made, set up, and gone when this is closed.

    address: the host's own, with its prefix length, or nothing. An existing TAP is attached as it is. OSError when the
    kernel refuses; its `filename` is /dev/net/tun when that could not be opened at all.
    """

    def __init__(self, name: str, address: str | None, mtu: int) -> None:
        self.name = name
        self.fd = os.open(CLONE_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            made = not _exists(name)
            fcntl.ioctl(self.fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
            if made:
                self._set_up(address, mtu)
        except BaseException:
            os.close(self.fd)
            raise

    def _set_up(self, address: str | None, mtu: int) -> None:
        self._request(SIOCSIFMTU, struct.pack("i", mtu))
        if address:
            interface = ipaddress.ip_interface(address)
            if isinstance(interface, ipaddress.IPv4Interface):
                self._request(SIOCSIFADDR, _sockaddr(interface.ip.packed))
                self._request(SIOCSIFNETMASK, _sockaddr(interface.netmask.packed))
            else:
                self._add_ipv6(interface)
        self._request(SIOCSIFFLAGS, struct.pack("h", IFF_UP))

    def _request(self, code: int, value: bytes) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, code, _IFREQ.pack(self.name.encode(), value))

    def _add_ipv6(self, interface: ipaddress.IPv6Interface) -> None:
        request = struct.pack("16sIi", interface.ip.packed, interface.network.prefixlen, socket.if_nametoindex(self.name))
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, SIOCSIFADDR, request)           # struct in6_ifreq

    def close(self) -> None:
        """Let go of it."""
        os.close(self.fd)

    def __enter__(self) -> "Tap":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _sockaddr(packed: bytes) -> bytes:
    return struct.pack("=HH4s8x", socket.AF_INET, 0, packed)


def _exists(name: str) -> bool:
    """Asked of the kernel: /sys may show another network namespace's interfaces."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCGIFFLAGS, _IFREQ.pack(name.encode(), b""))
        return True
    return False
