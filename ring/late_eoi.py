"""Event channels whose peer may notify for nothing: each such event makes the next one wait longer.

What Linux calls a late end of interrupt with the spurious flag: the port stays masked for a while, so that a peer that
rings all the time costs less and less of this process, and others on its loop are served as before.
"""
from collections.abc import Callable
from typing import Final

from miniguest.ring.events import Port
from miniguest.ring.loop import Loop, Timer

FREE: Final = 16                        # events in a row without work that cost nothing: some are a matter of course
FIRST_DELAY: Final = 0.001              # seconds
LAST_DELAY: Final = 1.0


class LateEoi:
    """Calls `handler` when `port` is notified; it answers whether there was anything to do."""

    def __init__(self, loop: Loop, port: Port, handler: Callable[[], bool]) -> None:
        self._loop = loop
        self._port = port
        self._handler = handler
        self._spurious = 0
        self._timer: Timer | None = None
        loop.on_port(port, self._on_event)

    def _on_event(self) -> None:
        if self._handler():
            self._spurious = 0
            return
        self._spurious += 1
        if self._spurious > FREE and self._timer is None:
            self._loop.upcall.mask_port(self._port.number)
            doublings = min(self._spurious - FREE - 1, 30)
            self._timer = self._loop.call_later(min(FIRST_DELAY * (1 << doublings), LAST_DELAY), self._unmask)

    def _unmask(self) -> None:
        self._timer = None
        self._loop.upcall.unmask_port(self._port.number)

    def close(self) -> None:
        """Forget the port, before it is closed."""
        if self._timer:
            self._timer.cancel()
            self._unmask()
        self._loop.off_port(self._port)
