"""What lives beside the vCPU, as it does in Xen: the PICs, the PIT, the local and the I/O APIC, and what they want of it."""
from collections.abc import Callable

from miniguest.frontend.devices.device import Device
from miniguest.frontend.interrupts.ioapic import PAGE as IOAPIC_SIZE
from miniguest.frontend.interrupts.ioapic import IoApic
from miniguest.frontend.interrupts.lapic import PAGE as LAPIC_SIZE
from miniguest.frontend.interrupts.lapic import Lapic
from miniguest.frontend.interrupts.pic import CASCADE, Pic
from miniguest.frontend.interrupts.pit import Pit
from miniguest.ring.ranges import MEMORY, PORT

LAPIC_BASE = 0xFEE00000
IOAPIC_BASE = 0xFEC00000
TIMER_PIN = 2  # of the I/O APIC, where a PC has the PIT: what it has on pin 0 is the PICs' INTR (MP specification, 5.2)


class Platform:
    """The interrupt controllers and timers of one vCPU. clock: nanoseconds, monotonic."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self.pic = Pic()
        self.pit = Pit(clock, irq0=self._timer_edge)
        self.lapic = Lapic(clock, broadcast_eoi=lambda vector: self.ioapic.end(vector))
        self.ioapic = IoApic(self.lapic)
        self._ranges: list[tuple[int, int, int, str, Device]] = [
            (PORT, start, start + count - 1, name, device)
            for name, model in (("pic", self.pic), ("pit", self.pit))
            for start, count, device in model.ports
        ]
        self._ranges.append((MEMORY, LAPIC_BASE, LAPIC_BASE + LAPIC_SIZE - 1, "lapic", self.lapic))
        self._ranges.append((MEMORY, IOAPIC_BASE, IOAPIC_BASE + IOAPIC_SIZE - 1, "ioapic", self.ioapic))

    def find(self, kind: int, address: int) -> tuple[str, Device, int] | None:
        """(name, device, offset in it) of what answers an address here, None when it is a device model's."""
        for found, start, end, name, device in self._ranges:
            if found == kind and start <= address <= end:
                return name, device, address - start
        return None

    def set_line(self, irq: int, level: bool) -> None:
        """Drive ISA line `irq` (0-15): PICs and I/O APIC both see it. Line 2 is the PICs' own."""
        if irq != CASCADE:
            self.pic.set_line(irq, level)
            self.ioapic.set_pin(irq or TIMER_PIN, level)

    def _timer_edge(self) -> None:
        self.pic.pulse(0)
        self.ioapic.pulse(TIMER_PIN)

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
        return self.lapic.pending() is not None or (self.pic.pending() and self._intr_arrives())

    def _intr_arrives(self) -> bool:
        """Whether the PICs' INTR is connected to the processor, by the one APIC or the other."""
        return self.lapic.accepts_extint() or self.ioapic.passes_extint()

    def acknowledge(self) -> int:
        """The vector of the interrupt that the vCPU now takes."""
        vector = self.lapic.pending()
        return self.lapic.acknowledge(vector) if vector is not None else self.pic.acknowledge()
