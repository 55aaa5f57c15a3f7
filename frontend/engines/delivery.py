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
CR0_PG: Final = 1 << 31

DOUBLE_FAULT: Final = 8
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

    def task_state(self) -> tuple[int, int, bool]:
        """(base, limit, whether 32-bit) of the task state segment."""

    def data_segments(self) -> tuple[int, int, int, int]:
        """ES, DS, FS, GS."""

    def clear_data_segments(self) -> None:
        """ES, DS, FS, GS become null with the next `store`."""

    def descriptor(self, selector: int) -> int | None:
        """The 8 bytes of a descriptor, None beyond its table."""

    def segment_base(self, selector: int) -> int: ...
    def read(self, linear: int, size: int) -> bytes: ...
    def write(self, linear: int, data: bytes) -> None: ...


def deliver(cpu: Cpu, vector: int, error_code: int | None, software: bool) -> None:
    """Enter the handler of `vector`. TripleFault when neither it nor the double fault handler can be entered.

    error_code: pushed where the vector has one. software: INT n, INT3, INTO: the gate's DPL is checked.
    """
    cpu.load()
    if not cpu.cr0 & CR0_PE:
        _real_mode(cpu, vector)
        return
    external = not software and vector > 31
    while True:
        try:
            _protected_mode(cpu, vector, error_code, software, external)
            return
        except Fault as fault:
            if vector == DOUBLE_FAULT:
                raise TripleFault(f"at {cpu.cs:04x}:{cpu.eip:08x}") from None
            second = (vector in CONTRIBUTORY or vector == PAGE_FAULT) and fault.vector in CONTRIBUTORY
            vector, error_code = (DOUBLE_FAULT, 0) if second else (fault.vector, fault.error_code)
            software = False
            cpu.load()


def _real_mode(cpu: Cpu, vector: int) -> None:
    base, limit = cpu.idt()
    if vector * 4 + 3 > limit:
        raise TripleFault(f"vector {vector:#x} is beyond the interrupt table")
    offset, selector = struct.unpack("<HH", cpu.read(base + vector * 4, 4))
    sp = cpu.esp - 6 & 0xFFFF
    stack = cpu.ss << 4
    for index, value in enumerate((cpu.eip, cpu.cs, cpu.eflags)):
        cpu.write(stack + (sp + index * 2 & 0xFFFF), struct.pack("<H", value & 0xFFFF))
    cpu.esp = cpu.esp & 0xFFFF0000 | sp
    cpu.eflags &= ~(EFLAGS_IF | EFLAGS_TF | EFLAGS_AC)
    cpu.cs, cpu.eip = selector, offset
    cpu.store()


def _protected_mode(cpu: Cpu, vector: int, error_code: int | None, software: bool, external: bool) -> None:
    ext = 0 if software else 1
    base, limit = cpu.idt()
    if vector * 8 + 7 > limit:
        raise Fault(GENERAL_PROTECTION, vector * 8 + 2 + ext)
    low, selector, _, kind, high = struct.unpack("<HHBBH", cpu.read(base + vector * 8, 8))
    gate = kind & 0x1F
    cpl = 3 if cpu.eflags & EFLAGS_VM else cpu.cs & 3
    if gate not in (6, 7, 14, 15) or (software and kind >> 5 & 3 < cpl):
        raise Fault(GENERAL_PROTECTION, vector * 8 + 2 + ext)
    if not kind & 0x80:
        raise Fault(11, vector * 8 + 2 + ext)
    wide = gate >= 14
    target = low | high << 16 if wide else low
    code = cpu.descriptor(selector)
    if selector & 0xFFFC == 0 or code is None or code >> 43 & 3 != 3:  # a code segment
        raise Fault(GENERAL_PROTECTION, selector & 0xFFFC | ext)
    dpl = code >> 45 & 3
    if dpl > cpl:
        raise Fault(GENERAL_PROTECTION, selector & 0xFFFC | ext)
    if not code >> 47 & 1:
        raise Fault(11, selector & 0xFFFC | ext)
    conforming = bool(code >> 42 & 1)
    frame = [cpu.eip, cpu.cs, cpu.eflags]
    inner = dpl if not conforming and dpl < cpl else cpl
    if inner < cpl:
        frame = _switch_stack(cpu, inner, frame, ext)
    elif cpu.eflags & EFLAGS_VM:
        raise Fault(GENERAL_PROTECTION, selector & 0xFFFC | ext)
    if error_code is not None and vector in WITH_ERROR_CODE and not software:
        frame.insert(0, error_code)
    _push(cpu, frame, wide)
    cleared = EFLAGS_TF | EFLAGS_NT | EFLAGS_RF | EFLAGS_VM | (0 if gate & 1 else EFLAGS_IF)
    cpu.eflags &= ~cleared
    cpu.cs, cpu.eip = selector & 0xFFFC | inner, target
    cpu.store()


def _switch_stack(cpu: Cpu, inner: int, frame: list[int], ext: int) -> list[int]:
    """Take the inner stack from the task state segment; the frame with the outer stack, and V86's segments, on it."""
    base, limit, wide = cpu.task_state()
    place = 4 + inner * 8 if wide else 2 + inner * 4
    if place + (7 if wide else 3) > limit:
        raise Fault(10, ext)
    outer = [cpu.esp, cpu.ss]
    if wide:
        cpu.esp, cpu.ss = struct.unpack("<IHxx", cpu.read(base + place, 8))
    else:
        cpu.esp, cpu.ss = struct.unpack("<HH", cpu.read(base + place, 4))
    frame = frame + outer
    if frame[2] & EFLAGS_VM:
        frame += cpu.data_segments()
        cpu.clear_data_segments()
    return frame


def _push(cpu: Cpu, frame: list[int], wide: bool) -> None:
    """Push a frame, its first item last. The stack segment's B bit says how much of ESP counts."""
    size = 4 if wide else 2
    mask = 0xFFFFFFFF if wide else 0xFFFF
    descriptor = cpu.descriptor(cpu.ss) or 0
    span = 0xFFFFFFFF if descriptor >> 54 & 1 else 0xFFFF
    sp = cpu.esp - size * len(frame) & span
    data = b"".join((value & mask).to_bytes(size, "little") for value in frame)
    cpu.write(cpu.segment_base(cpu.ss) + sp, data)
    cpu.esp = cpu.esp & ~span & 0xFFFFFFFF | sp
