"""The supervisor: starts the processes of a topology, watches them, and ends them all. It is `miniguest run` itself.

Guest n (from 0) is domain 2n + 1 and its mini-guest domain 2n + 2. Whatever happens, nothing stays: when a process
dies the supervisor ends the others, and when the supervisor itself is killed the hypervisor does.
"""
import contextlib
import gc
import os
import sys
import termios
import time
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
from miniguest.deploy.errors import ProcessDied
from miniguest.deploy.network import link_config
from miniguest.deploy.results import guest_report, ring_reports
from miniguest.deploy.toolstack import Console, Toolstack
from miniguest.deploy.topology import Guest, Topology
from miniguest.frontend import miniguest, vcpu
from miniguest.frontend.engines.plan import Plan
from miniguest.ring.abi.sched import SHUTDOWN_watchdog
from miniguest.ring.errors import HypercallError
from miniguest.ring.events import HYPERVISOR_SIDE
from miniguest.ring.hypercalls import Hypercalls
from miniguest.ring.hypervisor import server as hypervisor
from miniguest.ring.process import XENSTORED_SOCKET, Process, die_with
from miniguest.ring.xenstore import SocketTransport, Xenstore

START_SECONDS: Final = 30.0             # to be up, for one process on a busy machine
STOP_SECONDS: Final = 1.5               # for a mini-guest to get rid of its last output
KILL_SECONDS: Final = 0.5               # for everybody, when something went wrong
ENDED: Final[dict[int, report.Ended]] = {
    vcpu.Ended.HALT: "halt", vcpu.Ended.POWEROFF: "poweroff", vcpu.Ended.TIMEOUT: "timeout", vcpu.Ended.CRASH: "crash",
}


@dataclass(slots=True)
class Running:
    """A guest and its processes."""

    guest: Guest
    engine: str
    domid: int
    stub: int
    mini_guest: Child
    vcpus: list[Child]

    @property
    def ended(self) -> bool:
        """Whether its vCPUs are gone."""
        return all(child.exit_code is not None for child in self.vcpus)


def run(
    topology: Topology, *, runtime: Path, timeout: float | None, console: BinaryIO, progress: Callable[[str], None],
    leftovers: Sequence[Path] = (), record: Path | None = None,
) -> report.RunResult:
    """Run a topology to the end of its guests. console: where serial lines on "stdio" go. leftovers: what else to
    remove should the supervisor be killed. record: where the trace of the one guest goes.

    Raises ProcessDied when a process ended that should not have.
    """
    with ExitStack() as undo:
        undo.enter_context(_keys_as_typed(topology))
        supervisor = Supervisor(topology, runtime, console, progress, leftovers, record)
        undo.callback(supervisor.kill)
        supervisor.start_dom0(undo)
        supervisor.start_guests()
        return supervisor.watch(timeout)


