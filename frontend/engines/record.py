"""Recording: wrappers around an engine, its exit handler and its pace that write down all that passes through them."""
import mmap
from collections.abc import Callable
from typing import Final

from miniguest.frontend.engines.engine import Engine, ExitHandler, Stop
from miniguest.frontend.engines.trace import End, Event, Exit, Interrupt, Ready, Reset, StopKind, Stopped, TraceWriter
from miniguest.frontend.pace import Pace, Wait
from miniguest.ring.exits import ExitKind
from miniguest.ring.ram_notes import Noted

STOPS: Final = {
    Stop.HALT: StopKind.HALT, Stop.KICK: StopKind.KICK, Stop.TIMER: StopKind.TIMER, Stop.WINDOW: StopKind.WINDOW,
    Stop.CRASH: StopKind.CRASH,
}


class Recorder:
    """Puts events into a trace, each with the times that came since the one before.

    stopped: whether the guest was told from outside to end. What it does then is no part of the trace: nobody answers it.
    """

    def __init__(self, writer: TraceWriter, stopped: Callable[[], bool]) -> None:
        self._writer = writer
        self._stopped = stopped
        self._times: list[int] = []
        self._last = 0

    def time(self, now: int) -> int:
        """The guest's clock was set to this."""
        self._times.append(now - self._last)
        self._last = now
        return now

    def times(self) -> tuple[int, ...]:
        """For the next event."""
        taken = tuple(self._times)
        self._times.clear()
        return taken

    def write(self, event: Event) -> None:
        """Something happened."""
        if not self._stopped():
            self._writer.write(event)

    def end(self, how: str) -> None:
        """The guest ended: the trace is whole."""
        self._writer.write(End(self.times(), how, self._writer.events))

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()


class RecordingPace:
    """A Pace whose times are written down."""

    def __init__(self, pace: Pace, recorder: Recorder) -> None:
        self._pace = pace
        self._recorder = recorder

    def at_exit(self) -> int:
        """As Pace."""
        return self._recorder.time(self._pace.at_exit())

    def at_stop(self) -> int:
        """As Pace."""
        return self._recorder.time(self._pace.at_stop())

    def deadline(self, due: int) -> int:
        """As Pace."""
        return self._pace.deadline(due)

    def idle(self, due: int, wait: Wait) -> None:
        """As Pace."""
        self._pace.idle(due, wait)

    def end(self, how: str) -> None:
        """As Pace."""
        self._pace.end(how)
        self._recorder.end(how)


class RecordingHandler:
    """An ExitHandler that writes down each exit once it is answered. ram: the guest's; reads: what devices read of it."""

    def __init__(
        self, handler: ExitHandler, recorder: Recorder, ram: mmap.mmap, reads: Callable[[], list[Noted]]
    ) -> None:
        self._handler = handler
        self._recorder = recorder
        self._ram = ram
        self._reads = reads

    def _exit(
        self, kind: ExitKind, address: int, size: int, value: int = 0, count: int = 0, gpa: int = 0, data: bytes = b"",
        answer: tuple[int, int, int, int] | None = None,
    ) -> None:
        own = (gpa, data)               # a string that went out was read by the bus, too
        reads = tuple(note for note in self._reads() if note != own)
        self._recorder.write(Exit(self._recorder.times(), kind, address, size, value, count, gpa, data, reads, answer))

    def pio_in(self, port: int, size: int) -> int:
        """As ExitHandler."""
        value = self._handler.pio_in(port, size)
        self._exit(ExitKind.PIO_IN, port, size, value)
        return value

    def pio_out(self, port: int, size: int, value: int) -> None:
        """As ExitHandler."""
        self._handler.pio_out(port, size, value)
        self._exit(ExitKind.PIO_OUT, port, size, value)

    def pio_in_string(self, port: int, size: int, count: int, gpa: int) -> bool:
        """As ExitHandler. What is refused comes again, element by element."""
        taken = self._handler.pio_in_string(port, size, count, gpa)
        if taken:
            self._exit(ExitKind.PIO_IN, port, size, 0, count, gpa, self._ram[gpa : gpa + count * size])
        return taken

    def pio_out_string(self, port: int, size: int, count: int, gpa: int) -> bool:
        """As ExitHandler."""
        data = self._ram[gpa : gpa + count * size]
        taken = self._handler.pio_out_string(port, size, count, gpa)
        if taken:
            self._exit(ExitKind.PIO_OUT, port, size, 0, count, gpa, data)
        return taken

    def mmio_read(self, address: int, size: int) -> int:
        """As ExitHandler."""
        value = self._handler.mmio_read(address, size)
        self._exit(ExitKind.MMIO_READ, address, size, value)
        return value

    def mmio_write(self, address: int, size: int, value: int) -> None:
        """As ExitHandler."""
        self._handler.mmio_write(address, size, value)
        self._exit(ExitKind.MMIO_WRITE, address, size, value)

    def cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int] | None:
        """As ExitHandler."""
        answer = self._handler.cpuid(leaf, subleaf)
        self._exit(ExitKind.CPUID, leaf, 0, subleaf, answer=answer)
        return answer

    def msr(self, index: int, write: bool, value: int) -> None:
        """As ExitHandler."""
        self._handler.msr(index, write, value)
        self._exit(ExitKind.MSR, index, int(write), value)


class RecordingEngine:
    """An Engine whose stops and interrupts are written down. The engine's handler is to be a RecordingHandler."""

    def __init__(self, engine: Engine, recorder: Recorder) -> None:
        self._engine = engine
        self._recorder = recorder
        self.name = engine.name
        self.crash = ""
        self.want_interrupt = engine.want_interrupt
        self.kick = engine.kick
        self.forget_code = engine.forget_code
        self.forget_all_code = engine.forget_all_code
        self.show_memory = engine.show_memory

    def reset(self) -> None:
        """As Engine."""
        self._engine.reset()
        self._recorder.write(Reset(self._recorder.times()))

    def run(self, deadline: int) -> Stop:
        """As Engine."""
        stop = self._engine.run(deadline)
        self.crash = self._engine.crash
        self._recorder.write(Stopped(self._recorder.times(), STOPS[stop], self.crash))
        return stop

    def interruptible(self) -> bool:
        """As Engine."""
        answer = self._engine.interruptible()
        self._recorder.write(Ready(self._recorder.times(), answer))
        return answer

    def interrupt(self, vector: int) -> None:
        """As Engine."""
        self._engine.interrupt(vector)
        self._recorder.write(Interrupt(self._recorder.times(), vector))

    def close(self) -> None:
        """As Engine, and the trace is finished."""
        self._recorder.close()
        self._engine.close()
