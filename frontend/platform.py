"""What lives beside the vCPU, as it does in Xen: the two PICs, the PIT and the local APIC, and what they want of it."""
from collections.abc import Callable

from miniguest.frontend.devices.device import Device
from miniguest.frontend.interrupts.lapic import Lapic
from miniguest.frontend.interrupts.pic import Pic
from miniguest.frontend.interrupts.pit import Pit
from miniguest.ring.ranges import MEMORY, PORT

LAPIC_BASE = 0xFEE00000
LAPIC_SIZE = 0x1000


class Platform:
    """The interrupt controllers and timers of one vCPU. clock: nanoseconds, monotonic."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self.pic = Pic()
        self.pit = Pit(clock, irq0=lambda: self.pic.pulse(0))
        self.lapic = Lapic(clock)
        self._ranges: list[tuple[int, int, int, str, Device]] = [
            (PORT, start, start + count - 1, name, device)
            for name, model in (("pic", self.pic), ("pit", self.pit))
            for start, count, device in model.ports
        ]
        self._ranges.append((MEMORY, LAPIC_BASE, LAPIC_BASE + LAPIC_SIZE - 1, "lapic", self.lapic))

    def find(self, kind: int, address: int) -> tuple[str, Device, int] | None:
        """(name, device, offset in it) of what answers an address here, None when it is a device model's."""
        for found, start, end, name, device in self._ranges:
            if found == kind and start <= address <= end:
                return name, device, address - start
        return None

    def deadline(self) -> int:
        """When `tick` is next to be called, on the clock; 0 for never."""
        due = [at for at in (self.pit.deadline(), self.lapic.deadline()) if at is not None]
        return min(due) if due else 0

    def tick(self) -> None:
        """Let time pass."""
        self.pit.tick()
        self.lapic.tick()

    def pending(self) -> bool:
        """Whether an interrupt waits for the vCPU."""
        return self.lapic.pending() is not None or (self.pic.pending() and self.lapic.accepts_extint())

    def acknowledge(self) -> int:
        """The vector of the interrupt that the vCPU now takes."""
        vector = self.lapic.pending()
        return self.lapic.acknowledge(vector) if vector is not None else self.pic.acknowledge()
