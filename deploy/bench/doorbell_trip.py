"""Bare doorbells, there and back, with a gap before each trip: what a cold exit is held against."""
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import zmq

from miniguest.deploy.bench.pair import Drive, Flag, Serve


class Trip:
    """A wake there and one back. gap: seconds between two trips, which the client spends computing as the guest does."""

    def __init__(self, directory: Path, kind: str, gap: float) -> None:
        self._paths = [directory / f"{kind}-{gap:g}-{way}" for way in ("there", "back")]
        self._kind, self._gap = kind, gap
        if kind == "fifo":
            for path in self._paths:
                os.mkfifo(path)

    def client(self) -> Drive:
        """A window's answer is the median in nanoseconds, in a thousand seconds: microseconds."""
        ring, wait = self._ends(*self._paths)
        gap = self._gap

        def drive(seconds: float) -> tuple[int, float]:
            end = time.perf_counter() + seconds
            times: list[int] = []
            while not times or time.perf_counter() < end:
                until = time.perf_counter() + gap
                while time.perf_counter() < until:
                    pass
                start = time.perf_counter_ns()
                ring()
                wait()
                times.append(time.perf_counter_ns() - start)
            return int(statistics.median(times)), 1e3

        return drive

    def server(self) -> Serve:
        """Rings back, for ever."""
        ring, wait = self._ends(*reversed(self._paths))

        def serve(_: Flag) -> None:
            while True:
                wait()
                ring()

        return serve

    def _ends(self, out: Path, into: Path) -> tuple[Callable[[], object], Callable[[], object]]:
        if self._kind == "fifo":
            writer, reader = os.open(out, os.O_RDWR), os.open(into, os.O_RDWR)
            return lambda: os.write(writer, b"\0"), lambda: os.read(reader, 1)
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        push, pull = context.socket(zmq.PUSH), context.socket(zmq.PULL)
        pull.bind(f"ipc://{into}")
        push.connect(f"ipc://{out}")
        return lambda: push.send(b""), pull.recv
