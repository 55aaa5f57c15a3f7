"""Interrupt delivery against the rules of the Intel SDM, volume 3, chapter 6, with a processor made of plain memory."""
import struct
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniguest.frontend.engines.delivery import (
    CR0_PE,
    EFLAGS_AC,
    EFLAGS_IF,
    EFLAGS_NT,
    EFLAGS_TF,
    EFLAGS_VM,
    PAGE_FAULT,
    Fault,
    TripleFault,
    deliver,
)

GDT, IDT, TSS = 0x1000, 0x2000, 0x3000
CODE0, DATA0, CODE3, DATA3, CONFORMING, ABSENT, SMALL, DOWN, STACK16 = (8 * index for index in range(1, 10))
ABSENT_STACK, READ_ONLY, CODE1, DATA1 = (8 * index for index in range(10, 14))
TR = 0x80
HANDLER, DOUBLE = 0x12345678, 0x00DF00DF
FLAT = 0x00CF_0000_0000_FFFF
RPL3 = 3


def descriptor(access: int, flags: int = FLAT, base: int = 0) -> int:
    """access: P, DPL, S, type as in byte 5. flags: limit, G and D/B bits as they stand in the descriptor."""
    return flags | access << 40 | (base & 0xFFFFFF) << 16 | base >> 24 << 56


def gate(selector: int, offset: int, kind: int) -> bytes:
    return struct.pack("<HHBBH", offset & 0xFFFF, selector, 0, kind, offset >> 16)


@dataclass
class Registers:
    eip: int = 0x1000
    cs: int = CODE0
    ss: int = DATA0
    esp: int = 0x8000
    eflags: int = 2 | EFLAGS_IF
    segments: tuple[int, int, int, int] = (0x11, 0x22, 0x33, 0x44)


@dataclass
class FakeCpu:
    """Everything in a bytearray; `now` is what the processor holds, the fields are what was loaded of it."""

    cr0: int = CR0_PE
    now: Registers = field(default_factory=Registers)
    idt_limit: int = 0x7FF
    tss: tuple[int, int, int, bool] = (TR, TSS, 0x67, True)
    absent: tuple[int, int] = (0, 0)            # linear addresses, from and to, whose pages are not there
    eip: int = 0
    cs: int = 0
    ss: int = 0
    esp: int = 0
    eflags: int = 0

    def __post_init__(self) -> None:
        self.memory = bytearray(1 << 17)
        self.cleared = False
        table = {
            CODE0: descriptor(0x9B), DATA0: descriptor(0x93), CODE3: descriptor(0xFB), DATA3: descriptor(0xF3),
            CONFORMING: descriptor(0x9F), ABSENT: descriptor(0x1B), SMALL: descriptor(0x93, 0x0040_0000_0000_00FF),
            DOWN: descriptor(0x97, 0x0040_0000_0000_0FFF), STACK16: descriptor(0x93, 0x0000_0000_0000_FFFF),
            ABSENT_STACK: descriptor(0x13), READ_ONLY: descriptor(0x91), CODE1: descriptor(0xBB), DATA1: descriptor(0xB3),
        }
        for selector, value in table.items():
            self.memory[GDT + selector : GDT + selector + 8] = value.to_bytes(8, "little")

    def set_gate(self, vector: int, kind: int = 0x8E, selector: int = CODE0, offset: int = HANDLER) -> None:
        self.memory[IDT + vector * 8 : IDT + vector * 8 + 8] = gate(selector, offset, kind)

    def set_stack(self, level: int, ss: int, esp: int, wide: bool = True) -> None:
        place = TSS + (4 + level * 8 if wide else 2 + level * 4)
        data = struct.pack("<IHxx", esp, ss) if wide else struct.pack("<HH", esp, ss)
        self.memory[place : place + len(data)] = data

    def load(self) -> None:
        self.eip, self.cs, self.ss, self.esp, self.eflags = (
            self.now.eip, self.now.cs, self.now.ss, self.now.esp, self.now.eflags,
        )
        self.cleared = False

    def store(self) -> None:
        segments = (0, 0, 0, 0) if self.cleared else self.now.segments
        self.now = Registers(self.eip, self.cs, self.ss, self.esp, self.eflags, segments)

    def idt(self) -> tuple[int, int]:
        return (IDT, self.idt_limit) if self.cr0 & CR0_PE else (0, self.idt_limit)

    def task_state(self) -> tuple[int, int, int, bool]:
        return self.tss

    def data_segments(self) -> tuple[int, int, int, int]:
        return self.now.segments

    def clear_data_segments(self) -> None:
        self.cleared = True

    def descriptor(self, selector: int) -> int | None:
        if selector & 0xFFFC == 0 or selector & 4 or selector > DATA1 + 7:
            return None
        at = GDT + (selector & 0xFFF8)
        return int.from_bytes(self.memory[at : at + 8], "little")

    def segment_base(self, selector: int) -> int:
        if not self.cr0 & CR0_PE or self.eflags & EFLAGS_VM:
            return selector << 4
        found = self.descriptor(selector) or 0
        return found >> 16 & 0xFFFFFF | found >> 32 & 0xFF000000

    def read(self, linear: int, size: int) -> bytes:
        return bytes(self.memory[linear : linear + size])

    def write(self, linear: int, data: bytes) -> None:
        if linear < self.absent[1] and linear + len(data) > self.absent[0]:
            raise Fault(PAGE_FAULT, 2)
        assert linear + len(data) <= len(self.memory), f"{linear:#x}"
        self.memory[linear : linear + len(data)] = data

    def frame(self, words: int, size: int = 4) -> list[int]:
        """The topmost words of the stack."""
        self.load()
        at = self.segment_base(self.ss) + self.esp
        return [int.from_bytes(self.memory[at + i * size : at + (i + 1) * size], "little") for i in range(words)]


