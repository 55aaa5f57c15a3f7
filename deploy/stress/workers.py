"""A hypervisor and worker processes, each a vCPU of some domain, with a watchdog: the ground a stress runs on."""
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from miniguest.deploy.children import Child, Children
from miniguest.ring.errors import MiniguestError
from miniguest.ring.hypercalls import Hypercalls
from miniguest.ring.hypervisor import server as hypervisor
from miniguest.ring.process import Process, die_with

RAM_FRAMES: Final = 256
GRACE: Final = 5.0


class StressError(MiniguestError):
    """Something that was passed between processes was lost, doubled, changed or never told."""


class Workers:
    """The processes of one stress in their runtime directory. doorbell: "zmq" or "fifo"."""

    def __init__(self, runtime: Path, doorbell: str) -> None:
        self.runtime = runtime
        self._doorbell = doorbell
        self._children = Children(runtime)
        self._workers: list[Child] = []
        reader, writer = os.pipe()
        me = os.getpid()
        self._children.spawn("hypervisor", lambda: hypervisor.main(runtime, me, lambda: os.close(writer)))
        os.close(writer)
        os.read(reader, 1)              # ends when the hypervisor answers, or died
        os.close(reader)
        self.hypercalls = Hypercalls(runtime)

    def domain(self, domid: int) -> None:
        """A domain of RAM_FRAMES frames."""
        self.hypercalls.call("create_domain", domid=domid, name=f"domain{domid}", ram_frames=RAM_FRAMES)

    def start(self, name: str, domid: int, vcpu: int, main: Callable[[Process], None]) -> Child:
        """A process that is vCPU `vcpu` of a domain. What it raises makes `finish` fail."""
        parent = os.getpid()

        def run() -> None:
            die_with(parent)
            process = Process(self.runtime, domid, vcpu, name, self._doorbell)
            main(process)
            process.close()

        child = self._children.spawn(name, run)
        self._workers.append(child)
        return child

    def busy_cores(self, count: int) -> None:
        """Processes that do nothing but want a core, as long as this lives."""
        parent = os.getpid()

        def compute() -> None:
            die_with(parent)
            while True:
                pass

        for index in range(count):
            self._children.spawn(f"hog{index}", compute)

    def kill(self, child: Child, after: float) -> None:
        """kill -9, once `after` seconds have passed, unless it ended by itself before; buried on return."""
        deadline = time.monotonic() + after
        while child.exit_code is None and time.monotonic() < deadline:
            self._children.wait(deadline - time.monotonic())
        child.kill(signal.SIGKILL)
        while child.exit_code is None:
            self._children.wait(None)
        if child.exit_code == -signal.SIGKILL:
            self._workers.remove(child)
        # The hypervisor buries the dead before it answers anybody.
        self.hypercalls.call("domain_info", domid=0)

    def end(self, child: Child) -> None:
        """Let one stop in an orderly way."""
        self._children.stop([child], GRACE)

    def finish(self, seconds: float, but: Collection[str] = ()) -> None:
        """Wait until every worker, but those of these names, has ended well.

        StressError when one did not, or the watchdog's time is up.
        """
        deadline = time.monotonic() + seconds
        self._children.wait(0)
        while running := [child.name for child in self._workers if child.exit_code is None and child.name not in but]:
            self._check()
            if time.monotonic() > deadline:
                raise StressError(f"{', '.join(running)} did not end in {seconds:g} s")
            self._children.wait(deadline - time.monotonic())
        self._check()

    def _check(self) -> None:
        for child in self._children.all:
            if child.exit_code and (child in self._workers or child is self._children.all[0]):
                log = (self.runtime / f"{child.name}.log").read_text(errors="replace")
                raise StressError(f"{child.name} {child.how()}\n{log}")

    def close(self) -> None:
        """End everything that still runs."""
        self._children.stop(self._children.living, GRACE)
        self.hypercalls.close()


@contextmanager
def workers(doorbell: str = "zmq", domains: int = 2) -> Iterator[Workers]:
    """Workers with domains 0 to `domains`, in a directory of their own that goes with them."""
    runtime = Path(tempfile.mkdtemp(prefix="mgs-", dir="/dev/shm"))
    try:
        ground = Workers(runtime, doorbell)
        try:
            for domid in range(domains + 1):
                ground.domain(domid)
            yield ground
        finally:
            ground.close()
    finally:
        shutil.rmtree(runtime, ignore_errors=True)
