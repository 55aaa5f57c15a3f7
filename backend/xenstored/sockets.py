"""Dom0's connections, through a UNIX socket only its owner may open."""
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from miniguest.backend.xenstored.daemon import Xenstored
from miniguest.ring.errors import PeerError
from miniguest.ring.xenstore.message import MessageReader

_log = logging.getLogger("miniguest.xenstored")
_CHUNK = 8192  # bytes of one client before others get their turn
_CLIENTS_MAX = 256


class FdLoop(Protocol):
    """The part of the event loop that is needed here."""

    def on_fd(
        self, fd: int, handler: Callable[[], None], write_handler: Callable[[], None] | None = None
    ) -> None: ...
    def off_fd(self, fd: int) -> None: ...
    def call_soon(self, fn: Callable[[], None]) -> object: ...


class SocketConnection:
    """Serves one client. `gone` is called once, when it has disconnected or was cut off."""

    def __init__(
        self, daemon: Xenstored, sock: socket.socket, loop: FdLoop, gone: Callable[["SocketConnection"], None]
    ) -> None:
        self._daemon = daemon
        self._socket = sock
        self._loop = loop
        self._gone = gone
        self._client = daemon.new_client()
        self._reader = MessageReader()
        self._blocked = False  # the socket takes no more at present
        self._awake = False  # a flush is on its way
        self._closed = False
        sock.setblocking(False)
        self._client.outbox.ready = self._wake
        loop.on_fd(sock.fileno(), self._on_readable)

    def close(self) -> None:
        """Disconnect; the client's watches and transactions are gone."""
        if not self._closed:
            self._closed = True
            self._client.outbox.ready = lambda: None
            self._client.reset()
            self._loop.off_fd(self._socket.fileno())
            self._socket.close()
            self._gone(self)

    def _on_readable(self) -> None:
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        try:
            self._serve(data)
        except PeerError as error:
            _log.warning("a client was cut off: %s", error)
            self.close()

    def _serve(self, data: bytes) -> None:
        self._awake = True
        for message in self._reader.feed(data):
            self._daemon.handle(self._client, message)
            if self._client.outbox.overflowed:
                raise PeerError("it asks and does not read")
        self._flush()

    def _wake(self) -> None:
        if not self._awake:
            self._awake = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Send what the socket takes, and have the loop say when it takes more."""
        self._awake = False
        if self._closed:
            return
        if self._client.outbox.overflowed:
            _log.warning("a client was cut off: it watches and does not read")
            self.close()
            return
        blocked = False
        try:
            while data := self._client.outbox.heads(_CHUNK):
                self._client.outbox.sent(self._socket.send(data))
        except BlockingIOError:
            blocked = True
        except OSError:
            self.close()
            return
        if blocked != self._blocked:
            self._blocked = blocked
            self._loop.on_fd(self._socket.fileno(), self._on_readable, self._flush if blocked else None)


class Listener:
    """The socket at `path`, mode 0600 in a directory of mode 0700, and every connection that came through it."""

    def __init__(self, daemon: Xenstored, path: Path, loop: FdLoop) -> None:
        self._daemon = daemon
        self._path = path
        self._loop = loop
        self._connections: set[SocketConnection] = set()
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.unlink(missing_ok=True)  # of one that was killed
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._socket.bind(str(path))
        os.chmod(path, 0o600)
        self._socket.listen(64)
        loop.on_fd(self._socket.fileno(), self._on_readable)

    def close(self) -> None:
        """Disconnect everyone and remove the socket."""
        for connection in list(self._connections):
            connection.close()
        self._loop.off_fd(self._socket.fileno())
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _on_readable(self) -> None:
        try:
            sock, _ = self._socket.accept()
        except OSError as error:  # the client has gone again, or we have no descriptor left for it
            _log.warning("no connection: %s", error)
            return
        if len(self._connections) >= _CLIENTS_MAX:
            _log.warning("no connection: there are %d already", _CLIENTS_MAX)
            sock.close()
            return
        self._connections.add(SocketConnection(self._daemon, sock, self._loop, self._connections.discard))
