"""Delivering interrupts and exceptions by hand: what a processor does between noticing one and its first instruction.

Unicorn hands every interrupt and exception to its hook and leaves the rest to us. Source: Intel SDM volume 3, chapter 6
(real mode: 20.1.4; protection checks 6.12; stack switch figure 6-4; double fault table 6-5). Task gates are not
supported and end the guest, as does a third fault. Long mode does not exist in this engine.
"""

import struct
from typing import Final, Protocol

EFLAGS_TF: Final = 1 << 8
EFLAGS_IF: Final = 1 << 9
EFLAGS_NT: Final = 1 << 14
EFLAGS_RF: Final = 1 << 16
EFLAGS_VM: Final = 1 << 17
EFLAGS_AC: Final = 1 << 18
CR0_PE: Final = 1
CR0_WP: Final = 1 << 16
CR0_PG: Final = 1 << 31

DOUBLE_FAULT: Final = 8
INVALID_TSS: Final = 10
NOT_PRESENT: Final = 11
STACK_FAULT: Final = 12
GENERAL_PROTECTION: Final = 13
PAGE_FAULT: Final = 14
WITH_ERROR_CODE: Final = frozenset({8, 10, 11, 12, 13, 14, 17})
CONTRIBUTORY: Final = frozenset({0, 10, 11, 12, 13})


class TripleFault(Exception):
    """The processor shuts down. The text says at what."""


class Fault(Exception):
    """Delivery itself faulted."""

    def __init__(self, vector: int, error_code: int) -> None:
        super().__init__(vector, error_code)
        self.vector = vector
        self.error_code = error_code


class Cpu(Protocol):
    """What delivery needs of a processor. Segment bases and memory addresses are linear."""

    eip: int
    cs: int
    ss: int
    esp: int
    eflags: int
    cr0: int

    def load(self) -> None:
        """Read the fields above from the processor."""

    def store(self) -> None:
        """Write eip, cs, ss, esp, eflags back, and the data segments where `clear_data_segments` was called."""

    def idt(self) -> tuple[int, int]:
        """(base, limit) of the IDT."""

    def task_state(self) -> tuple[int, int, int, bool]:
        """(selector, base, limit, whether 32-bit) of the task state segment."""

    def data_segments(self) -> tuple[int, int, int, int]:
        """ES, DS, FS, GS."""

    def clear_data_segments(self) -> None:
        """ES, DS, FS, GS become null with the next `store`."""

    def descriptor(self, selector: int) -> int | None:
        """The 8 bytes of a descriptor, None beyond its table."""

    def segment_base(self, selector: int) -> int:
        """Where a segment begins, as `cr0` and `eflags` say: V86 and real mode shift the selector."""

    def read(self, linear: int, size: int) -> bytes: ...

    def write(self, linear: int, data: bytes) -> None:
        """Fault when a page is not there."""


def deliver(cpu: Cpu, vector: int, error_code: int | None, software: bool) -> None:
    """Enter the handler of `vector`. TripleFault when neither it nor the double fault handler can be entered.

    error_code: pushed where the vector has one. software: INT n, INT3, INTO: the gate's DPL is checked.
    """
    cpu.load()
    while True:
        try:
            if cpu.cr0 & CR0_PE:
                _protected_mode(cpu, vector, error_code, software)
            else:
                _real_mode(cpu, vector)
            return
        except Fault as fault:
            if vector == DOUBLE_FAULT:
                raise TripleFault(f"at {cpu.cs:04x}:{cpu.eip:08x}") from None
            vector, error_code = (DOUBLE_FAULT, 0) if _doubles(vector, fault.vector) else (fault.vector, fault.error_code)
            software = False
            cpu.load()


def _doubles(first: int, second: int) -> bool:
    """Whether the second fault makes it a double fault (SDM table 6-5), instead of being handled by itself."""
    return (first in CONTRIBUTORY or first == PAGE_FAULT) and (
        second in CONTRIBUTORY or (first == PAGE_FAULT and second == PAGE_FAULT)
    )


def _real_mode(cpu: Cpu, vector: int) -> None:
    base, limit = cpu.idt()
    if vector * 4 + 3 > limit:
        raise Fault(GENERAL_PROTECTION, 0)
    offset, selector = struct.unpack("<HH", cpu.read(base + vector * 4, 4))
    sp = cpu.esp - 6 & 0xFFFF
    stack = cpu.ss << 4
    for index, value in enumerate((cpu.eip, cpu.cs, cpu.eflags)):
        cpu.write(stack + (sp + index * 2 & 0xFFFF), struct.pack("<H", value & 0xFFFF))
    cpu.esp = cpu.esp & 0xFFFF0000 | sp
    cpu.eflags &= ~(EFLAGS_IF | EFLAGS_TF | EFLAGS_AC)
    cpu.cs, cpu.eip = selector, offset
    cpu.store()


