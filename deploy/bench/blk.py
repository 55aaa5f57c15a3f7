"""How fast blocks come through blkfront, ring and blkback from the page cache, and by what else a user could take.

    blk     blkfront's batches -> blkback: two processes; the kernel's copy out of the page cache, into granted frames
    preadv  a bare loop of os.preadv in one process: the same copy, without anybody to hand it to
    fio     with --peers: psync, io_uring, and its NBD client on nbdkit over a UNIX socket

All read the same file, of incompressible bytes, which is in the page cache. A window is a number of requests.
"""
import json
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy

from miniguest.deploy.bench.machine import cores
from miniguest.deploy.bench.pair import Pipe
from miniguest.deploy.bench.rows import Measured, row
from miniguest.deploy.bench.windows import interleave
from miniguest.deploy.stress.vbds import Vbds, vbds
from miniguest.frontend.blkfront import SECTOR, Blkfront
from miniguest.ring.process import Process

IMAGE: Final = 128 << 20
CHUNK: Final = 1 << 20
FIO_SECONDS: Final = 0.5                # of a window
WATCHDOG: Final = 60.0                  # seconds for a window of fio


@dataclass(frozen=True)
class Load:
    """Requests of one kind. requests: of a window. depth: out at a time. scale: what a row's unit is, in requests a second."""

    name: str
    size: int
    depth: int
    random: bool
    requests: int
    unit: str
    scale: float


LOADS: Final = (
    Load("blk rand4k-qd32", 4096, 32, True, 60_000, "k/s", 1e3),
    Load("blk seq128k", 128 << 10, 16, False, 8_000, "GB/s", 1e9 / (128 << 10)),
)


