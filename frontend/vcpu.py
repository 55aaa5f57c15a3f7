"""The vCPU's process: the hypervisor's side of one vCPU. Counts exits and answers them, here or through an ioreq.

Runs as vCPU 32 + n of the guest's domain, so that its event channels are none of the guest's own.
"""
import logging
from enum import IntEnum
from pathlib import Path
from typing import Final

from miniguest.frontend.device_model import NO_ANSWER, DeviceModel
from miniguest.frontend.engines.engine import Stop
from miniguest.frontend.engines.plan import DEFAULT, Plan, Seat, assemble
from miniguest.frontend.engines.trace import RecordingEnded, TraceError
from miniguest.frontend.exit_routes import ExitRoutes
from miniguest.frontend.platform import Platform
from miniguest.ring import _core
from miniguest.ring.abi.ioreq import (
    IOREQ_READ,
    IOREQ_TYPE_COPY,
    IOREQ_TYPE_PIO,
    IOREQ_TYPE_TIMEOFFSET,
    IOREQ_WRITE,
)
from miniguest.ring.abi.sched import SHUTDOWN_crash, SHUTDOWN_poweroff, SHUTDOWN_reboot, SHUTDOWN_watchdog
from miniguest.ring.events import HYPERVISOR_SIDE
from miniguest.ring.exits import ExitCounters, ExitKind, exits_path
from miniguest.ring.guest_clock import NEVER, GuestClock
from miniguest.ring.memory import PAUSED_OFFSET, SHUTDOWN_OFFSET
from miniguest.ring.process import Process
from miniguest.ring.ram_notes import notes_path
from miniguest.ring.ranges import Ranges

log = logging.getLogger(__name__)
now_ns = _core.now_ns


class Ended(IntEnum):
    """How a guest ended: the exit status of its vCPU's process."""

    HALT = 0                    # HLT with interrupts off
    STOPPED = 10                # told to stop by signal
    POWEROFF = 11
    CRASH = 13
    TIMEOUT = 14                # told to stop by the toolstack


SHUTDOWNS: Final = {SHUTDOWN_poweroff: Ended.POWEROFF, SHUTDOWN_crash: Ended.CRASH}


