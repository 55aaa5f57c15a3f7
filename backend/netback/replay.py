"""A capture file as a source of frames, at the pace of its timestamps."""
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from miniguest.backend.netback.pcap import PcapError, packets
from miniguest.ring import _core
from miniguest.ring.loop import Loop, Timer

log = logging.getLogger(__name__)


class Replay:
    """Gives an uplink the packets of a file, the first one when started. A frame that must wait delays the others."""

    def __init__(
        self, path: Path, uplink: _core.Uplink, loop: Loop, clock: Callable[[], int], ready: Callable[[], None]
    ) -> None:
        self._uplink = uplink
        self._loop = loop
        self._clock = clock
        self._ready = ready
        self._timer: Timer | None = None
        self._packets: Iterator[tuple[int, bytes]] = packets(path)
        self._next: tuple[int, bytes] | None = None
        self._offset: int | None = None         # from the file's time to ours

    def start(self) -> None:
        """Begin, unless that was done before."""
        if self._offset is None:
            self._advance()
            self._offset = self._clock() - self._next[0] if self._next else 0
            self.attend()

    def attend(self) -> None:
        """Give the next packet if it is time, or come back when it is."""
        if self._timer or self._next is None or self._offset is None:
            return
        wait = self._next[0] + self._offset - self._clock()
        if wait > 0:
            self._timer = self._loop.call_later(wait / 1e9, self._timed_out)
        elif self._uplink.give(self._next[1]):
            self._advance()
            self._ready()

    def _timed_out(self) -> None:
        self._timer = None
        self.attend()

    def _advance(self) -> None:
        try:
            self._next = next(self._packets, None)
        except PcapError as error:              # it was whole when it was checked
            self._next = None
            log.error("%s", error)

    def close(self) -> None:
        """Stop."""
        if self._timer:
            self._timer.cancel()
        self._next = None
