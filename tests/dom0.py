"""A topology without guests for tests: the hypervisor, xenstored, blkback and console as real processes."""
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from miniguest.deploy.supervisor import Supervisor
from miniguest.deploy.topology import Topology


@contextmanager
def runtime_directory() -> Iterator[Path]:
    """A short directory on a tmpfs: paths of UNIX sockets hold 107 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="mgt-", dir="/dev/shm"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@contextmanager
def dom0(doorbell: str = "zmq") -> Iterator[tuple[Supervisor, Path]]:
    """(supervisor, runtime directory): `supervisor.toolstack` makes domains, `supervisor.store` is xenstore."""
    topology = Topology(name="test", guest=(), doorbell=doorbell)       # type: ignore[arg-type]
    with runtime_directory() as runtime, ExitStack() as undo, open(os.devnull, "wb") as console:
        supervisor = Supervisor(topology, runtime, console, lambda message: None, ())
        undo.callback(supervisor.kill)
        supervisor.start_dom0(undo)
        yield supervisor, runtime
