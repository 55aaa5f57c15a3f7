"""PCI configuration mechanism 1 and the PIIX functions against their datasheets."""

from typing import Any

import pytest

from miniguest.frontend.devices.acpi_pm import AcpiPm
from miniguest.frontend.devices.i440fx import I440fx
from miniguest.frontend.devices.pci import PciBus
from miniguest.frontend.devices.pci_function import ROM, Bar, Identity, PciFunction
from miniguest.frontend.devices.piix3_ide import Piix3Ide
from miniguest.frontend.devices.piix3_isa import Piix3Isa
from miniguest.frontend.devices.piix4_pm import Piix4Pm


class Machine:
    def __init__(self) -> None:
        self.mapped: list[tuple[int, str, int | None, int]] = []
        self.lines: list[tuple[int, bool]] = []
        self.resets = 0
        self.bus = PciBus(self.reset)
        self.isa = Piix3Isa(lambda irq, level: self.lines.append((irq, level)))
        self.bus.attach(0, 0, I440fx())
        self.bus.attach(1, 0, self.isa)
        self.bus.attach(1, 1, Piix3Ide(self.changed))
        self.bus.attach(1, 3, Piix4Pm(self.changed))
        bars = (Bar(0, "memory", 0x1000), Bar(1, "io", 0x100), Bar(2, "memory", 0x10, True), Bar(ROM, "rom", 0x800))
        self.bus.attach(3, 0, PciFunction(Identity(0x5853, 1, 0xFF8000, interrupt_pin=1), bars, mapping_changed=self.changed))

    def reset(self) -> None:
        self.resets += 1

    def changed(self, function: Any, index: int, kind: str, base: int | None, size: int) -> None:
        self.mapped.append((index, kind, base, size))

    def select(self, slot: int, function: int, register: int) -> None:
        self.bus.write(0, 4, 0x80000000 | slot << 11 | function << 8 | register & 0xFC)

    def get(self, slot: int, function: int, register: int, size: int = 4) -> int:
        self.select(slot, function, register)
        return self.bus.read(4 + (register & 3), size)

    def put(self, slot: int, function: int, register: int, value: int, size: int = 4) -> None:
        self.select(slot, function, register)
        self.bus.write(4 + (register & 3), size, value)


@pytest.mark.parametrize(
    ("where", "identity", "kind"),
    [((0, 0), 0x12378086, 0x0600), ((1, 0), 0x70008086, 0x0601), ((1, 1), 0x70108086, 0x0101),
     ((1, 3), 0x71138086, 0x0680)],
)  # fmt: skip
def test_who_is_there(where: tuple[int, int], identity: int, kind: int) -> None:
    machine = Machine()
    assert machine.get(*where, 0) == identity
    assert machine.get(*where, 0x0A, 2) == kind
    machine.put(*where, 0, 0)
    machine.put(*where, 8, 0)
    assert machine.get(*where, 0) == identity


def test_nobody_is_there() -> None:
    machine = Machine()
    for slot, function in ((2, 0), (1, 2), (31, 7)):
        assert machine.get(slot, function, 0) == 0xFFFFFFFF
        machine.put(slot, function, 4, 7, 2)
    machine.bus.write(0, 4, 0x80010000)  # bus 1
    assert machine.bus.read(4, 2) == 0xFFFF
    machine.bus.write(0, 4, 0)  # not enabled
    assert machine.bus.read(4, 4) == 0xFFFFFFFF
    with pytest.raises(ValueError, match=r"01\.0"):
        machine.bus.attach(1, 0, I440fx())


def test_address_is_a_dword_and_data_is_any_width() -> None:
    machine = Machine()
    machine.select(0, 0, 0)
    machine.bus.write(0, 2, 0x1234)
    machine.bus.write(0, 1, 0x12)
    assert machine.bus.read(0, 4) == 0x80000000
    assert machine.bus.read(0, 2) == 0xFFFF
    assert [machine.bus.read(4 + i, 1) for i in range(4)] == [0x86, 0x80, 0x37, 0x12]
    assert machine.bus.read(6, 2) == 0x1237
    machine.bus.write(0, 4, 0xFFFFFFFF)
    assert machine.bus.read(0, 4) == 0x80FFFFFC


def test_reset_control_needs_a_rising_edge_of_its_byte() -> None:
    machine = Machine()
    machine.bus.write(1, 1, 0x02)
    assert machine.resets == 0
    machine.bus.write(1, 1, 0x06)
    assert machine.resets == 1
    assert machine.bus.read(1, 1) == 2