@pytest.fixture
def cpu() -> FakeCpu:
    """In ring 0, with a handler for double faults."""
    made = FakeCpu()
    made.set_gate(8, offset=DOUBLE)
    return made


@pytest.fixture
def user(cpu: FakeCpu) -> FakeCpu:
    """In ring 3, with a stack for ring 0."""
    cpu.now = Registers(cs=CODE3 | RPL3, ss=DATA3 | RPL3, esp=0x9000)
    cpu.set_stack(0, DATA0, 0x7000)
    return cpu


def real(**registers: int) -> FakeCpu:
    made = FakeCpu(cr0=0, idt_limit=0x3FF, now=Registers(**registers))
    for vector in range(256):
        made.memory[vector * 4 : vector * 4 + 4] = struct.pack("<HH", 0x100 + vector, 0xABCD)
    return made


# -- real mode
@given(vector=st.integers(0, 255), sp=st.integers(0, 0xFFFF), ip=st.integers(0, 0xFFFF), high=st.integers(0, 0xFFFF))
def test_real_mode_pushes_three_words_and_wraps_at_64k(vector: int, sp: int, ip: int, high: int) -> None:
    cpu = real(cs=0x1111, ss=0x0800, esp=high << 16 | sp, eip=ip, eflags=2 | EFLAGS_IF | EFLAGS_TF | EFLAGS_AC)
    deliver(cpu, vector, 5, False)              # error codes are not pushed in real mode
    now = cpu.now
    assert (now.cs, now.eip, now.eflags) == (0xABCD, 0x100 + vector, 2)
    assert now.esp == high << 16 | sp - 6 & 0xFFFF
    words = [(sp - 6 + 2 * index) & 0xFFFF for index in range(3)]
    pushed = [int.from_bytes(cpu.memory[0x8000 + at : 0x8000 + at + 2], "little") for at in words]
    assert pushed == [ip, 0x1111, 2 | EFLAGS_IF | EFLAGS_TF]


def test_real_mode_beyond_the_table_is_a_general_protection_fault() -> None:
    cpu = real()
    cpu.idt_limit = 0x7F
    deliver(cpu, 0x20, None, True)
    assert cpu.now.eip == 0x100 + 13


@pytest.mark.parametrize(("limit", "eip"), [(13 * 4 + 2, 0x108), (8 * 4 + 2, None)])
def test_real_mode_double_and_triple_faults(limit: int, eip: int | None) -> None:
    cpu = real()
    cpu.idt_limit = limit
    if eip is None:
        with pytest.raises(TripleFault):
            deliver(cpu, 0x20, None, True)
    else:
        deliver(cpu, 0x20, None, True)
        assert cpu.now.eip == eip


