"""A vCPU's device model, as the vCPU sees it: requests through the ioreq slot, and what it did besides answering them."""
from collections.abc import Callable
from typing import Final

from miniguest.frontend.engines.engine import Engine
from miniguest.frontend.platform import Platform
from miniguest.ring import _core
from miniguest.ring.abi.ioreq import IOREQ as IOREQ_LAYOUT
from miniguest.ring.abi.ioreq import STATE_IORESP_READY
from miniguest.ring.exits import ExitCounters
from miniguest.ring.lines import LineWatcher
from miniguest.ring.loop import PENDING
from miniguest.ring.memory import FRAME_SIZE
from miniguest.ring.messages import MessageWatcher
from miniguest.ring.modified import ModifiedReader
from miniguest.ring.process import Process

NO_ANSWER: Final = 0xFFFFFFFF


class DeviceModel:
    """That of vCPU `index` of the process's domain. given_up: whether nobody is going to answer."""

    def __init__(self, process: Process, index: int, counters: ExitCounters, given_up: Callable[[], bool]) -> None:
        memory = process.memory(process.domid)
        self._given_up = given_up
        self._upcall = process.loop.upcall
        self._collect = process.loop.collect
        self._lines = LineWatcher(memory.frame(memory.special("irq_lines")))
        self._messages = MessageWatcher(memory.frame(memory.special("irq_lines")))
        self._modified = ModifiedReader(memory.frame(memory.special("modified")))
        page = memory.frame(memory.special("ioreq"))
        self._slot = _core.IoreqSlot(page, index)
        offset = index * IOREQ_LAYOUT.size + IOREQ_LAYOUT.offset["vp_eport"]
        self._port = process.events.adopt(int.from_bytes(page[offset : offset + 4], "little"))
        self._upcall.hush(self._slot, self._port.number)
        self.path = counters.path(self._slot, self._upcall, memory)

    def connect(self) -> None:
        """It is there: requests that need no Python notify it by themselves from now on."""
        self.path.channel = self._port.channel

    def request(
        self, type_: int, address: int, data: int, count: int, size: int, direction: int, data_is_ptr: bool = False
    ) -> int | None:
        """Ask, and wait for the answer; None when there is going to be none."""
        self._slot.start(type_, address, data, count, size, direction, data_is_ptr)
        self._port.notify()
        self.path.channel = self._port.channel
        return self._slot.finish() if self._answered() else None

    def answer(self) -> int | None:
        """The answer to what the exit path asked for (EXIT_STARTED); None when there is going to be none."""
        if self.path.woken:
            self._port.finish(self.path.woken)
            self.path.channel = self._port.channel
        return self.path.finish() if self._answered() else None

    def _answered(self) -> bool:
        while self._slot.state != STATE_IORESP_READY:
            if self._upcall.wait(-1, self._slot) & PENDING:
                self._collect()
            if self._given_up():
                return False
        return True

    def take_up(self, platform: Platform, engine: Engine) -> None:
        """What it did: lines that it drove, messages that it sent, frames that it wrote. It is rung for, if it sleeps
        and a write was buffered."""
        if self.path.unrung:
            self._port.finish(self.path.unrung)
            self.path.unrung = 0
            self.path.channel = self._port.channel
        for line, level in self._lines.changes():
            platform.set_line(line, level)
        for vector in self._messages.take():
            platform.lapic.deliver(vector)
        modified = self._modified.take()
        if modified is None:
            engine.forget_all_code()
        else:
            for first, frames in modified:
                engine.forget_code(first * FRAME_SIZE, frames * FRAME_SIZE)
