"""Exits that each count: a vCPU's exit path and its device model's server of requests, stirred.

Every read answers how many requests came before it, so that one that was lost, or served twice, shows at once; so does a
buffered write out of its turn. Now and then the vCPU halts until the device model changes an interrupt line: a lost kick is
a halt for ever.
"""
import os
import random
from typing import Final

from miniguest.deploy.stress.stirring import Stirring
from miniguest.deploy.stress.workers import StressError, workers
from miniguest.ring import _core
from miniguest.ring.abi.ioreq import IOREQ_TYPE_PIO, STATE_IORESP_READY
from miniguest.ring.events import HYPERVISOR_SIDE, Port
from miniguest.ring.exits import ExitCounters, ExitKind, exits_path
from miniguest.ring.lines import LineDriver, LineWatcher
from miniguest.ring.loop import PENDING
from miniguest.ring.process import Process

VCPU: Final = 1                         # domains
MODEL: Final = 2
READ, WRITE, HALT, END, BUFFERED = 0x10, 0x20, 0x30, 0x40, 0x50        # ports
LINE: Final = 5
HALTS: Final = 16                       # exits from one HALT to the next, on average
PAUSES: Final = 4                       # and from one pause to the next


class AskingVcpu:
    """Makes `total` exits, then one to END."""

    def __init__(self, process: Process, port: Port, seed: int) -> None:
        memory = process.memory(VCPU)
        self.loop, self.port = process.loop, port
        self.stirring = Stirring(process, seed, True)
        self.random = random.Random(seed)
        self.slot = _core.IoreqSlot(memory.frame(memory.special("ioreq")), 0)
        self.loop.upcall.hush(self.slot, port.number)
        counters = ExitCounters(exits_path(process.runtime, VCPU))
        self.path = counters.path(self.slot, self.loop.upcall, memory)
        self.path.clear(0)
        for kind, address in ((ExitKind.PIO_IN, READ), *((ExitKind.PIO_OUT, port) for port in (WRITE, HALT, END))):
            self.path.add(kind, address, 4, counters.row(kind, "stress", address, 4), True)
        row = counters.row(ExitKind.PIO_OUT, "stress", BUFFERED, 4)
        self.path.add(ExitKind.PIO_OUT, BUFFERED, 4, row, True, True)
        self.path.channel = port.channel
        self.lines = LineWatcher(memory.frame(memory.special("irq_lines")))
        self.made = self.edges = self.halts = 0

    def run(self, total: int) -> None:
        """Make the exits."""
        while self.made < total:
            self.stirring.stirred()
            if self.random.randrange(PAUSES) == 0:
                self.stirring.pause()
            if self.random.randrange(HALTS) == 0:
                self.halt()
            elif self.random.random() < 0.5:
                self.exit(ExitKind.PIO_OUT, self.random.choice((WRITE, BUFFERED)), self.made)
            elif (said := self.exit(ExitKind.PIO_IN, READ)) != self.made - 1:
                raise StressError(f"request {self.made - 1} was answered as request {said}")
        self.exit(ExitKind.PIO_OUT, END)

    def halt(self) -> None:
        """Sleep until the device model changed the line."""
        self.exit(ExitKind.PIO_OUT, HALT)
        self.halts += 1
        self.look()                     # as after any exit: nobody is kicked within one
        while self.edges < self.halts:
            self.loop.turn()
            self.look()
        if self.edges > self.halts:
            raise StressError(f"the line changed {self.edges} times, not {self.halts}")

    def look(self) -> None:
        """Take up changes of the line."""
        self.edges += len(list(self.lines.changes()))

    def exit(self, kind: ExitKind, address: int, value: int = 0) -> int:
        """One exit, to its end: the answer."""
        self.made += 1
        how, answer = self.path.run(kind, address, 4, value)
        if how == _core.EXIT_UNKNOWN:
            raise StressError(f"the exit path does not know port {address:#x}")
        if self.path.unrung:
            self.port.finish(self.path.unrung)
            self.path.unrung = 0
        if how != _core.EXIT_STARTED:
            return answer
        if self.path.woken:
            self.port.finish(self.path.woken)
        while self.slot.state != STATE_IORESP_READY:
            if self.loop.upcall.wait(-1, self.slot) & PENDING:
                self.loop.collect()
        return self.path.finish()


class ServingModel:
    """Serves requests until END."""

    def __init__(self, process: Process, port: Port, seed: int) -> None:
        memory = process.memory(VCPU)
        self.process, self.upcall = process, process.loop.upcall
        self.stirring = Stirring(process, seed, True)
        self.random = random.Random(seed)
        self.line = LineDriver(memory.frame(memory.special("irq_lines")))
        ioreq, buffered = (memory.frame(memory.special(name)) for name in ("ioreq", "bufioreq"))
        self.server = _core.IoreqServer(ioreq, buffered, 1)
        self.upcall.hush(self.server, port.number)
        self.server.connect(0, port)
        process.loop.on_watch(self.server, self.serve)
        self.served = 0
        self.level = False

    def serve(self) -> None:
        """Requests are there."""
        self.stirring.stirred()
        self.server.serve(self.upcall, self.read, self.write, self.other)

    def read(self, type_: int, address: int, size: int) -> int:
        """How many requests came before."""
        self.come(type_, size)
        return self.served - 1

    def write(self, type_: int, address: int, size: int, value: int) -> None:
        """Check the number, change the line soon, or stop."""
        self.come(type_, size)
        if address == HALT:
            self.process.loop.call_soon(self.change_line)
        elif address == END:
            self.process.loop.stop()
        elif value != self.served - 1:
            raise StressError(f"request {self.served - 1} is number {value}")

    def come(self, type_: int, size: int) -> None:
        """A request came."""
        self.served += 1
        if (type_, size) != (IOREQ_TYPE_PIO, 4):
            raise StressError(f"a request of type {type_} and {size} bytes")
        if self.random.randrange(PAUSES) == 0:
            self.stirring.pause()

    def other(self, vcpu: int, request: object) -> None:
        """Nobody made such a one."""
        raise StressError(f"request {request} of vCPU {vcpu}")

    def change_line(self) -> None:
        """Change the line, some time after the request was answered."""
        self.stirring.pause()
        self.level = not self.level
        self.line.set(LINE, self.level)
        if not self.server.looks_later(0):
            self.process.events.kick(VCPU, HYPERVISOR_SIDE)


def ask_and_halt(total: int, doorbell: str = "zmq", seed: int = 1, seconds: float = 120.0, hogs: int = 0) -> None:
    """Make `total` exits. StressError when one is lost or doubled, or a kick is lost (after `seconds`).

    hogs: processes that want the cores all the while.
    """
    with workers(doorbell) as ground:
        reader, writer = os.pipe()
        back_reader, back_writer = os.pipe()

        def vcpu(process: Process) -> None:
            port = process.alloc_unbound(MODEL)
            os.write(writer, port.number.to_bytes(4, "little"))
            os.read(back_reader, 1)
            AskingVcpu(process, port, seed).run(total)

        def model(process: Process) -> None:
            port = process.bind_interdomain(VCPU, int.from_bytes(os.read(reader, 4), "little"))
            ServingModel(process, port, seed + 1)
            os.write(back_writer, b"\1")
            process.loop.run()

        ground.start("vcpu", VCPU, HYPERVISOR_SIDE, vcpu)
        ground.start("model", MODEL, 0, model)
        for end in (reader, writer, back_reader, back_writer):
            os.close(end)
        ground.busy_cores(hogs)
        ground.finish(seconds)