# -- gates
@pytest.mark.parametrize(("kind", "size", "enabled"), [(0x8E, 4, 0), (0x8F, 4, EFLAGS_IF), (0x86, 2, 0), (0x87, 2, EFLAGS_IF)])
def test_gates_of_both_sizes_and_kinds(cpu: FakeCpu, kind: int, size: int, enabled: int) -> None:
    cpu.set_gate(0x40, kind)
    cpu.now.eflags |= EFLAGS_TF | EFLAGS_NT
    before = cpu.now
    deliver(cpu, 0x40, None, False)
    assert cpu.frame(3, size) == [before.eip, CODE0, before.eflags]
    assert cpu.now.esp == before.esp - 3 * size
    assert cpu.now.eip == (HANDLER if size == 4 else HANDLER & 0xFFFF)
    assert cpu.now.eflags == 2 | enabled


@pytest.mark.parametrize("vector", range(32))
def test_error_codes_are_pushed_where_the_vector_has_one(cpu: FakeCpu, vector: int) -> None:
    cpu.set_gate(vector)
    deliver(cpu, vector, 0x1234, False)
    has = vector in (8, 10, 11, 12, 13, 14, 17)
    assert cpu.frame(2) == ([0x1234, 0x1000] if has else [0x1000, CODE0])


def test_int_13_has_no_error_code(cpu: FakeCpu) -> None:
    cpu.set_gate(13)
    deliver(cpu, 13, 0x99, True)
    assert cpu.frame(2) == [0x1000, CODE0]


def fault_code(cpu: FakeCpu, vector: int, software: bool, becomes: int) -> int:
    """The error code that a handler of vector `becomes` finds when `vector` is delivered."""
    cpu.set_gate(becomes, offset=0xFA17)
    deliver(cpu, vector, None, software)
    assert cpu.now.eip == 0xFA17
    return cpu.frame(1)[0]


@pytest.mark.parametrize(("software", "ext"), [(True, 0), (False, 1)])
def test_bad_gates(cpu: FakeCpu, software: bool, ext: int) -> None:
    cpu.set_gate(0x40, 0x0E)
    assert fault_code(cpu, 0x40, software, 11) == 0x40 * 8 + 2 + ext
    for kind in (0x85, 0x8C, 0x80, 0x9E):       # a task gate, a call gate, none, a segment
        cpu.set_gate(0x41, kind)
        assert fault_code(cpu, 0x41, software, 13) == 0x41 * 8 + 2 + ext
    cpu.idt_limit = 0x41 * 8 + 6
    assert fault_code(cpu, 0x41, software, 13) == 0x41 * 8 + 2 + ext


def test_software_interrupts_need_the_gates_permission(user: FakeCpu) -> None:
    user.set_gate(0x40, 0x8E)
    assert fault_code(user, 0x40, True, 13) == 0x40 * 8 + 2
    user.now = Registers(cs=CODE3 | RPL3, ss=DATA3 | RPL3)
    deliver(user, 0x40, None, False)            # an external interrupt does not
    assert user.now.eip == HANDLER
    user.now = Registers(cs=CODE3 | RPL3, ss=DATA3 | RPL3)
    user.set_gate(0x40, 0xEE)
    deliver(user, 0x40, None, True)
    assert user.now.eip == HANDLER


@pytest.mark.parametrize(("selector", "becomes", "code"), [
    (0, 13, 0), (DATA0, 13, DATA0), (0x7F8, 13, 0x7F8), (CODE3, 13, CODE3), (ABSENT, 11, ABSENT), (DATA0 | 3, 13, DATA0),
])
def test_bad_code_segments(cpu: FakeCpu, selector: int, becomes: int, code: int) -> None:
    cpu.set_gate(0x40, selector=selector)
    assert fault_code(cpu, 0x40, True, becomes) == code


