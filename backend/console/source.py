"""What is typed for a guest: read from a descriptor no faster than the guest takes it."""
import os
import stat
from collections.abc import Callable
from typing import Final

from miniguest.ring.loop import Loop

PIECE: Final = 4096


class Source:
    """Input from `fd`. put(data): gives the guest some; the number of bytes that it had room for.

    Starts with the first `feed`; stops at the end of the input, or when `fd` is nothing to read from.
    """

    def __init__(self, loop: Loop, fd: int, put: Callable[[bytes], int]) -> None:
        self._loop = loop
        self._fd = fd
        self._put = put
        self._waiting = b""                 # what the guest has had no room for: nothing more is read meanwhile
        mode = os.fstat(fd).st_mode
        self._always = stat.S_ISREG(mode)   # readable at any time, which epoll will not hear of
        self._open = self._always or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd)
        self._listening = False

    def feed(self) -> None:
        """The guest may have made room."""
        self._give()
        while self._open and self._always and not self._waiting:
            self._read()
        self._listen(self._open and not self._waiting)

    def _give(self) -> None:
        if self._waiting:
            self._waiting = self._waiting[self._put(self._waiting) :]

    def _read(self) -> None:
        try:
            self._waiting = os.read(self._fd, PIECE)
        except BlockingIOError:             # somebody else reads from it, too
            return
        except OSError:                     # a terminal that was hung up
            self._waiting = b""
        if not self._waiting:
            self._open = False
        self._give()

    def _readable(self) -> None:
        self._read()
        self.feed()

    def _listen(self, wanted: bool) -> None:
        if wanted and not self._listening:
            self._loop.on_fd(self._fd, self._readable)
        elif self._listening and not wanted:
            self._loop.off_fd(self._fd)
        self._listening = wanted

    def close(self) -> None:
        """Listen no longer."""
        self._open = False
        self._listen(False)
