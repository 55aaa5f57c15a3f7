"""How a client's messages get to xenstored: through its UNIX socket (dom0) or the domain's xenstore page."""
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from miniguest.ring.abi.xs_wire import XENSTORE_CONNECTED, XENSTORE_ERROR_NONE, XENSTORE_RECONNECT
from miniguest.ring.errors import PeerError
from miniguest.ring.xenstore.page import StorePage

_CHUNK = 1 << 16


class Transport(Protocol):
    """A stream of bytes to xenstored and one back. PeerError when xenstored is gone or has given up on us."""

    def send(self, data: bytes) -> None:
        """Send all of `data`, waiting for room if need be."""

    def receive(self) -> bytes:
        """Wait for at least one byte and return what has come."""

    def poll(self) -> bytes:
        """What has come, b"" if nothing has."""

    def close(self) -> None:
        """Disconnect."""


class SocketTransport:
    """Through the socket at `path`: for processes of dom0."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise PeerError(f"no xenstored at {path}: {error.strerror}") from error

    def fileno(self) -> int:
        """For an event loop: readable when there is something to dispatch."""
        return self._socket.fileno()

    def send(self, data: bytes) -> None:
        """Send all of `data`."""
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise PeerError(f"xenstored is gone: {error.strerror}") from error

    def receive(self) -> bytes:
        """Wait for bytes."""
        return self._receive(0)

    def poll(self) -> bytes:
        """What is there."""
        try:
            return self._receive(socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""

    def _receive(self, flags: int) -> bytes:
        try:
            data = self._socket.recv(_CHUNK, flags)
        except BlockingIOError:
            raise
        except OSError as error:
            raise PeerError(f"xenstored is gone: {error.strerror}") from error
        if not data:
            raise PeerError("xenstored closed the connection")
        return data

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()


class PageTransport:
    """Through the domain's own xenstore page.

    `notify` raises the event channel xenstored is bound to; `wait` returns when it may have been raised from the
    other side since the last `wait` (at once, when it already has been).
    """

    def __init__(self, page: memoryview, notify: Callable[[], None], wait: Callable[[], None]) -> None:
        self._page = StorePage(page)
        self._notify = notify
        self._wait = wait

    def send(self, data: bytes) -> None:
        """Put all of `data` in the ring, waiting for room."""
        self._await_connected()
        self._check()
        left = memoryview(data)
        while True:
            count = self._page.requests.write(left)
            if count:
                self._notify()
            left = left[count:]
            if not left:
                return
            self._wait()
            self._check()

    def receive(self) -> bytes:
        """Wait for bytes."""
        while not (data := self.poll()):
            self._wait()
        return data

    def poll(self) -> bytes:
        """What is there."""
        self._check()
        data = self._page.responses.read()
        if data:
            self._notify()  # xenstored may have more than there was room for
        return data

    def reconnect(self) -> None:
        """Have xenstored forget our watches, transactions and half-sent messages, and start afresh."""
        self._page.connection = XENSTORE_RECONNECT
        self._notify()
        self._await_connected()

    def close(self) -> None:
        """Let go of the page."""
        self._page.close()

    def _await_connected(self) -> None:
        # Nothing else in the page means anything before that (xenstore-ring.txt, "The ring reconnection feature").
        while self._page.connection != XENSTORE_CONNECTED:
            self._wait()

    def _check(self) -> None:
        if self._page.error != XENSTORE_ERROR_NONE:
            raise PeerError(f"xenstored gave up on us: error {self._page.error} in the xenstore page")
