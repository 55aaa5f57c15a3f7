"""The vCPU's process: the hypervisor's side of one vCPU. Counts exits and answers them, here or through an ioreq.

Runs as vCPU 32 + n of the guest's domain, so that its event channels are none of the guest's own.
"""
import logging
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

from miniguest.frontend.devices.device import Device
from miniguest.frontend.engines.engine import Stop
from miniguest.frontend.engines.plan import DEFAULT, Plan, Seat, assemble
from miniguest.frontend.engines.trace import RecordingEnded, TraceError
from miniguest.frontend.platform import Platform
from miniguest.ring import _core
from miniguest.ring.abi.ioreq import IOREQ as IOREQ_LAYOUT
from miniguest.ring.abi.ioreq import (
    IOREQ_READ,
    IOREQ_TYPE_COPY,
    IOREQ_TYPE_PIO,
    IOREQ_TYPE_TIMEOFFSET,
    IOREQ_WRITE,
    STATE_IORESP_READY,
)
from miniguest.ring.abi.sched import SHUTDOWN_crash, SHUTDOWN_poweroff, SHUTDOWN_reboot, SHUTDOWN_watchdog
from miniguest.ring.events import HYPERVISOR_SIDE
from miniguest.ring.exits import UNCLAIMED, ExitCounters, ExitKind, exits_path
from miniguest.ring.guest_clock import NEVER, GuestClock
from miniguest.ring.lines import LineWatcher
from miniguest.ring.loop import DOORBELL, PENDING
from miniguest.ring.memory import FRAME_SIZE, SHUTDOWN_OFFSET
from miniguest.ring.messages import MessageWatcher
from miniguest.ring.modified import ModifiedReader
from miniguest.ring.process import Process
from miniguest.ring.ram_notes import notes_path
from miniguest.ring.ranges import MEMORY, PORT, Ranges

log = logging.getLogger(__name__)
now_ns = _core.now_ns
ROUTES: Final = 1 << 15         # addresses whose way is remembered: a guest can name four billion
SPACE: Final = {ExitKind.PIO_IN: PORT, ExitKind.PIO_OUT: PORT, ExitKind.MMIO_READ: MEMORY, ExitKind.MMIO_WRITE: MEMORY}


class Ended(IntEnum):
    """How a guest ended: the exit status of its vCPU's process."""

    HALT = 0                    # HLT with interrupts off
    STOPPED = 10                # told to stop by signal
    POWEROFF = 11
    CRASH = 13
    TIMEOUT = 14                # told to stop by the toolstack


SHUTDOWNS: Final = {SHUTDOWN_poweroff: Ended.POWEROFF, SHUTDOWN_crash: Ended.CRASH}


@dataclass(slots=True)
class Route:
    """Where exits of one kind, address and size go, and the counter they are on."""

    row: int
    device: Device | None = None
    offset: int = 0
    claimed: bool = False


