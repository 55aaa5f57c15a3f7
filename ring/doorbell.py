"""Doorbells: how a sleeping vCPU's process is woken. An empty message over zmq, or a byte in a FIFO.

Only the wake travels here; what happened stands in shared memory. A doorbell too many is harmless.
"""
import contextlib
import os
import stat
from pathlib import Path
from typing import Final, Protocol

import zmq

from miniguest.ring.memory import domain_directory

# As plain numbers: zmq's are enumerations, which take a microsecond each time.
EVENTS: Final = int(zmq.EVENTS)
POLLIN: Final = int(zmq.POLLIN)
NOBLOCK: Final = int(zmq.NOBLOCK)
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
    """A PULL socket bound to a path."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", path: Path) -> None:
        self._socket = context.socket(zmq.PULL)
        self._socket.linger = 0
        self._socket.bind(f"ipc://{path}")
        self.fd = int(self._socket.get(zmq.FD))

    def drain(self) -> None:
        """Take every message: zmq's descriptor tells of changes only, so it must be emptied each time."""
        with contextlib.suppress(zmq.Again):            # rang for something else than a message
            self._socket.recv(NOBLOCK)
            # To ask is cheaper than an exception at the end.
            while int(self._socket.get(EVENTS)) & POLLIN:
                self._socket.recv(NOBLOCK)

    def close(self) -> None:
        """Close the socket; its file goes with it."""
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
    """The ringing end of a PULL socket."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", path: Path) -> None:
        self._socket = context.socket(zmq.PUSH)
        self._socket.linger = 0
        # No high-water mark. A non-blocking send looks at how much was read only once a millisecond or so, and takes a
        # queue for full that is empty: the wake would be lost. Nothing piles up, since nobody rings for a port that
        # is pending already.
        self._socket.sndhwm = 0
        self._socket.connect(f"ipc://{path}")

    def ring(self) -> None:
        """Wake its process."""
        self._socket.send(b"", NOBLOCK)

    def close(self) -> None:
        """Let go of it."""
        self._socket.close()


class Bells:
    """The ringing end of every doorbell that this process rings, connected when first rung."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", runtime: Path) -> None:
        self._context = context
        self._runtime = runtime
        self._bells: dict[tuple[int, int], FifoBell | ZmqBell] = {}     # by domid and vCPU

    def ring(self, domid: int, vcpu: int) -> None:
        """Wake a domain's vCPU. Nothing happens when it has no doorbell."""
        bell = self._bells.get((domid, vcpu & VCPU_MASK)) or self._connect(domid, vcpu & VCPU_MASK)
        if bell is not None:
            bell.ring()

    def _connect(self, domid: int, vcpu: int) -> FifoBell | ZmqBell | None:
        path = doorbell_path(self._runtime, domid, vcpu)
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            # Its process has not come up, or is gone for good. One that comes up makes its doorbell first and looks
            # at what is pending then, and the event was made pending before we looked for the doorbell.
            return None
        bell = FifoBell(path) if stat.S_ISFIFO(mode) else ZmqBell(self._context, path)
        self._bells[domid, vcpu] = bell
        return bell

    def forget(self, domid: int, vcpu: int | None = None) -> None:
        """Look for a domain's doorbells, or for one vCPU's, anew: a new domain of that number has others at the same paths.

        A zmq socket whose peer has gone tries to find it ten times a second, for ever.
        """
        for key in [key for key in self._bells if key[0] == domid and vcpu in (None, key[1])]:
            self._bells.pop(key).close()

    def close(self) -> None:
        """Let go of every doorbell."""
        for bell in self._bells.values():
            bell.close()