# -- levels
@pytest.mark.parametrize("wide_gate", [True, False])
@pytest.mark.parametrize("wide_tss", [True, False])
def test_ring_3_to_ring_0(user: FakeCpu, wide_gate: bool, wide_tss: bool) -> None:
    user.tss = (TR, TSS, 0x67 if wide_tss else 0x2B, wide_tss)
    user.set_stack(0, DATA0, 0x7000, wide_tss)
    user.set_gate(13, 0x8E if wide_gate else 0x86)
    deliver(user, 13, 0x18, False)
    size = 4 if wide_gate else 2
    assert user.frame(6, size) == [0x18, 0x1000, CODE3 | 3, 2 | EFLAGS_IF, 0x9000, DATA3 | 3]
    assert (user.now.cs, user.now.ss, user.now.esp) == (CODE0, DATA0, 0x7000 - 6 * size)
    assert user.now.segments == Registers().segments


def test_ring_3_to_ring_1(user: FakeCpu) -> None:
    user.set_stack(1, DATA1 | 1, 0x6000)
    user.set_gate(0x40, selector=CODE1)
    deliver(user, 0x40, None, False)
    assert (user.now.cs, user.now.ss, user.now.esp) == (CODE1 | 1, DATA1 | 1, 0x6000 - 20)


def test_conforming_code_runs_at_its_callers_level(user: FakeCpu) -> None:
    user.set_gate(0x40, selector=CONFORMING)
    deliver(user, 0x40, None, False)
    assert (user.now.cs, user.now.ss, user.now.esp) == (CONFORMING | 3, DATA3 | 3, 0x9000 - 12)


def test_v86_to_ring_0_saves_and_clears_the_data_segments(cpu: FakeCpu) -> None:
    cpu.now = Registers(eip=0x22, cs=0x600, ss=0x500, esp=0x40, eflags=2 | EFLAGS_VM | EFLAGS_IF)
    cpu.set_stack(0, DATA0, 0x7000)
    cpu.set_gate(0x40)
    deliver(cpu, 0x40, None, False)
    assert cpu.frame(9) == [0x22, 0x600, 2 | EFLAGS_VM | EFLAGS_IF, 0x40, 0x500, 0x11, 0x22, 0x33, 0x44]
    assert (cpu.now.cs, cpu.now.ss, cpu.now.esp, cpu.now.eflags) == (CODE0, DATA0, 0x7000 - 36, 2)
    assert cpu.now.segments == (0, 0, 0, 0)


@pytest.mark.parametrize("selector", [CODE1, CODE3, CONFORMING])
def test_v86_goes_nowhere_but_to_ring_0(cpu: FakeCpu, selector: int) -> None:
    cpu.now.eflags |= EFLAGS_VM
    cpu.set_stack(0, DATA0, 0x7000)
    cpu.set_stack(1, DATA1 | 1, 0x6000)
    cpu.set_gate(0x40, 0xEE, selector)
    assert fault_code(cpu, 0x40, True, 13) == selector
    assert cpu.now.cs == CODE0


@pytest.mark.parametrize(("ss", "becomes"), [
    (0, 10), (DATA3 | 3, 10), (DATA0 | 3, 10), (CODE0, 10), (READ_ONLY, 10), (0x7F8, 10), (ABSENT_STACK, 12),
])
def test_bad_inner_stacks(user: FakeCpu, ss: int, becomes: int) -> None:
    user.set_gate(0x40)
    user.set_stack(0, ss, 0x7000)
    # The fault's handler needs no stack of ring 0: it is conforming.
    user.set_gate(becomes, selector=CONFORMING, offset=0xFA17)
    deliver(user, 0x40, None, False)
    assert user.now.eip == 0xFA17
    assert user.frame(1)[0] == ss & 0xFFFC | 1


@pytest.mark.parametrize(("wide", "limit"), [(True, 8), (False, 4)])
def test_a_task_state_that_is_too_short(user: FakeCpu, wide: bool, limit: int) -> None:
    user.tss = (TR, TSS, limit, wide)
    user.set_gate(0x40)
    user.set_gate(10, selector=CONFORMING, offset=0xFA17)
    deliver(user, 0x40, None, False)
    assert user.frame(1)[0] == TR | 1
    user.now = Registers(cs=CODE3 | RPL3, ss=DATA3 | RPL3)
    user.tss = (TR, TSS, limit + 1, wide)
    user.set_stack(0, DATA0, 0x7000, wide)
    deliver(user, 0x40, None, False)
    assert user.now.eip == HANDLER


