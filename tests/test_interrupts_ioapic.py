"""The I/O APIC against the 82093AA's datasheet, any traffic against a simple model of a pin, and how Platform wires it."""

from dataclasses import dataclass

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniguest.frontend.devices.saved import load, save
from miniguest.frontend.interrupts.ioapic import IoApic
from miniguest.frontend.interrupts.lapic import Lapic
from miniguest.frontend.platform import IOAPIC_BASE, LAPIC_BASE, Platform
from miniguest.ring.ranges import MEMORY, PORT

SELECT, WINDOW = 0x00, 0x10
ID, VER, ARB, ENTRIES, PINS = 0, 1, 2, 0x10, 24
DELIVERY_STATUS, REMOTE_IRR, LEVEL, MASKED, LOGICAL, ACTIVE_LOW = 0x1000, 0x4000, 0x8000, 0x10000, 0x800, 0x2000
EOI, LDR, DFR, SVR, LINT0 = 0xB0, 0xD0, 0xE0, 0xF0, 0x350


class Chips:
    """An I/O APIC and the local APIC that hears it."""

    def __init__(self) -> None:
        self.lapic = Lapic(lambda: 0, broadcast_eoi=lambda vector: self.ioapic.end(vector))
        self.ioapic = IoApic(self.lapic)
        self.lapic.write(SVR, 4, 0x1FF)

    def read(self, index: int) -> int:
        self.ioapic.write(SELECT, 4, index)
        return self.ioapic.read(WINDOW, 4)

    def write(self, index: int, value: int) -> None:
        self.ioapic.write(SELECT, 4, index)
        self.ioapic.write(WINDOW, 4, value)

    def entry(self, pin: int) -> int:
        return self.read(ENTRIES + 2 * pin)

    def program(self, pin: int, low: int, target: int = 0) -> None:
        self.write(ENTRIES + 2 * pin + 1, target << 24)
        self.write(ENTRIES + 2 * pin, low)

    def take(self) -> int | None:
        vector = self.lapic.pending()
        return None if vector is None else self.lapic.acknowledge(vector)

    def end(self) -> None:
        self.lapic.write(EOI, 4, 0)


@pytest.fixture
def chips() -> Chips:
    return Chips()


def test_reset(chips: Chips) -> None:
    assert chips.ioapic.read(SELECT, 4) == 0
    assert [chips.read(index) for index in (ID, VER, ARB)] == [0, 0x00170011, 0]
    for pin in range(PINS):
        assert (chips.entry(pin), chips.read(ENTRIES + 2 * pin + 1)) == (MASKED, 0)


def test_registers_keep_what_the_datasheet_lets_be_written(chips: Chips) -> None:
    for index in range(256):
        chips.write(index, 0xFFFFFFFF)
    assert chips.ioapic.read(SELECT, 4) == 0xFF
    assert [chips.read(index) for index in (ID, VER, ARB)] == [0x0F000000, 0x00170011, 0x0F000000]
    for pin in range(PINS):
        assert chips.entry(pin) == 0x1FFFF & ~(DELIVERY_STATUS | REMOTE_IRR)
        assert chips.read(ENTRIES + 2 * pin + 1) == 0xFF000000
    for index in (*range(3, ENTRIES), *range(ENTRIES + 2 * PINS, 256)):
        assert chips.read(index) == 0
    chips.write(ARB, 0)
    assert chips.read(ARB) == 0x0F000000


def test_only_the_index_and_the_window_are_there(chips: Chips) -> None:
    chips.ioapic.write(SELECT, 4, 0xABCDEF01)
    assert chips.ioapic.read(SELECT, 4) == 0x01
    assert (chips.ioapic.read(WINDOW, 2), chips.ioapic.read(WINDOW + 2, 1)) == (0x0011, 0x17)
    for offset in (0x04, 0x0C, 0x14, 0x20, 0x40, 0xFFC):        # no EOI register in this version
        chips.ioapic.write(offset, 4, 0xFFFFFFFF)
        assert chips.ioapic.read(offset, 4) == 0
    chips.ioapic.write(SELECT, 1, ENTRIES)
    chips.ioapic.write(WINDOW, 1, 0x55)
    assert chips.entry(0) == MASKED | 0x55


def test_an_edge_asks_once(chips: Chips) -> None:
    chips.program(4, 0x34)
    chips.ioapic.set_pin(4, True)
    chips.ioapic.set_pin(4, True)
    assert chips.entry(4) == 0x34
    assert chips.take() == 0x34
    chips.end()
    assert chips.take() is None
    chips.ioapic.set_pin(4, False)
    assert chips.take() is None
    chips.ioapic.pulse(4)
    assert chips.take() == 0x34


