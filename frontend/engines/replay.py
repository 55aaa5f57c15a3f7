"""The replay engine: no processor at all. It plays the exits of a trace to the devices again, and checks each answer.

What a device reads of RAM is put there before its exit is played; what devices write to RAM they write again. The
guest's clock is set to the times of the trace, and interrupts are taken where they were taken.
"""
import mmap
from collections import deque
from collections.abc import Iterator
from typing import Final, TypeVar

from miniguest.frontend.engines.engine import ExitHandler, Stop
from miniguest.frontend.engines.trace import (
    Difference,
    End,
    Event,
    Exit,
    Interrupt,
    Ready,
    RecordingEnded,
    Reset,
    StopKind,
    Stopped,
    TraceReader,
)
from miniguest.frontend.pace import Wait
from miniguest.ring.exits import ExitKind

STOPS: Final = {
    StopKind.HALT: Stop.HALT, StopKind.KICK: Stop.KICK, StopKind.TIMER: Stop.TIMER, StopKind.WINDOW: Stop.WINDOW,
    StopKind.CRASH: Stop.CRASH,
}
SIZES: Final = (1, 2, 4, 8)             # bytes of an element
SIZELESS: Final = (ExitKind.CPUID, ExitKind.MSR)
FROM_OUTSIDE: Final = ("TIMEOUT", "STOPPED")      # ends that no guest makes
_E = TypeVar("_E", Exit, Stopped, Ready, Interrupt, Reset)
SHOWN: Final = 16                       # bytes of RAM in a message


class Tape:
    """A trace as it is played: where we are in it, and its times."""

    def __init__(self, reader: TraceReader) -> None:
        self.reader = reader
        self._events: Iterator[Event] = iter(reader)
        self._next: Event | None = None
        self._times: deque[int] = deque()
        self._now = 0
        self.played = 0

    def peek(self) -> Event:
        """The event that is next. RecordingEnded when the run was stopped there."""
        if self._next is None:
            self._next = next(self._events)     # iteration ends with End, which stays
            self._times.extend(self._next.times)
        return self._next

    def take(self, kind: type[_E], what: str) -> _E:
        """Go past the next event, which must be of this kind; `what`: what happened, for the message when it is not."""
        event = self.peek()
        if isinstance(event, End):
            self._at_end(event, what)
        if self._times:
            raise self.difference(f"the clock was set {len(self._times)} times more", what)
        if not isinstance(event, kind):
            raise self.difference(_say(event), what)
        self._next = None
        self.played += 1
        return event

    def time(self) -> int:
        """The next time of the guest's clock."""
        event = self.peek()
        if not self._times:
            if isinstance(event, End):
                self._at_end(event, "time passed")
            raise self.difference(_say(event), "time passed")
        self._now += self._times.popleft()
        return self._now

    def _at_end(self, event: End, what: str) -> None:
        if event.how in FROM_OUTSIDE:
            raise RecordingEnded(event.how)
        raise self.difference(_say(event), what)

    def difference(self, recorded: str, here: str) -> Difference:
        """An error that says where the runs part."""
        return Difference(f"event {self.played}: recorded: {recorded}; replayed: {here}")


def _say(event: Event) -> str:
    """An event in words."""
    match event:
        case Exit():
            return str(event)
        case Stopped(stop=stop):
            return f"the engine stopped: {stop.name.lower()}"
        case Ready(answer=answer):
            return f"the guest could {'' if answer else 'not '}take an interrupt"
        case Interrupt(vector=vector):
            return f"interrupt {vector:#x}"
        case Reset():
            return "reset"
        case End(how=how):
            return f"the end, {how.lower()}"


