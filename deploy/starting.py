"""Bringing up a topology: what all guests share, then a guest with its mini-guest and its vCPUs."""
import gc
import os
import resource
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from miniguest.backend.blkback import process as blkback
from miniguest.backend.console import process as console_backend
from miniguest.backend.netback import process as netback
from miniguest.backend.xenstored import process as xenstored
from miniguest.deploy import engines, firmware, report
from miniguest.deploy.children import Child, Children
from miniguest.deploy.control import Desk
from miniguest.deploy.errors import StartFailed
from miniguest.deploy.network import link_config
from miniguest.deploy.toolstack import Console, Toolstack
from miniguest.deploy.topology import Guest, Topology
from miniguest.frontend import miniguest, vcpu
from miniguest.frontend.engines.plan import Plan
from miniguest.ring.errors import XenstoreError
from miniguest.ring.events import HYPERVISOR_SIDE
from miniguest.ring.hypercalls import Hypercalls
from miniguest.ring.hypervisor import server as hypervisor
from miniguest.ring.process import XENSTORED_SOCKET, Process, die_with
from miniguest.ring.xenstore import SocketTransport, Xenstore

START_SECONDS: Final = 30.0             # to be up, for one process on a busy machine


@dataclass(slots=True)
class Running:
    """A guest and its processes. serial: where its serial line is: "stdio", or a path. told: the report of one
    that was taken down."""

    guest: Guest
    serial: str
    engine: str
    domid: int
    stub: int
    mini_guest: Child
    vcpus: list[Child]
    told: tuple[report.Guest, list[report.Ring]] | None = None

    @property
    def ended(self) -> bool:
        """Whether its vCPUs are gone."""
        return all(child.exit_code is not None for child in self.vcpus)


