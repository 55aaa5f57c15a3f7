"""A device model under a stepped clock (miniguest.ring.guest_clock): it does everything while a request is answered, so
that the same requests at the same times get the same answers.

Timers are run when a request finds them due, instead of by the loop. An answer waits for the disk requests that it
started. What comes from outside, the serial line's input and frames, still comes when it comes.
"""
import heapq
import itertools
from collections.abc import Callable

from miniguest.frontend.devices.device import Disk, GuestMemory
from miniguest.ring.guest_clock import SECOND, GuestClock
from miniguest.ring.loop import Timer
from miniguest.ring.ram_notes import NoteWriter


class StepTimers:
    """In the place of the loop's timers: called by the guest's time."""

    def __init__(self, clock: GuestClock) -> None:
        self._clock = clock
        self._timers: list[tuple[int, int, Timer]] = []
        self._order = itertools.count()

    def call_later(self, seconds: float, fn: Callable[[], None]) -> Timer:
        """Call `fn` once `seconds` of the guest's time have passed."""
        due = self._clock.now() + round(seconds * SECOND)
        timer = Timer(due / SECOND, fn)
        heapq.heappush(self._timers, (due, next(self._order), timer))
        return timer

    def run(self) -> None:
        """Call what is due, in the order of time. What is then set anew and due at once waits for the next call."""
        now = self._clock.now()
        due = []
        while self._timers and self._timers[0][0] <= now:
            due.append(heapq.heappop(self._timers)[2])
        for timer in due:
            if timer.fn:                # a timer before it may have cancelled it
                timer.fn()

    def publish(self) -> None:
        """Tell the vCPU when to ask for `run`."""
        while self._timers and self._timers[0][2].fn is None:
            heapq.heappop(self._timers)
        self._clock.deadline = self._timers[0][0] if self._timers else None


class Outstanding:
    """How many disk requests are under way."""

    def __init__(self) -> None:
        self.count = 0


class CountedDisk:
    """A Disk whose requests are counted."""

    def __init__(self, disk: Disk, outstanding: Outstanding) -> None:
        self._disk = disk
        self._outstanding = outstanding

    @property
    def sectors(self) -> int:
        """Sectors of 512 bytes."""
        return self._disk.sectors

    @property
    def read_only(self) -> bool:
        """Whether writes fail."""
        return self._disk.read_only

    def read(self, sector: int, count: int, done: Callable[[bytes | None], None]) -> None:
        """As Disk.read."""
        self._outstanding.count += 1

        def answered(data: bytes | None) -> None:
            done(data)                  # which may begin another: so they are never none in between
            self._outstanding.count -= 1

        self._disk.read(sector, count, answered)

    def write(self, sector: int, data: bytes, done: Callable[[bool], None]) -> None:
        """As Disk.write."""
        self._disk.write(sector, data, self._counted(done))

    def flush(self, done: Callable[[bool], None]) -> None:
        """As Disk.flush."""
        self._disk.flush(self._counted(done))

    def _counted(self, done: Callable[[bool], None]) -> Callable[[bool], None]:
        self._outstanding.count += 1

        def answered(good: bool) -> None:
            done(good)
            self._outstanding.count -= 1

        return answered


class NotedMemory:
    """A guest's memory for DMA; what devices read of it is noted."""

    def __init__(self, memory: GuestMemory, notes: NoteWriter) -> None:
        self._memory = memory
        self._notes = notes

    def read(self, gpa: int, size: int) -> bytes:
        """As GuestMemory.read, and noted."""
        data = self._memory.read(gpa, size)
        self._notes.note(gpa, data)
        return data

    def write(self, gpa: int, data: bytes | memoryview) -> None:
        """As GuestMemory.write."""
        self._memory.write(gpa, data)