class ReplayPace:
    """The times of a trace."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape

    def at_exit(self) -> int:
        """As Pace."""
        return self._tape.time()

    def at_stop(self) -> int:
        """As Pace."""
        return self._tape.time()

    def deadline(self, due: int) -> int:
        """As Pace: the trace says when the engine stopped."""
        return 0

    def idle(self, due: int, wait: Wait) -> None:
        """As Pace: nobody sleeps."""

    def end(self, how: str) -> None:
        """As Pace: the trace must end here, too."""
        event = self._tape.peek()
        if not isinstance(event, End) or event.how != how:
            raise self._tape.difference(_say(event), f"the end, {how.lower()}")


class ReplayEngine:
    """An Engine that plays a trace. ram: the guest's shared mapping, of which the first `ram_size` bytes are RAM."""

    name = "replay"

    def __init__(self, tape: Tape, ram: mmap.mmap, ram_size: int, handler: ExitHandler) -> None:
        self.crash = ""
        self._tape = tape
        self._ram = ram
        self._ram_size = ram_size
        self._handler = handler

    def run(self, deadline: int) -> Stop:
        """Play exits up to where the recorded engine stopped. Difference at the first answer that is another one."""
        while isinstance(event := self._tape.peek(), Exit):
            self._play(event)
        event = self._tape.take(Stopped, "the engine ran")
        self.crash = event.crash
        return STOPS[event.stop]

    def _play(self, event: Exit) -> None:
        # Backwards: what a device wrote and read again during this exit is what it will write again.
        for gpa, data in reversed(event.reads):
            self._put(gpa, data)
        if event.size not in SIZES and event.kind not in SIZELESS:
            raise self._tape.difference(str(event), "no such exit can be played")
        if event.count:
            self._play_string(event)
        else:
            expected = event.value if event.kind in (ExitKind.PIO_IN, ExitKind.MMIO_READ) else event.answer
            got = self._ask(event)
            if got != expected:
                raise self._tape.difference(f"{event} gave {_hex(expected)}", f"it gave {_hex(got)}")
        self._tape.take(Exit, "an exit")

    def _ask(self, event: Exit) -> int | tuple[int, int, int, int] | None:
        handler = self._handler
        match event.kind:
            case ExitKind.PIO_IN:
                return handler.pio_in(event.address, event.size)
            case ExitKind.PIO_OUT:
                handler.pio_out(event.address, event.size, event.value)
            case ExitKind.MMIO_READ:
                return handler.mmio_read(event.address, event.size)
            case ExitKind.MMIO_WRITE:
                handler.mmio_write(event.address, event.size, event.value)
            case ExitKind.CPUID:
                return handler.cpuid(event.address, event.value)
            case ExitKind.MSR:
                handler.msr(event.address, bool(event.size), event.value)
            case _:
                raise self._tape.difference(str(event), "no such exit can be played")
        return None

    def _play_string(self, event: Exit) -> None:
        reading = event.kind is ExitKind.PIO_IN
        if not reading:
            self._put(event.gpa, event.data)
        move = self._handler.pio_in_string if reading else self._handler.pio_out_string
        if not move(event.address, event.size, event.count, event.gpa):
            raise self._tape.difference(str(event), "not taken as a string")
        got = self._ram[event.gpa : event.gpa + len(event.data)]
        if reading and got != event.data:
            at = next((index for index, pair in enumerate(zip(event.data, got, strict=False)) if pair[0] != pair[1]), len(got))
            raise self._tape.difference(
                f"{event} gave {event.data[at : at + SHOWN].hex()} at byte {at}", f"it gave {got[at : at + SHOWN].hex()}"
            )

    def _put(self, gpa: int, data: bytes) -> None:
        room = max(0, self._ram_size - gpa)
        self._ram[gpa : gpa + min(len(data), room)] = data[:room]

    def interruptible(self) -> bool:
        """As Engine: what the recorded engine said."""
        return self._tape.take(Ready, "an interrupt is to be taken, or the guest halted").answer

    def interrupt(self, vector: int) -> None:
        """As Engine: the recorded guest must have taken the same one here."""
        event = self._tape.peek()
        if isinstance(event, Interrupt) and event.vector != vector:
            raise self._tape.difference(_say(event), f"interrupt {vector:#x}")
        self._tape.take(Interrupt, f"interrupt {vector:#x}")

    def reset(self) -> None:
        """As Engine."""
        self._tape.take(Reset, "reset")

    def want_interrupt(self, wanted: bool) -> None:
        """Nothing: the trace says where interrupts were taken."""

    def kick(self) -> None:
        """Nothing: the trace says where the engine stopped."""

    def forget_code(self, gpa: int, size: int) -> None:
        """Nothing: there is no code."""

    def forget_all_code(self) -> None:
        """Nothing."""

    def show_memory(self, pieces: list[tuple[int, int, int]]) -> None:
        """Nothing: nobody looks at it."""

    def close(self) -> None:
        """As Engine."""
        self._tape.reader.close()


def _hex(value: int | tuple[int, ...] | None) -> str:
    if isinstance(value, tuple):
        return " ".join(f"{item:#x}" for item in value)
    return "nothing" if value is None else f"{value:#x}"
