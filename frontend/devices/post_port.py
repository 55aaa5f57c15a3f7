"""The POST code port, 0x80: shows the last value written, and reads it back as the PC's latch does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from miniguest.frontend.devices.device import Model
from miniguest.frontend.devices.regmap import RegMap


class PostPort(Model):
    """One byte; `state.code` is what a POST card would show."""

    regs = RegMap(size=1)
    buffered = True

    @dataclass(slots=True)
    class State:
        KIND: ClassVar = ("post-port", 1)
        code: int = 0

    state: State

    def __init__(self) -> None:
        self.state = self.State()
        self.ports = ((0x80, 1, self),)

    @regs.read(0, "POST")
    def read_post(self) -> int:
        return self.state.code

    @regs.write(0, "POST")
    def write_post(self, value: int) -> None:
        self.state.code = value
