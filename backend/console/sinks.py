"""Where a guest's serial line goes: stdio, a file, or a pty."""
import contextlib
import os
import re
import tty
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from miniguest.ring.loop import Loop

Input = Callable[[bytes], None]


class Sink(Protocol):
    """Takes what the guest prints."""

    def write(self, data: bytes) -> None: ...
    def close(self) -> None: ...


class StdioSink:
    """The terminal, or whatever the command's output is. With a prefix every line begins with it."""

    def __init__(self, fd: int, prefix: str = "") -> None:
        self._fd = fd
        self._prefix = prefix.encode()
        self._at_start = True

    def write(self, data: bytes) -> None:
        """Print; a reader that went away is no reason to end."""
        with contextlib.suppress(BrokenPipeError):
            _write_all(self._fd, self._prefixed(data) if self._prefix else data)

    def _prefixed(self, data: bytes) -> bytes:
        out = b""
        for line in re.findall(rb"[^\n]*\n|[^\n]+", data):
            text = line.lstrip(b"\r") if self._at_start else line     # some end a line with LF CR
            if text:
                out += line[: len(line) - len(text)] + (self._prefix if self._at_start else b"") + text
                self._at_start = line.endswith(b"\n")
        return out

    def close(self) -> None:
        """The descriptor is not ours to close."""


class FileSink:
    """A file, made or emptied."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    def write(self, data: bytes) -> None:
        """Append."""
        _write_all(self._fd, data)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class PtySink:
    """The master of a pseudo terminal; `name` is the other end. What nobody reads is lost once its buffer is full."""

    def __init__(self, loop: Loop, received: Input) -> None:
        self._master, slave = os.openpty()
        tty.setraw(slave)
        self.name = os.ttyname(slave)
        self._slave = slave                 # kept open: reading a master whose other end is closed fails
        self._loop = loop
        self._received = received
        os.set_blocking(self._master, False)
        loop.on_fd(self._master, self._readable)

    def _readable(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._received(os.read(self._master, 4096))

    def write(self, data: bytes) -> None:
        """To whoever has opened the other end."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._master, data)

    def close(self) -> None:
        """Close both ends."""
        self._loop.off_fd(self._master)
        os.close(self._master)
        os.close(self._slave)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