class Starter(ABC):
    """Starts the processes of one topology. The guest that is made first is domain 1 and its mini-guest domain 2, and so on."""

    def __init__(
        self, topology: Topology, runtime: Path, console: BinaryIO, progress: Callable[[str], None],
        leftovers: Sequence[Path], record: Path | None = None,
    ) -> None:
        self._topology = topology
        self._runtime = runtime
        self._progress = progress
        self._leftovers = leftovers
        self._record = record
        self._console_fd = os.dup(console.fileno())
        self._children = Children(runtime)
        self._guests: list[Running] = []
        self._next_domid = 1
        self._desk: Desk | None = None

    def start_dom0(self, undo: ExitStack) -> None:
        """Bring up what all guests share: the hypervisor, xenstored and the backends."""
        # The hypervisor has eight descriptors open for each guest.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        # What is there by now is never garbage. A child whose collector looked at it would take its time, and copy it all.
        gc.collect()
        gc.freeze()
        me, report_to = os.getpid(), os.dup(sys.__stderr__.fileno()) if sys.__stderr__ else -1
        self._spawn_ready("hypervisor", lambda ready: hypervisor.main(self._runtime, me, ready, report_to, self._leftovers))
        self._hypercalls = Hypercalls(self._runtime)
        undo.callback(self._hypercalls.close)
        self.toolstack = Toolstack(self._runtime, self._hypercalls)
        self.toolstack.create_dom0()
        self._spawn_ready("xenstored", lambda ready: self._xenstored(ready))
        self._spawn("blkback", 0, 1, blkback.main)
        links = {name: link_config(link) for name, link in self._topology.link.items()}
        if links:
            self._spawn("netback", 0, 3, lambda process: netback.main(process, links))
        self._spawn("console", 0, 2, lambda process: console_backend.main(process, self._console_fd), keep_stdin=True)
        os.close(self._console_fd)
        self.store = Xenstore(SocketTransport(self._runtime / XENSTORED_SOCKET))
        undo.callback(self.store.close)

    @property
    def processes(self) -> list[Child]:
        """Those that live."""
        return self._children.living

    def _xenstored(self, ready: Callable[[], None]) -> None:
        with self._process("xenstored", 0, 0) as process:
            # Tools ask over the socket, which nobody looks at while spinning.
            process.loop.upcall.spin_ns = 0
            xenstored.serve(process)
            ready()
            process.loop.run()

    def _start_guest(self, guest: Guest, domid: int, stub: int) -> Running:
        self._progress(f"{guest.name}: domain {domid}, mini-guest domain {stub}")
        bios = firmware.find(guest.firmware, Path())
        choice = engines.choose(guest, self._topology.clock, self._record)
        if not self._guests:
            gc.freeze()                 # the engine, too
        domains = self.toolstack.create_guest(guest, domid, stub)
        if choice.wall_ns is not None:
            self.toolstack.step_clock(domid, choice.wall_ns, self._record is not None)
        child = self._spawn(f"{guest.name}-dm", stub, 0, lambda process: miniguest.main(process, domid, guest.vcpus))
        vcpus = []
        for index in range(guest.vcpus):
            name = f"{guest.name}-vcpu{index}"
            vcpus.append(self._spawn(name, domid, HYPERVISOR_SIDE + index, self._vcpu_main(index, bios, choice.plan)))
        try:                            # they start while xenstore is written
            self.toolstack.describe_guest(self.store, guest, domains, self._topology.link, self._console(guest, choice.deaf))
        except XenstoreError:           # xenstored cannot serve a domain whose process has ended: that is the news then
            self._judge(self._children.wait(0), [child, *vcpus])
            raise
        self._wait_for_device_model(child, domid, stub, vcpus)
        serial = self._wait_for_tty(child, stub, vcpus) if guest.serial == "pty" else guest.serial
        self.toolstack.unpause(domid)
        return Running(guest, serial, choice.plan.engine, domid, stub, child, vcpus)

    def _console(self, guest: Guest, deaf: bool) -> Console:
        alone = len(self._topology.guest) == 1
        on_stdio = [other for other in self._topology.guest if other.serial == "stdio"]
        keys = bool(on_stdio) and on_stdio[0] is guest and not deaf
        return Console(guest.serial, "" if alone else f"{guest.name}| ", keys)

    def _vcpu_main(self, index: int, bios: Path, plan: Plan) -> Callable[[Process], int]:
        return lambda process: int(vcpu.main(process, index, bios, plan))

    @contextmanager
    def _process(self, name: str, domid: int, number: int) -> Iterator[Process]:
        process = Process(self._runtime, domid, number, name, self._topology.doorbell)
        try:
            yield process
        finally:
            process.close()

    def _spawn(
        self, name: str, domid: int, number: int, main: Callable[[Process], int | None], keep_stdin: bool = False
    ) -> Child:
        """A process that is vCPU `number` of a domain."""
        supervisor = os.getpid()

        def run_it() -> int | None:
            die_with(supervisor)
            with self._process(name, domid, number) as process:
                return main(process)

        return self._children.spawn(name, run_it, keep_stdin)

    def _spawn_ready(self, name: str, main: Callable[[Callable[[], None]], None]) -> None:
        """A process that the next ones need: returns when it says that it is ready."""
        reader, writer = os.pipe()
        child = self._children.spawn(name, lambda: main(lambda: _say_ready(writer)))
        os.close(writer)
        os.set_blocking(reader, False)
        self._until(child, lambda: _is_ready(reader), reader)
        os.close(reader)

    def _until(self, child: Child, done: Callable[[], bool], fd: int, with_it: Sequence[Child] = ()) -> None:
        """Wait until `done`, which may change whenever `fd` is readable. StartFailed when it does not come to that, be it
        because of `child` or those with it; ProcessDied when another process ends meanwhile that should not."""
        deadline = time.monotonic() + START_SECONDS
        while not done():
            self._judge(self._children.wait(deadline - time.monotonic(), fd), [child, *with_it])
            if time.monotonic() > deadline:
                raise StartFailed(f"{child.name} is not up after {START_SECONDS:g} s{self._last_words(child)}")

    def _judge(self, dead: list[Child], starting: Sequence[Child]) -> None:
        """Processes ended: StartFailed if one of them was just starting."""
        for child in dead:
            if child in starting:
                raise StartFailed(f"{child.name} {child.how()} while starting{self._last_words(child)}")
            self._ended(child)

    def _wait_for_device_model(self, child: Child, domid: int, stub: int, with_it: Sequence[Child] = ()) -> None:
        self._wait_for_node(f"/local/domain/{stub}/device-model/{domid}/state", lambda value: value == b"running", child, with_it)

    def _wait_for_tty(self, child: Child, stub: int, with_it: Sequence[Child]) -> str:
        """The pty of its console."""
        key = f"/local/domain/{stub}/console/tty"
        self._wait_for_node(key, bool, child, with_it)
        return self.store.read_text(key)

    def _wait_for_node(self, key: str, wanted: Callable[[bytes], bool], child: Child, with_it: Sequence[Child]) -> None:
        """Wait until the node's value is `wanted`."""
        found = False

        def look(_: str) -> None:
            nonlocal found
            (value,) = self.store.read_all([key])
            found = found or (isinstance(value, bytes) and wanted(value))

        def done() -> bool:
            self.store.dispatch()
            return found

        watch = self.store.watch(key, look)
        try:
            self._until(child, done, self.store.fileno(), with_it)
        except StartFailed:
            watch.cancel()
            raise
        watch.cancel()

    def _last_words(self, child: Child) -> str:
        """The last line of a process's log, to go behind the news of its death."""
        try:
            lines = (self._runtime / f"{child.name}.log").read_text(errors="replace").split("\n")
        except OSError:
            return ""
        last = [line.strip() for line in lines if line.strip()][-1:]
        return f": {last[0]}" if last else ""

    @abstractmethod
    def _ended(self, child: Child) -> None:
        """A process ended that was not waited for. ProcessDied when it should not have."""


def _say_ready(pipe: int) -> None:
    os.write(pipe, b"\1")
    os.close(pipe)


def _is_ready(pipe: int) -> bool:
    """Whether the child said so. A pipe that closed without a word means that the child is about to end."""
    try:
        return os.read(pipe, 1) == b"\1"
    except BlockingIOError:
        return False
