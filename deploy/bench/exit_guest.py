"""A real guest that times its own exits with RDTSC, and stands still between windows."""
import os
import signal
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy
import psutil
from numpy.typing import NDArray

from miniguest.deploy import topology
from miniguest.deploy.bench.machine import cores
from miniguest.deploy.runtime import runtime_directory
from miniguest.deploy.supervisor import Supervisor
from miniguest.ring.errors import MiniguestError
from miniguest.ring.memory import Memory, domain_directory

# A boot sector. Again and again it waits for as many ticks as GAP says, reads the POST port (or, when SECTOR is not 0, lets
# the IDE disk read a sector and polls its status until DRQ), and puts the ticks that this took into TIMES.
PROGRAM: Final = bytes.fromhex(
    "fa fc 31c0 8ed8 8ed0 bcf06f"               # cli; cld; ax = ds = ss = 0; sp = 0x6ff0
    "b80010 8ec0 31ff 6631ed"                   # es:di = TIMES; ebp = 0: how many
    "0f31 6689c1"                               # again: rdtsc; ecx = eax
    "0f31 6629c8 663b061070 72f4"               # 1: rdtsc; eax -= ecx; cmp eax, [GAP]; jb 1b
    "803e147000 750e"                           # cmp byte [SECTOR], 0; jne sector
    "0f31 6689c3 e480 0f31 e83e00 ebda"         # rdtsc; ebx = eax; in al, 0x80; rdtsc; call store; jmp again
    "baf201 b001 ee 30c0 42ee 42ee 42ee 42 b0e0 ee"     # sector: one sector, LBA 0, the first drive
    "0f31 6689c3 baf701 b020 ee"                # rdtsc; ebx = eax; dx = 0x1f7; al = READ SECTORS; out dx, al
    "ec a808 74fb 0f31 e81500"                  # 2: in al, dx; test al, DRQ; jz 2b; rdtsc; call store
    "06 57 b80020 8ec0 31ff b90001 baf001 f36d 5f 07"   # rep insw, 256 words to 0x20000
    "eb9e"                                      # jmp again
    "66a30470 6689160870"                       # store: [NOW] = edx:eax
    "6629d8 66ab 6645 66892e0070 c3"            # eax -= ebx; stosd; inc ebp; [COUNT] = ebp; ret
)
COUNT: Final = 0x7000                   # u32, and where the rest is in the guest's memory
NOW: Final = 0x7004                     # u64
GAP: Final = 0x7010                     # u32
SECTOR: Final = 0x7014                  # u8
TIMES: Final = 0x10000                  # u32 each
ROOM: Final = 16384                     # of them, the next after the last is the first
BOOT_SECONDS: Final = 30.0
FEW: Final = 5                          # exits that make a window
COLD: Final = 0.1                       # of a window's times are of the time when caches were not warm

Times = NDArray[Any]


class ExitGuestError(MiniguestError):
    """The guest did not do what its program says."""


class ExitGuest:
    """The guest; it runs only while it is measured."""

    def __init__(self, runtime: Path) -> None:
        self._memory = Memory(domain_directory(runtime, 1) / "memory")
        self._times = numpy.frombuffer(self._memory.view[TIMES : TIMES + 4 * ROOM], "<u4")
        self._wait_for(1)               # by then each process has its name
        processes = {process.name(): process for process in psutil.Process().children()}
        self._vcpu = processes["hvm0-vcpu0"].pid
        for pid, core in zip((self._vcpu, processes["hvm0-dm"].pid), cores(), strict=True):
            os.sched_setaffinity(pid, {core})
        self._hertz = self._calibrate()
        os.kill(self._vcpu, signal.SIGSTOP)

    def window(self, seconds: float, gap: float = 0.0, sector: bool = False) -> Times:
        """Microseconds of each exit (sector: of each sector) of a window, with `gap` seconds before each."""
        self._memory.write(GAP, struct.pack("<IB", int(gap * self._hertz), sector))
        before = self._count()
        os.kill(self._vcpu, signal.SIGCONT)
        time.sleep(seconds)
        self._wait_for(before + FEW)            # on a machine where others have the cores the window is longer
        os.kill(self._vcpu, signal.SIGSTOP)
        end = self._count()
        # The first is one that the last window began.
        wanted = range(max(before + 1 + int((end - before) * COLD), end - ROOM + 1), end)
        times: Times = self._times[numpy.array(wanted) % ROOM] / self._hertz * 1e6
        return times

    def resume(self) -> None:
        """Let it run: who stands still does not end either."""
        os.kill(self._vcpu, signal.SIGCONT)

    def _count(self) -> int:
        return int.from_bytes(self._memory.read(COUNT, 4), "little")

    def _now(self) -> tuple[int, float]:
        """The guest's ticks, taken when it stored some, and our seconds at that moment."""
        self._wait_for(self._count() + 1)
        return int.from_bytes(self._memory.read(NOW, 8), "little"), time.perf_counter()

    def _calibrate(self) -> float:
        """Ticks a second."""
        ticks, seconds = self._now()
        time.sleep(0.2)
        later, then = self._now()
        return (later - ticks) / (then - seconds)

    def _wait_for(self, count: int) -> None:
        deadline = time.monotonic() + BOOT_SECONDS
        while self._count() < count:
            time.sleep(0)                       # the guest may want this core
            if time.monotonic() > deadline:
                raise ExitGuestError(f"the guest has done {self._count()} exits in {BOOT_SECONDS:g} s")


@contextmanager
def exit_guest(doorbell: str) -> Iterator[ExitGuest]:
    """Such a guest, with the processes of a whole topology."""
    with ExitStack() as undo:
        directory = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="miniguest-bench-")))
        image = directory / "exits.img"
        image.write_bytes((PROGRAM.ljust(510, b"\0") + b"\x55\xaa").ljust(1 << 20, b"\0"))
        what = msgspec.structs.replace(topology.of_disk(image, "bench-exits"), doorbell=doorbell)
        runtime = undo.enter_context(runtime_directory(what))
        with open(os.devnull, "wb") as console:
            supervisor = Supervisor(what, runtime, console, lambda message: None, ())
            undo.callback(supervisor.kill)
            supervisor.start_dom0(undo)
        supervisor.start_guests()
        guest = ExitGuest(runtime)
        undo.callback(guest.resume)
        yield guest
