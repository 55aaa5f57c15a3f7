"""Blocks between a blkfront and blkback's image: none lost, mixed up, or answered before it was done; whoever is killed.

A domain's process has a batch on the lower half of the disk, many blocks under way, and single requests of any size on
the upper half, one at a time, flushes among them. Every block has a version that grows with each write; what is read is compared
with it, and so is the image in the end. It sleeps as the waiting rule lets it: a wake that is missed leaves everybody
asleep, and the watchdog says so.
"""
import select
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy
from numpy.typing import NDArray

from miniguest.deploy.children import Child
from miniguest.deploy.stress.stirring import Stirring
from miniguest.deploy.stress.vbds import Vbds, vbds
from miniguest.deploy.stress.workers import StressError
from miniguest.frontend.blkfront import SECTOR, Blkfront
from miniguest.ring.process import Process

BLOCK: Final = 8                        # sectors
BLOCKS: Final = 1024                    # of the half that is the batch's
SINGLES: Final = BLOCKS * BLOCK         # sectors of the other half, behind it
MOST: Final = 300                       # sectors of one of those requests
WORDS: Final = BLOCK * SECTOR // 8
DOMAIN: Final = 1
TICK: Final = 0.001                     # seconds

Numbers = NDArray[numpy.uint64]


class Blocks:
    """The batch's half: `total` blocks read or written at random, as many at a time as there are buffers."""

    def __init__(self, disk: Blkfront, total: int, depth: int, stirring: Stirring) -> None:
        self._batch = disk.batch(depth, BLOCK)
        self._left = total
        self._stirring = stirring
        self._views: list[Numbers] = [numpy.frombuffer(self._batch.buffer(number), numpy.uint64) for number in range(depth)]
        self.versions: Numbers = numpy.zeros(BLOCKS, numpy.uint64)
        self._busy: dict[int, tuple[int, bool]] = {}        # by buffer: the block, and whether it is written
        self._blocks: set[int] = set()                      # that are under way
        self._free = list(range(depth))

    def attend_with(self, attend: Callable[[], None]) -> None:
        """Have `attend` called when some are done."""
        self._batch.attend = attend

    @property
    def done(self) -> bool:
        """Whether all is answered."""
        return not self._left and not self._busy

    def take(self) -> None:
        """Take up and check what is done."""
        buffers, statuses = self._batch.take()
        if statuses.any():
            raise StressError(f"statuses {set(statuses.tolist())} of blocks {[self._busy[int(each)][0] for each in buffers]}")
        for buffer in buffers.tolist():
            block, write = self._busy.pop(buffer)
            self._blocks.discard(block)
            self._free.append(buffer)
            if not write:
                look_at(self._views[buffer], block, int(self.versions[block]))

    def put(self) -> int:
        """Ask for more blocks, all there is room for or fewer; how many."""
        return self._put(False) + self._put(True)

    def _put(self, write: bool) -> int:
        buffers = self._free[: self._stirring.part(min(self._left, len(self._free)))]
        picked = {self._stirring.random.randrange(BLOCKS) for _ in buffers}
        blocks = sorted(picked - self._blocks)
        buffers = buffers[: len(blocks)]
        for buffer, block in zip(buffers, blocks, strict=True) if write else ():
            self.versions[block] += numpy.uint64(1)
            self._views[buffer][:] = word_of(block, int(self.versions[block]))
        count = self._ask(write, blocks, buffers)
        for buffer, block in zip(buffers[:count], blocks[:count], strict=True):
            self._busy[buffer] = (block, write)
            self._blocks.add(block)
            self._free.remove(buffer)
        if write:                               # those that found no slot
            self.versions[blocks[count:]] -= numpy.uint64(1)
        self._left -= count
        return count

    def _ask(self, write: bool, blocks: list[int], buffers: list[int]) -> int:
        ask = self._batch.write if write else self._batch.read
        return ask(numpy.array(blocks, numpy.uint64) * numpy.uint64(BLOCK), numpy.array(buffers, numpy.uint32))


