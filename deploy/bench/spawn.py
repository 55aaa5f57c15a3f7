"""Spawning: guests with a disk and a vif are added to a topology that runs, fifty in all.

    spawn guest           from asking for one until it has executed its first instruction
    spawn guest, PSS      what its two processes then hold of memory, shared pages in parts, without its RAM
    spawn guest, CPU      what all processes of the topology, and who asked, computed for it; and how many bare interpreters,
                          started right after it, take as much: a ratio that a machine of changing speed moves less
    spawn page            what it costs to write to a page of memory that was nobody's, measured after each guest
    spawn idle            what all processes of the topology compute a second, once all guests sleep

The first two beside a bare Python interpreter: how long it takes to start and end, and what it holds. Windows come one after the
other on the same topology, so a cost that grows with the guests shows where the last ten stand beside the first ten, the quickest
of these beside the quickest of those and so on. Where the host of a virtual machine has yet to find the memory, a page takes
five times as long, and a process that is forked begins with thousands of them: `spawn page` tells that from what is ours.
"""
import mmap
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

import psutil

from miniguest.deploy.bench.rows import Measured, Row, row
from miniguest.deploy.bench.windows import interleave
from miniguest.deploy.runtime import runtime_directory
from miniguest.deploy.supervisor import Supervisor
from miniguest.deploy.topology import Disk, Guest, Link, Topology, Vif
from miniguest.ring.exits import exits_path, read_exits

GUESTS: Final = 50
ENDS: Final = 10                        # guests at either end that are held against each other
MEMORY: Final = 16                      # MiB of a guest
MIB: Final = 1 << 20
WATCHDOG: Final = 30.0                  # seconds for one
LOOK: Final = 0.0002                    # seconds between two looks at its exits
REST: Final = 0.5                       # seconds for the last one to fall asleep
IDLE: Final = 2.0                       # seconds in which all of them sleep
PAGES: Final = 256                      # written to after each guest
CPUCLOCK_SCHED: Final = 2               # of a whole process: clock_getcpuclockid(3), Linux's posix-timers.h
PYTHON: Final = "spawn guest, a bare python"
PYTHON_PSS: Final = "spawn guest, PSS of a bare python"
# The first instruction is an exit; what follows sleeps for good: out 0x80, al; 1: sti; hlt; jmp 1b
FIRMWARE: Final = (bytes(0xFFF0) + bytes.fromhex("e680 fb f4 ebfc")).ljust(0x10000, b"\0")


@dataclass(slots=True)
class Costs:
    """Of each guest in turn: milliseconds, milliseconds of CPU, those in bare interpreters, MiB; and microseconds of a page."""

    took: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    pythons: list[float] = field(default_factory=list)
    pss: list[float] = field(default_factory=list)
    page: list[float] = field(default_factory=list)


class Spawner:
    """A topology to which guests are added."""

    def __init__(self, directory: Path, runtime: Path, supervisor: Supervisor) -> None:
        self._directory, self._runtime, self._supervisor = directory, runtime, supervisor
        self._image = directory / "disk.img"
        self._image.write_bytes(bytes(MIB))
        self._firmware = directory / "firmware.bin"
        self._firmware.write_bytes(FIRMWARE)
        self._held: list[mmap.mmap] = []
        self.costs = Costs()

    def add(self) -> None:
        """One more guest."""
        number = len(self.costs.took)
        guest = Guest(
            name=f"hvm{number}", memory=MEMORY, firmware=str(self._firmware), serial=str(self._directory / f"serial{number}"),
            disk=(Disk(image=self._image, vdev="hda", access="ro"),),
            vif=(Vif(mac=f"00:16:3e:00:00:{number:02x}", link="lan0", rom=""),),
        )
        others, own, start = self.computed(), time.process_time(), time.perf_counter()
        counters = exits_path(self._runtime, self._supervisor.add_guest(guest))
        while not read_exits(counters):
            if time.perf_counter() > start + WATCHDOG:
                raise TimeoutError(f"{guest.name} has executed nothing in {WATCHDOG:g} s")
            time.sleep(LOOK)            # its processes need the core
        self.costs.took.append((time.perf_counter() - start) * 1e3)
        own = time.process_time() - own
        mine = [child.pid for child in self._supervisor.processes if child.name.startswith(f"{guest.name}-")]
        self.costs.pss.append(sum(_pss(pid) for pid in mine))
        self.costs.cpu.append((self.computed() - others + own) * 1e3)
        self.costs.pythons.append(self.costs.cpu[-1] / _python_cpu())
        self.costs.page.append(self._fresh_page())

    def computed(self) -> float:
        """Seconds of CPU that all processes of the topology have used so far."""
        return sum(time.clock_gettime(~child.pid << 3 | CPUCLOCK_SCHED) for child in self._supervisor.processes)

    def _fresh_page(self) -> float:
        """Microseconds to be the first that writes to a page. They are kept: the next ones are others."""
        pages = mmap.mmap(-1, PAGES * mmap.PAGESIZE)
        pages.madvise(mmap.MADV_NOHUGEPAGE)
        self._held.append(pages)
        start = time.perf_counter()
        for at in range(0, len(pages), mmap.PAGESIZE):
            pages[at] = 1
        return (time.perf_counter() - start) / PAGES * 1e6

    def window(self, count: int) -> float:
        """Median milliseconds of so many more."""
        for _ in range(count):
            self.add()
        return median(self.costs.took[-count:])

    def idle(self) -> float:
        """Milliseconds of CPU a second, once nobody asks for anything."""
        time.sleep(REST)
        before = self.computed()
        time.sleep(IDLE)
        return (self.computed() - before) / IDLE * 1e3


