"""Rings: request and response pairs a second between two processes, beside C with Xen's own macros.

    spin     both ends look at the ring all the time; C does, too
    sleep    both ends sleep as soon as there is nothing to do, on an event channel whose doorbell is zmq; C sleeps on an
             eventfd through the same event suppression. Rows of their own: the FIFO doorbell, and `wait`, which is how all
             our processes wait: they spin for a while first

Peers are what a Python program would take instead (miniguest.deploy.bench.ring_peers).
"""
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Final

from miniguest.deploy.bench.machine import cores
from miniguest.deploy.bench.pair import Pair, PairError
from miniguest.deploy.bench.references import MissingReferenceError, Program
from miniguest.deploy.bench.ring_peers import peers as all_peers
from miniguest.deploy.bench.ring_sleep import sleeping_ring
from miniguest.deploy.bench.ring_spin import BLKIF, BLKIF_16, NETIF, Kind, SpinningRing
from miniguest.deploy.bench.rows import Measured, row
from miniguest.deploy.bench.windows import interleave
from miniguest.deploy.children import Children

SECONDS: Final = 0.03                   # of a window
GRACE: Final = 1.0
SPINNING: Final[Mapping[str, Kind]] = {
    "ring blkif-32 spin": BLKIF, "ring netif-256 spin": NETIF, "ring blkif-512 spin": BLKIF_16,
}
# name: the doorbell, and whether the ends spin before they sleep
SLEEPING: Final[Mapping[str, tuple[str, bool]]] = {
    "ring netif-256 sleep": ("zmq", False), "ring netif-256 sleep, fifo": ("fifo", False), "ring netif-256 wait": ("zmq", True),
}
C_SLEEP: Final = "ring netif-256 sleep, C with Xen's macros and eventfd"
PEERS_OF: Final = "ring blkif-32 spin"  # what a peer is compared with: its requests and responses have the same sizes

Window = Callable[[], float]


def measure(windows: int, peers: bool, progress: Callable[[str], None]) -> Measured:
    """Spinning and sleeping rings, each beside C; with `peers` beside those, too."""
    found = Measured()
    references: dict[str, str] = {}
    with ExitStack() as undo:
        logs = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="miniguest-bench-")))
        children = Children(logs)
        undo.callback(lambda: children.stop(children.living, GRACE))
        ways: dict[str, Window] = {}
        for name, kind in SPINNING.items():
            ring = SpinningRing(kind)
            pair = Pair(children, logs, name.replace(" ", "-"), ring.client, ring.server)
            ways[name] = partial(pair.window, SECONDS)
            references[name] = f"{name}, C with Xen's macros"
            _add_c(ways, references[name], kind, "spin", found, undo)
        for name, (doorbell, spin) in SLEEPING.items():
            ways[name] = partial(undo.enter_context(sleeping_ring(NETIF, doorbell, spin)).window, SECONDS)
            references[name] = C_SLEEP
        _add_c(ways, C_SLEEP, NETIF, "sleep", found, undo)
        if peers:
            _add_peers(ways, references, children, logs, found)
        values = interleave(ways, windows, progress)
    for name in ways:
        reference = references.get(name, "")
        others = values.get(reference, [])
        found.rows.append(row(name, "M/s", _millions(values[name]), reference if others else "", _millions(others)))
    return found


def _add_peers(ways: dict[str, Window], references: dict[str, str], children: Children, logs: Path, found: Measured) -> None:
    for number, (name, make) in enumerate(all_peers(logs).items()):
        name = f"ring peer {name}"
        try:
            peer = make()
            pair = Pair(children, logs, f"peer{number}", peer.client, peer.server)
        except (ImportError, PairError) as error:
            found.left_out[name] = str(error)
            continue
        ways[name] = partial(pair.window, SECONDS)
        references[name] = PEERS_OF


def _add_c(ways: dict[str, Window], name: str, kind: Kind, way: str, found: Measured, undo: ExitStack) -> None:
    try:
        program = undo.enter_context(closing(Program("ring", kind.name, kind.pages, way, *cores())))
    except MissingReferenceError as error:
        found.left_out[name] = str(error)
        return
    ways[name] = lambda: program.window(SECONDS)[0]


def _millions(values: list[float]) -> list[float]:
    return [value / 1e6 for value in values]
