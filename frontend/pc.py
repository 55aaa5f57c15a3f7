"""The PC that a guest sees, i440FX and PIIX3: every device model made, put on the bus and wired.

ISA interrupt lines: 1 keyboard, 4 serial, 8 clock, 9 ACPI, 12 mouse, 14 and 15 IDE; PCI lines go through the PIIX3.
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from miniguest.frontend.bus import MEMORY, PORT, Attached, Bus, InterruptLines
from miniguest.frontend.devices.acpi_hotplug import AcpiHotplug
from miniguest.frontend.devices.acpi_pm import AcpiPm, Apm
from miniguest.frontend.devices.busmaster import BusMaster
from miniguest.frontend.devices.cmos import Cmos, cmos_map
from miniguest.frontend.devices.debug_port import DebugPort
from miniguest.frontend.devices.device import Device, Disk, GuestMemory, Model
from miniguest.frontend.devices.fw_cfg import FwCfg
from miniguest.frontend.devices.fw_cfg_files import ide_path, nic_path, pc_files, pc_items
from miniguest.frontend.devices.i440fx import I440fx
from miniguest.frontend.devices.i8042 import I8042
from miniguest.frontend.devices.ide import IdeChannel
from miniguest.frontend.devices.pci import PciBus
from miniguest.frontend.devices.pci_function import ROM, PciFunction
from miniguest.frontend.devices.piix3_ide import Piix3Ide
from miniguest.frontend.devices.piix3_isa import Piix3Isa
from miniguest.frontend.devices.piix4_pm import PM_INDEX, Piix4Pm
from miniguest.frontend.devices.port92 import Port92
from miniguest.frontend.devices.post_port import PostPort
from miniguest.frontend.devices.uart import Uart
from miniguest.frontend.network_card import CardPlan, NetworkCard, card_names

COM1: Final = 0x3F8
IDE_CONTROL: Final = (0x3F6, 0x376)
IDE_IRQ: Final = (14, 15)
SLOTS: Final = (("hda", 0, 0), ("hdb", 0, 1), ("hdc", 1, 0), ("hdd", 1, 1))

FIRST_CARD: Final = 3                   # PCI slot, as on other machines of this kind


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the machine is plugged into. clock: nanoseconds; wall: seconds since the epoch."""

    bus: Bus
    lines: InterruptLines
    memory: GuestMemory
    clock: Callable[[], int]
    wall: Callable[[], float]
    power_off: Callable[[], None]
    reset: Callable[[], None]
    console: Callable[[bytes], None]
    debug: Callable[[bytes], None]
    message: Callable[[int], None]


