"""93C46: 64 words of 16 bits behind a three-wire bus (National NM93C46, "Functional description").

A frame begins when a one is clocked in while the part is selected: two bits of opcode, six of address and, for a
write, 16 of data, highest first, each taken at the clock's rising edge. Data comes out at rising edges too, behind a
zero; reading goes on with the next word while the clock does. What changes words is carried out when the part is
deselected, and is over at once: the ready signal is up when it is selected again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

WORDS = 64
WAITING, COMMAND, DATA, READING, COMPLETE = range(5)
EXTENDED, WRITE, READ, ERASE = range(4)  # opcodes
DISABLE, WRITE_ALL, ERASE_ALL, ENABLE = range(4)  # the address's top two bits, of an extended one
ERASED = 0xFFFF


@dataclass(slots=True)
class EepromState:
    """Contents, wires, and how far a frame has come."""

    words: list[int] = field(default_factory=lambda: [ERASED] * WORDS)
    writable: bool = False
    selected: bool = False
    clock: bool = False
    output: bool = True
    phase: int = WAITING
    bits: int = 0  # shifted in, or left to shift out
    shift: int = 0
    command: int = 0  # opcode and address


class Eeprom93c46:
    """The part as its three input wires and one output see it; it works on the state it is given."""

    def __init__(self, state: EepromState) -> None:
        self.state = state

    @property
    def output(self) -> bool:
        """DO. Pulled up while the part does not drive it."""
        return self.state.output

    def wires(self, select: bool, clock: bool, data: bool) -> None:
        """CS, SK and DI are at these levels now."""
        s = self.state
        rises = clock and not s.clock
        s.clock = clock
        if not select:
            if s.selected:
                self._deselect()
        elif rises:
            s.selected = True
            self._shift(data)
        else:
            s.selected = True

    def _deselect(self) -> None:
        s = self.state
        if s.phase == COMPLETE and s.writable:
            self._program()
        s.selected, s.output = False, True
        s.phase, s.bits, s.shift = WAITING, 0, 0

    def _program(self) -> None:
        s = self.state
        opcode, address = s.command >> 6, s.command & 0x3F
        if opcode == WRITE:
            s.words[address] = s.shift
        elif opcode == ERASE:
            s.words[address] = ERASED
        elif address >> 4 == WRITE_ALL:
            s.words[:] = [s.shift] * WORDS
        elif address >> 4 == ERASE_ALL:
            s.words[:] = [ERASED] * WORDS

    def _shift(self, data: bool) -> None:
        s = self.state
        if s.phase == READING:
            self._shift_out()
        elif s.phase == WAITING:
            if data:
                s.phase, s.bits, s.shift = COMMAND, 0, 0
        elif s.phase != COMPLETE:
            s.shift, s.bits = s.shift << 1 | data, s.bits + 1
            if s.phase == COMMAND and s.bits == 8:
                self._decode()
            elif s.phase == DATA and s.bits == 16:
                s.phase = COMPLETE

    def _shift_out(self) -> None:
        s = self.state
        if not s.bits:
            s.command = READ << 6 | s.command + 1 & 0x3F
            s.shift, s.bits = s.words[s.command & 0x3F], 16
        s.bits -= 1
        s.output = bool(s.shift >> s.bits & 1)

    def _decode(self) -> None:
        """All of opcode and address came."""
        s = self.state
        s.command, s.bits, s.shift = s.shift, 0, 0
        opcode, extended = s.command >> 6, s.command >> 4 & 3
        if opcode == READ:
            s.phase, s.output = READING, False
            s.shift, s.bits = s.words[s.command & 0x3F], 16
        elif opcode == WRITE or (opcode == EXTENDED and extended == WRITE_ALL):
            s.phase = DATA
        else:
            s.phase = COMPLETE
            if opcode == EXTENDED and extended in (ENABLE, DISABLE):
                s.writable = extended == ENABLE
