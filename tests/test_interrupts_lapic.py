"""The local APIC against SDM volume 3, chapter 11."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniguest.frontend.interrupts.lapic import Lapic

ID, VERSION, TPR, PPR, EOI, LDR, DFR, SVR = 0x20, 0x30, 0x80, 0xA0, 0xB0, 0xD0, 0xE0, 0xF0
ISR, TMR, IRR, ESR, ICR, ICR2 = 0x100, 0x180, 0x200, 0x280, 0x300, 0x310
TIMER, LINT0, LINT1, LVT_ERROR, INITIAL, CURRENT, DIVIDE = 0x320, 0x350, 0x360, 0x370, 0x380, 0x390, 0x3E0
MASKED = 0x10000


class Cpu:
    def __init__(self) -> None:
        self.now = 0
        self.nmis = 0
        self.ended: list[int] = []
        self.apic = Lapic(lambda: self.now, nmi=self.nmi, broadcast_eoi=self.ended.append)
        self.write(SVR, 0x1FF)

    def nmi(self) -> None:
        self.nmis += 1

    def write(self, register: int, value: int) -> None:
        self.apic.write(register, 4, value)

    def read(self, register: int) -> int:
        return self.apic.read(register, 4)

    def take(self) -> int | None:
        vector = self.apic.pending()
        return None if vector is None else self.apic.acknowledge(vector)


def test_reset_is_virtual_wire() -> None:
    apic = Lapic(lambda: 0, apic_id=3)
    assert apic.accepts_extint()
    assert apic.read(SVR, 4) == 0xFF
    assert apic.read(ID, 4) == 3 << 24
    assert apic.read(VERSION, 4) == 0x00050014
    assert apic.read(DFR, 4) == 0xFFFFFFFF
    assert apic.read(TIMER, 4) == MASKED
    assert apic.base_msr == 0xFEE00900
    apic.deliver(0x40)
    assert apic.pending() is None  # software has not enabled it


def test_extint_goes_by_lint0_or_past_a_disabled_apic() -> None:
    cpu = Cpu()
    for entry, passes in ((0x700, True), (0x10700, False), (0x00030, False), (0x08700, True)):
        cpu.write(LINT0, entry)
        assert cpu.apic.accepts_extint() == passes
    cpu.write(LINT0, MASKED)
    cpu.apic.base_msr = 0xFEE00000
    assert not cpu.apic.enabled
    assert cpu.apic.accepts_extint()
    assert cpu.apic.base_msr == 0xFEE00100


@settings(max_examples=100, deadline=None)
@given(vectors=st.sets(st.integers(16, 255), max_size=20), tpr=st.integers(0, 255))
def test_delivery_is_by_priority(vectors: set[int], tpr: int) -> None:
    cpu = Cpu()
    cpu.write(TPR, tpr)
    for vector in vectors:
        cpu.apic.deliver(vector)
    shown = sum(cpu.read(IRR + 16 * word) << 32 * word for word in range(8))
    assert shown == sum(1 << vector for vector in vectors)
    taken = []
    while (vector := cpu.take()) is not None:
        assert cpu.read(PPR) == max(vector & 0xF0, tpr) or cpu.read(PPR) >> 4 == max(vector, tpr) >> 4
        assert cpu.read(ISR + 16 * (vector // 32)) >> vector % 32 & 1
        assert cpu.apic.pending() is None  # the same class waits for the end
        taken.append(vector)
        cpu.write(EOI, 0)
    assert taken == sorted((v for v in vectors if v >> 4 > tpr >> 4), reverse=True)


def test_a_higher_class_nests_and_ends_before_the_lower() -> None:
    cpu = Cpu()
    cpu.apic.deliver(0x31)
    cpu.take()
    cpu.apic.deliver(0x3F)
    assert cpu.apic.pending() is None
    cpu.apic.deliver(0x41)
    assert cpu.take() == 0x41
    cpu.write(EOI, 0)
    assert cpu.read(PPR) == 0x30
    cpu.write(EOI, 0)
    assert cpu.take() == 0x3F
    assert cpu.apic.acknowledge(0x99) == 0xFF  # nothing asks: the spurious vector


def test_level_interrupts_set_tmr_and_tell_when_they_end() -> None:
    cpu = Cpu()
    cpu.apic.deliver(0x61, level=True)
    assert cpu.read(TMR + 16 * 3) == 2
    cpu.take()
    cpu.write(EOI, 0)
    cpu.apic.deliver(0x61)
    cpu.take()
    cpu.write(EOI, 0)
    assert cpu.ended == [0x61]


def test_a_fixed_level_lint0_asks_again_until_it_falls() -> None:
    cpu = Cpu()
    cpu.write(LINT0, 0x8050)
    cpu.apic.set_pin(0, True)
    assert cpu.read(LINT0) == 0xC050  # remote IRR
    assert cpu.take() == 0x50
    cpu.write(EOI, 0)
    assert cpu.take() == 0x50
    cpu.apic.set_pin(0, False)
    cpu.write(EOI, 0)
    assert cpu.take() is None
    cpu.write(LINT1, 0x400)
    cpu.apic.set_pin(1, True)
    cpu.apic.set_pin(1, True)
    assert cpu.nmis == 1


@pytest.mark.parametrize(("code", "divisor"), [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)])
def test_one_shot_timer(code: int, divisor: int) -> None:
    cpu = Cpu()
    cpu.write(DIVIDE, code)
    cpu.write(TIMER, 0x40)
    cpu.now = 1000
    cpu.write(INITIAL, 100_000)
    assert cpu.apic.deadline() == 1000 + 100_000 * divisor
    cpu.now += 30_000 * divisor
    assert cpu.read(CURRENT) == 70_000
    cpu.apic.tick()
    assert cpu.take() is None
    cpu.now += 70_000 * divisor
    cpu.apic.tick()
    assert cpu.take() == 0x40
    assert cpu.read(CURRENT) == 0
    assert cpu.apic.deadline() is None


def test_periodic_timer_does_not_drift_and_merges_what_was_missed() -> None:
    cpu = Cpu()
    cpu.write(DIVIDE, 11)
    cpu.write(TIMER, 0x20040)
    cpu.write(INITIAL, 1_000_000)
    for n in range(1, 5):
        due = cpu.apic.deadline()
        assert due == n * 1_000_000
        cpu.now = due + 300
        cpu.apic.tick()
        assert cpu.take() == 0x40
        cpu.write(EOI, 0)
        assert cpu.read(CURRENT) == 1_000_000 - 300
    cpu.now = 50_500_000
    cpu.apic.tick()
    assert cpu.take() == 0x40
    cpu.write(EOI, 0)
    cpu.apic.tick()
    assert cpu.take() is None
    assert cpu.apic.deadline() == 51_000_000
    cpu.write(INITIAL, 0)
    assert cpu.apic.deadline() is None
    cpu.write(INITIAL, 1)
    cpu.apic.tick()
    assert cpu.apic.deadline() is not None
    assert (cpu.apic.deadline() or 0) >= cpu.now  # a hostile period comes at a bounded rate


def test_changing_the_divider_keeps_what_is_left() -> None:
    cpu = Cpu()
    cpu.write(DIVIDE, 11)
    cpu.write(INITIAL, 100_000)
    cpu.now = 40_000
    cpu.write(DIVIDE, 0)
    assert cpu.read(CURRENT) == 60_000
    cpu.now += 20_000
    assert cpu.read(CURRENT) == 50_000


def test_ipis_reach_this_processor_or_nobody() -> None:
    cpu = Cpu()
    cpu.write(ID, 1 << 24)
    cpu.write(LDR, 4 << 24)
    for low, high, arrives in (
        (0x40041, 0, True),  # self
        (0x80041, 0, True),  # all with self
        (0xC0041, 0, False),  # all but self
        (0x00041, 1, True),
        (0x00041, 2, False),
        (0x00041, 0xFF, True),
        (0x00841, 4, True),  # logical, flat
        (0x00841, 2, False),
        (0x00500, 1, False),  # INIT
        (0x00608, 1, False),  # start-up
    ):
        cpu.write(ICR2, high << 24)
        cpu.write(ICR, low)
        assert cpu.take() == (0x41 if arrives else None)
        cpu.write(EOI, 0)
        assert not cpu.read(ICR) & 0x1000
    cpu.write(DFR, 0x0FFFFFFF)
    cpu.write(LDR, 0x21 << 24)
    for target, arrives in ((0x21, True), (0x31, False), (0xF1, True), (0x22, False)):
        cpu.write(ICR2, target << 24)
        cpu.write(ICR, 0x00841)
        assert (cpu.take() is not None) == arrives
        cpu.write(EOI, 0)
    cpu.write(ICR, 0x40400)
    assert cpu.nmis == 1


def test_errors_are_latched_by_a_write_and_interrupt() -> None:
    cpu = Cpu()
    cpu.write(LVT_ERROR, 0x55)
    cpu.write(ICR, 0x40003)
    assert cpu.take() == 0x55
    assert cpu.read(ESR) == 0
    cpu.write(ESR, 0)
    assert cpu.read(ESR) == 0x20
    cpu.apic.deliver(3)
    assert cpu.apic.read(0x3F0, 4) == 0
    cpu.write(ESR, 0)
    assert cpu.read(ESR) == 0xC0
    cpu.write(ESR, 0)
    assert cpu.read(ESR) == 0


def test_disabling_by_software_masks_the_lvt() -> None:
    cpu = Cpu()
    cpu.write(TIMER, 0x40)
    cpu.write(SVR, 0xFF)
    assert cpu.read(TIMER) == MASKED | 0x40
    cpu.write(TIMER, 0x40)
    assert cpu.read(TIMER) == MASKED | 0x40
    cpu.write(SVR, 0x1FF)
    cpu.write(TIMER, 0x20040)
    assert cpu.read(TIMER) == 0x20040
