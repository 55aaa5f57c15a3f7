"""The mini-guest's console: the frontend of its xencons_interface page (xen/io/console.h), which carries a serial line."""
from collections.abc import Callable

from miniguest.ring._core import ByteRing
from miniguest.ring.console import input_ring, output_ring
from miniguest.ring.errors import RingError

BACKLOG: int = 1 << 20                  # bytes kept for a backend that does not read; what comes beyond is lost


class Consfront:
    """Output to, and input from, the console backend. receive(data): takes input; the number of bytes it took."""

    def __init__(self, page: memoryview, notify: Callable[[], None], receive: Callable[[bytes], int]) -> None:
        self._in: ByteRing = input_ring(page)
        self._out: ByteRing = output_ring(page)
        self._notify = notify
        self._receive = receive
        self._backlog = bytearray()
        self._input = b""
        self.lost = 0

    def send(self, data: bytes) -> None:
        """Print something."""
        room = BACKLOG - len(self._backlog)
        self.lost += max(0, len(data) - room)
        self._backlog += data[:room]
        self._push()

    def _push(self) -> None:
        if not self._backlog:
            return
        try:
            written = self._out.write(self._backlog)
        except RingError:               # our own page, broken by its other user: nobody will read it again
            self._backlog.clear()
            return
        if written:
            del self._backlog[:written]
            self._notify()

    @property
    def pending(self) -> int:
        """Bytes that have not been put into the ring."""
        return len(self._backlog)

    def on_event(self) -> None:
        """The backend made room, or has input."""
        self._push()
        self.feed()

    def feed(self) -> None:
        """Pass input on, as much as is taken."""
        while self._input or self._take():
            taken = self._receive(self._input)
            self._input = self._input[taken:]
            if self._input:
                return                  # the rest when there is room for it

    def _take(self) -> bool:
        """Take what is in the ring; whether there was something."""
        try:
            self._input = self._in.read()
        except RingError:               # as in _push: no input any more
            return False
        if self._input:
            self._notify()              # there is room again
        return bool(self._input)
