"""What a client of the stress of calls knows must be: its event channels and domains, and its part of the store."""
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from miniguest.deploy.stress.stirring import Stirring
from miniguest.deploy.stress.workers import StressError
from miniguest.ring.abi.event_channel import (
    EVTCHN_2L_NR_CHANNELS,
    EVTCHNSTAT_closed,
    EVTCHNSTAT_interdomain,
    EVTCHNSTAT_unbound,
)
from miniguest.ring.errors import HypercallError, XenstoreError
from miniguest.ring.events import table_path
from miniguest.ring.hypercalls import MULTICALL
from miniguest.ring.hypervisor.event_channels import unpack
from miniguest.ring.process import Process
from miniguest.ring.words import map_words
from miniguest.ring.xenstore import Transaction, Watch, Xenstore

CHILDREN: Final = 4                     # domains that one client makes and destroys
FIRST_CHILD: Final = 1000
CHILD_FRAMES: Final = 16
CHILD_VCPU: Final = 5
MOST_PORTS: Final = 200
MOST_CALLS: Final = 24                  # in a multicall
NAMES: Final = tuple(f"key{index}" for index in range(40))

Entry = tuple[int, int, int]            # state, remote domid, remote port
Planned = tuple[str, dict[str, int | str], Callable[[Any], None] | str]     # what its result does, or the error it must have


def child_domids(index: int) -> range:
    """The domains that client `index` may have made."""
    return range(FIRST_CHILD + index * CHILDREN, FIRST_CHILD + (index + 1) * CHILDREN)


def open_ports(runtime: Path, domid: int) -> dict[int, tuple[int, int, int, int]]:
    """(state, vcpu, remote domid, remote port) by number, as the table has them; xenstored's own, vCPU 0's, left out in dom0."""
    table = map_words(table_path(runtime, domid), EVTCHN_2L_NR_CHANNELS).cast("B").cast("Q")
    entries = {port: unpack(entry) for port, entry in enumerate(table) if entry & 0xFF != EVTCHNSTAT_closed}
    return {port: entry for port, entry in entries.items() if domid or entry[1]}