class Vcpu:
    """Exit handler of the engine, and the run loop around it."""

    def __init__(self, process: Process, index: int, firmware: bytes, plan: Plan) -> None:
        domid = process.domid
        memory = process.memory(domid)
        self._process = process
        self._loop = process.loop
        self._upcall = process.loop.upcall
        self._info = memory.frame(memory.special("hypervisor_info"))
        self._counters = ExitCounters(exits_path(process.runtime, domid))
        self._count = self._counters.count
        self._routes: dict[tuple[ExitKind, int, int], Route] = {}
        self._cpu_rows: dict[tuple[ExitKind, int], int] = {}
        self._ranges = Ranges(memory.frame(memory.special("ranges")))
        self._lines = LineWatcher(memory.frame(memory.special("irq_lines")))
        self._messages = MessageWatcher(memory.frame(memory.special("irq_lines")))
        self._modified = ModifiedReader(memory.frame(memory.special("modified")))
        self._clock = GuestClock(self._info)
        self._due = 0                   # when the engine is to stop, by the guest's clock; 0 for never
        self._platform = Platform(self._clock.now)
        ioreq_page = memory.frame(memory.special("ioreq"))
        self._slot = _core.IoreqSlot(ioreq_page, index)
        offset = index * IOREQ_LAYOUT.size + IOREQ_LAYOUT.offset["vp_eport"]
        self._port = process.events.adopt(int.from_bytes(ioreq_page[offset : offset + 4], "little"))
        self._upcall.hush(self._slot, self._port.number)
        self._path = self._counters.path(self._slot, self._upcall, memory)
        self._path.channel = self._port.channel
        notes = notes_path(process.runtime, domid)
        seat = Seat(
            memory.map, memory.ram_size, firmware, self, self._upcall.pending_address, self._path, self._clock.stepped, notes,
            lambda: self._loop.stopping or self._shutdown() == 1 + SHUTDOWN_watchdog,
        )
        self.engine, self._pace = assemble(plan, seat)
        self._ranges.refresh()
        self._path.clear(self._ranges.version)
        self._show_memory()

    # -- exits
    def _route(self, kind: ExitKind, address: int, size: int) -> Route:
        if self._ranges.refresh():
            self._routes = {key: route for key, route in self._routes.items() if route.device}
            self._path.clear(self._ranges.version)
            self._show_memory()
        route = self._routes.get((kind, address, size))
        return route or self._new_route(kind, address, size)

    def _show_memory(self) -> None:
        self.engine.show_memory([
            (item.start, item.frame * FRAME_SIZE, item.end + 1 - item.start) for item in self._ranges.read_only_memory()
        ])

    def _new_route(self, kind: ExitKind, address: int, size: int) -> Route:
        local = self._platform.find(SPACE[kind], address)
        claimed = self._ranges.find(SPACE[kind], address)
        if local:
            name, device, offset = local
            route = Route(self._row(kind, name, address, size), device, offset)
        else:
            route = Route(self._row(kind, claimed.name if claimed else UNCLAIMED, address, size), claimed=claimed is not None)
            self._path.add(kind, address, size, route.row, route.claimed)
        if len(self._routes) < ROUTES:
            self._routes[kind, address, size] = route
        return route

    def _row(self, kind: ExitKind, device: str, address: int, size: int) -> int:
        return self._counters.row(kind, device, address, size)

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
        route = self._route(kind, address, size)
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
        route = self._route(kind, address, size)
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
        route = self._route(kind, port, size)
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
        row = self._cpu_rows.get((kind, address))
        if row is None:
            row = self._row(kind, "cpu", address, 0)
            if len(self._cpu_rows) < ROUTES:
                self._cpu_rows[kind, address] = row
        self._count(row, 1, ns)

    # -- requests to the device model
    def _request(
        self, type_: int, address: int, data: int, count: int, size: int, direction: int, data_is_ptr: bool = False
    ) -> int:
        self._slot.start(type_, address, data, count, size, direction, data_is_ptr)
        self._port.notify()
        self._path.channel = self._port.channel
        if not self._answered():
            return 0xFFFFFFFF
        value = self._slot.finish()
        self.look()
        if self._pace and type_ != IOREQ_TYPE_TIMEOFFSET:
            self._hurry()               # the device model's timers are on the same clock
        return value

    def answer(self) -> int:
        """The answer of a request that the engine's exit path has started (EXIT_STARTED)."""
        if self._path.woken:
            self._port.finish(self._path.woken)
            self._path.channel = self._port.channel
        if not self._answered():
            return 0xFFFFFFFF
        value = self._path.finish()
        self.look()
        return value

    def _answered(self) -> bool:
        """Wait for the device model's answer; False when nobody is going to."""
        slot, upcall = self._slot, self._upcall
        while slot.state != STATE_IORESP_READY:
            woke = upcall.wait(-1, slot)
            if woke & DOORBELL:
                self._process.events.doorbell.drain()
            if woke & PENDING:
                self._loop.collect()
            # The device model that asks for a reboot answers nevertheless; left alone, its answer would be taken for
            # that of the first request after the reset.
            if self._loop.stopping or self._shutdown() not in (0, 1 + SHUTDOWN_reboot):
                self.engine.kick()
                return False
        return True

    def _shutdown(self) -> int:
        return self._info[SHUTDOWN_OFFSET]

    def look(self) -> None:
        """Take up what device models did: lines they drove, frames they wrote, a shutdown they asked for."""
        for line, level in self._lines.changes():
            self._platform.pic.set_line(line, level)
        for vector in self._messages.take():
            self._platform.lapic.deliver(vector)
        modified = self._modified.take()
        if modified is None:
            self.engine.forget_all_code()
        elif modified:
            for first, frames in modified:
                self.engine.forget_code(first * FRAME_SIZE, frames * FRAME_SIZE)
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
        self._routes.clear()
        self._path.clear(self._ranges.version)
        self._platform = Platform(self._clock.now)
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
