"""Spawning: guests with a disk and a vif are added to a topology that runs, fifty in all.

    spawn guest           from asking for one until it has executed its first instruction
    spawn guest, PSS      what its two processes then hold of memory, shared pages in parts, without its RAM

Each beside a bare Python interpreter: how long it takes to start and end, and what it holds. The windows come one after the
other on the same topology, so that a cost that grows with the guests shows as `spawn guest, the last beside the first`.
"""
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Final

import psutil

from miniguest.deploy.bench.rows import Measured, row
from miniguest.deploy.bench.windows import interleave
from miniguest.deploy.runtime import runtime_directory
from miniguest.deploy.supervisor import Supervisor
from miniguest.deploy.topology import Disk, Guest, Link, Topology, Vif
from miniguest.ring.exits import exits_path, read_exits

GUESTS: Final = 50
MEMORY: Final = 16                      # MiB of a guest
MIB: Final = 1 << 20
WATCHDOG: Final = 30.0                  # seconds for one
LOOK: Final = 0.0002                    # seconds between two looks at its exits
PYTHON: Final = "spawn guest, a bare python"
PYTHON_PSS: Final = "spawn guest, PSS of a bare python"
# The first instruction is an exit; what follows sleeps for good: out 0x80, al; 1: sti; hlt; jmp 1b
FIRMWARE: Final = (bytes(0xFFF0) + bytes.fromhex("e680 fb f4 ebfc")).ljust(0x10000, b"\0")


class Spawner:
    """A topology to which guests are added."""

    def __init__(self, directory: Path, runtime: Path, supervisor: Supervisor) -> None:
        self._directory, self._runtime, self._supervisor = directory, runtime, supervisor
        self._image = directory / "disk.img"
        self._image.write_bytes(bytes(MIB))
        self._firmware = directory / "firmware.bin"
        self._firmware.write_bytes(FIRMWARE)
        self.seconds: list[float] = []
        self.pss: list[float] = []

    def add(self) -> None:
        """One more guest."""
        number = len(self.seconds)
        guest = Guest(
            name=f"hvm{number}", memory=MEMORY, firmware=str(self._firmware), serial=str(self._directory / f"serial{number}"),
            disk=(Disk(image=self._image, vdev="hda", access="ro"),),
            vif=(Vif(mac=f"00:16:3e:00:00:{number:02x}", link="lan0", rom=""),),
        )
        start = time.perf_counter()
        counters = exits_path(self._runtime, self._supervisor.add_guest(guest))
        while not read_exits(counters):
            if time.perf_counter() > start + WATCHDOG:
                raise TimeoutError(f"{guest.name} has executed nothing in {WATCHDOG:g} s")
            time.sleep(LOOK)            # its processes need the core
        self.seconds.append(time.perf_counter() - start)
        mine = [each for each in psutil.Process().children() if each.name().startswith(f"{guest.name}-")]
        self.pss.append(sum(_pss(each.pid) for each in mine))

    def window(self, count: int) -> float:
        """Median milliseconds of so many more."""
        for _ in range(count):
            self.add()
        return median(self.seconds[-count:]) * 1e3


def _pss(pid: int) -> float:
    """MiB that a process holds, without guests' memory."""
    held: int = sum(each.pss for each in psutil.Process(pid).memory_maps(grouped=True) if not each.path.endswith("/memory"))
    return held / MIB


def _python() -> float:
    """Milliseconds to start and end an interpreter."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", ""], check=True)
    return (time.perf_counter() - start) * 1e3


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


def measure(windows: int, peers: bool, progress: Callable[[str], None]) -> Measured:
    """Add all of them."""
    count = max(1, GUESTS // windows)
    with spawner() as made:
        made.add()                      # what is loaded once for all of them is no cost of a guest
        pss: list[tuple[float, float]] = []

        def some() -> float:
            spent = made.window(count)
            pss.append((median(made.pss[-count:]), _python_pss()))
            return spent

        found = interleave({"spawn guest": some, PYTHON: _python}, windows, progress)
        last = [seconds * 1e3 for seconds in made.seconds[-count:]]
        first = [seconds * 1e3 for seconds in made.seconds[1 : 1 + count]]
    ours, other = found["spawn guest"], found[PYTHON]
    held, bare = [each for each, _ in pss], [each for _, each in pss]
    return Measured([
        row("spawn guest", "ms", ours, PYTHON, other, least=True),
        row(PYTHON, "ms", other, least=True),
        row("spawn guest, PSS", "MiB", held, PYTHON_PSS, bare, least=True),
        row(PYTHON_PSS, "MiB", bare, least=True),
        row("spawn guest, the last", "ms", last, "spawn guest, the first", first, least=True),
        row("spawn guest, the first", "ms", first, least=True),
    ])
