"""System control port A, 0x92 (IBM PS/2 Technical Reference): fast A20 gate and fast reset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from miniguest.frontend.devices.device import Model, nothing
from miniguest.frontend.devices.regmap import RegMap

RESET, A20 = 1, 2


class Port92(Model):
    """`a20(enabled)` on every write; `reset` when bit 0 goes from 0 to 1."""

    regs = RegMap(size=1)

    @dataclass(slots=True)
    class State:
        KIND: ClassVar = ("port92", 1)
        value: int = A20

    state: State

    def __init__(self, reset: Callable[[], None] = nothing, a20: Callable[[bool], None] = lambda enabled: None) -> None:
        self.reset = reset
        self.a20 = a20
        self.state = self.State()
        self.ports = ((0x92, 1, self),)

    @regs.read(0, "PORTA")
    def read_port(self) -> int:
        return self.state.value

    @regs.write(0, "PORTA")
    def write_port(self, value: int) -> None:
        resets = value & ~self.state.value & RESET
        self.state.value = value & (RESET | A20)
        self.a20(bool(value & A20))
        if resets:
            self.reset()