def _protected_mode(cpu: Cpu, vector: int, error_code: int | None, software: bool) -> None:
    ext = 0 if software else 1
    cpl = 3 if cpu.eflags & EFLAGS_VM else cpu.cs & 3
    gate, selector, target = _gate(cpu, vector, cpl, software)
    inner = _handler_level(cpu, selector, cpl, ext)
    frame = [cpu.eip, cpu.cs, cpu.eflags]
    full = ext                      # the error code of a stack that has no room
    if inner < cpl:
        frame = _switch_stack(cpu, inner, frame, ext)
        full |= cpu.ss & 0xFFFC
    if error_code is not None and vector in WITH_ERROR_CODE and not software:
        frame.insert(0, error_code)
    # Before the push: the handler's stack is no V86 segment any more.
    cpu.eflags &= ~(EFLAGS_TF | EFLAGS_NT | EFLAGS_RF | EFLAGS_VM | (0 if gate & 1 else EFLAGS_IF))
    _push(cpu, frame, 4 if gate >= 14 else 2, full)
    cpu.cs, cpu.eip = selector & 0xFFFC | inner, target
    cpu.store()


def _gate(cpu: Cpu, vector: int, cpl: int, software: bool) -> tuple[int, int, int]:
    """(type, selector, offset) of a vector's gate, after the checks that are on the gate itself."""
    code = vector * 8 + 2 + (not software)
    base, limit = cpu.idt()
    if vector * 8 + 7 > limit:
        raise Fault(GENERAL_PROTECTION, code)
    low, selector, _, kind, high = struct.unpack("<HHBBH", cpu.read(base + vector * 8, 8))
    gate = kind & 0x1F
    if gate not in (6, 7, 14, 15) or (software and kind >> 5 & 3 < cpl):
        raise Fault(GENERAL_PROTECTION, code)
    if not kind & 0x80:
        raise Fault(NOT_PRESENT, code)
    return gate, selector, low | high << 16 if gate >= 14 else low


def _handler_level(cpu: Cpu, selector: int, cpl: int, ext: int) -> int:
    """The level that the gate's code segment runs at, after the checks of that segment."""
    bad = selector & 0xFFFC | ext
    code = cpu.descriptor(selector)
    if selector & 0xFFFC == 0 or code is None or code >> 43 & 3 != 3:  # a code segment
        raise Fault(GENERAL_PROTECTION, bad)
    dpl = code >> 45 & 3
    if dpl > cpl:
        raise Fault(GENERAL_PROTECTION, bad)
    if not code >> 47 & 1:
        raise Fault(NOT_PRESENT, bad)
    inner = cpl if code >> 42 & 1 else dpl  # conforming code runs at the level of its caller
    if cpu.eflags & EFLAGS_VM and inner != 0:
        raise Fault(GENERAL_PROTECTION, bad)
    return inner


def _switch_stack(cpu: Cpu, inner: int, frame: list[int], ext: int) -> list[int]:
    """Take the inner stack from the task state segment; the frame with the outer stack, and V86's segments, on it."""
    selector, base, limit, wide = cpu.task_state()
    place = 4 + inner * 8 if wide else 2 + inner * 4
    if place + (5 if wide else 3) > limit:
        raise Fault(INVALID_TSS, selector & 0xFFFC | ext)
    frame = [*frame, cpu.esp, cpu.ss]
    if wide:
        cpu.esp, cpu.ss = struct.unpack("<IH", cpu.read(base + place, 6))
    else:
        cpu.esp, cpu.ss = struct.unpack("<HH", cpu.read(base + place, 4))
    _check_stack(cpu, inner, ext)
    if frame[2] & EFLAGS_VM:
        frame += cpu.data_segments()
        cpu.clear_data_segments()
    return frame


def _check_stack(cpu: Cpu, level: int, ext: int) -> None:
    """The new stack is a present, writable data segment of the level that is entered."""
    bad = cpu.ss & 0xFFFC | ext
    stack = cpu.descriptor(cpu.ss)
    if stack is None or cpu.ss & 3 != level or stack >> 45 & 3 != level or stack >> 41 & 0xD != 9:
        raise Fault(INVALID_TSS, bad)
    if not stack >> 47 & 1:
        raise Fault(STACK_FAULT, bad)


def _push(cpu: Cpu, frame: list[int], size: int, full: int) -> None:
    """Push a frame of `size` bytes an item, its first item last. The stack segment's B bit says how much of ESP counts.

    full: the error code of the stack fault when the segment has no room.
    """
    stack = cpu.descriptor(cpu.ss) or 0
    span = 0xFFFFFFFF if stack >> 54 & 1 else 0xFFFF
    places = [cpu.esp - size * index & span for index in range(1, len(frame) + 1)]
    if stack and not all(_within(stack, span, place, size) for place in places):
        raise Fault(STACK_FAULT, full)
    base = cpu.segment_base(cpu.ss)
    mask = (1 << 8 * size) - 1
    data = [(value & mask).to_bytes(size, "little") for value in frame]
    if places[0] >= places[-1]:
        cpu.write(base + places[-1] & 0xFFFFFFFF, b"".join(data))
    else:                           # around the end of a 16-bit stack
        for place, item in zip(reversed(places), data, strict=True):
            cpu.write(base + place & 0xFFFFFFFF, item)
    cpu.esp = cpu.esp & ~span & 0xFFFFFFFF | places[-1]


def _within(descriptor: int, span: int, offset: int, size: int) -> bool:
    """Whether `size` bytes at `offset` are inside a data segment, of which those that expand down begin behind the limit."""
    limit = descriptor & 0xFFFF | descriptor >> 32 & 0xF0000
    if descriptor >> 55 & 1:
        limit = limit << 12 | 0xFFF
    if descriptor >> 42 & 1:
        return limit < offset and offset + size - 1 <= span
    return offset + size - 1 <= limit
