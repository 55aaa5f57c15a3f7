"""The 8042 keyboard controller (IBM PC/AT Technical Reference, "Keyboard controller"; PS/2 auxiliary commands).

Register range: 0 data (port 0x60), 1 status and command (port 0x64). The next byte enters the output buffer when the
guest looks at the status after it took the last one, or DELAY later, so that each byte is an edge on its own at an
edge-triggered interrupt input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from miniguest.frontend.devices import keyboard, mouse
from miniguest.frontend.devices.device import Clock, Model, Window, nothing
from miniguest.frontend.devices.keyboard import KeyboardState
from miniguest.frontend.devices.mouse import MouseState
from miniguest.frontend.devices.regmap import RegMap
from miniguest.frontend.devices.scancodes import BREAK, TO_SET1

OBF, IBF, SYS, COMMAND, UNLOCKED, AUX, TIMEOUT = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40
INT_KEYBOARD, INT_AUX, SYSTEM, OFF_KEYBOARD, OFF_AUX, TRANSLATE = 0x01, 0x02, 0x04, 0x10, 0x20, 0x40
PORT_RESET, PORT_A20 = 0x01, 0x02
DELAY = 100_000  # ns, a byte's way from a keyboard is ten times that
REPLIES = 16
FROM_CONTROLLER, FROM_KEYBOARD, FROM_AUX = 0, 1, 2


class I8042(Model):
    """Controller, keyboard and, if `with_mouse`, a mouse.

    `reset` is called when the reset line is pulsed, `a20(enabled)` when the A20 gate is set.
    """

    regs = RegMap(size=2)

    @dataclass(slots=True)
    class State:
        KIND: ClassVar = ("i8042", 1)
        ram: bytearray = field(default_factory=lambda: bytearray(32))  # byte 0 is the command byte
        command: int = 0  # waits for its data byte
        last_write_command: bool = False
        port: int = PORT_RESET | PORT_A20
        full: bool = False
        buffer: int = 0
        source: int = FROM_CONTROLLER
        aux: bool = False  # the buffer's byte counts as the auxiliary device's
        timeout: bool = False
        replies: bytearray = field(default_factory=bytearray)  # of the controller itself
        aux_replies: bytearray = field(default_factory=bytearray)  # of the controller, as if from the mouse
        break_next: bool = False  # a break prefix waits for its code
        taken: int = 0  # ns at which the guest took the last byte
        keyboard: KeyboardState = field(default_factory=KeyboardState)
        mouse: MouseState = field(default_factory=MouseState)
        now: int = 0  # the clock when saved

    state: State

    def __init__(
        self,
        clock: Clock,
        reset: Callable[[], None] = nothing,
        a20: Callable[[bool], None] = lambda enabled: None,
        with_mouse: bool = True,
    ) -> None:
        self.clock = clock
        self.reset = reset
        self.a20 = a20
        self.with_mouse = with_mouse
        self.state = self.State()
        self.state.ram[0] = OFF_KEYBOARD | OFF_AUX | TRANSLATE
        self.ports = ((0x60, 1, Window(self, 0, 1)), (0x64, 1, Window(self, 1, 1)))

    # The user's side

    def key(self, codes: bytes) -> None:
        """A key event as scan code set 2: the make code, or 0xF0 and the make code."""
        keyboard.key(self.state.keyboard, codes)
        self._refill()
        self.changed()

    def move(self, dx: int, dy: int, buttons: int) -> None:
        """The mouse moved (y upwards), or a button changed (bit 0 left, 1 right, 2 middle)."""
        if self.with_mouse:
            mouse.move(self.state.mouse, dx, dy, buttons)
            self._refill()
            self.changed()

    def irq_keyboard(self) -> bool:
        """IRQ 1."""
        s = self.state
        return s.full and not s.aux and bool(s.ram[0] & INT_KEYBOARD)

    def irq_aux(self) -> bool:
        """IRQ 12."""
        s = self.state
        return s.full and s.aux and bool(s.ram[0] & INT_AUX)

    def deadline(self) -> int | None:
        """When the next waiting byte enters the output buffer, in ns."""
        return self.state.taken + DELAY if not self.state.full and self._waiting() is not None else None

    def tick(self) -> None:
        """Move the next byte into the output buffer if it is time."""
        due = self.deadline()
        if due is not None and self.clock() >= due:
            self._refill()

    # The output buffer

    def _waiting(self) -> int | None:
        """Where the next byte comes from: the controller's replies first, a disabled device never."""
        s = self.state
        if s.replies or s.aux_replies:
            return FROM_CONTROLLER
        if s.keyboard.queue and not s.ram[0] & OFF_KEYBOARD:
            return FROM_KEYBOARD
        if s.mouse.queue and not s.ram[0] & OFF_AUX:
            return FROM_AUX
        return None

    def _refill(self) -> None:
        s = self.state
        while not s.full:
            source = self._waiting()
            if source is None:
                return
            s.source, s.aux = source, source == FROM_AUX
            if source == FROM_CONTROLLER:
                s.aux = not s.replies
                self._fill((s.replies or s.aux_replies).pop(0))
            elif source == FROM_AUX:
                self._fill(s.mouse.queue.pop(0))
            else:
                self._fill_key(keyboard.take(s.keyboard))

    def _fill(self, value: int) -> None:
        self.state.buffer, self.state.full = value, True

    def _fill_key(self, code: int) -> None:
        """A byte of the keyboard, translated if told to; the break prefix becomes bit 7 of the next."""
        s = self.state
        if not s.ram[0] & TRANSLATE:
            self._fill(code)
        elif code == BREAK:
            s.break_next = True
        else:
            self._fill(TO_SET1[code] | (0x80 if s.break_next else 0))
            s.break_next = False

    def _reply(self, value: int, aux: bool = False) -> None:
        queue = self.state.aux_replies if aux else self.state.replies
        if len(queue) < REPLIES:  # a guest that only asks and never reads
            queue.append(value & 0xFF)

    # Registers

    @regs.read(0, "DATA")
    def read_data(self) -> int:
        s = self.state
        self._refill()
        if s.full:
            s.full = s.timeout = False
            s.taken = self.clock()
        return s.buffer

    @regs.read(1, "STATUS")
    def read_status(self) -> int:
        s = self.state
        self._refill()
        status = UNLOCKED | s.ram[0] & SYSTEM
        status |= OBF if s.full else 0
        status |= AUX if s.full and s.aux else 0
        status |= COMMAND if s.last_write_command else 0
        return status | (TIMEOUT if s.timeout else 0)

    @regs.write(0, "DATA")
    def write_data(self, value: int) -> None:
        s = self.state
        s.last_write_command = False
        waiting, s.command = s.command, 0
        if 0x60 <= waiting <= 0x7F:
            s.ram[waiting & 0x1F] = value
        elif waiting == 0xD1:
            self._write_port(value)
        elif waiting == 0xD2:
            self._reply(value)
        elif waiting == 0xD3:
            self._reply(value, aux=True)
        elif waiting == 0xD4:
            self._to_mouse(value)
        else:
            s.ram[0] &= ~OFF_KEYBOARD  # sending to the keyboard enables its clock
            keyboard.command(s.keyboard, value)
        self._refill()

    @regs.write(1, "COMMAND")
    def write_command(self, value: int) -> None:
        s = self.state
        s.last_write_command = True
        s.command = 0
        if 0x20 <= value <= 0x3F:
            self._reply(s.ram[value & 0x1F])
        elif value >= 0xF0:
            if not value & PORT_RESET:
                self.reset()
        elif 0x60 <= value <= 0x7F or 0xD1 <= value <= 0xD4:
            s.command = value
        else:
            action = COMMANDS.get(value)
            if action is not None:
                action(self)
        self._refill()

    def _write_port(self, value: int) -> None:
        """The output port: A20 gate and reset line (low means reset)."""
        self.state.port = value & 0xCF | PORT_RESET
        self.a20(bool(value & PORT_A20))
        if not value & PORT_RESET:
            self.reset()

    def _to_mouse(self, value: int) -> None:
        s = self.state
        if self.with_mouse:
            s.ram[0] &= ~OFF_AUX
            mouse.command(s.mouse, value)
        else:
            s.timeout = True  # nobody took the byte
            self._reply(0xFE, aux=True)

    def _read_port(self) -> None:
        interrupts = self.irq_keyboard() << 4 | self.irq_aux() << 5
        self._reply(self.state.port & 0xCF | interrupts)

    def _self_test(self) -> None:
        """Passed; and as after power-on both devices are off and the system flag is set."""
        self.state.ram[0] = self.state.ram[0] & ~(INT_KEYBOARD | INT_AUX) | SYSTEM | OFF_KEYBOARD | OFF_AUX
        self._reply(0x55)

    def _switch(self, bit: int, off: bool) -> None:
        ram = self.state.ram
        ram[0] = ram[0] | bit if off else ram[0] & ~bit

    def saving(self) -> None:
        self.state.now = self.clock()

    def restored(self) -> None:
        self.state.taken += self.clock() - self.state.now
        self.state.ram = self.state.ram[:32].ljust(32, b"\0")


COMMANDS: dict[int, Callable[[I8042], None]] = {
    0xA7: lambda c: c._switch(OFF_AUX, True),
    0xA8: lambda c: c._switch(OFF_AUX, False),
    0xA9: lambda c: c._reply(0x00 if c.with_mouse else 0x02),  # 2: the clock line is stuck high
    0xAA: I8042._self_test,
    0xAB: lambda c: c._reply(0x00),
    0xAD: lambda c: c._switch(OFF_KEYBOARD, True),
    0xAE: lambda c: c._switch(OFF_KEYBOARD, False),
    0xC0: lambda c: c._reply(0x80),  # input port: keyboard not inhibited
    0xD0: I8042._read_port,
    0xE0: lambda c: c._reply(0x00),  # test inputs: both clocks low
}
