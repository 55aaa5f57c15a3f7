"""The mini-guest's process: device models for one HVM guest, in a domain of their own. One event loop, no threads.

It reaches the outside only through split drivers: blkfront for disks, the console page for the serial line, xenbus.
"""
import logging
import time
from collections.abc import Callable
from typing import Final

from miniguest.frontend.bus import MEMORY, PORT, Bus, InterruptLines
from miniguest.frontend.consfront import Consfront
from miniguest.frontend.devices.device import Disk, GuestMemory
from miniguest.frontend.netfront import Netfront
from miniguest.frontend.netfront_xenbus import parse_mac
from miniguest.frontend.network_card import CardPlan, Unplugged
from miniguest.frontend.own_devices import OwnDevices
from miniguest.frontend.pages import Pages
from miniguest.frontend.pc import Pc, Surroundings
from miniguest.frontend.stepped import CountedDisk, NotedMemory, Outstanding, StepTimers
from miniguest.frontend.target import HypervisorClaims, TargetMemory
from miniguest.ring import _core
from miniguest.ring.abi.hvm_params import HVM_PARAM_CONSOLE_EVTCHN
from miniguest.ring.abi.ioreq import IOREQ as IOREQ_LAYOUT
from miniguest.ring.abi.ioreq import (
    IOREQ_READ,
    IOREQ_TYPE_COPY,
    IOREQ_TYPE_PIO,
    IOREQ_TYPE_TIMEOFFSET,
)
from miniguest.ring.abi.sched import SHUTDOWN_crash, SHUTDOWN_poweroff, SHUTDOWN_reboot
from miniguest.ring.card_counters import CardCounters, card_counters_path
from miniguest.ring.errors import RingError
from miniguest.ring.events import HYPERVISOR_SIDE
from miniguest.ring.grants import Grants
from miniguest.ring.guest_clock import GuestClock
from miniguest.ring.lines import LineDriver
from miniguest.ring.memory import FRAME_SIZE, Memory
from miniguest.ring.messages import MessageSender
from miniguest.ring.process import Process
from miniguest.ring.ram_notes import NoteWriter, notes_path
from miniguest.ring.xenbus import Keys

SPACES: Final = {IOREQ_TYPE_PIO: PORT, IOREQ_TYPE_COPY: MEMORY}
DRAIN_SECONDS: Final = 1.0
SIZES: Final = {PORT: (1, 2, 4), MEMORY: (1, 2, 4, 8)}
MAX_ELEMENTS: Final = 1 << 20
HOLD_NS: Final = 200_000                # that a poll of a busy disk may take
log = logging.getLogger(__name__)
console_log = logging.getLogger("firmware")


