"""Stations on a switch: a hypervisor, xenstored, netback, and domains with one vif each whose netfront is a process."""
import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from miniguest.backend.netback import process as netback
from miniguest.backend.netback.links import LinkConfig
from miniguest.deploy.children import Child
from miniguest.deploy.stress.store import start_store
from miniguest.deploy.stress.workers import StressError, Workers, workers
from miniguest.deploy.toolstack import Toolstack
from miniguest.deploy.topology import Link, Vif
from miniguest.frontend.netfront import Netfront
from miniguest.frontend.netfront_xenbus import NetfrontDevice
from miniguest.frontend.pages import Pages
from miniguest.ring.grants import Grants
from miniguest.ring.process import Process
from miniguest.ring.statistics import read_vif_statistics, statistics_path

LINK: Final = "lan"
MEMORY: Final = 4 << 20                 # of a station, and QUEUE_MEMORY for each queue: two rings of pages, their buffers
QUEUE_MEMORY: Final = 3 << 20


def mac_of(domid: int) -> bytes:
    """A station's address."""
    return b"\x00\x16\x3e\x00" + domid.to_bytes(2, "big")


class Lan:
    """The switch, and the stations on it. hogs: processes that do nothing but keep a core busy."""

    def __init__(self, ground: Workers, hogs: int = 0) -> None:
        self.ground = ground
        self._xenstored, self.store = start_store(ground)
        self.netback = ground.start("netback", 0, 3, lambda process: netback.main(process, {LINK: LinkConfig()}))
        ground.busy_cores(hogs)
        self._stations: list[Child] = []
        self._toolstack = Toolstack(ground.runtime, ground.hypercalls)

    def station(
        self, domid: int, main: Callable[[Process, Netfront], Callable[[], bool]], queues: int = 1, static_grants: bool = True,
    ) -> None:
        """A domain whose process calls `main` when its vif is connected, and goes on until what that answers is true.

        static_grants: netback may keep its pages mapped.
        """
        self._toolstack.create_domain(self.store, domid, f"station{domid}", MEMORY + queues * QUEUE_MEMORY)
        self._toolstack.add_vif(self.store, domid, 0, Vif(mac=mac_of(domid).hex(":"), link=LINK), Link())

        def run(process: Process) -> None:
            pages, grants = Pages(process.memory(domid)), Grants(process.memory(domid))

            def lost(reason: str) -> None:
                raise StressError(f"station {domid}: {reason}")

            answers: list[Callable[[], bool]] = []

            def ready(netfront: Netfront) -> None:
                answers.append(main(process, netfront))

            device = NetfrontDevice(
                process, process.xenstore(), "device/vif/0", pages, grants, ready, lost, queues, static_grants=static_grants
            )
            while not (answers and answers[0]()):
                process.loop.turn()
                if process.loop.stopping:
                    return
            device.close()

        self._stations.append(self.ground.start(f"station{domid}", domid, 0, run))

    def counters(self, domid: int) -> dict[str, int]:
        """What netback counted of a station's vif."""
        return read_vif_statistics(statistics_path(self.ground.runtime, "vif", domid, 0))

    def finish(self, seconds: float, but: tuple[str, ...] = ()) -> None:
        """Wait until every station, but those of these names ("station" and domid), has ended well.

        StressError when one did not, or the watchdog's time is up.
        """
        lasting = [child.name for child in (self.netback, self._xenstored)]
        self.ground.finish(seconds, but=[*lasting, *but])

    def close(self) -> None:
        """End what still runs: those first who have something to tell the others."""
        for child in (*self._stations, self.netback, self._xenstored):
            self.ground.end(child)
        self.store.close()


@contextmanager
def lan(doorbell: str = "zmq", hogs: int = 0) -> Iterator[Lan]:
    """A switch without stations, which goes with all of them."""
    with workers(doorbell, domains=0) as ground, contextlib.closing(Lan(ground, hogs)) as made:
        yield made
