"""The debug console of Bochs and QEMU, port 0x402: reads 0xE9, and what is written comes out in lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from miniguest.frontend.devices.device import Model
from miniguest.frontend.devices.regmap import RegMap

PRESENT = 0xE9
LONGEST = 1024


class DebugPort(Model):
    """`line` gets each line without its end, as bytes; a line longer than LONGEST comes in pieces."""

    regs = RegMap(size=1)
    buffered = True

    @dataclass(slots=True)
    class State:
        KIND: ClassVar = ("debug-port", 1)
        text: bytearray = field(default_factory=bytearray)

    state: State

    def __init__(self, line: Callable[[bytes], None]) -> None:
        self.line = line
        self.state = self.State()
        self.ports = ((0x402, 1, self),)

    @regs.read(0, "PRESENT")
    def read_present(self) -> int:
        return PRESENT

    @regs.write(0, "TEXT")
    def write_text(self, value: int) -> None:
        text = self.state.text
        if value != 10:
            text.append(value)
        if value == 10 or len(text) >= LONGEST:
            self.flush()

    def write_string(self, offset: int, size: int, data: bytes) -> None:
        """A string of elements: each one's low byte is a character, as with single writes."""
        for i in range(0, len(data), size):
            self.write(offset, size, int.from_bytes(data[i : i + size], "little"))

    def read_string(self, offset: int, size: int, count: int) -> bytes:
        return b"".join(self.read(offset, size).to_bytes(size, "little") for _ in range(count))

    def flush(self) -> None:
        """Give what there is of a line."""
        whole = bytes(self.state.text)
        self.state.text.clear()
        self.line(whole)
