"""A link: the compiled switch, driven by the loop, and what hangs on it besides vifs."""
import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Protocol

from miniguest.backend.netback.links import LinkConfig, tap_error
from miniguest.backend.netback.pcap import whole_packets
from miniguest.backend.netback.replay import Replay
from miniguest.backend.netback.stream import Stream
from miniguest.backend.netback.tap import Tap
from miniguest.ring import _core
from miniguest.ring.loop import Loop, Timer

log = logging.getLogger(__name__)
Clock = Callable[[], int]
FOREVER: Final = -1


class Attachment(Protocol):
    """What keeps an uplink going beside the compiled path."""

    def attend(self) -> None:
        """The switch has run: see what the uplink needs now."""

    def close(self) -> None: ...


class Link:
    """One link of the topology. OSError or LinkError when its uplink cannot be had.

    loop: calls back when there is something to do. counters: statistics.link_counters. successor: another netback had
    this link before, and files go on where it stopped. clock: ns.
    """

    def __init__(
        self, name: str, config: LinkConfig, loop: Loop, counters: memoryview, successor: bool = False,
        clock: Clock = _core.now_ns,
    ) -> None:
        self.name = name
        self._successor = successor
        self.mtu = config.mtu
        self._loop = loop
        self._clock = clock
        self._timer: Timer | None = None
        self._due = FOREVER
        self._scheduled = False
        self._failed: dict[_core.Vif, Callable[[str], None]] = {}
        self._attachment: Attachment | None = None
        with ExitStack() as undo:
            capture = self._writer(config.capture, undo) if config.capture else None
            self.uplink = self._make_uplink(config, undo)
            self.switch = _core.Switch(self.uplink, capture, counters)
            self._undo = undo.pop_all()
        if self._attachment:
            self._undo.callback(self._attachment.close)
            self._attachment.attend()

    # -- what hangs on it
    def _make_uplink(self, config: LinkConfig, undo: ExitStack) -> "_core.Uplink | None":
        if config.kind == "tap":
            return self._make_tap(config, undo)
        if config.kind == "socket":
            uplink = _core.Uplink(_core.UPLINK_STREAM, -1, config.mtu)
            self._attachment = Stream(self.name, config, uplink, self._loop, self.uplink_ready)
            return uplink
        if config.kind == "null":
            return _core.Uplink(_core.UPLINK_NULL, -1, config.mtu)
        if config.kind != "pcap":
            return None
        # Without a file to write, frames that go there are only counted.
        writer = self._writer(config.file, undo) if config.file else None
        uplink = _core.Uplink(_core.UPLINK_PCAP if writer else _core.UPLINK_NULL, -1, config.mtu, writer)
        if config.replay:
            self._attachment = Replay(config.replay, uplink, self._loop, self._clock, self.uplink_ready)
        return uplink

    def _make_tap(self, config: LinkConfig, undo: ExitStack) -> _core.Uplink:
        try:
            tap = Tap(config.device or "", config.address, config.mtu)
        except OSError as error:
            raise tap_error(config, error) from None
        undo.callback(tap.close)
        uplink = _core.Uplink(_core.UPLINK_TAP, tap.fd, config.mtu)
        self._attachment = Watched(self.name, uplink, self._loop, self.uplink_ready)
        return uplink

    def _writer(self, path: Path, undo: ExitStack) -> _core.PcapWriter:
        """A capture file: a new one, or what a predecessor left, without the record it was killed in."""
        size = whole_packets(path) if self._successor else 0
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        undo.callback(os.close, fd)
        os.ftruncate(fd, size)
        return _core.PcapWriter(fd, size == 0)

    # -- vifs
    def attach(self, vif: _core.Vif, failed: Callable[[str], None]) -> None:
        """A vif joins. failed: called with the reason, when its frontend breaks a rule; it is to be detached then."""
        self.switch.attach(vif)
        self._failed[vif] = failed
        if isinstance(self._attachment, Replay):
            self._attachment.start()
        self.wake()

    def detach(self, vif: _core.Vif) -> None:
        """A vif leaves."""
        self.switch.detach(vif)
        self._failed.pop(vif, None)
        self.wake()

    def uplink_ready(self) -> None:
        """The uplink has something for us, or room."""
        self.switch.uplink_event()
        self.wake()

    def wake(self) -> None:
        """Something happened: run the switch in this turn of the loop, once whatever else happens in it."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._run)

    def _run(self) -> None:
        self._scheduled = False
        if self.switch.run(self._clock()):
            self.wake()
        if self.switch.trouble:
            for vif in self.switch.failed():
                self._failed[vif](vif.failure or "")
        if self._attachment:
            self._attachment.attend()
        due = self.switch.deadline
        if due != FOREVER and (self._timer is None or due < self._due):
            self._plan(due)

    def _plan(self, due: int) -> None:
        """Be called when the switch wants to run even if nothing happens.

        A deadline that moves away, as it does all the time under load, leaves the timer as it is: the switch is asked too
        early then, which does no harm, and says how long it is still.
        """
        if self._timer:
            self._timer.cancel()
        self._due = due
        self._timer = self._loop.call_later(max(0, due - self._clock()) / 1e9, self._timed_out)

    def _timed_out(self) -> None:
        self._timer = None
        self.wake()

    def close(self) -> None:
        """Let go of the uplink. Frames that wait go with it."""
        if self._timer:
            self._timer.cancel()
        self._undo.close()


class Watched:
    """Looks at an uplink's descriptor while the uplink wants frames, or has some that its peer did not take."""

    def __init__(self, name: str, uplink: _core.Uplink, loop: Loop, ready: Callable[[], None]) -> None:
        self._name = name
        self._uplink = uplink
        self._loop = loop
        self._ready = ready
        self._watched: tuple[int, bool] | None = None

    def attend(self) -> None:
        """Watch for what can be used now: a frame that nobody takes yet must not wake us again and again."""
        uplink = self._uplink
        if uplink.broken and uplink.fd >= 0:
            log.error("link %s: down: %s", self._name, os.strerror(uplink.error))
            uplink.attach(-1)
        wanted = None if uplink.fd < 0 or uplink.blocked else (uplink.fd, uplink.unsent > 0)
        if wanted == self._watched:
            return
        if self._watched and (wanted is None or wanted[0] != self._watched[0]):
            self._loop.off_fd(self._watched[0])
        if wanted:
            self._loop.on_fd(wanted[0], self._ready, self._ready if wanted[1] else None)
        self._watched = wanted

    def close(self) -> None:
        """Look no longer."""
        if self._watched:
            self._loop.off_fd(self._watched[0])
            self._watched = None