def _pss(pid: int) -> float:
    """MiB that a process holds, without guests' memory."""
    held: int = sum(each.pss for each in psutil.Process(pid).memory_maps(grouped=True) if not each.path.endswith("/memory"))
    return held / MIB


def _python() -> float:
    """Milliseconds to start and end an interpreter."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", ""], check=True)
    return (time.perf_counter() - start) * 1e3


def _python_cpu() -> float:
    """Milliseconds of CPU for that."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    _python()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e3


def _python_pss() -> float:
    """MiB of an interpreter that has done nothing yet."""
    command = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout
        child.stdout.readline()
        held = _pss(child.pid)
        child.communicate(b"\n")
    return held


@contextmanager
def spawner() -> Iterator[Spawner]:
    """A topology without guests."""
    with ExitStack() as undo:
        directory = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="miniguest-bench-")))
        what = Topology(name="bench-spawn", guest=(), link={"lan0": Link(kind="switch")})
        runtime = undo.enter_context(runtime_directory(what))
        with (directory / "console").open("wb") as console:
            supervisor = Supervisor(what, runtime, console, lambda message: None, ())
            undo.callback(supervisor.kill)
            supervisor.start_dom0(undo)
        yield Spawner(directory, runtime, supervisor)


def _ends(name: str, unit: str, costs: list[float]) -> Iterable[Row]:
    """What the last guests cost beside what the first did; the very first paid for what is loaded once for all."""
    count = min(ENDS, len(costs) // 2)
    first, last = sorted(costs[1 : 1 + count]), sorted(costs[-count:])
    yield row(f"{name}, the last {ENDS}", unit, last, f"{name}, the first {ENDS}", first, least=True)
    yield row(f"{name}, the first {ENDS}", unit, first, least=True)


def measure(windows: int, peers: bool, progress: Callable[[str], None]) -> Measured:
    """Add all of them."""
    count = max(1, GUESTS // windows)
    with spawner() as made:
        made.add()                      # what is loaded once for all of them is no cost of a guest
        costs, bare = made.costs, list[float]()

        def some() -> float:
            spent = made.window(count)
            bare.append(_python_pss())
            return spent

        found = interleave({"spawn guest": some, PYTHON: _python}, windows, progress)
        idle = made.idle()
    held = [median(costs.pss[1 + index * count :][:count]) for index in range(windows)]
    return Measured([
        row("spawn guest", "ms", found["spawn guest"], PYTHON, found[PYTHON], least=True),
        row(PYTHON, "ms", found[PYTHON], least=True),
        row("spawn guest, PSS", "MiB", held, PYTHON_PSS, bare, least=True),
        row(PYTHON_PSS, "MiB", bare, least=True),
        *_ends("spawn guest", "ms", costs.took),
        *_ends("spawn guest, CPU", "ms", costs.cpu),
        *_ends("spawn guest, CPU in pythons", "", costs.pythons),
        *_ends("spawn page", "us", costs.page),
        row("spawn idle", "ms/s", [idle], least=True),
    ])