class Channels:
    """A process's event channels, and its domains with theirs."""

    def __init__(self, process: Process, chance: random.Random, first_child: int) -> None:
        self.process, self.chance = process, chance
        self.domid, self.vcpu = process.domid, process.vcpu
        self.first_child = first_child
        self.children: dict[int, list[int]] = {}        # and their ports that wait for us
        self.ports: dict[int, Entry] = {}
        self.made = 0
        self.busy: set[int] = set()     # ports, and children, that the calls planned so far are about
        self.before = self.mine()

    def mine(self) -> dict[int, Entry]:
        """Our ports, as the table has them."""
        found = open_ports(self.process.runtime, self.domid)
        return {port: (state, *remote) for port, (state, vcpu, *remote) in found.items() if vcpu == self.vcpu}  # type: ignore[misc]

    def check(self) -> None:
        """StressError when the table says anything else."""
        if (found := self.mine()) != {**self.before, **self.ports}:
            raise StressError(f"the table has {found}, not {self.before} and {self.ports}")

    def step(self) -> None:
        """One call, or several in one."""
        self.busy.clear()
        planned = [self.plan() for _ in range(self.chance.choice((1, 1, self.chance.randint(2, MOST_CALLS))))]
        calls = [(op, args) for op, args, _ in planned]
        replies = self.process.hypercalls.call(MULTICALL, calls=calls) if len(calls) > 1 else [self.alone(*calls[0])]
        self.made += len(calls)
        for (op, args, then), reply in zip(planned, replies, strict=True):
            if (error := then if isinstance(then, str) else None) != reply.get("error"):
                raise StressError(f"{op} {args}: {reply}, not {error}")
            if not isinstance(then, str):
                then(reply["result"])

    def alone(self, op: str, args: dict[str, int | str]) -> dict[str, Any]:
        try:
            return {"result": self.process.hypercalls.call(op, **args)}
        except HypercallError as error:
            return {"error": error.code}

    def plan(self) -> Planned:
        """A random call that does not depend on those planned before."""
        kind = self.chance.choice((self.alloc, self.alloc, self.bind, self.close, self.close, self.child, self.child, self.child))
        return kind() or ("evtchn_close", {"domid": self.domid, "port": EVTCHN_2L_NR_CHANNELS - 1}, "EINVAL")

    def alloc(self) -> Planned | None:
        if len(self.ports) >= MOST_PORTS:
            return None
        return ("evtchn_alloc_unbound", {"domid": self.domid, "vcpu": self.vcpu, "remote_domid": self.domid},
                lambda port: self.add(port, (EVTCHNSTAT_unbound, self.domid, 0)))

    def add(self, port: int, entry: Entry) -> None:
        """A new port, which must not be one of those that are open."""
        if port in self.ports or port in self.before:
            raise StressError(f"port {port} is given out twice")
        self.ports[port] = entry

    def bind(self) -> Planned | None:
        free = [(self.domid, port) for port, entry in self.ports.items()
                if entry[:2] == (EVTCHNSTAT_unbound, self.domid) and port not in self.busy]
        free += [(child, port) for child, ports in self.children.items() for port in ports if child not in self.busy]
        if not free or len(self.ports) >= MOST_PORTS:
            return None
        domid, remote = self.chance.choice(free)
        self.busy.add(remote if domid == self.domid else domid)
        return ("evtchn_bind_interdomain", {"domid": self.domid, "vcpu": self.vcpu, "remote_domid": domid, "remote_port": remote},
                lambda port: self.bound(port, domid, remote))

    def bound(self, port: int, domid: int, remote: int) -> None:
        self.add(port, (EVTCHNSTAT_interdomain, domid, remote))
        if domid == self.domid:
            self.ports[remote] = EVTCHNSTAT_interdomain, domid, port
        else:
            self.children[domid].remove(remote)

    def close(self) -> Planned | None:
        port = self.chance.choice(list(self.ports)) if self.ports else 0
        state, domid, remote = self.ports.get(port, (0, 0, 0))
        others = {remote if domid == self.domid else domid} if state == EVTCHNSTAT_interdomain else set()
        if not port or {port, *others} & self.busy:
            return None
        self.busy |= {port, *others}
        return "evtchn_close", {"domid": self.domid, "port": port}, lambda _: self.closed(port)

    def closed(self, port: int) -> None:
        state, domid, remote = self.ports.pop(port)
        if state == EVTCHNSTAT_interdomain and domid == self.domid:
            self.ports[remote] = EVTCHNSTAT_unbound, domid, 0
        elif state == EVTCHNSTAT_interdomain:
            self.children[domid].append(remote)         # it waits for us again

    def child(self) -> Planned | None:
        """Something about a domain of ours, which may not be there."""
        domid = self.first_child + self.chance.randrange(CHILDREN)
        bound = {port for port, entry in self.ports.items() if entry[:2] == (EVTCHNSTAT_interdomain, domid)}
        if {domid, *bound} & self.busy:
            return None
        self.busy |= {domid, *bound}
        there, kind = domid in self.children, self.chance.random()
        if kind < 0.1:
            make: dict[str, int | str] = {"domid": domid, "name": f"child{domid}", "ram_frames": CHILD_FRAMES}
            return "create_domain", make, "EEXIST" if there else lambda _: self.children.update({domid: []})
        if kind < 0.2:
            return "destroy_domain", {"domid": domid}, (lambda _: self.destroyed(domid, bound)) if there else "ESRCH"
        if kind < 0.4 or (there and len(self.children[domid]) >= MOST_PORTS):
            return "domain_info", {"domid": domid}, (lambda info: self.compare(info, domid)) if there else "ESRCH"
        new: dict[str, int | str] = {"domid": domid, "vcpu": CHILD_VCPU, "remote_domid": self.domid}
        return "evtchn_alloc_unbound", new, self.children[domid].append if there else "ESRCH"

    def destroyed(self, domid: int, bound: set[int]) -> None:
        del self.children[domid]
        for port in bound:
            self.ports[port] = EVTCHNSTAT_unbound, domid, 0

    @staticmethod
    def compare(info: dict[str, Any], domid: int) -> None:
        if (info["name"], info["ram_frames"], info["vcpus"]) != (f"child{domid}", CHILD_FRAMES, {}):
            raise StressError(f"domain {domid}: {info}")

    def destroy_children(self) -> None:
        """All of them, in one multicall."""
        if self.children:
            self.process.hypercalls.multicall(*[("destroy_domain", {"domid": domid}) for domid in self.children])