def test_bars_are_sized_and_mapped_when_decoded() -> None:
    machine = Machine()
    for register, sized in ((0x10, 0xFFFFF000), (0x14, 0xFFFFFF01), (0x18, 0xFFFFFFF8), (0x1C, 0), (0x30, 0xFFFFF801)):
        machine.put(3, 0, register, 0xFFFFFFFF)
        assert machine.get(3, 0, register) == sized
    assert machine.mapped == []
    machine.put(3, 0, 0x10, 0xE0000000)
    machine.put(3, 0, 0x14, 0xC000)
    machine.put(3, 0, 4, 1, 2)
    assert machine.mapped == [(1, "io", 0xC000, 0x100)]
    machine.put(3, 0, 4, 2, 2)
    assert sorted(machine.mapped[1:]) == [(0, "memory", 0xE0000000, 0x1000), (1, "io", None, 0x100)]
    machine.mapped.clear()
    machine.put(3, 0, 0x10, 0xFFFFFFFF)  # sized while decoded
    machine.put(3, 0, 0x10, 0xE0001000)
    machine.put(3, 0, 0x10, 0)
    assert machine.mapped == [
        (0, "memory", None, 0x1000), (0, "memory", 0xE0001000, 0x1000), (0, "memory", None, 0x1000),
    ]  # fmt: skip
    machine.mapped.clear()
    machine.put(3, 0, 0x30, 0xE0002000)
    assert machine.mapped == []
    machine.put(3, 0, 0x30, 0xE0002001)
    assert machine.mapped == [(ROM, "rom", 0xE0002000, 0x800)]


def test_status_bits_are_cleared_by_ones() -> None:
    machine = Machine()
    function = machine.bus.functions[3 << 3]
    function.preset({7: 0xFF})
    machine.put(3, 0, 6, 0x8100, 2)
    assert function.state.config[7] == 0x7E


def test_pam_keeps_what_is_written() -> None:
    machine = Machine()
    assert machine.get(0, 0, 0x2C) == 0x11001AF4
    for register, mask in ((0x59, 0x30), (0x5A, 0x33), (0x5F, 0x33), (0x72, 0x78)):
        machine.put(0, 0, register, 0xFF, 1)
        assert machine.get(0, 0, register, 1) & 0x7C == mask & 0x7C
    machine.put(0, 0, 4, 0, 2)
    assert machine.get(0, 0, 4, 2) & 6 == 6


def test_interrupt_routing_follows_the_wires_and_the_registers() -> None:
    machine = Machine()
    machine.isa.set_pin(3, 1, True)  # slot 3 INTA# is wire C
    assert machine.lines == []
    machine.put(1, 0, 0x62, 11, 1)
    assert machine.lines == [(11, True)]
    machine.put(1, 0, 0x60, 11, 1)
    machine.isa.set_pin(1, 1, True)  # shared: wire A goes to 11 too
    machine.isa.set_pin(3, 1, False)
    assert machine.lines == [(11, True)]
    machine.put(1, 0, 0x60, 10, 1)
    assert machine.lines[1:] == [(10, True), (11, False)]
    for never in (0, 1, 2, 8, 13, 0x85):
        machine.put(1, 0, 0x60, never, 1)
        assert machine.isa.route(0) is None


def test_ide_decode_takes_idetim_and_the_command_register() -> None:
    machine = Machine()
    machine.put(1, 1, 0x40, 0x80008000)
    assert machine.mapped == []
    machine.put(1, 1, 4, 1, 2)
    assert machine.mapped == [(0, "ide", 0x1F0, 8), (1, "ide", 0x170, 8)]
    machine.put(1, 1, 0x42, 0, 2)
    assert machine.mapped[2:] == [(1, "ide", None, 8)]
    machine.put(1, 1, 0x20, 0xC001)
    assert machine.mapped[3:] == [(4, "io", 0xC000, 16)]


def test_pm_base_is_enabled_by_pmregmisc() -> None:
    machine = Machine()
    assert machine.get(1, 3, 0x58) >> 25 & 1  # APMC_EN
    machine.put(1, 3, 0x40, 0xB03F)
    assert machine.get(1, 3, 0x40) == 0xB001
    assert machine.mapped == []
    machine.put(1, 3, 0x80, 1, 1)
    assert machine.mapped == [(7, "io", 0xB000, 64)]


class Power:
    def __init__(self) -> None:
        self.now = 77
        self.offs = 0
        self.pm = AcpiPm(lambda: self.now, self.off)

    def off(self) -> None:
        self.offs += 1


def test_pm_timer_runs_at_its_frequency_and_in_24_bits() -> None:
    power = Power()
    power.now += 1_000_000_000
    assert power.pm.read(8, 4) == 3_579_545
    power.now += 4_000_000_000
    assert power.pm.read(8, 4) == 5 * 315_000_000 // 88 & 0xFFFFFF


def test_pm_timer_interrupts_each_half_turn() -> None:
    power = Power()
    assert power.pm.deadline() is None
    power.pm.write(2, 2, 1)
    for n in (1, 2, 3):
        due = power.pm.deadline()
        assert due is not None
        power.now = due - 1
        power.pm.tick()
        assert not power.pm.read(0, 2) & 1
        power.now = due
        power.pm.tick()
        assert power.pm.read(8, 4) == (n << 23) & 0xFFFFFF
        assert not power.pm.irq()
        power.pm.write(4, 2, 1)
        assert power.pm.irq()
        power.pm.write(0, 2, 1)
        assert not power.pm.irq()
        power.pm.write(4, 2, 0)


def test_soft_off_and_the_power_button() -> None:
    power = Power()
    power.pm.write(4, 2, 0x3401)
    assert power.offs == 0
    power.pm.write(4, 2, 0x2001)
    assert power.offs == 1
    assert power.pm.read(4, 2) == 1
    power.pm.write(2, 2, 0x100)
    power.pm.press_power_button()
    assert power.pm.irq()
    power.pm.write(0, 2, 0x100)
    assert not power.pm.irq()
