"""Exits: microseconds of a round trip vCPU -> mini-guest -> vCPU, taken by a real guest with RDTSC.

    hot       one exit after the other, beside C that passes a 32-byte ioreq through shared memory, both ends spinning
    cold      1 ms between two exits (or 100), so that the mini-guest sleeps, beside a bare zmq or FIFO round trip
    sector    from READ SECTORS to the status read that shows DRQ: through blkfront, the ring and blkback and back; beside our
              hot exit, and so is C that does the same in three processes: what this machine's cores allow
"""
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Final

import numpy

from miniguest.deploy.bench.doorbell_trip import Trip
from miniguest.deploy.bench.exit_guest import ExitGuest, exit_guest
from miniguest.deploy.bench.machine import cores
from miniguest.deploy.bench.pair import Pair
from miniguest.deploy.bench.references import MissingReferenceError, Program
from miniguest.deploy.bench.rows import Measured, row
from miniguest.deploy.bench.windows import interleave
from miniguest.deploy.children import Children

HOT_SECONDS: Final = 0.1                # of a window
SECTOR_SECONDS: Final = 0.2
GAPS: Final = {"": 0.001, ", 100 ms": 0.1}      # seconds between two cold exits
TRIPS: Final = {0.001: 40, 0.1: 6}      # in a window
GRACE: Final = 1.0
C: Final = "exit hot, C through shared memory"
C_SECTOR: Final = "exit sector, C with Xen's macros"
SECTOR: Final = 512

Way = Callable[[], float]


class Tail:
    """A way whose windows have a median, which is their value, and a 99th percentile, which is kept."""

    def __init__(self, run: Callable[[], tuple[float, float]]) -> None:
        self._run = run
        self.p99: list[float] = []

    def __call__(self) -> float:
        median, p99 = self._run()
        self.p99.append(p99)
        return median


def measure(windows: int, peers: bool, progress: Callable[[str], None]) -> Measured:
    """All of them. There are no peers."""
    found = Measured()
    ways: dict[str, Way] = {}
    references: dict[str, str] = {"exit sector": "exit hot", C_SECTOR: "exit hot"}
    with ExitStack() as undo:
        logs = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="miniguest-bench-")))
        children = Children(logs)
        undo.callback(lambda: children.stop(children.living, GRACE))
        _add_c(ways, logs, found, undo)
        if C in ways:
            references["exit hot"] = C
        for doorbell in ("zmq", "fifo"):
            guest = undo.enter_context(exit_guest(doorbell))
            if doorbell == "zmq":
                ways["exit hot"] = Tail(partial(_quantiles, guest, HOT_SECONDS, False))
                ways["exit sector"] = Tail(partial(_quantiles, guest, SECTOR_SECONDS, True))
            for word, gap in GAPS.items():
                name = f"exit cold{word}{', fifo' if doorbell == 'fifo' else ''}"
                references[name] = f"{name}, bare {doorbell} round trip"
                trip = Trip(logs, doorbell, gap)
                pair = Pair(children, logs, f"{doorbell}{gap:g}", trip.client, trip.server)
                ways[name] = partial(_cold, guest, gap)
                ways[references[name]] = partial(pair.window, gap * TRIPS[gap])
        values = interleave(ways, windows, progress)
    for name, way in ways.items():
        if isinstance(way, Tail):
            values[f"{name} p99"] = way.p99
            references[f"{name} p99"] = f"{C} p99" if name == "exit hot" else references.get(name, "")
    _add_rows(found, values, references)
    return found


def _add_c(ways: dict[str, Way], logs: Path, found: Measured, undo: ExitStack) -> None:
    image = logs / "sector.img"
    image.write_bytes(bytes(SECTOR))
    for name, seconds, words in ((C, HOT_SECONDS, ("exit",)), (C_SECTOR, SECTOR_SECONDS, ("sector", image))):
        try:
            program = undo.enter_context(closing(Program(*map(str, words), *cores())))
        except MissingReferenceError as error:
            found.left_out[name] = str(error)
        else:
            ways[name] = Tail(partial(_window, program, seconds))


def _window(program: Program, seconds: float) -> tuple[float, float]:
    median, p99 = program.window(seconds)
    return median, p99


def _add_rows(found: Measured, values: dict[str, list[float]], references: dict[str, str]) -> None:
    for name, times in values.items():
        reference = references.get(name, "")
        others = values.get(reference, [])
        found.rows.append(row(name, "us", times, reference if others else "", others, least=True))


def _quantiles(guest: ExitGuest, seconds: float, sector: bool) -> tuple[float, float]:
    times = guest.window(seconds, sector=sector)
    return float(numpy.median(times)), float(numpy.percentile(times, 99))


def _cold(guest: ExitGuest, gap: float) -> float:
    return float(numpy.median(guest.window(gap * TRIPS[gap], gap)))
