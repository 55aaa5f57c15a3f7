"""ACPI hot-plug registers as SeaBIOS's tables have them, of a machine whose slots and processors stay what they are.

QEMU, docs/specs/acpi_pci_hotplug and acpi_cpu_hotplug: general purpose events at port 0xAFE0, PCI slots at 0xAE00 and
processors at 0xAF00. Nothing ever comes or goes, so no event is ever pending. Where nobody answers, an operating system
reads ones: all events, and a request to eject whatever is in a slot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from miniguest.frontend.devices.device import Model, Window
from miniguest.frontend.devices.regmap import RegMap

EVENTS, EVENTS_SIZE = 0xAFE0, 4
SLOTS, SLOTS_SIZE = 0xAE00, 0x14  # slots that came, slots to eject, eject, slots that can be ejected: no bit of any
PROCESSORS, PROCESSORS_SIZE = 0xAF00, 32  # a bit for each that is there


class AcpiHotplug(Model):
    """Register range: events at 0, slots at 4, processors behind them."""

    regs = RegMap(size=EVENTS_SIZE + SLOTS_SIZE + PROCESSORS_SIZE, blank=0)

    @dataclass(slots=True)
    class State:
        KIND: ClassVar = ("acpi-hotplug", 1)
        enable: int = 0

    state: State

    def __init__(self, vcpus: int) -> None:
        self.state = self.State()
        self._processors = (1 << vcpus) - 1
        self.ports = (
            (EVENTS, EVENTS_SIZE, Window(self, 0, EVENTS_SIZE)),
            (SLOTS, SLOTS_SIZE, Window(self, EVENTS_SIZE, SLOTS_SIZE)),
            (PROCESSORS, PROCESSORS_SIZE, Window(self, EVENTS_SIZE + SLOTS_SIZE, PROCESSORS_SIZE)),
        )

    @regs.read(0x02, "GPE0_EN", 2)
    def read_enable(self) -> int:
        return self.state.enable

    @regs.write(0x02, "GPE0_EN", 2)
    def write_enable(self, value: int) -> None:
        self.state.enable = value

    @regs.read(EVENTS_SIZE + SLOTS_SIZE, "CPUS", 1, count=PROCESSORS_SIZE)
    def read_processors(self, index: int) -> int:
        return self._processors >> 8 * index & 0xFF