def test_an_edge_while_masked_is_lost(chips: Chips) -> None:
    chips.program(4, MASKED | 0x34)
    chips.ioapic.set_pin(4, True)
    chips.program(4, 0x34)
    assert chips.take() is None
    chips.ioapic.set_pin(4, False)
    chips.ioapic.set_pin(4, True)
    assert chips.take() == 0x34


def test_an_edge_that_was_accepted_outlives_the_mask(chips: Chips) -> None:
    chips.program(4, 0x34)
    chips.ioapic.pulse(4)
    chips.program(4, MASKED | 0x34)
    assert chips.take() == 0x34


def test_a_level_asks_again_until_it_falls(chips: Chips) -> None:
    chips.program(10, LEVEL | 0x5A)
    chips.ioapic.set_pin(10, True)
    for _ in range(3):
        assert chips.entry(10) == REMOTE_IRR | LEVEL | 0x5A
        assert chips.take() == 0x5A
        assert chips.take() is None
        chips.end()
    assert chips.take() == 0x5A
    chips.ioapic.set_pin(10, False)
    assert chips.entry(10) & REMOTE_IRR         # it is the end that clears it
    chips.end()
    assert chips.entry(10) == LEVEL | 0x5A
    assert chips.take() is None


def test_a_level_that_comes_and_goes_in_service_asks_once(chips: Chips) -> None:
    chips.program(10, LEVEL | 0x5A)
    chips.ioapic.set_pin(10, True)
    assert chips.take() == 0x5A
    for level in (False, True, False, True):
        chips.ioapic.set_pin(10, level)
    assert chips.take() is None
    chips.end()
    assert chips.take() == 0x5A


def test_two_levels_on_one_vector_both_hear_its_end(chips: Chips) -> None:
    for pin in (10, 11):
        chips.program(pin, LEVEL | 0x5A)
        chips.ioapic.set_pin(pin, True)
    chips.program(12, LEVEL | 0x6A)
    chips.ioapic.set_pin(12, True)
    assert (chips.take(), chips.take()) == (0x6A, None)
    chips.ioapic.set_pin(12, False)
    chips.end()
    assert [bool(chips.entry(pin) & REMOTE_IRR) for pin in (10, 11, 12)] == [True, True, False]
    assert chips.take() == 0x5A
    chips.ioapic.set_pin(10, False)
    chips.end()
    assert [bool(chips.entry(pin) & REMOTE_IRR) for pin in (10, 11, 12)] == [False, True, False]
    assert chips.take() == 0x5A


def test_unmasking_an_asserted_level_asks(chips: Chips) -> None:
    chips.program(10, MASKED | LEVEL | 0x5A)
    chips.ioapic.set_pin(10, True)
    assert chips.take() is None
    chips.program(10, LEVEL | 0x5A)
    assert chips.take() == 0x5A


def test_masking_in_service_keeps_remote_irr(chips: Chips) -> None:
    chips.program(10, LEVEL | 0x5A)
    chips.ioapic.set_pin(10, True)
    chips.take()
    chips.program(10, MASKED | LEVEL | 0x5A)
    assert chips.entry(10) & REMOTE_IRR
    chips.end()
    assert not chips.entry(10) & REMOTE_IRR
    assert chips.take() is None
    chips.program(10, LEVEL | 0x5A)
    assert chips.take() == 0x5A


def test_a_level_entry_that_becomes_an_edge_forgets_remote_irr(chips: Chips) -> None:
    """How an interrupt is ended at a version without an EOI register."""
    chips.program(10, LEVEL | 0x5A)
    chips.ioapic.set_pin(10, True)
    chips.take()
    chips.write(ENTRIES + 20, MASKED | 0x5A)
    assert chips.entry(10) == MASKED | 0x5A
    chips.write(ENTRIES + 20, LEVEL | 0x5A)
    assert chips.entry(10) == REMOTE_IRR | LEVEL | 0x5A
    chips.end()
    assert chips.take() == 0x5A


def test_an_edge_entry_that_becomes_a_level_asks_if_asserted(chips: Chips) -> None:
    chips.program(10, 0x5A)
    chips.ioapic.set_pin(10, True)
    assert chips.take() == 0x5A
    chips.end()
    chips.program(10, LEVEL | 0x5B)
    assert chips.take() == 0x5B


def test_polarity_is_kept_and_means_nothing(chips: Chips) -> None:
    chips.program(10, ACTIVE_LOW | LEVEL | 0x5A)
    assert (chips.entry(10), chips.take()) == (ACTIVE_LOW | LEVEL | 0x5A, None)
    chips.ioapic.set_pin(10, True)
    assert chips.take() == 0x5A