class Keys:
    """A process's directory in the store: values, permissions and events."""

    def __init__(self, store: Xenstore, stirring: Stirring, base: str, shared: str, domid: int) -> None:
        self.store, self.stirring, self.chance = store, stirring, stirring.random
        self.base, self.shared, self.domid = base, shared, domid
        self.values: dict[str, bytes] = {"added": b"0"}
        self.perms: dict[str, list[str]] = {}
        self.seen: Counter[str] = Counter()
        self.wanted: Counter[str] = Counter()
        self.watch: Watch | None = None
        self.made = 0

    def step(self) -> None:
        """A random request, or several."""
        steps = (
            self.write, self.write, self.read, self.read, self.remove, self.add, self.add, self.discard, self.turn,
            self.compare_events,
        )
        self.chance.choice(steps)()

    def path(self, name: str) -> str:
        """Where it is."""
        return f"{self.base}/{name}"

    def some(self) -> list[str]:
        """Names, at random."""
        return self.chance.sample(NAMES, self.chance.randint(1, len(NAMES)))

    def write(self) -> None:
        names = self.some()
        values = {name: self.chance.randbytes(self.chance.randrange(20)).hex() for name in names}
        perms = {name: [f"n{self.domid}", f"r{self.chance.randint(60, 69)}"] for name in names if self.chance.random() < 0.2}
        self.store.write_all(
            {self.path(name): value for name, value in values.items()}, {self.path(name): each for name, each in perms.items()}
        )
        self.values |= {name: value.encode() for name, value in values.items()}
        self.perms |= perms
        self.wanted.update([*names, *perms])
        self.made += len(names) + len(perms)

    def read(self) -> None:
        names = [*self.some(), "added"]
        for name, found in zip(names, self.store.read_all([self.path(name) for name in names]), strict=True):
            code = found.code if isinstance(found, XenstoreError) else None
            if self.values.get(name) != (None if code == "ENOENT" else found):
                raise StressError(f"{self.path(name)} is {found!r}, not {self.values.get(name)!r}")
        self.made += len(names)

    def remove(self) -> None:
        for name in [name for name in self.some()[:4] if name in self.values]:
            self.store.rm(self.path(name))
            del self.values[name]
            self.perms.pop(name, None)
            self.wanted[name] += 1
            self.made += 1

    def add(self) -> None:
        """One to the number of all, and to ours."""
        mine = int(self.values["added"]) + 1

        def both(nodes: Transaction) -> None:
            shared = nodes.read_int(self.shared)
            self.stirring.pause()
            nodes.write_all({self.shared: shared + 1, self.path("added"): mine})
            self.made += 5

        self.store.retry(both)
        self.values["added"] = str(mine).encode()
        self.wanted["added"] += 1

    def discard(self) -> None:
        """A transaction that is none."""
        nodes = Transaction(self.store)
        nodes.write_all({self.path(name): "never" for name in self.some()[:8]})
        nodes.end(commit=False)
        self.made += 3

    def turn(self) -> None:
        """Begin to watch, or end it."""
        self.compare_events()
        if self.watch:
            self.watch.cancel()
            self.watch = None
        else:
            self.watch = self.store.watch(self.base, lambda path: self.seen.update([path.removeprefix(self.base).lstrip("/")]))
        self.seen.clear()
        self.wanted = Counter([""])     # a watch tells of itself at first
        self.made += 2

    def compare_events(self) -> None:
        """Every change of ours was told of, and none more often than it was made: events that wait and say the same are one."""
        self.store.read(self.base)      # what came before is there then
        self.store.dispatch()
        if self.watch and (set(self.seen) != set(self.wanted) or self.seen - self.wanted):
            raise StressError(f"events were {self.seen}, not {self.wanted}")
        self.seen.clear()
        self.wanted.clear()

    def check(self) -> None:
        """StressError when the store says anything else."""
        self.compare_events()
        if sorted(self.store.directory(self.base)) != sorted(self.values):
            raise StressError(f"{self.base} has {self.store.directory(self.base)}, not {sorted(self.values)}")
        for name in self.values:
            wanted = self.perms.get(name, [f"n{self.domid}"])
            if (found := self.store.get_perms(self.path(name))) != wanted:
                raise StressError(f"permissions of {self.path(name)} are {found}, not {wanted}")
        self.made += 2 + len(self.values)