class Singles:
    """The other half: requests of any size, one after the other, until `total` were answered."""

    def __init__(self, disk: Blkfront, total: int, stirring: Stirring) -> None:
        self._disk = disk
        self._left = total
        self._random = stirring.random
        self.model = bytearray(SINGLES * SECTOR)
        self.done = False
        self._next()

    def _next(self) -> None:
        if not self._left:
            self.done = True
            return
        self._left -= 1
        sector = self._random.randrange(SINGLES)
        count = self._random.randint(1, min(MOST, SINGLES - sector))
        part = slice(sector * SECTOR, (sector + count) * SECTOR)
        match self._random.randrange(8):
            case 0:
                self._disk.flush(self._good)
            case 1 | 2 | 3:
                self.model[part] = self._random.randbytes(SECTOR) * count
                self._disk.write(SINGLES + sector, bytes(self.model[part]), self._good)
            case _:
                wanted = bytes(self.model[part])
                self._disk.read(SINGLES + sector, count, lambda data: self._good(data == wanted))

    def _good(self, good: bool) -> None:
        if not good:
            raise StressError("a request failed, or read something else than was written")
        self._next()


class Front:
    """The domain's process."""

    def __init__(self, process: Process, disk: Blkfront, image: Path, total: int, depth: int, seed: int, stir: bool) -> None:
        self._stirring = Stirring(process, seed, stir)
        self._image = image
        self._blocks = Blocks(disk, total, depth, self._stirring)
        self._blocks.attend_with(self.attend)
        self._singles = Singles(disk, total // 50, self._stirring)
        self._blocks.put()

    def attend(self) -> None:
        """Take what is done, and ask for as much again."""
        self._stirring.stirred()
        self._blocks.take()
        self._stirring.pause()
        self._blocks.put()

    def ended(self) -> bool:
        """Whether all is done; then the image is looked at."""
        if not (self._blocks.done and self._singles.done):
            return False
        found = self._image.read_bytes()
        words = numpy.frombuffer(found[: SINGLES * SECTOR], numpy.uint64).reshape(BLOCKS, WORDS)
        for block, version in enumerate(self._blocks.versions.tolist()):
            look_at(words[block], block, version)
        if found[SINGLES * SECTOR :] != self._singles.model:
            raise StressError("the image is not what was written")
        return True


def word_of(block: int, version: int) -> numpy.uint64:
    """What a block is full of; zeros before its first write."""
    return numpy.uint64((version << 32 | block) if version else 0)


def look_at(words: Numbers, block: int, version: int) -> None:
    """StressError unless a block has one version all over."""
    if (words != word_of(block, version)).any():
        found = {f"{int(word):#x}" for word in numpy.unique(words)[:4]}
        raise StressError(f"block {block} is {', '.join(sorted(found))}, not version {version}")


def wait_for(system: Vbds, front: Child, requests: int) -> None:
    """Wait until blkback has served so many, or the domain's process has ended."""
    while system.counters(DOMAIN)["requests"] < requests and not select.select([front.pidfd], [], [], TICK)[0]:
        pass


def pass_blocks(
    total: int, doorbell: str = "zmq", depth: int = 32, seed: int = 1, stir: bool = False, kills: int = 0,
    seconds: float = 120.0, hogs: int = 0,
) -> float:
    """Read and write `total` blocks, `depth` at a time, and a fiftieth as many other requests; blocks per second.

    stir: blocks in parts, pauses, waits that spin for a random time or not at all. kills: how often blkback is killed
    and started again meanwhile. seconds: the watchdog's. hogs: other processes that want the cores all the time.
    """
    with tempfile.TemporaryDirectory(prefix="mgb-", dir="/dev/shm") as directory, vbds(doorbell, hogs) as system:
        image = Path(directory) / "image"
        image.write_bytes(bytes(2 * SINGLES * SECTOR))

        def main(process: Process, disk: Blkfront) -> Callable[[], bool]:
            return Front(process, disk, image, total, depth, seed, stir).ended

        start = time.monotonic()
        front = system.front(DOMAIN, image, main)
        for mark in range(1, kills + 1):
            wait_for(system, front, total * mark // (kills + 1))
            system.replace_blkback()
        try:
            system.finish(seconds)
        except StressError as error:
            raise StressError(f"{error}\nblkback counted {system.counters(DOMAIN)}") from None
        spent = time.monotonic() - start
        found = system.counters(DOMAIN)
        if found["errors"] or found["requests"] != found["responses"] or (found["requests"] < total and not kills):
            raise StressError(f"{found}: not {total} blocks and more, all answered well")
        return total / spent