class Pc:
    """The machine. memory_bytes: the guest's RAM; disks: by vdev, hda to hdd; cards: in PCI slots 3 and up; boot: the
    order of "c" (disks) and "n" (network)."""

    def __init__(
        self, around: Surroundings, memory_bytes: int, vcpus: int, disks: dict[str, Disk],
        cards: Sequence[CardPlan] = (), boot: str = "c",
    ) -> None:
        self._around = around
        self._boot = _boot_order(boot, disks, cards)
        self._frames: dict[tuple[PciFunction, int, str], int] = {}
        self._windows: dict[tuple[PciFunction, int, str], list[tuple[Attached, Device | None, int, int]]] = {}
        self._placed: dict[tuple[PciFunction, int, str], list[tuple[int, int]]] = {}
        self._isa(around, memory_bytes, vcpus, disks)
        self._pci(around, vcpus)
        self._ide(around, disks)
        self._cards(around, cards)

    # -- ISA
    def _isa(self, around: Surroundings, memory_bytes: int, vcpus: int, disks: dict[str, Disk]) -> None:
        self.uart = Uart(around.console, around.clock)
        self.uart_attached = self._add("uart", self.uart, (4, self.uart.irq))
        around.bus.attach(PORT, COM1, 8, self.uart_attached)
        cmos = Cmos(around.clock, around.wall, cmos_map(memory_bytes, vcpus))
        around.bus.attach(PORT, 0x70, 2, self._add("cmos", cmos, (8, cmos.irq)))
        keyboard = I8042(around.clock, around.reset)
        fw_cfg = FwCfg(around.memory, pc_files(memory_bytes, COM1, self._boot), pc_items(memory_bytes, vcpus))
        self._place(self._add("i8042", keyboard, (1, keyboard.irq_keyboard), (12, keyboard.irq_aux)), keyboard.ports)
        others: dict[str, FwCfg | DebugPort | PostPort | Port92]
        others = {"fw_cfg": fw_cfg, "debug": DebugPort(around.debug), "post": PostPort(), "port92": Port92(around.reset)}
        for name, device in others.items():
            self._place(self._add(name, device), device.ports)

    def _add(
        self, name: str, device: Model, *lines: tuple[int, Callable[[], bool]], settled: Callable[[], None] | None = None,
        waiting: Callable[[], bool] | None = None,
    ) -> Attached:
        deadline, tick = getattr(device, "deadline", None), getattr(device, "tick", None)
        attached = self._around.bus.add(name, device, *lines, deadline=deadline, tick=tick, settled=settled, waiting=waiting)
        device.changed = lambda: self._around.bus.changed(attached)
        return attached

    def _place(self, attached: Attached, ports: Sequence[tuple[int, int, Device]]) -> None:
        buffered = isinstance(attached.device, Model) and attached.device.buffered
        for start, count, window in ports:
            self._around.bus.attach(PORT, start, count, attached, window, buffered=buffered)

    # -- PCI
    def _pci(self, around: Surroundings, vcpus: int) -> None:
        self.pci = PciBus(around.reset)
        self.piix3 = Piix3Isa(lambda line, level: around.lines.drive(line, "pci", level))
        self.piix3_ide = Piix3Ide(self._mapping_changed)
        self.piix4_pm = Piix4Pm(self._mapping_changed)
        self.pci.attach(0, 0, I440fx())
        self.pci.attach(1, 0, self.piix3)
        self.pci.attach(1, 1, self.piix3_ide)
        self.pci.attach(1, 3, self.piix4_pm)
        self._place(self._add("pci", self.pci), self.pci.ports)
        acpi = AcpiPm(around.clock, around.power_off)
        attached = self._add("acpi", acpi, (9, acpi.irq))
        self._windows[self.piix4_pm, PM_INDEX, "io"] = [(attached, None, 0, 64)]
        apm, hotplug = Apm(acpi), AcpiHotplug(vcpus)
        self._place(self._add("apm", apm), apm.ports)
        self._place(self._add("hotplug", hotplug), hotplug.ports)

    def _mapping_changed(self, function: PciFunction, index: int, kind: str, base: int | None, size: int) -> None:
        """A function's range is decoded from now on (at `base`), or no longer."""
        key = (function, index, kind)
        space = MEMORY if kind in ("memory", "rom") else PORT
        for start, count in self._placed.pop(key, ()):
            self._around.bus.detach(space, start, count)
        if base is None:
            return
        self._placed[key] = [
            (base + offset, count)
            for attached, window, offset, count in self._windows.get(key, ())
            if self._around.bus.attach(space, base + offset, count, attached, window, self._frames.get(key, 0))
        ]

    # -- IDE
    def _ide(self, around: Surroundings, disks: dict[str, Disk]) -> None:
        busmaster = BusMaster(around.memory)
        attached = self._add("busmaster", busmaster)
        self._windows[self.piix3_ide, 4, "io"] = [(attached, None, 0, 16)]
        self.channels = []
        for number in (0, 1):
            drives = [disks.get(vdev) for vdev, channel, _ in SLOTS if channel == number]
            channel = IdeChannel((drives[0], drives[1]), busmaster.channels[number], f"MG{number}")
            ide = self._add(f"ide{number}", channel, (IDE_IRQ[number], channel.irq), waiting=channel.waiting)
            control = IDE_CONTROL[number] - (0x1F0, 0x170)[number]
            self._windows[self.piix3_ide, number, "ide"] = [
                (ide, channel.command_block, 0, 8), (ide, channel.control_block, control, 1),
            ]
            self.channels.append(channel)

    # -- network
    def _cards(self, around: Surroundings, plans: Sequence[CardPlan]) -> None:
        names = card_names([plan.model for plan in plans])
        for index, (plan, name) in enumerate(zip(plans, names, strict=True)):
            slot = FIRST_CARD + index

            def set_pin(level: bool, slot: int = slot) -> None:
                self.piix3.set_pin(slot, 1, level)

            card = NetworkCard(plan, around.memory, around.clock, self._mapping_changed, set_pin, around.message)
            attached = self._add(name, card.nic, settled=card.settle)
            card.changed = card.nic.changed
            for (number, kind), (window, size) in card.windows().items():
                self._windows[card.function, number, kind] = [(attached, window, 0, size)]
            if card.rom:
                key = (card.function, ROM, "rom")
                self._windows[key] = [(self._add(f"{name}-rom", card.rom), None, 0, card.rom.size)]
                self._frames[key] = plan.rom_frame
            self.pci.attach(slot, 0, card.function)

    def receive(self, data: bytes) -> int:
        """Characters for the serial line; how many of them it took."""
        taken = min(len(data), self.uart.room())
        if taken:
            self.uart.receive(data[:taken])
        return taken


def _boot_order(letters: str, disks: dict[str, Disk], cards: Sequence[CardPlan]) -> list[str]:
    paths = {
        "c": [ide_path(channel, drive) for vdev, channel, drive in SLOTS if vdev in disks],
        "n": [nic_path(FIRST_CARD + index) for index, plan in enumerate(cards) if plan.rom],
    }
    return [path for letter in letters for path in paths[letter]]
