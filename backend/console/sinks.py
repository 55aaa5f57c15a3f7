"""Where a guest's serial line goes: stdio, a file, or a pty."""
import contextlib
import os
import re
import select
import tty
from pathlib import Path
from typing import Protocol


class Sink(Protocol):
    """Takes what the guest prints. write: OSError when it cannot be printed any more."""

    def write(self, data: bytes) -> None: ...
    def close(self) -> None: ...


class StdioSink:
    """The terminal, or whatever the command's output is. With a prefix every line begins with it."""

    def __init__(self, fd: int, prefix: str = "") -> None:
        self._fd = fd
        self._prefix = prefix.encode()
        self._at_start = True

    def write(self, data: bytes) -> None:
        """Print."""
        _write_all(self._fd, self._prefixed(data) if self._prefix else data)

    def _prefixed(self, data: bytes) -> bytes:
        out = b""
        for line in re.findall(rb"[^\n]*\n|[^\n]+", data):
            text = line.lstrip(b"\r") if self._at_start else line     # some end a line with LF CR
            out += line[: len(line) - len(text)] + (self._prefix if self._at_start and text else b"") + text
            if text:
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
    """The master, `fd`, of a pseudo terminal; `name` is the other end. What nobody reads is lost once its buffer is full."""

    def __init__(self) -> None:
        self.fd, slave = os.openpty()
        tty.setraw(slave)
        self.name = os.ttyname(slave)
        self._slave = slave                 # kept open: reading a master whose other end is closed fails
        os.set_blocking(self.fd, False)

    def write(self, data: bytes) -> None:
        """To whoever has opened the other end."""
        with contextlib.suppress(BlockingIOError):
            os.write(self.fd, data)

    def close(self) -> None:
        """Close both ends."""
        os.close(self.fd)
        os.close(self._slave)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:             # whoever shares the terminal with us made it so
            select.select([], [fd], [])
