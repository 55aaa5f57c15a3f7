"""What a vCPU engine is: it runs guest code, hands each exit to one handler, and knows no device.

The handler answers an exit before the guest goes on. KVM returns from KVM_RUN, Unicorn calls from inside a hook; the
interface hides which.
"""

from enum import Enum, auto
from typing import Protocol


class Stop(Enum):
    """Why `run` returned."""

    HALT = auto()  # HLT; the instruction pointer is behind it
    KICK = auto()  # the upcall byte is set, or `kick` was called
    TIMER = auto()  # the deadline passed
    WINDOW = auto()  # an interrupt was wanted and the guest can take it now
    CRASH = auto()  # triple fault, or something the engine can't do; `crash` says what


class ExitHandler(Protocol):
    """Answers exits. Addresses are ports or guest-physical; sizes bytes; times are the handler's business."""

    def pio_in(self, port: int, size: int) -> int:
        """IN: the value, `size` bytes wide."""

    def pio_out(self, port: int, size: int, value: int) -> None:
        """OUT."""

    def pio_in_string(self, port: int, size: int, count: int, gpa: int) -> bool:
        """REP INS: `count` elements into RAM at `gpa`, upwards. False: take them one by one."""

    def pio_out_string(self, port: int, size: int, count: int, gpa: int) -> bool:
        """REP OUTS: `count` elements from RAM at `gpa`, upwards. False: give them one by one."""

    def mmio_read(self, address: int, size: int) -> int:
        """A load from where there is no RAM."""

    def mmio_write(self, address: int, size: int, value: int) -> None:
        """A store to where there is no RAM."""

    def cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int] | None:
        """CPUID: EAX, EBX, ECX, EDX, or None for the engine's own answer."""

    def msr(self, index: int, write: bool, value: int) -> None:
        """RDMSR or WRMSR, told before it is executed; `value` is what WRMSR writes."""


class PathHandler(ExitHandler, Protocol):
    """Answers what the exit path (miniguest.ring._core.ExitPath) leaves to do, too."""

    def answer(self) -> int:
        """The answer of the exit that the exit path has started (miniguest.ring._core.EXIT_STARTED)."""

    def look(self) -> None:
        """The exit path answered an exit, and something else is to be taken up (EXIT_NEWS)."""


class Engine(Protocol):
    """A vCPU. RAM is a shared mapping given at construction."""

    name: str
    crash: str  # what happened, after Stop.CRASH

    def reset(self) -> None:
        """The processor's state after RESET; RAM stays."""

    def run(self, deadline_ns: int) -> Stop:
        """Run guest code until something stops it. deadline_ns: CLOCK_MONOTONIC, 0 for none."""

    def want_interrupt(self, wanted: bool) -> None:
        """Stop with WINDOW as soon as the guest can take an interrupt; callable from inside an exit."""

    def interruptible(self) -> bool:
        """Whether the guest can take an interrupt now. Between runs."""

    def interrupt(self, vector: int) -> None:
        """Deliver an external interrupt. Between runs, when `interruptible`."""

    def kick(self) -> None:
        """Stop with KICK soon; callable from inside an exit."""

    def forget_code(self, gpa: int, size: int) -> None:
        """RAM was written behind the engine's back: drop what was derived from it."""

    def forget_all_code(self) -> None:
        """The same for all of RAM."""

    def show_memory(self, pieces: list[tuple[int, int, int]]) -> None:
        """From the next run on the guest finds read-only memory at these places, and nowhere else but in RAM and firmware:
        (guest-physical address, offset in the shared mapping, bytes), whole pages. Callable from inside an exit."""

    def close(self) -> None:
        """Free it."""