class Supervisor:
    """The processes of one topology."""

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

    # -- start
    def start_dom0(self, undo: ExitStack) -> None:
        """Bring up what all guests share: the hypervisor, xenstored and the backends."""
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

    def start_guests(self) -> None:
        """Make the guests of the topology and start their processes, the vCPUs last."""
        for guest in self._topology.guest:
            self.add_guest(guest)

    def add_guest(self, guest: Guest) -> int:
        """Make one more guest and start its processes; its domain. ProcessDied when one ends while starting."""
        domid = 2 * len(self._guests) + 1
        self._start_guest(guest, domid, domid + 1)
        return domid

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

    def _start_guest(self, guest: Guest, domid: int, stub: int) -> None:
        self._progress(f"{guest.name}: domain {domid}, mini-guest domain {stub}")
        bios = firmware.find(guest.firmware, Path())
        choice = engines.choose(guest, self._topology.clock, self._record)
        if not self._guests:
            # What is there by now is never garbage. A child whose collector looked at it would have a copy of all of it.
            gc.collect()
            gc.freeze()
        domains = self.toolstack.create_guest(guest, domid, stub)
        if choice.wall_ns is not None:
            self.toolstack.step_clock(domid, choice.wall_ns, self._record is not None)
        child = self._spawn(f"{guest.name}-dm", stub, 0, lambda process: miniguest.main(process, domid, guest.vcpus))
        vcpus = []
        for index in range(guest.vcpus):
            name = f"{guest.name}-vcpu{index}"
            vcpus.append(self._spawn(name, domid, HYPERVISOR_SIDE + index, self._vcpu_main(index, bios, choice.plan)))
        # They start while xenstore is written.
        self.toolstack.describe_guest(self.store, guest, domains, self._topology.link, self._console(guest, choice.deaf))
        self._wait_for_device_model(child, domid, stub)
        self.toolstack.unpause(domid)
        self._guests.append(Running(guest, choice.plan.engine, domid, stub, child, vcpus))
        if guest.serial == "pty":
            name = self.store.read_text(f"/local/domain/{stub}/console/tty")
            print(f"miniguest: {guest.name}: serial line on {name}", file=sys.stderr)

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

    def _until(self, child: Child, done: Callable[[], bool], fd: int) -> None:
        """Wait until `done`, which may change whenever `fd` is readable; ProcessDied when any process ends before."""
        deadline = time.monotonic() + START_SECONDS
        while not done():
            dead = self._children.wait(deadline - time.monotonic(), fd)
            if dead:
                raise ProcessDied(f"{dead[0].name} {dead[0].how()} while starting{self._last_words(dead[0])}")
            if time.monotonic() > deadline:
                raise ProcessDied(f"{child.name} is not up after {START_SECONDS:g} s{self._last_words(child)}")

    def _wait_for_device_model(self, child: Child, domid: int, stub: int) -> None:
        key = f"/local/domain/{stub}/device-model/{domid}/state"
        running = False

        def look(_: str) -> None:
            nonlocal running
            running = running or self.store.read_all([key]) == [b"running"]

        watch = self.store.watch(key, look)

        def done() -> bool:
            self.store.dispatch()
            return running

        self._until(child, done, self.store.fileno())
        watch.cancel()

    # -- watch
    def watch(self, timeout: float | None) -> report.RunResult:
        """Wait for the guests' ends, or the timeout; then end the rest in order, and report."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._children.untold or not all(running.ended for running in self._guests):
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                self._time_out()
                break
            for child in self._children.wait(left):
                self._ended(child)
        self._stop_in_order()
        return report.RunResult(
            topology=self._topology.name,
            guests=tuple(
                guest_report(
                    self._runtime, running.guest, running.engine, running.domid, running.stub, self._how(running)
                )
                for running in self._guests
            ),
            rings=tuple(ring for running in self._guests for ring in ring_reports(self._runtime, running.guest, running.stub)),
            processes=tuple(
                report.Process(child.name, child.pid, child.exit_code, round(child.cpu_s, 3), child.max_rss_bytes)
                for child in self._children.all
            ),
        )

    def _ended(self, child: Child) -> None:
        """A process ended: a vCPU with its guest, which is fine; any other, or one that was killed, ends everything."""
        guest = next((running for running in self._guests if child in running.vcpus), None)
        if guest is None or child.exit_code not in ENDED:
            raise ProcessDied(f"{child.name} {child.how()}{self._last_words(child)}")
        if child.exit_code == vcpu.Ended.CRASH:
            print(f"miniguest: {child.name}{self._last_words(child)}", file=sys.stderr)
        self._progress(f"{child.name}: {ENDED[child.exit_code]}")
        if guest.ended:
            self._children.stop([guest.mini_guest], STOP_SECONDS)
            self.toolstack.release_guest(self.store, guest.domid, guest.stub)

    def _last_words(self, child: Child) -> str:
        """The last line of a process's log, to go behind the news of its death."""
        try:
            lines = (self._runtime / f"{child.name}.log").read_text(errors="replace").split("\n")
        except OSError:
            return ""
        last = [line.strip() for line in lines if line.strip()][-1:]
        return f": {last[0]}" if last else ""

    def _time_out(self) -> None:
        """Time is up: stop the guests that still run."""
        for running in self._guests:
            if not running.ended:
                with contextlib.suppress(HypercallError):
                    self._hypercalls.call("shutdown", domid=running.domid, reason=SHUTDOWN_watchdog)
        deadline = time.monotonic() + STOP_SECONDS
        while not all(running.ended for running in self._guests) and time.monotonic() < deadline:
            self._children.wait(deadline - time.monotonic())
        self._children.stop([child for running in self._guests for child in running.vcpus], KILL_SECONDS)

    def _how(self, running: Running) -> report.Ended:
        codes = [child.exit_code for child in running.vcpus]
        return next((ENDED[code] for code in codes if code in ENDED), "timeout")

    # -- end
    def _stop_in_order(self) -> None:
        """Those in front first, so that what they still have to say is heard."""
        self._children.stop([running.mini_guest for running in self._guests], STOP_SECONDS)
        by_name = {child.name: child for child in self._children.all}
        for names in (("blkback", "netback", "console"), ("xenstored",), ("hypervisor",)):
            self._children.stop([by_name[name] for name in names if name in by_name], STOP_SECONDS)

    def kill(self) -> None:
        """End whatever still runs, soon."""
        self._children.stop(self._children.living, KILL_SECONDS)


def _say_ready(pipe: int) -> None:
    os.write(pipe, b"\1")
    os.close(pipe)


def _is_ready(pipe: int) -> bool:
    """Whether the child said so. A pipe that closed without a word means that the child is about to end."""
    try:
        return os.read(pipe, 1) == b"\1"
    except BlockingIOError:
        return False


@contextmanager
def _keys_as_typed(topology: Topology) -> Iterator[None]:
    """While a guest's serial line is on the terminal, pass keys on as they are typed; put it back afterwards."""
    if not sys.stdin or not os.isatty(0) or all(guest.serial != "stdio" for guest in topology.guest):
        yield
        return
    before = termios.tcgetattr(0)
    now = termios.tcgetattr(0)
    now[3] &= ~(termios.ICANON | termios.ECHO)
    termios.tcsetattr(0, termios.TCSANOW, now)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSANOW, before)
