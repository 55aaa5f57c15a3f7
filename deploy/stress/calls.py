"""Hypercalls and xenstore requests of many processes at once, some of which are killed.

Each client knows what its event channels, the domains it made and its part of the store must be, and compares: what calls
answer, alone and in multicalls, some of which must fail; its ports in its domain's table; values, lists and watch events.
All add to one number of the store in transactions, and in the same transaction to one of their own: the sums are the same at
any time, whoever is killed. In the end nothing of anybody may be left.
"""
import contextlib
import gc
import random
from functools import partial
from typing import Final

from miniguest.backend.xenstored.client import Client
from miniguest.backend.xenstored.daemon import Xenstored
from miniguest.deploy.children import Child
from miniguest.deploy.stress.call_models import Channels, Keys, child_domids, open_ports
from miniguest.deploy.stress.stirring import Stirring
from miniguest.deploy.stress.store import start_store
from miniguest.deploy.stress.workers import GRACE, StressError, Workers, workers
from miniguest.deploy.toolstack import Toolstack
from miniguest.ring.errors import HypercallError
from miniguest.ring.process import Process

FIRST: Final = 100                      # domid of the first client that has a domain of its own
MEMORY: Final = 1 << 20                 # bytes of such a domain
VICTIM_VCPU: Final = 31
MAX_KILL_S: Final = 0.3
SHARED: Final = "/stress/shared"
GRANTED: Final = "/stress/granted"
CHECKS: Final = 200                     # steps between looks at everything


def live(process: Process, seed: int, name: str, first_child: int, total: int) -> None:
    """A client's life: random steps until it has made `total` calls and requests."""
    stirring = Stirring(process, seed, True)
    keys = Keys(process.xenstore(), stirring, f"/stress/{name}", SHARED, process.domid)
    channels = Channels(process, stirring.random, first_child)
    steps = 0
    while keys.made + channels.made < total:
        stirring.stirred()
        if stirring.random.random() < 0.1:
            stirring.pause()
        if stirring.random.random() < 0.6:
            channels.step()
        else:
            keys.step()
        steps += 1
        if steps % CHECKS == 0:
            channels.check()
            keys.check()
    channels.check()
    keys.check()
    channels.destroy_children()


def none_waits(process: Process, daemon: Xenstored) -> None:
    """StressError when xenstored keeps something of a client that is gone."""
    process.loop.turn(0)                # whose end it may not have read yet
    gc.collect()
    kept = [client for client in gc.get_objects() if isinstance(client, Client) and client.busy]
    if kept or daemon.watches.paths:
        raise StressError(f"{len(kept)} clients have watches or transactions; watched are {daemon.watches.paths}")


class Calls:
    """The ground, and what must be left of it."""

    def __init__(self, ground: Workers, seed: int) -> None:
        self.ground, self.seed = ground, seed
        self.xenstored, self.store = start_store(ground, none_waits)
        self.toolstack = Toolstack(ground.runtime, ground.hypercalls)
        self.store.write_all({SHARED: 0, GRANTED: 0}, {SHARED: ["b0"]})
        self.added = 0                  # by those that are gone

    def start(self, index: int, vcpu: int, total: int) -> tuple[Child, int]:
        """Client `index`, in dom0 (as vCPU `vcpu`) or in a domain of its own; its process and its domain."""
        domid = FIRST + index if index % 2 else 0
        name = f"client{index}"
        if domid:
            self.toolstack.create_domain(self.store, domid, name, MEMORY)
            self.store.set_perms(GRANTED, ["n0", f"r{domid}"])
        base = f"/stress/{name}"
        self.store.write_all({base: "", f"{base}/added": 0}, {base: [f"n{domid}"], f"{base}/added": [f"n{domid}"]})
        main = partial(live, seed=self.seed + index, name=name, first_child=child_domids(index).start, total=total)
        return self.ground.start(name, domid, 0 if domid else vcpu, main), domid

    def bury(self, index: int, domid: int) -> None:
        """What a client that has ended left goes, and nothing but that: StressError when there is more."""
        call, base = self.ground.hypercalls.call, f"/stress/client{index}"
        for child in child_domids(index):
            with contextlib.suppress(HypercallError):
                call("destroy_domain", domid=child)
        self.added += self.store.read_int(f"{base}/added")
        if domid:
            ports = [port for port in open_ports(self.ground.runtime, domid).items() if port[1][2] != 0]
            if ports:
                raise StressError(f"domain {domid} keeps {ports}")
            self.store.release(domid)
            self.store.rm(f"/local/domain/{domid}")
            call("destroy_domain", domid=domid)
            if self.store.exists(base) or f"r{domid}" in self.store.get_perms(GRANTED):
                raise StressError(f"the store still knows domain {domid}")
        else:
            self.store.rm(base)

    def nothing_left(self) -> None:
        """StressError when anything is there but dom0 and xenstored."""
        info = self.ground.hypercalls.call("domain_info", domid=0)
        domains = sorted(path.name for path in self.ground.runtime.glob("dom*"))
        ports = open_ports(self.ground.runtime, 0)
        if list(info["vcpus"]) != [0] or domains != ["dom0"] or ports:
            raise StressError(f"left are {domains}, processes {info['vcpus']} and ports {ports}")
        if (shared := self.store.read_int(SHARED)) != self.added:
            raise StressError(f"{shared} were added together, and {self.added} by each")
        if sorted(self.store.directory("/stress")) != ["granted", "shared"]:
            raise StressError(f"in the store are {self.store.directory('/stress')}")


def call_and_store(
    total: int, doorbell: str = "zmq", clients: int = 4, kills: int = 0, seed: int = 1, seconds: float = 120.0, hogs: int = 0
) -> None:
    """`clients` processes make `total` calls and requests together; `kills` more are killed on their way. StressError when
    an answer is wrong, or something stays."""
    chance = random.Random(seed)
    with workers(doorbell, domains=0) as ground:
        calls = Calls(ground, seed)
        ground.busy_cores(hogs)
        living = [calls.start(index, 1 + index, total // clients)[1] for index in range(clients)]
        for index in range(clients, clients + kills):
            victim, domid = calls.start(index, VICTIM_VCPU, 1 << 60)
            ground.kill(victim, chance.random() * MAX_KILL_S)
            calls.bury(index, domid)
        ground.finish(seconds, but=("xenstored",))
        for index, domid in enumerate(living):
            calls.bury(index, domid)
        calls.nothing_left()
        calls.store.close()
        ground.end(calls.xenstored)
        ground.finish(GRACE)
