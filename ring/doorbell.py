"""Doorbells: how a sleeping vCPU's process is woken. An empty message over zmq, or a byte in a FIFO.

Only the wake travels here; what happened stands in shared memory. A doorbell too many is harmless.
"""
import contextlib
import os
import select
import socket
import stat
import struct
from pathlib import Path
from typing import Final, Protocol

import zmq

from miniguest.ring.memory import domain_directory

# As plain numbers: zmq's are enumerations, which take a microsecond each time.
EVENTS: Final = int(zmq.EVENTS)
POLLIN: Final = int(zmq.POLLIN)
NOBLOCK: Final = int(zmq.NOBLOCK)
ACCEPTED: Final = int(zmq.EVENT_ACCEPTED)
MONITORED: Final = struct.Struct("=HI")                 # zmq_socket_monitor(3): the event and its value, here a descriptor
BACKLOG: Final = 4096                                   # the kernel's most: whoever connects would wait when it is full
PUSH: Final = 8                                         # spec 15: socket-type
# spec 15: signature, whose padding tells a ZMTP 1.0 peer the length of an identity, revision, socket-type, no identity
GREETING: Final = b"\xff" + (1).to_bytes(8, "big") + b"\x7f" + bytes([1, PUSH]) + b"\0\0"
EMPTY_MESSAGE: Final = b"\0\0"                          # spec 15: a short, final frame of no bytes
VCPU_MASK: Final = 31                   # vCPU v and its hypervisor side, v + 32, are one process and have one doorbell


def doorbell_path(runtime: Path, domid: int, vcpu: int) -> Path:
    """The doorbell of a domain's vCPU in the runtime directory."""
    return domain_directory(runtime, domid) / f"doorbell{vcpu & VCPU_MASK}"


class Doorbell(Protocol):
    """The receiving end. `fd` is readable after somebody rang; `drain` makes it silent again."""

    fd: int

    def drain(self) -> None: ...
    def close(self) -> None: ...


class ZmqDoorbell:
    """A PULL socket bound to a path.

    A message wakes zmq's thread, which hands it over and wakes us: the longer part of a sleeping round trip. So we sleep on
    the connections as well, and are often up before that thread is. They only make us sooner, and are not relied upon: once
    it has read a message, the connection has nothing to tell, and zmq's own descriptor has.
    """

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", path: Path) -> None:
        self._socket = context.socket(zmq.PULL)
        self._socket.linger = 0
        self._socket.backlog = BACKLOG
        self._monitor: zmq.Socket[bytes] = self._socket.get_monitor_socket(ACCEPTED)
        self._socket.bind(f"ipc://{path}")
        self._takers = {
            int(self._socket.get(zmq.FD)): self._take_messages,
            int(self._monitor.get(zmq.FD)): self._take_connections,
        }
        self._epoll = select.epoll()
        for fd in self._takers:
            self._epoll.register(fd, select.EPOLLIN)
        self.fd = self._epoll.fileno()
        self._take_connections()                # the monitor's descriptor tells of the next ones only after a look

    def drain(self) -> None:
        """Take whatever rang."""
        for fd, _ in self._epoll.poll(0):
            take = self._takers.get(fd)
            if take:                            # else a connection, whose bytes are zmq's to read
                take()

    def _take_messages(self) -> None:
        """Every one: zmq's descriptor tells of changes only."""
        with contextlib.suppress(zmq.Again):    # rang for something else than a message
            self._socket.recv(NOBLOCK)
            # To ask is cheaper than an exception at the end.
            while int(self._socket.get(EVENTS)) & POLLIN:
                self._socket.recv(NOBLOCK)

    def _take_connections(self) -> None:
        """Sleep on each new connection, too."""
        while int(self._monitor.get(EVENTS)) & POLLIN:
            event, _ = self._monitor.recv_multipart(NOBLOCK)
            _, fd = MONITORED.unpack(event)
            # For edges, since we do not read. zmq closes the descriptor, which ends this; when it has closed it already, the
            # number may be another descriptor of ours by now, which will then wake us for nothing.
            with contextlib.suppress(OSError):
                self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)

    def close(self) -> None:
        """Close the socket; its file goes with it."""
        self._epoll.close()
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close()


class FifoDoorbell:
    """A named pipe that anything can write to."""

    def __init__(self, path: Path) -> None:
        # A predecessor's pipe is taken over, not replaced: those who rang it have it open.
        with contextlib.suppress(FileExistsError):
            os.mkfifo(path, 0o600)
        self.fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def drain(self) -> None:
        """Take every byte: a read that finds less than it could take has found the last one."""
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self.fd, 4096)) == 4096:
                pass

    def close(self) -> None:
        """Close it. The pipe stays, for this vCPU's next process, as long as the domain's directory."""
        os.close(self.fd)


class FifoBell:
    """The ringing end of a FIFO."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def ring(self) -> None:
        """Wake its process."""
        with contextlib.suppress(BlockingIOError):      # full of unread wakes: one more adds nothing
            os.write(self._fd, b"\0")

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)


class ZmqBell:
    """The ringing end of a PULL socket: a PUSH peer that speaks ZMTP 2.0 (rfc.zeromq.org/spec/15) by itself.

    zmq's own PUSH hands each message to a thread of its own, which takes as long as a wake again. In this version nothing
    has to be heard from the other end before the first message, so nobody ever waits for it.
    ConnectionError: its process has gone.
    """

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(str(path))
            self._socket.send(GREETING)
        except OSError:
            self._socket.close()
            raise
        self._socket.setblocking(False)

    def ring(self) -> None:
        """Wake its process."""
        with contextlib.suppress(BlockingIOError):      # full of unread wakes: one more adds nothing
            self._socket.send(EMPTY_MESSAGE)

    def close(self) -> None:
        """Let go of it."""
        self._socket.close()


class Bells:
    """The ringing end of every doorbell that this process rings, connected when first rung."""

    def __init__(self, runtime: Path) -> None:
        self._runtime = runtime
        self._bells: dict[tuple[int, int], FifoBell | ZmqBell] = {}     # by domid and vCPU

    def ring(self, domid: int, vcpu: int) -> None:
        """Wake a domain's vCPU. Nothing happens when it has no doorbell."""
        key = (domid, vcpu & VCPU_MASK)
        # Twice: the process that we were connected to may have a successor. One that comes later still makes its doorbell
        # first and looks at what is pending then, and the event was made pending before we rang.
        for _ in range(2):
            bell = self._bells.get(key) or self._connect(key)
            if bell is None:
                return
            try:
                bell.ring()
                return
            except ConnectionError:
                self._bells.pop(key).close()

    def _connect(self, key: tuple[int, int]) -> FifoBell | ZmqBell | None:
        path = doorbell_path(self._runtime, *key)
        try:
            bell = FifoBell(path) if stat.S_ISFIFO(path.stat().st_mode) else ZmqBell(path)
        except (FileNotFoundError, ConnectionError):
            return None                         # its process has not come up, or is gone
        self._bells[key] = bell
        return bell

    def forget(self, domid: int, vcpu: int | None = None) -> None:
        """Look for a domain's doorbells, or for one vCPU's, anew: a new domain of that number has others at the same paths."""
        for key in [key for key in self._bells if key[0] == domid and vcpu in (None, key[1])]:
            self._bells.pop(key).close()

    def close(self) -> None:
        """Let go of every doorbell."""
        for bell in self._bells.values():
            bell.close()
