"""The machine under the bench: what it is, which cores to use, and whether it is quiet enough to say anything."""
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

LOOP: Final = 100_000                   # turns of the fixed loop: some milliseconds, more than others are kept waiting for
NOISY: Final = 1.5                      # how many times its least time the loop may take in one look of ten


def cores() -> tuple[int, int]:
    """Two cores for a pair of processes; the same one twice where there is one only."""
    mine = sorted(os.sched_getaffinity(0))
    return mine[0], mine[-1 if len(mine) == 2 else min(1, len(mine) - 1)]


def pin(core: int) -> None:
    """This process, and all that it starts from now on, stays on a core."""
    os.sched_setaffinity(0, {core})


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """This process, and all that it starts meanwhile, is on a core; what it started stays there."""
    before = os.sched_getaffinity(0)
    pin(core)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Steadiness:
    """How much the time of a fixed loop varies on the cores that the bench uses."""

    def __init__(self) -> None:
        self._seconds: list[float] = []

    def look(self) -> None:
        """Run the loop once, on one core and the other in turn."""
        with pinned(cores()[len(self._seconds) % 2]):
            start = time.perf_counter()
            total = 0
            for number in range(LOOP):
                total += number
            self._seconds.append(time.perf_counter() - start)

    @property
    def spread(self) -> float:
        """The 90th percentile of the looks by their least; 1 on a machine that does nothing else."""
        if not self._seconds:
            return 1.0
        ordered = sorted(self._seconds)
        return ordered[(len(ordered) - 1) * 9 // 10] / ordered[0]

    def warning(self) -> str | None:
        """What to tell of a machine that is too noisy to say, else None."""
        if self.spread <= NOISY:
            return None
        return f"this machine is too noisy to say: a fixed loop took {self.spread:.1f} times its least time in one look of ten"


STEADINESS: Final = Steadiness()


def describe() -> dict[str, str | int | float]:
    """What a reader of the figures wants to know of the machine."""
    return {
        "cpu": _cpu_model(), "cores": len(os.sched_getaffinity(0)), "kernel": platform.release(),
        "python": platform.python_version(), "load": round(os.getloadavg()[0], 2), "spread": round(STEADINESS.spread, 3),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
