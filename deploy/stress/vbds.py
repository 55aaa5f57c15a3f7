"""Domains with one disk each: a hypervisor, xenstored, blkback, and a process for each domain's blkfront."""
import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from miniguest.backend.blkback import process as blkback
from miniguest.deploy.children import Child
from miniguest.deploy.stress.store import start_store
from miniguest.deploy.stress.workers import StressError, Workers, workers
from miniguest.deploy.toolstack import VDEVS, Toolstack
from miniguest.deploy.topology import Disk
from miniguest.frontend.blkfront import Blkfront
from miniguest.frontend.blkfront_xenbus import BlkfrontDevice
from miniguest.frontend.pages import Pages
from miniguest.ring.grants import Grants
from miniguest.ring.process import Process
from miniguest.ring.statistics import read_statistics, statistics_path

VDEV: Final = "hda"
MEMORY: Final = 16 << 20                # of a domain: the ring, and the buffers of requests under way

Main = Callable[[Process, Blkfront], Callable[[], bool]]


class Vbds:
    """blkback, and the domains that use it. hogs: processes that do nothing but keep a core busy."""

    def __init__(self, ground: Workers, hogs: int = 0) -> None:
        self.ground = ground
        self._xenstored, self.store = start_store(ground)
        ground.busy_cores(hogs)
        self._fronts: list[Child] = []
        self._toolstack = Toolstack(ground.runtime, ground.hypercalls)
        self.blkback = ground.start("blkback", 0, 1, blkback.main)

    def replace_blkback(self) -> None:
        """Kill blkback, and start its successor."""
        self.ground.kill(self.blkback, 0)
        self.blkback = self.ground.start("blkback", 0, 1, blkback.main)

    def front(self, domid: int, image: Path, main: Main, access: str = "rw") -> Child:
        """A domain whose process calls `main` when its disk is connected, and goes on until what that answers is true."""
        self._toolstack.create_domain(self.store, domid, f"domain{domid}", MEMORY)
        disk = Disk(image=image, vdev=VDEV, access=access)      # type: ignore[arg-type]
        self._toolstack.add_disk(self.store, domid, disk)

        def run(process: Process) -> None:
            pages, grants = Pages(process.memory(domid)), Grants(process.memory(domid))

            def lost(reason: str) -> None:
                raise StressError(f"domain {domid}: {reason}")

            answers: list[Callable[[], bool]] = []

            def ready(found: Blkfront) -> None:
                answers.append(main(process, found))

            path = f"device/vbd/{VDEVS[VDEV]}"
            device = BlkfrontDevice(process, process.xenstore(), path, pages, grants, ready, lost)
            while not (answers and answers[0]()):
                process.loop.turn()
                if process.loop.stopping:
                    return
            device.close()

        self._fronts.append(self.ground.start(f"front{domid}", domid, 0, run))
        return self._fronts[-1]

    def counters(self, domid: int) -> dict[str, int]:
        """What blkback counted of a domain's disk."""
        return read_statistics(statistics_path(self.ground.runtime, "vbd", domid, VDEVS[VDEV]))

    def finish(self, seconds: float) -> None:
        """Wait until every domain's process has ended well. StressError when one did not, or the watchdog's time is up."""
        self.ground.finish(seconds, but=[self.blkback.name, self._xenstored.name])

    def close(self) -> None:
        """End what still runs: those first who have something to tell the others."""
        for child in (*self._fronts, self.blkback, self._xenstored):
            self.ground.end(child)
        self.store.close()


@contextmanager
def vbds(doorbell: str = "zmq", hogs: int = 0) -> Iterator[Vbds]:
    """blkback without disks, which goes with all of them."""
    with workers(doorbell, domains=0) as ground, contextlib.closing(Vbds(ground, hogs)) as made:
        yield made