# -- stacks
@given(sp=st.integers(0, 0xFFFF), high=st.integers(0, 0xFFFF), wide=st.booleans())
def test_a_16_bit_stack_wraps_and_keeps_the_upper_half_of_esp(sp: int, high: int, wide: bool) -> None:
    cpu = FakeCpu(now=Registers(ss=STACK16, esp=high << 16 | sp & ~3))
    cpu.set_gate(0x40, 0x8E if wide else 0x86)
    size = 4 if wide else 2
    places = [(sp & ~3) - size * (3 - index) & 0xFFFF for index in range(3)]
    if any(GDT <= place < GDT + 0x100 or IDT <= place < IDT + 0x800 for place in places):
        return                                  # it would push over its own tables
    deliver(cpu, 0x40, None, False)
    assert cpu.now.esp == high << 16 | places[0]
    values = [int.from_bytes(cpu.memory[place : place + size], "little") for place in places]
    assert values == [0x1000, CODE0, 2 | EFLAGS_IF]


@pytest.mark.parametrize(("ss", "esp", "fits"), [
    (SMALL, 0x100, True), (SMALL, 0x104, False), (SMALL, 8, False), (DOWN, 0x100C, True), (DOWN, 0x1008, False),
    (DOWN, 0x2000, True),
])
def test_the_stack_segments_limit(cpu: FakeCpu, ss: int, esp: int, fits: bool) -> None:
    cpu.now.ss, cpu.now.esp = ss, esp
    cpu.set_gate(0x40)
    if fits:
        deliver(cpu, 0x40, None, False)
        assert cpu.now.eip == HANDLER
    else:                                       # and neither the stack fault nor the double fault finds room
        with pytest.raises(TripleFault):
            deliver(cpu, 0x40, None, False)
        assert cpu.now.esp == esp


def test_no_room_on_the_inner_stack_names_it(user: FakeCpu) -> None:
    user.set_gate(0x40)
    user.set_stack(0, SMALL, 8)
    user.set_gate(12, selector=CONFORMING, offset=0xFA17)
    deliver(user, 0x40, None, False)
    assert user.frame(1)[0] == SMALL | 1


# -- faults upon faults
CONTRIBUTORY = (0, 10, 11, 12, 13)


@pytest.mark.parametrize("first", [0, 1, 3, 6, 10, 11, 12, 13, 14, 16, 0x40])
def test_double_faults_are_of_the_manuals_table(cpu: FakeCpu, first: int) -> None:
    cpu.set_gate(13, offset=0x13)
    cpu.set_gate(first, 0x8E if first == 13 else 0x80)
    if first == 13:
        cpu.set_gate(13, 0x80)
    deliver(cpu, first, 0, False)
    doubled = first in CONTRIBUTORY or first == 14
    assert cpu.now.eip == (DOUBLE if doubled else 0x13)
    assert cpu.frame(1)[0] == (0 if doubled else first * 8 + 3)


@pytest.mark.parametrize(("first", "eip"), [(14, DOUBLE), (13, 0x14), (0x40, 0x14)])
def test_page_faults_in_delivery(user: FakeCpu, first: int, eip: int) -> None:
    # The stack of ring 0 is not mapped; the handlers that must not fault are conforming.
    user.set_stack(0, DATA0, 0x7000)
    user.absent = (0x6000, 0x7000)
    user.set_gate(first)
    if first != 14:
        user.set_gate(14, selector=CONFORMING, offset=0x14)
    user.set_gate(8, selector=CONFORMING, offset=DOUBLE)
    deliver(user, first, 0, False)
    assert user.now.eip == eip
    assert user.now.esp == 0x9000 - 16


def test_a_fault_of_the_double_fault_is_the_end(cpu: FakeCpu) -> None:
    cpu.set_gate(8, 0x0E)
    before = cpu.now
    with pytest.raises(TripleFault, match="0008:00001000"):
        deliver(cpu, 13, 0, False)
    assert cpu.now == before