@pytest.mark.parametrize(("low", "target", "arrives"), [
    (0x41, 3, True), (0x41, 2, False), (0x41, 0xFF, True),                      # physical
    (0x141, 3, True), (0x141, 0, False),                                        # lowest priority, of one
    (LOGICAL | 0x41, 4, True), (LOGICAL | 0x41, 0xFC, True), (LOGICAL | 0x41, 3, False), (LOGICAL | 0x141, 4, True),
    (0x241, 3, False), (0x441, 3, False), (0x541, 3, False), (0x741, 3, False),     # SMI, NMI, INIT, ExtINT
    (0x0F, 3, False),                                                           # an exception's vector
])
@pytest.mark.parametrize("level", [0, LEVEL])
def test_destinations_and_delivery_modes(chips: Chips, low: int, target: int, arrives: bool, level: int) -> None:
    chips.lapic.write(0x20, 4, 3 << 24)
    chips.lapic.write(LDR, 4, 4 << 24)
    chips.program(7, low | level, target)
    chips.ioapic.set_pin(7, True)
    assert bool(chips.entry(7) & REMOTE_IRR) == (arrives and bool(level))
    assert chips.take() == (0x41 if arrives else None)


def test_a_cluster_is_a_logical_destination_too(chips: Chips) -> None:
    chips.lapic.write(DFR, 4, 0x0FFFFFFF)
    chips.lapic.write(LDR, 4, 0x21 << 24)
    for target, arrives in ((0x21, True), (0x31, False), (0xF1, True)):
        chips.program(7, LOGICAL | 0x41, target)
        chips.ioapic.pulse(7)
        assert chips.take() == (0x41 if arrives else None)
        chips.end()


def test_a_level_that_nobody_accepted_is_not_in_service(chips: Chips) -> None:
    chips.lapic.write(SVR, 4, 0xFF)
    chips.program(10, LEVEL | 0x5A)
    chips.ioapic.set_pin(10, True)
    assert chips.entry(10) == LEVEL | 0x5A
    chips.lapic.write(SVR, 4, 0x1FF)
    chips.program(10, LEVEL | 0x5A)
    assert chips.take() == 0x5A


@dataclass
class Pin:
    """What a pin should do, as sentences of the datasheet. `asked`: whether a message is at the local APIC, unserved."""

    line: bool = False
    level: bool = False
    masked: bool = True
    in_service: bool = False
    remote_irr: bool = False
    asked: bool = False

    def settle(self, edge: bool = False) -> None:
        wants = self.line and not self.remote_irr if self.level else edge
        if wants and not self.masked:
            self.asked = True
            self.remote_irr = self.level

    def drive(self, level: bool) -> None:
        edge, self.line = level and not self.line, level
        self.settle(edge)

    def program(self, level: bool, masked: bool) -> None:
        self.level, self.masked = level, masked
        self.remote_irr = self.remote_irr and level
        self.settle()

    def take(self) -> bool:
        taken = self.asked and not self.in_service
        if taken:
            self.asked, self.in_service = False, True
        return taken


ACTIONS = st.one_of(
    st.tuples(st.just("drive"), st.booleans(), st.booleans()),
    st.tuples(st.just("program"), st.booleans(), st.booleans()),
    st.tuples(st.sampled_from(["take", "end", "pulse"]), st.just(False), st.just(False)),
)


@pytest.mark.parametrize("trigger", [False, True, None])
@settings(max_examples=200, deadline=None)
@given(actions=st.lists(ACTIONS, max_size=60))
def test_any_traffic_on_a_pin(trigger: bool | None, actions: list[tuple[str, bool, bool]]) -> None:
    """Edges, levels, and (None) an entry that becomes the one and the other. In the last the end of an interrupt that was
    accepted as a level and then programmed to be an edge depends on the local APIC's TMR: it is not ended while an edge."""
    chips, model = Chips(), Pin()
    for name, first, second in actions:
        if name == "drive":
            chips.ioapic.set_pin(9, first)
            model.drive(first)
        elif name == "pulse":
            chips.ioapic.pulse(9)
            for level in (False, True, False):
                model.drive(level)
        elif name == "program":
            level = first if trigger is None else trigger
            chips.program(9, 0x49 | LEVEL * level | MASKED * second)
            # The high word first: the old entry is looked at once more, which asks nothing new of a level in service.
            model.program(level, second)
        elif name == "take":
            assert (chips.take() is not None) == model.take()
        elif model.in_service:
            tells = bool(chips.lapic.state.tmr >> 0x49 & 1)
            chips.end()
            model.in_service = False
            if tells and model.remote_irr:
                model.remote_irr = False
                model.settle()
            assert trigger is None or tells == trigger
        assert bool(chips.entry(9) & REMOTE_IRR) == model.remote_irr
        assert bool(chips.lapic.state.irr) == model.asked


