"""Whether KVM is any good on this machine: a working /dev/kvm is not enough, for some emulate most of an HVM guest.

A small guest goes from reset to protected mode, returns from an interrupt, uses the x87 and SSE, and counts; a process
of its own runs it, since nobody knows what a broken KVM does.
"""
import mmap
import os
import select
import signal
from collections.abc import Callable
from contextlib import suppress
from ctypes import addressof, c_char
from functools import cache
from typing import Final

from miniguest.frontend.engines.engine import Stop
from miniguest.frontend.engines.kvm import KvmEngine
from miniguest.frontend.engines.kvm_machine import DEVICE
from miniguest.ring import _core

SECONDS: Final = 3.0                    # for all of it
STEPS: Final = (
    "the first instruction", "protected mode", "a 32-bit IRET", "an x87 instruction", "an SSE instruction", "the count",
)
COUNTING: Final = 5                     # the step that is a loop of 2 million instructions
COUNT_NS: Final = 100_000_000           # for these: 20 million instructions a second, a sixth of what Unicorn does
STEP_NS: Final = 1_000_000_000          # for each other step
PORT: Final = 0x80                      # where the guest says how far it came
PROBE_RAM: Final = 2 << 20
FIRMWARE: Final = 0x10000
CODE_AT: Final = 0xFE00
FAR_JUMP: Final = bytes((0xEA, CODE_AT & 0xFF, CODE_AT >> 8, 0, 0xF0))     # at the reset vector
# Assembled from tests/kvmprobe.s, which a test holds against it.
CODE: Final = bytes.fromhex(
    "b001e680fa2e660f0116a0fe0f20c00c0124f30f22c066ea1efe0f00080066b810008ed88ed0bc00700000b002e6809c6a086838fe0f00cfb003e680"
    "dbe3d9e8d8c0db1d00600000833d00600000027533b004e6800f20e00d000600000f22e0660f6ec4660ffec0660f7ec181f900e000007510b005e680"
    "b940420f004975fdb006e680f4ebfd900000000000000000ffff0000009acf00ffff00000092cf00170088fe0f00"
)


@cache
def reason_against() -> str:
    """Why KVM is not to be used here, "" when it works. Asked once in a process's life."""
    if not DEVICE.exists():
        return f"there is no {DEVICE}"
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return f"{DEVICE} may not be opened"
    return _ask_child()


def _ask_child() -> str:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(writer)
    os.close(writer)
    try:
        ready, _, _ = select.select([reader], [], [], SECONDS)
        said = os.read(reader, 1024).decode(errors="replace") if ready else f"the probe does not end in {SECONDS:g} s"
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        os.close(reader)
    if not said:
        return f"the probe ended with status {os.waitstatus_to_exitcode(status)}"
    return "" if said == "works" else said


def _child(writer: int) -> None:
    """The child's life. Never returns."""
    try:
        os.write(writer, (probe() or "works").encode())
    except OSError as error:
        os.write(writer, f"{error.strerror}".encode())
    finally:
        os._exit(0)


class _Progress:
    """The exit handler: notes how far the guest came, and stops it there, so that each step has a time of its own."""

    def __init__(self) -> None:
        self.step = 0
        self.kick: Callable[[], None] = lambda: None

    def pio_in(self, port: int, size: int) -> int:
        return (1 << 8 * size) - 1

    def pio_out(self, port: int, size: int, value: int) -> None:
        if port == PORT:
            self.step = value
            self.kick()

    def pio_in_string(self, port: int, size: int, count: int, gpa: int) -> bool:
        return False

    def pio_out_string(self, port: int, size: int, count: int, gpa: int) -> bool:
        return False

    def mmio_read(self, address: int, size: int) -> int:
        return (1 << 8 * size) - 1

    def mmio_write(self, address: int, size: int, value: int) -> None:
        pass

    def cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int] | None:
        return None

    def msr(self, index: int, write: bool, value: int) -> None:
        pass


def probe() -> str:
    """Run the guest in this process: what does not work, "" when all does. OSError when KVM refuses something."""
    ram = mmap.mmap(-1, PROBE_RAM + mmap.PAGESIZE)
    firmware = bytearray(FIRMWARE)
    firmware[CODE_AT : CODE_AT + len(CODE)] = CODE
    firmware[0xFFF0 : 0xFFF0 + len(FAR_JUMP)] = FAR_JUMP
    progress = _Progress()
    upcall = addressof(c_char.from_buffer(ram, PROBE_RAM))
    engine = KvmEngine(ram, PROBE_RAM, bytes(firmware), progress, upcall)
    progress.kick = engine.kick
    try:
        return _result(engine, progress)
    finally:
        engine.close()


def _result(engine: KvmEngine, progress: _Progress) -> str:
    before = -1
    stop = Stop.KICK
    while stop is Stop.KICK and progress.step != before:
        before = progress.step
        stop = engine.run(_core.now_ns() + (COUNT_NS if before == COUNTING else STEP_NS))
    if progress.step == len(STEPS) and stop is Stop.HALT:
        return ""
    failed = STEPS[min(progress.step, len(STEPS) - 1)]
    if stop is Stop.TIMER and progress.step == COUNTING:
        return f"it does less than {2_000_000_000 // COUNT_NS} million instructions a second"
    return f"{failed} fails ({engine.crash or stop.name.lower()})"