class Vcpu:
    """Exit handler of the engine, and the run loop around it."""

    def __init__(self, process: Process, index: int, firmware: bytes, plan: Plan) -> None:
        domid = process.domid
        memory = process.memory(domid)
        self._process = process
        self._loop = process.loop
        self._info = memory.frame(memory.special("hypervisor_info"))
        counters = ExitCounters(exits_path(process.runtime, domid))
        self._count = counters.count
        self._clock = GuestClock(self._info)
        self._due = 0                   # when the engine is to stop, by the guest's clock; 0 for never
        self._platform = Platform(self._clock.now)
        self._model = DeviceModel(process, index, counters, self._given_up)
        notes = notes_path(process.runtime, domid)
        seat = Seat(
            memory.map, memory.ram_size, firmware, self, process.loop.upcall.pending_address, self._model.path,
            self._clock.stepped, notes,
            self._told_to_stop,
        )
        self.engine, self._pace = assemble(plan, seat)
        ranges = Ranges(memory.frame(memory.special("ranges")))
        self._routes = ExitRoutes(self._platform, ranges, counters, self._model.path, self.engine.show_memory)

    # -- exits
    def pio_in(self, port: int, size: int) -> int:
        """IN."""
        return self._read(ExitKind.PIO_IN, IOREQ_TYPE_PIO, port, size)

    def pio_out(self, port: int, size: int, value: int) -> None:
        """OUT."""
        self._write(ExitKind.PIO_OUT, IOREQ_TYPE_PIO, port, size, value)

    def mmio_read(self, address: int, size: int) -> int:
        """A load from where there is no RAM."""
        return self._read(ExitKind.MMIO_READ, IOREQ_TYPE_COPY, address, size)

    def mmio_write(self, address: int, size: int, value: int) -> None:
        """A store to where there is no RAM."""
        self._write(ExitKind.MMIO_WRITE, IOREQ_TYPE_COPY, address, size, value)

    def _read(self, kind: ExitKind, type_: int, address: int, size: int) -> int:
        start = now_ns()
        self._step()
        route = self._routes.find(kind, address, size)
        ones = (1 << 8 * size) - 1
        if route.device:
            self._tick()                # what time brought is there before the register is read
            value = route.device.read(route.offset, size)
            self._sync()
        elif route.claimed:
            value = self._request(type_, address, 0, 1, size, IOREQ_READ) & ones
        else:
            value = ones
        self._count(route.row, 1, now_ns() - start)
        return value

    def _write(self, kind: ExitKind, type_: int, address: int, size: int, value: int) -> None:
        start = now_ns()
        self._step()
        route = self._routes.find(kind, address, size)
        if route.device:
            self._tick()
            route.device.write(route.offset, size, value)
            self._sync()
            self._hurry()
        elif route.claimed:
            self._request(type_, address, value, 1, size, IOREQ_WRITE)
        self._count(route.row, 1, now_ns() - start)

    def pio_in_string(self, port: int, size: int, count: int, gpa: int) -> bool:
        """REP INS as one exit."""
        return self._string(ExitKind.PIO_IN, port, size, count, gpa, IOREQ_READ)

    def pio_out_string(self, port: int, size: int, count: int, gpa: int) -> bool:
        """REP OUTS as one exit."""
        return self._string(ExitKind.PIO_OUT, port, size, count, gpa, IOREQ_WRITE)

    def _string(self, kind: ExitKind, port: int, size: int, count: int, gpa: int, direction: int) -> bool:
        start = now_ns()
        route = self._routes.find(kind, port, size)
        if not route.claimed or gpa + count * size > self._process.memory(self._process.domid).ram_size:
            return False
        self._step()
        self._request(IOREQ_TYPE_PIO, port, gpa, count, size, direction, data_is_ptr=True)
        self._count(route.row, count, now_ns() - start)
        return True

    def cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int] | None:
        """Counted; the engine answers."""
        self._step()
        self._count_only(ExitKind.CPUID, leaf)
        return None

    def msr(self, index: int, write: bool, value: int) -> None:
        """Counted; the engine executes it."""
        self._step()
        self._count_only(ExitKind.MSR, index)

    def _count_only(self, kind: ExitKind, address: int, ns: int = 0) -> None:
        self._count(self._routes.cpu_row(kind, address), 1, ns)

    # -- the device model
    def _request(
        self, type_: int, address: int, data: int, count: int, size: int, direction: int, data_is_ptr: bool = False
    ) -> int:
        value = self._answered(self._model.request(type_, address, data, count, size, direction, data_is_ptr))
        if self._pace and type_ != IOREQ_TYPE_TIMEOFFSET:
            self._hurry()               # the device model's timers are on the same clock
        return value

    def answer(self) -> int:
        """The answer of a request that the engine's exit path has started (EXIT_STARTED)."""
        return self._answered(self._model.answer())

    def _answered(self, value: int | None) -> int:
        if value is None:
            self.engine.kick()
            if self._told_to_stop():
                # It was cut short by no doing of the guest's: a recording does not have it, and it is not counted.
                self._count = lambda index, elements, ns: None
            return NO_ANSWER
        self.look()
        return value

    def _given_up(self) -> bool:
        # The device model that asks for a reboot answers nevertheless; left alone, its answer would be taken for
        # that of the first request after the reset.
        return self._loop.stopping or self._shutdown() not in (0, 1 + SHUTDOWN_reboot)

    def _told_to_stop(self) -> bool:
        return self._loop.stopping or self._shutdown() == 1 + SHUTDOWN_watchdog

    def _shutdown(self) -> int:
        return self._info[SHUTDOWN_OFFSET]

    def _paused(self) -> bool:
        return bool(self._info[PAUSED_OFFSET])

    def look(self) -> None:
        """Take up what device models did: lines they drove, frames they wrote, a shutdown they asked for."""
        self._model.take_up(self._platform, self.engine)
        self._sync()
        if self._shutdown():
            self.engine.kick()

    def _sync(self) -> None:
        self.engine.want_interrupt(self._platform.pending())

    def _tick(self) -> None:
        self._platform.tick()

    # -- a stepped clock
    def _step(self) -> None:
        """An exit begins: this is its time, for the device model too."""
        if self._pace:
            self._clock.set(now := self._pace.at_exit())
            if self._due and now >= self._due:
                self.engine.kick()      # it counts blocks, and exits have made it late

    def _pass_time(self) -> None:
        """The engine stopped, or the guest slept. The device model does what is due, which it does only when asked."""
        if self._pace:
            self._clock.set(now := self._pace.at_stop())
            due = self._clock.deadline
            if due is not None and due <= now:
                self._request(IOREQ_TYPE_TIMEOFFSET, 0, now, 1, 8, IOREQ_WRITE)
        self._tick()

    def _hurry(self) -> None:
        """The guest goes on after an exit that may have set a timer: one that is due before the engine is to stop."""
        due = self._deadline()
        if due and (not self._due or due < self._due):
            self._due = due
            self.engine.kick()

    def _deadline(self) -> int:
        """When the guest is to be stopped, by its own clock; 0 for never."""
        device, own = self._clock.deadline, self._platform.deadline()
        if device is None:
            return own
        return min(own or NEVER, max(device, 1))

    # -- the run loop
    def run(self) -> Ended:
        """Run the guest to its end."""
        try:
            ended = self._run()
            if self._pace:
                self._pace.end(ended.name)
            return ended
        except RecordingEnded as end:
            log.info("%s", end)
            return Ended.TIMEOUT
        except TraceError as error:
            log.error("the guest crashed: %s", error)
            return Ended.CRASH

    def _run(self) -> Ended:
        while self._paused() and not self._shutdown() and not self._loop.stopping:
            self._loop.turn()
        self._model.connect()
        # First of all: a shutdown that came before this process was there to be kicked would never be looked at.
        while (ended := self._ended()) is None:
            self._inject()
            self._due = self._deadline()
            stop = self.engine.run(self._pace.deadline(self._due) if self._pace else self._due)
            if stop is Stop.CRASH:
                log.error("the guest crashed: %s", self.engine.crash)
                return Ended.CRASH
            if stop is Stop.WINDOW:
                self._count_only(ExitKind.IRQ_WINDOW, 0)
            self._loop.collect()
            self._pass_time()
            self.look()
            if stop is Stop.HALT and not self._shutdown():
                if not self.engine.interruptible():
                    return Ended.HALT
                self._halt()
        return ended

    def _reboot(self) -> None:
        """The device model was made anew and asked for this: so are the processor and what is beside it."""
        log.info("reset")
        self._info[SHUTDOWN_OFFSET] = 0
        self._platform = Platform(self._clock.now)
        self._routes.clear(self._platform)
        self.engine.reset()
        self.look()

    def _ended(self) -> Ended | None:
        if self._shutdown() == 1 + SHUTDOWN_reboot:
            self._reboot()
        if self._shutdown():
            return SHUTDOWNS.get(self._shutdown() - 1, Ended.TIMEOUT)
        return Ended.STOPPED if self._loop.stopping else None

    def _inject(self) -> None:
        if self._platform.pending() and self.engine.interruptible():
            self.engine.interrupt(self._platform.acknowledge())
        self._sync()

    def _halt(self) -> None:
        """HLT with interrupts on: sleep until there is one."""
        start = now_ns()
        while not (self._platform.pending() or self._shutdown() or self._loop.stopping):
            deadline = self._deadline()
            if self._pace:
                self._pace.idle(deadline, self._loop.turn)
            else:
                self._loop.turn(max(0.0, (deadline - now_ns()) / 1e9) if deadline else -1.0)
            self._pass_time()
            self.look()
        self._count_only(ExitKind.HLT, 0, now_ns() - start)


def main(process: Process, index: int, firmware: Path, plan: Plan = DEFAULT) -> Ended:
    """Run vCPU `index` of the process's domain until the guest ends."""
    if process.vcpu != HYPERVISOR_SIDE + index:
        raise ValueError(f"vCPU {index}'s process must be vcpu {HYPERVISOR_SIDE + index}, not {process.vcpu}")
    vcpu = Vcpu(process, index, firmware.read_bytes(), plan)
    try:
        return vcpu.run()
    finally:
        vcpu.engine.close()
