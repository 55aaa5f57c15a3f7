"""The supervisor: starts the processes of a topology, watches them, and ends them all. It is `miniguest run` itself.

Guest n (from 0) is domain 2n + 1 and its mini-guest domain 2n + 2. Whatever happens, nothing stays: when a process
dies the supervisor ends the others, and when the supervisor itself is killed the hypervisor does.
"""
import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

from miniguest.deploy import checks, report
from miniguest.deploy.children import Child
from miniguest.deploy.control import Desk
from miniguest.deploy.errors import AskedInVain, ProcessDied, StartFailed, TopologyError
from miniguest.deploy.results import guest_report, ring_reports
from miniguest.deploy.runtime import check_room
from miniguest.deploy.starting import Running, Starter
from miniguest.deploy.terminal import keys_as_typed
from miniguest.deploy.topology import Guest, Topology, unpack_guests
from miniguest.frontend import vcpu
from miniguest.ring.abi.sched import SHUTDOWN_poweroff, SHUTDOWN_watchdog
from miniguest.ring.abi.xenbus import XenbusState
from miniguest.ring.errors import HypercallError, UserError, XenstoreError
from miniguest.ring.xenbus import read_state

STOP_SECONDS: Final = 1.5               # for a mini-guest to get rid of its last output
KILL_SECONDS: Final = 0.5               # for everybody, when something went wrong
ENDED: Final[dict[int, report.Ended]] = {
    vcpu.Ended.HALT: "halt", vcpu.Ended.POWEROFF: "poweroff", vcpu.Ended.TIMEOUT: "timeout", vcpu.Ended.CRASH: "crash",
}


def run(
    topology: Topology, *, runtime: Path, timeout: float | None, console: BinaryIO, progress: Callable[[str], None],
    leftovers: Sequence[Path] = (), record: Path | None = None,
) -> report.RunResult:
    """Run a topology to the end of its guests. console: where serial lines on "stdio" go. leftovers: what else to
    remove should the supervisor be killed. record: where the trace of the one guest goes.

    Raises ProcessDied when a process ended that should not have.
    """
    with ExitStack() as undo:
        undo.enter_context(keys_as_typed(any(guest.serial == "stdio" for guest in topology.guest)))
        supervisor = Supervisor(topology, runtime, console, progress, leftovers, record)
        undo.callback(supervisor.kill)
        supervisor.start_dom0(undo)
        supervisor.start_guests()
        return supervisor.watch(timeout)