def test_state_survives_with_the_line_and_the_interrupt_in_service(chips: Chips) -> None:
    chips.program(10, LEVEL | 0x5A, 0xFF)
    chips.ioapic.set_pin(10, True)
    chips.ioapic.set_pin(4, True)
    chips.take()
    twin = Chips()
    for ours, its in ((chips.ioapic, twin.ioapic), (chips.lapic, twin.lapic)):
        load(its, msgpack.unpackb(msgpack.packb(save(ours))))
    assert twin.entry(10) == REMOTE_IRR | LEVEL | 0x5A
    assert twin.read(ENTRIES + 21) == 0xFF000000
    twin.program(4, 0x34)
    twin.ioapic.set_pin(4, True)                # no edge: it was high already
    assert twin.take() is None
    twin.end()
    assert twin.take() == 0x5A


class Pc:
    """A Platform whose local APIC is on and whose PICs are as a PC starts them: vectors 8 and 0x70, all masked."""

    def __init__(self) -> None:
        self.now = 0
        self.platform = Platform(lambda: self.now)
        self.platform.lapic.write(SVR, 4, 0x1FF)
        for port, base, cascade in ((0x20, 8, 4), (0xA0, 0x70, 2)):
            self.out(port, 0x11)
            for word in (base, cascade, 1, 0xFF):
                self.out(port + 1, word)

    def out(self, port: int, value: int) -> None:
        self.put(PORT, port, 1, value)

    def put(self, space: int, address: int, size: int, value: int) -> None:
        found = self.platform.find(space, address)
        assert found
        found[1].write(found[2], size, value)

    def program(self, pin: int, low: int) -> None:
        for index, word in ((ENTRIES + 2 * pin + 1, 0), (ENTRIES + 2 * pin, low)):
            self.put(MEMORY, IOAPIC_BASE + SELECT, 4, index)
            self.put(MEMORY, IOAPIC_BASE + WINDOW, 4, word)

    def take(self) -> int | None:
        return self.platform.acknowledge() if self.platform.pending() else None

    def end(self) -> None:
        self.put(MEMORY, LAPIC_BASE + EOI, 4, 0)


@pytest.fixture
def pc() -> Pc:
    return Pc()


def test_its_page_and_nothing_around_it(pc: Pc) -> None:
    for address in (IOAPIC_BASE, IOAPIC_BASE + 0xFFF):
        assert pc.platform.find(MEMORY, address) == ("ioapic", pc.platform.ioapic, address - 0xFEC00000)
    for address in (IOAPIC_BASE - 1, IOAPIC_BASE + 0x1000):
        assert pc.platform.find(MEMORY, address) is None
    assert pc.platform.find(PORT, IOAPIC_BASE) is None


@pytest.mark.parametrize("irq", [1, *range(3, 16)])
def test_a_line_is_both_the_pics_and_the_pin_of_its_number(pc: Pc, irq: int) -> None:
    for pin in range(PINS):
        pc.program(pin, 0x40 + pin)
    pc.platform.set_line(irq, True)
    assert pc.take() == 0x40 + irq
    pc.end()
    assert pc.take() is None
    pc.out(0x21, 0)
    pc.out(0xA1, 0)
    assert pc.take() == (8 + irq if irq < 8 else 0x68 + irq)        # through LINT0, as the APIC starts


def test_the_timer_is_on_pin_2_and_no_line_is(pc: Pc) -> None:
    for pin in range(PINS):
        pc.program(pin, 0x40 + pin)
    pc.platform.set_line(2, True)
    assert pc.take() is None
    for value in (0x34, 0x9C, 0x2E):
        pc.out(0x43 if value == 0x34 else 0x40, value)
    seen = []
    for _ in range(5):
        due = pc.platform.deadline()
        assert due
        pc.now = due
        pc.platform.tick()
        seen.append(pc.take())
        pc.end()
    assert seen == [0x42] * 5


def test_a_level_line_asks_until_its_device_is_content(pc: Pc) -> None:
    pc.program(11, LEVEL | 0x5B)
    pc.platform.set_line(11, True)
    for _ in range(2):
        assert pc.take() == 0x5B
        pc.end()
    assert pc.take() == 0x5B
    pc.platform.set_line(11, False)
    pc.end()
    assert pc.take() is None


def test_the_pics_reach_the_processor_by_pin_0(pc: Pc) -> None:
    pc.put(MEMORY, LAPIC_BASE + LINT0, 4, MASKED)
    pc.out(0x21, 0)
    pc.platform.set_line(4, True)
    for low, passes in ((MASKED | 0x700, False), (0x40, False), (0x700, True), (0x700 | LEVEL, True), (MASKED, False)):
        pc.program(0, low)
        assert pc.platform.pending() == passes
    pc.program(0, 0x700)
    assert (pc.take(), pc.take()) == (0x0C, None)
