"""The PC's pair of 8259A interrupt controllers with the PIIX's edge/level registers (82371SB, section 2.5).

Register range: 0-1 master (port 0x20), 2-3 slave (0xa0), 4-5 ELCR (0x4d0). The slave's output is the master's input
2, an edge like any other: a slave request that goes away before it is acknowledged ends as a spurious IRQ 15.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from miniguest.frontend.devices.device import Model, Window
from miniguest.frontend.devices.regmap import RegMap
from miniguest.frontend.interrupts.chip8259 import SPURIOUS, Chip8259, ChipState

CASCADE = 2
MASTER_LEVEL, SLAVE_LEVEL = 0xF8, 0xDE  # IRQ 0, 1, 2, 8 and 13 are always edges


class Pic(Model):
    """Interrupt inputs 0-15 in, one INTR out.

    `pending()` is the INTR pin; `acknowledge()` is the CPU's INTA cycle and gives the vector.
    """

    regs = RegMap(size=6)

    @dataclass(slots=True)
    class State:
        KIND: ClassVar = ("i8259-pair", 1)
        master: ChipState = field(default_factory=ChipState)
        slave: ChipState = field(default_factory=ChipState)
        slave_int: bool = False

    state: State

    def __init__(self) -> None:
        self.state = self.State()
        self.chips = (
            Chip8259(self.state.master, MASTER_LEVEL, slaves=1 << CASCADE),
            Chip8259(self.state.slave, SLAVE_LEVEL),
        )
        self.intr = False
        self.ports = ((0x20, 2, Window(self, 0, 2)), (0xA0, 2, Window(self, 2, 2)), (0x4D0, 2, Window(self, 4, 2)))

    def set_line(self, irq: int, level: bool) -> None:
        """Drive input `irq` (0-15). Input 2 is the cascade and cannot be driven from outside."""
        if irq != CASCADE and self.chips[irq >> 3].set_line(irq & 7, level):
            self._sync()

    def pulse(self, irq: int) -> None:
        """A rising edge on `irq`, for sources that only tick."""
        self.set_line(irq, False)
        self.set_line(irq, True)
        self.set_line(irq, False)

    def pending(self) -> bool:
        """The INTR pin."""
        return self.intr

    def acknowledge(self) -> int:
        """The vector to take, 0-255: spurious IRQ 7 or 15 when the request has gone."""
        master, slave = self.chips
        pin = master.acknowledge()
        if pin == CASCADE:
            second = slave.acknowledge()
            self._drop_cascade()
            vector = slave.state.base | (SPURIOUS if second < 0 else second)
        else:
            vector = master.state.base | (SPURIOUS if pin < 0 else pin)
        self._sync()
        return vector

    @regs.read(0, "MASTER_COMMAND")
    def read_master_command(self) -> int:
        return self._read_command(0)

    @regs.read(2, "SLAVE_COMMAND")
    def read_slave_command(self) -> int:
        return self._read_command(1)

    @regs.read(1, "MASTER_MASK")
    def read_master_mask(self) -> int:
        return self._read_mask(0)

    @regs.read(3, "SLAVE_MASK")
    def read_slave_mask(self) -> int:
        return self._read_mask(1)

    @regs.write(0, "MASTER_COMMAND")
    def write_master_command(self, value: int) -> None:
        self.chips[0].write_command(value)
        self._sync()

    @regs.write(2, "SLAVE_COMMAND")
    def write_slave_command(self, value: int) -> None:
        self.chips[1].write_command(value)
        self._sync()

    @regs.write(1, "MASTER_MASK")
    def write_master_mask(self, value: int) -> None:
        self.chips[0].write_data(value)
        self._sync()

    @regs.write(3, "SLAVE_MASK")
    def write_slave_mask(self, value: int) -> None:
        self.chips[1].write_data(value)
        self._sync()

    @regs.read(4, "ELCR", count=2)
    def read_elcr(self, index: int) -> int:
        return self.chips[index].state.level

    @regs.write(4, "ELCR", count=2)
    def write_elcr(self, index: int, value: int) -> None:
        chip = self.chips[index]
        chip.set_level(value)
        self._sync()

    def _read_command(self, index: int) -> int:
        chip = self.chips[index]
        return self._after_poll(chip.read_command()) if chip.state.poll else chip.read_command()

    def _read_mask(self, index: int) -> int:
        chip = self.chips[index]
        return self._after_poll(chip.read_data()) if chip.state.poll else chip.state.imr

    def _after_poll(self, word: int) -> int:
        """A poll is an acknowledge: requests moved."""
        self._sync()
        return word

    def _drop_cascade(self) -> None:
        """INT drops during INTA, so that a further request behind it is a new edge at the master."""
        self.state.slave_int = False
        self.chips[0].set_line(CASCADE, False)

    def _sync(self) -> None:
        """Carry the slave's output to the master and recompute INTR."""
        master, slave = self.chips
        out = slave.best() >= 0
        if out != self.state.slave_int:
            self.state.slave_int = out
            master.set_line(CASCADE, out)
        self.intr = master.best() >= 0

    def restored(self) -> None:
        for chip, state in zip(self.chips, (self.state.master, self.state.slave), strict=True):
            chip.state = state
        self._sync()