class _Reader:
    """The domain's process: reads so many blocks when it is told to, and says how long that took."""

    def __init__(self, process: Process, disk: Blkfront, load: Load, orders: Pipe, answers: Pipe) -> None:
        self._load = load
        self._orders, self._answers = orders, answers
        self._batch = disk.batch(load.depth, load.size // SECTOR)
        self._batch.attend = self.attend
        self._sectors = sectors_of(load)
        self._put = self._left = self._start = 0
        process.loop.on_fd(orders.reader, self._order)
        answers.say()

    def _order(self) -> None:
        self._left, _ = self._orders.hear()
        self._put = 0
        self._start = time.perf_counter_ns()
        self._read(numpy.arange(self._load.depth, dtype=numpy.uint32))

    def _read(self, buffers: "numpy.ndarray[tuple[int], numpy.dtype[numpy.uint32]]") -> None:
        until = min(self._put + len(buffers), len(self._sectors))
        if self._put < until:
            self._put += self._batch.read(self._sectors[self._put : until], buffers[: until - self._put])

    def attend(self) -> None:
        """Some are done: read into their buffers again."""
        buffers, statuses = self._batch.take()
        if not len(buffers):
            return
        if statuses.any():
            raise OSError(f"statuses {set(statuses.tolist())}")
        self._left -= len(buffers)
        self._read(buffers)
        if self._left <= 0:
            self._answers.say(time.perf_counter_ns() - self._start)


def sectors_of(load: Load) -> "numpy.ndarray[tuple[int], numpy.dtype[numpy.uint64]]":
    """Where the requests of a window are."""
    blocks = IMAGE // load.size
    picker = random.Random(1)
    numbers = [picker.randrange(blocks) if load.random else index % blocks for index in range(load.requests)]
    return numpy.array(numbers, numpy.uint64) * numpy.uint64(load.size // SECTOR)


def vbd_way(system: Vbds, domid: int, image: Path, load: Load) -> Callable[[], float]:
    """A window through a disk of a domain of its own: requests a second."""
    orders, answers = Pipe(), Pipe()

    def main(process: Process, disk: Blkfront) -> Callable[[], bool]:
        _Reader(process, disk, load, orders, answers)
        return lambda: False

    child = system.front(domid, image, main, "ro")
    answers.answer([child], system.ground.runtime)

    def window() -> float:
        orders.say(load.requests)
        return load.requests * 1e9 / answers.answer([child, system.blkback], system.ground.runtime)[0]

    return window


def preadv_way(image: Path, load: Load) -> Callable[[], float]:
    """A window of bare os.preadv: requests a second."""
    offsets = (sectors_of(load) * numpy.uint64(SECTOR)).tolist()

    def window() -> float:
        buffers, read = [bytearray(load.size)], os.preadv
        with open(image, "rb", buffering=0) as file:
            fd = file.fileno()
            start = time.perf_counter()
            for offset in offsets:
                read(fd, buffers, offset)
            return load.requests / (time.perf_counter() - start)

    return window


def fio_way(load: Load, engine: str, *how: str) -> Callable[[], float]:
    """A window of fio: requests a second, as it counts them."""
    command = [
        "fio", "--name=window", f"--ioengine={engine}", f"--rw={'randread' if load.random else 'read'}", f"--bs={load.size}",
        f"--iodepth={load.depth}", f"--size={IMAGE}", "--time_based", f"--runtime={int(FIO_SECONDS * 1e3)}ms", "--invalidate=0",
        "--output-format=json", "--norandommap", *how,
    ]

    def window() -> float:
        done = subprocess.run(command, capture_output=True, text=True, timeout=WATCHDOG, check=True)
        found = json.loads(done.stdout[done.stdout.index("{") :])
        return float(found["jobs"][0]["read"]["iops"])

    return window


@contextmanager
def nbd_server(image: Path, directory: Path) -> Iterator[str]:
    """nbdkit on the image: its URI."""
    path = directory / "nbd.sock"
    server = subprocess.Popen(["nbdkit", "--foreground", "--exit-with-parent", "--readonly", "-U", path, "file", str(image)])
    try:
        while not path.exists() and server.poll() is None:
            time.sleep(0.01)
        yield f"nbd+unix:///?socket={path}"
    finally:
        server.terminate()
        server.wait()


def peer_ways(image: Path, load: Load, uri: str | None, left_out: dict[str, str]) -> dict[str, Callable[[], float]]:
    """What else can be had of fio; the rest is in `left_out`."""
    missing = {program: "not installed" for program in ("fio", "nbdkit") if shutil.which(program) is None}
    left_out |= missing
    if "fio" in missing:
        return {}
    file = f"--filename={image}"
    ways = {"fio psync": fio_way(load, "psync", file), "fio io_uring": fio_way(load, "io_uring", file)}
    if uri is not None:
        ways["fio nbd to nbdkit"] = fio_way(load, "nbd", f"--uri={uri}")
    return {name: way for name, way in ways.items() if _works(name, way, left_out)}


def _works(name: str, way: Callable[[], float], left_out: dict[str, str]) -> bool:
    """Whether a way of fio's can be had: the kernel may have no io_uring, and fio no NBD."""
    try:
        return way() > 0
    except (subprocess.SubprocessError, ValueError) as error:
        words = getattr(error, "stderr", None) or str(error)
        left_out[name] = words.strip().splitlines()[-1]
        return False


def make_image(path: Path) -> None:
    """A file of random bytes, which is in the page cache afterwards."""
    with open(path, "wb") as file:
        for _ in range(IMAGE // CHUNK):
            file.write(os.urandom(CHUNK))
        file.flush()
        os.fsync(file.fileno())                 # or the disk writes it while we measure
    with open(path, "rb") as file:
        while file.read(CHUNK):
            pass


def measure(windows: int, peers: bool, progress: Callable[[str], None]) -> Measured:
    """See the module's docstring. Rows `blk rand4k-qd32` in thousands a second and `blk seq128k` in GB/s, by preadv's."""
    found = Measured()
    with ExitStack() as undo:
        directory = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="mgb-")))
        image = directory / "image"
        progress("an image")
        make_image(image)
        uri = undo.enter_context(nbd_server(image, directory)) if peers and shutil.which("nbdkit") else None
        system = undo.enter_context(vbds())
        pin_blkback(system)
        for domid, load in enumerate(LOADS, 1):
            ways = {load.name: vbd_way(system, domid, image, load), "os.preadv": preadv_way(image, load)}
            if peers:
                ways |= peer_ways(image, load, uri, found.left_out)
            values = interleave(ways, windows, lambda what, name=load.name: progress(f"{name}: {what}"))    # type: ignore[misc]
            add_rows(found, load, values)
    return found


def pin_blkback(system: Vbds) -> None:
    """blkback has a core of its own, as far as there are two."""
    os.sched_setaffinity(system.blkback.pid, {cores()[1]})


def add_rows(found: Measured, load: Load, values: dict[str, list[float]]) -> None:
    """Ours by each of the others, and each other's own: for a peer `name` of fio's, the row `load, name`."""
    scaled = {name: [value / load.scale for value in each] for name, each in values.items()}
    ours = scaled.pop(load.name)
    made = partial(row, unit=load.unit)
    others = {name: f"{load.name}, {name}" for name in scaled}
    for name, title in others.items():
        found.rows.append(made(load.name, values=ours, reference=title, others=scaled[name]))
    for name, title in others.items():
        found.rows.append(made(title, values=scaled[name]))
