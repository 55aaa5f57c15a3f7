"""An expansion ROM behind a PCI function's ROM BAR (PCI Local Bus Specification 2.2, section 6.3)."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from miniguest.frontend.devices.device import Model
from miniguest.frontend.devices.regmap import RegMap

SMALLEST = 4096  # bytes; 6.2.5.2 allows 2 KiB, but a page can be shown to the guest without exits


class OptionRom(Model):
    """`image`, padded with ones to a power of two: `size` bytes, `content` all of them. Writes are dropped."""

    regs = RegMap(size=0)

    @dataclass(slots=True)
    class State:
        KIND: ClassVar = ("option-rom", 1)

    state: State

    def __init__(self, image: bytes) -> None:
        self.size = max(SMALLEST, 1 << (len(image) - 1).bit_length() if image else 0)
        self.content = image.ljust(self.size, b"\xff")
        self.state = self.State()

    def read(self, offset: int, size: int) -> int:
        if offset < 0:
            return (1 << 8 * size) - 1
        return int.from_bytes(self.content[offset : offset + size].ljust(size, b"\xff"), "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """It is read-only."""