class Supervisor(Starter):
    """The processes of one topology, from their start to their end."""

    # -- guests
    def start_guests(self) -> None:
        """Make the guests of the topology and start their processes, the vCPUs last."""
        for guest in self._topology.guest:
            self.add_guest(guest)
        for running in self._guests:
            if running.guest.serial == "pty":
                print(f"miniguest: {running.guest.name}: serial line on {running.serial}", file=sys.stderr)

    def add_guest(self, guest: Guest) -> int:
        """Make one more guest and start its processes; its domain. ProcessDied when one ends while starting."""
        domid = self._next_domid
        self._next_domid += 2
        self._guests.append(self._start_guest(guest, domid, domid + 1))
        return domid

    def add_guests(self, guests: tuple[Guest, ...]) -> list[Running]:
        """Make more guests, which were checked, while it runs: all of them or, with AskedInVain, none."""
        first, nr_children = self._next_domid, len(self._children.all)
        self._topology = msgspec.structs.replace(self._topology, guest=(*self._topology.guest, *guests))
        try:
            for guest in guests:
                self.add_guest(guest)
        except (StartFailed, HypercallError, XenstoreError, UserError, OSError) as error:
            self._unmake(guests, first, self._children.all[nr_children:])
            raise AskedInVain(str(error)) from error
        return self._guests[-len(guests) :]

    def _unmake(self, guests: tuple[Guest, ...], first: int, mine: list[Child]) -> None:
        """Take back these guests, whose domains are those from `first` on. mine: their processes."""
        self._children.stop([child for child in mine if child.exit_code is None], KILL_SECONDS)
        self._children.forget(mine)
        self._guests = [running for running in self._guests if running.domid < first]
        for domid in range(first, self._next_domid, 2):
            self._close_devices(domid + 1)
            self.toolstack.destroy_guest(self.store, domid, domid + 1)
        for guest in guests:
            self._strike(guest)

    def remove_guest(self, name: str) -> None:
        """Switch a guest off, as its power button would not: it has no say. UserError when no such guest runs."""
        running = next((each for each in self._guests if each.guest.name == name and not each.ended), None)
        if running is None:
            known = ", ".join(each.guest.name for each in self._guests if not each.ended)
            raise UserError(f"{name}: no such guest runs in {self._topology.name}" + (f": what runs is {known}" if known else ""))
        self._hypercalls.call("shutdown", domid=running.domid, reason=SHUTDOWN_poweroff)
        deadline = time.monotonic() + STOP_SECONDS
        while not running.ended and time.monotonic() < deadline:
            for child in self._children.wait(deadline - time.monotonic()):
                self._ended(child)
        if not running.ended:
            self._children.stop(running.vcpus, KILL_SECONDS)
            self._take_down(running)

    # -- watch
    def watch(self, timeout: float | None) -> report.RunResult:
        """Wait for the guests' ends, or the timeout; then end the rest in order, and report."""
        deadline = None if timeout is None else time.monotonic() + timeout
        desk = self._desk = Desk(self._runtime, {"add": self._asked_to_add, "remove": self._asked_to_remove})
        desk.serve()
        while self._children.untold or not all(running.ended for running in self._guests):
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                self._time_out()
                break
            for child in self._children.wait(left, desk.fd):
                self._ended(child)
            desk.serve()
        desk.close()
        self._stop_in_order()
        told = [self._report(running) for running in self._guests]
        return report.RunResult(
            topology=self._topology.name,
            guests=tuple(guest for guest, _ in told),
            rings=tuple(ring for _, rings in told for ring in rings),
            processes=tuple(
                report.Process(child.name, child.pid, child.exit_code, round(child.cpu_s, 3), child.max_rss_bytes)
                for child in self._children.all
            ),
        )

    def _ended(self, child: Child) -> None:
        """A process ended: a vCPU with its guest, which is fine; any other, or one that was killed, ends everything."""
        guest = next((running for running in self._guests if child in running.vcpus), None)
        if any(child is running.mini_guest and self._is_through(running) for running in self._guests):
            return                      # its guest needs it no more
        if guest is None or child.exit_code not in ENDED:
            when = "" if self._desk else " while starting"
            raise ProcessDied(f"{child.name} {child.how()}{when}{self._last_words(child)}")
        if child.exit_code == vcpu.Ended.CRASH:
            print(f"miniguest: {child.name}{self._last_words(child)}", file=sys.stderr)
        self._progress(f"{child.name}: {ENDED[child.exit_code]}")
        if guest.ended and not guest.told:
            self._take_down(guest)

    @staticmethod
    def _is_through(running: Running) -> bool:
        """Whether a guest's vCPUs ended as vCPUs do."""
        return all(child.exit_code in ENDED for child in running.vcpus)

    def _take_down(self, running: Running) -> None:
        """A guest's vCPUs are gone: so are then its mini-guest, its devices and both domains, and others may have its name."""
        self._children.stop([running.mini_guest], STOP_SECONDS)
        self._close_devices(running.stub)
        running.told = self._report(running)        # made of what the backends said last, and of what goes now
        self.toolstack.destroy_guest(self.store, running.domid, running.stub)
        self._children.remove_logs([running.mini_guest, *running.vcpus])
        self._strike(running.guest)

    def _close_devices(self, stub: int) -> None:
        """Have the backends let go of a mini-guest's devices: what it printed last is printed then, and its images are closed."""
        still_open = set(self.toolstack.close_devices(self.store, stub))

        def look(path: str) -> None:
            if read_state(self.store, path.removesuffix("/state")) == XenbusState.Closed:
                still_open.discard(path.removesuffix("/state"))

        watches = [self.store.watch(f"{path}/state", look) for path in sorted(still_open)]
        deadline = time.monotonic() + STOP_SECONDS
        self.store.dispatch()
        while still_open and time.monotonic() < deadline:
            for child in self._children.wait(deadline - time.monotonic(), self.store.fileno()):
                self._ended(child)
            self.store.dispatch()
        for watch in watches:
            watch.cancel()
        for path in sorted(still_open):
            print(f"miniguest: {path}: its backend does not close it", file=sys.stderr)

    def _strike(self, guest: Guest) -> None:
        """It is in the topology no more: its name, its addresses and its files may be another's."""
        left = tuple(other for other in self._topology.guest if other is not guest)
        self._topology = msgspec.structs.replace(self._topology, guest=left)

    # -- askers
    def _asked_to_add(self, request: dict[str, Any]) -> dict[str, Any]:
        """"guests" that the file called "file" has, whose relative paths start at "base"."""
        file = Path(request["file"])
        if self._record:
            raise TopologyError(file, "guest", f"{self._topology.name} is recorded, and a trace is of one guest")
        guests = checks.check_added(self._topology, unpack_guests(request["guests"]), file, Path(request["base"]))
        check_room(self._runtime, msgspec.structs.replace(self._topology, guest=(*self._topology.guest, *guests)), file)
        return {"topology": self._topology.name, "guests": [
            {"name": each.guest.name, "domid": each.domid, "mini_guest": each.stub, "serial": each.serial}
            for each in self.add_guests(guests)
        ]}

    def _asked_to_remove(self, request: dict[str, Any]) -> dict[str, Any]:
        """The guest called "guest"."""
        self.remove_guest(str(request["guest"]))
        return {"topology": self._topology.name}

    def _report(self, running: Running) -> tuple[report.Guest, list[report.Ring]]:
        """A guest's part of the report. What it is made of goes with its domain."""
        if running.told:
            return running.told
        runtime, guest, stub = self._runtime, running.guest, running.stub
        told = guest_report(runtime, guest, running.engine, running.domid, stub, self._how(running))
        return told, ring_reports(runtime, guest, stub)

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
