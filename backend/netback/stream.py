"""A link's way out over a stream socket, as QEMU's `-netdev stream` has it: 4 bytes of length, big-endian, and the frame.

We are the client. When the peer goes away, or lies about a length, the link is down and the connection made anew, with
a delay that grows while that fails.
"""
import errno
import logging
import os
import socket
from collections.abc import Callable
from typing import Final

from miniguest.backend.netback.links import LinkConfig, LinkError, socket_address
from miniguest.ring import _core
from miniguest.ring.loop import Loop, Timer

FIRST_DELAY: Final = 0.1                # seconds
LAST_DELAY: Final = 5.0
ENDED: Final = 1                        # Uplink.broken
LIED: Final = 2
log = logging.getLogger(__name__)


class Stream:
    """Keeps an uplink of kind UPLINK_STREAM connected."""

    def __init__(
        self, name: str, config: LinkConfig, uplink: _core.Uplink, loop: Loop, ready: Callable[[], None]
    ) -> None:
        self._name = name
        self._config = config
        self._uplink = uplink
        self._loop = loop
        self._ready = ready
        self._socket: socket.socket | None = None
        self._timer: Timer | None = None
        self._delay = FIRST_DELAY
        self._watched: bool | None = None       # None: not watched; else whether for writing too
        # Not from here: who made us cannot be told of a connection yet, and a UNIX socket connects at once.
        loop.call_soon(self._connect)

    # -- the connection
    def _connect(self) -> None:
        self._timer = None
        try:
            family, address = socket_address(self._config)
            self._socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            code = self._socket.connect_ex(address)
        except (OSError, LinkError) as error:
            self._lost(str(error))
            return
        if code == 0:
            self._connected()
        elif code == errno.EINPROGRESS:
            self._loop.on_fd(self._socket.fileno(), self._connecting, self._connecting)
        else:
            self._lost(os.strerror(code))

    def _connecting(self) -> None:
        """The answer of a TCP connect."""
        assert self._socket
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._loop.off_fd(self._socket.fileno())
        if code:
            self._lost(os.strerror(code))
        else:
            self._connected()

    def _connected(self) -> None:
        assert self._socket
        if self._socket.family != socket.AF_UNIX:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._delay = FIRST_DELAY
        self._uplink.attach(self._socket.fileno())
        log.info("link %s: up", self._name)
        self._ready()

    def _lost(self, why: str) -> None:
        """Down, for now."""
        log.log(logging.WARNING if self._delay == FIRST_DELAY else logging.DEBUG, "link %s: down: %s", self._name, why)
        self._drop()
        self._timer = self._loop.call_later(self._delay, self._connect)
        self._delay = min(self._delay * 2, LAST_DELAY)

    def _drop(self) -> None:
        self._uplink.attach(-1)
        if self._socket:
            self._loop.off_fd(self._socket.fileno())
            self._socket.close()
        self._socket = None
        self._watched = None

    # -- while connected
    def attend(self) -> None:
        """The switch has run: perhaps into the peer's end, or with bytes left over."""
        uplink = self._uplink
        if uplink.fd < 0 or self._socket is None:
            return
        if uplink.broken:
            why = {ENDED: "the peer closed it", LIED: "a frame of an impossible length"}.get(uplink.broken)
            self._lost(why or os.strerror(uplink.error))
            return
        wanted = None if uplink.blocked and not uplink.unsent else uplink.unsent > 0
        if wanted == self._watched:
            return
        if wanted is None:
            self._loop.off_fd(uplink.fd)
        else:
            self._loop.on_fd(uplink.fd, self._ready, self._ready if wanted else None)
        self._watched = wanted

    def close(self) -> None:
        """Give up."""
        if self._timer:
            self._timer.cancel()
        self._drop()