class MiniGuest:
    """The device model of domain `target`, which has `vcpus` vCPUs."""

    def __init__(self, process: Process, target: int, vcpus: int) -> None:
        self._process = process
        self._target = target
        memory = process.memory(target)
        ioreq, buffered = (memory.frame(memory.special(name)) for name in ("ioreq", "bufioreq"))
        self._requests = _core.IoreqServer(ioreq, buffered, vcpus)
        for index in range(vcpus):
            self._bind_ioreq(memory, index)
        process.loop.on_watch(self._requests, self._serve)
        # The server has lingered for the next exit already, and what a disk is to answer may wait for this core.
        process.loop.upcall.pause_ns = 0
        self._line_driver = LineDriver(memory.frame(memory.special("irq_lines")))
        self._messages = MessageSender(memory.frame(memory.special("irq_lines")))
        self._clock = GuestClock(memory.frame(memory.special("hypervisor_info")))
        self._timers = StepTimers(self._clock) if self._clock.stepped else None
        self._outstanding = Outstanding()
        own = process.memory(process.domid)
        self.store = process.xenstore()
        self._pages = Pages(own)
        self._grants = Grants(own)
        own_devices = OwnDevices(process, self.store, self._pages, self._grants)
        self.disks, vifs = own_devices.connect()
        self._cards = [self._plan_card(memory, handle, vifs.get(handle)) for handle in own_devices.vif_handles]
        self._boot = self.store.read_text(f"device-model/{target}/boot")
        self._notes = _note_writer(process, target)
        in_step = self._timers is not None or self._notes is not None
        self._in_step = in_step
        plain = TargetMemory(memory)
        self._target_memory: GuestMemory = NotedMemory(plain, self._notes) if self._notes else plain
        self._console = self._connect_console(own)
        self._lines = InterruptLines(self._set_line)
        timers = self._timers or process.loop
        self._claims = HypervisorClaims(process, target)
        self._bus = Bus(self._claims, self._lines, self._target_memory, timers, self._clock.now, self._hold)
        if not self._in_step:
            self._requests.readers, self._requests.writers = self._bus.readers, self._bus.writers
        self._vcpus = vcpus
        with self._claims.together():
            self.pc = self._make_pc()
        self._settle()
        for vif in vifs.values():
            vif.start()

    def _plan_card(self, memory: Memory, handle: int, vif: Netfront | None) -> CardPlan:
        path = f"device/vif/{handle}"
        plugged = vif or Unplugged(parse_mac(Keys(self.store, path).text("mac"), path))
        keys = Keys(self.store, f"device-model/{self._target}/card/{handle}").fetch("model", "rom-frame", "rom-size")
        frame, size = keys.number("rom-frame"), keys.number("rom-size")
        rom = bytes(memory.frames(frame, -(-size // FRAME_SIZE))[:size]) if size else b""
        counters = CardCounters(card_counters_path(self._process.runtime, self._target, handle))
        return CardPlan(keys.text("model"), plugged, counters, rom, frame)

    def _make_pc(self) -> Pc:
        disks: dict[str, Disk] = dict(self.disks)
        if self._timers:
            disks = {vdev: CountedDisk(disk, self._outstanding) for vdev, disk in disks.items()}
        ram_size = self._process.memory(self._target).ram_size
        return Pc(self._surroundings(), ram_size, self._vcpus, disks, self._cards, self._boot)

    def _surroundings(self) -> Surroundings:
        return Surroundings(
            bus=self._bus, lines=self._lines, memory=self._target_memory, clock=self._clock.now, wall=self._clock.wall,
            power_off=lambda: self._shutdown(SHUTDOWN_poweroff), reset=self._reset,
            console=self._console.send, debug=lambda line: console_log.info("%s", line.decode("latin-1").rstrip()),
            message=self._send_message,
        )

    def _reset(self) -> None:
        """The machine's reset line: every device is made anew, and the vCPU starts over."""
        log.info("reset")
        # Not now: the device that asked is in the middle of an access.
        self._requests.before_answer = self._finish_reset

    def _finish_reset(self) -> None:
        with self._claims.together():
            self._bus.clear()
            self.pc = self._make_pc()
        self._shutdown(SHUTDOWN_reboot)
        self._settle()

    def _shutdown(self, reason: int) -> None:
        self._process.hypercalls.call("shutdown", domid=self._target, reason=reason)

    # -- console
    def _connect_console(self, own: Memory) -> Consfront:
        process = self._process
        port = process.events.adopt(process.hypercalls.call("get_param", domid=process.domid, index=HVM_PARAM_CONSOLE_EVTCHN))
        console = Consfront(own.frame(own.special("console")), port.notify, self._serial_input)
        process.loop.on_port(port, console.on_event)
        return console

    def _serial_input(self, data: bytes) -> int:
        return self.pc.receive(data)

    # -- device requests
    def _bind_ioreq(self, memory: Memory, index: int) -> None:
        page = memory.frame(memory.special("ioreq"))
        offset = index * IOREQ_LAYOUT.size + IOREQ_LAYOUT.offset["vp_eport"]
        port = self._process.bind_interdomain(self._target, int.from_bytes(page[offset : offset + 4], "little"))
        self._process.loop.upcall.hush(self._requests, port.number)
        self._requests.connect(index, port)

    def _serve(self) -> None:
        read, write = (self._read_in_step, self._write_in_step) if self._in_step else (self._bus.read, self._bus.write)
        try:
            self._requests.serve(self._process.loop.upcall, read, write, self._other)
        except RingError as error:
            self._crash(str(error))
        self._console.feed()

    def _hold(self, waiting: Callable[[], bool]) -> None:
        """Let a guest that polls a disk wait here for the disk's answer, rather than ask again and again: whoever is to
        answer may need this core."""
        deadline = _core.now_ns() + HOLD_NS
        loop = self._process.loop
        while waiting() and not loop.stopping and (left := deadline - _core.now_ns()) > 0:
            loop.turn(left / 1e9)

    def _read_in_step(self, kind: int, address: int, size: int) -> int:
        self._pass_time()
        value = self._bus.read(kind, address, size)
        self._settle()
        return value

    def _write_in_step(self, kind: int, address: int, size: int, value: int) -> None:
        self._pass_time()
        self._bus.write(kind, address, size, value)
        self._settle()

    def _other(self, vcpu: int, request: tuple[int, int, int, int, int, int, int, int] | int) -> int | None:
        """A request that is no single access, or none at all."""
        if isinstance(request, int):
            # NONE and IORESP_READY are not told. We leave no request INPROCESS behind us.
            self._crash(f"ioreq state {request} of vCPU {vcpu}")
            return None
        type_, address, data, count, size, direction, is_pointer, downwards = request
        kind = SPACES.get(type_)
        only_time = type_ == IOREQ_TYPE_TIMEOFFSET and self._timers is not None
        if not only_time and (kind is None or size not in SIZES[kind] or not 1 <= count <= MAX_ELEMENTS):
            self._crash(f"ioreq of type {type_}, {count} elements of {size} bytes")
            return None
        self._pass_time()
        answer = 0
        if kind is not None:
            answer = self._answer(kind, address, data, count, size, direction, bool(is_pointer), bool(downwards))
        self._settle()
        return answer

    def _pass_time(self) -> None:
        """Under a stepped clock: what time brought is there before the access."""
        if self._timers:
            self._timers.run()

    def _settle(self) -> None:
        """Under a stepped clock: all that a request leads to has happened before it is answered. And who records is told."""
        if self._timers:
            while self._outstanding.count and not self._process.loop.stopping:
                self._process.loop.turn()
            self._timers.publish()
        if self._notes:
            self._notes.flush()

    def _answer(
        self, kind: int, address: int, data: int, count: int, size: int, direction: int, is_pointer: bool, downwards: bool
    ) -> int:
        bus = self._bus
        if not is_pointer:
            if direction == IOREQ_READ:
                return bus.read(kind, address, size)
            bus.write(kind, address, size, data & (1 << 8 * size) - 1)
        elif kind == PORT and not downwards:
            move = bus.read_string if direction == IOREQ_READ else bus.write_string
            move(address, size, count, data)
        else:
            self._one_by_one(kind, address, data, count, size, direction, -size if downwards else size)
        return 0

    def _one_by_one(self, kind: int, address: int, gpa: int, count: int, size: int, direction: int, step: int) -> None:
        """Elements between guest memory and a device, in either direction; memory-mapped ones step along too."""
        for index in range(count):
            at = address if kind == PORT else address + index * step
            where = gpa + index * step
            if direction == IOREQ_READ:
                self._target_memory.write(where, self._bus.read(kind, at, size).to_bytes(size, "little"))
            else:
                self._bus.write(kind, at, size, int.from_bytes(self._target_memory.read(where, size), "little"))

    def _crash(self, reason: str) -> None:
        """The vCPU's side broke the protocol: only that guest ends."""
        log.error("domain %d: %s", self._target, reason)
        self._shutdown(SHUTDOWN_crash)

    def _set_line(self, line: int, level: bool) -> None:
        if self._line_driver.set(line, level):
            self._tell()

    def _send_message(self, vector: int) -> None:
        self._messages.send(vector)
        self._tell()

    def _tell(self) -> None:
        """Have the vCPU look at lines and messages. In the middle of an exit it does so by itself, after the exit."""
        if not self._requests.looks_later(0):
            self._process.events.kick(self._target, HYPERVISOR_SIDE)

    def drain(self) -> None:
        """Do what was buffered last, and get rid of the console's last words."""
        self._serve()
        deadline = time.monotonic() + DRAIN_SECONDS
        while self._console.pending and time.monotonic() < deadline:
            self._process.loop.turn(0.05)


def _note_writer(process: Process, target: int) -> NoteWriter | None:
    """What is told of the guest's RAM when somebody records its run."""
    path = notes_path(process.runtime, target)
    return NoteWriter(path) if path.exists() else None


def main(process: Process, target: int, vcpus: int) -> None:
    """Be the device model of domain `target` until the loop is stopped. In xenstore, `state` says when it is ready."""
    guest = MiniGuest(process, target, vcpus)
    guest.store.write(f"device-model/{target}/state", "running")
    process.loop.run()
    process.loop.stopping = False
    guest.drain()
