"""REP INS and REP OUTS: found behind an exit, and given to the handler as one exit of many elements, as hardware does.

Intel SDM volume 2, INS, OUTS and REP. What cannot be one exit (downwards, across a page under paging, at the end of a
16-bit segment) goes element by element, as Unicorn calls it.
"""

from dataclasses import dataclass
from typing import Final

from unicorn import Uc
from unicorn import x86_const as x86

from miniguest.frontend.engines.delivery import CR0_PG
from miniguest.frontend.engines.unicorn_cpu import UnicornCpu

EFLAGS_DF: Final = 1 << 10
REP: Final = frozenset({0xF2, 0xF3})
SEGMENTS: Final = {
    0x26: x86.UC_X86_REG_ES,
    0x2E: x86.UC_X86_REG_CS,
    0x36: x86.UC_X86_REG_SS,
    0x3E: x86.UC_X86_REG_DS,
    0x64: x86.UC_X86_REG_FS,
    0x65: x86.UC_X86_REG_GS,
}
INS: Final = frozenset({0x6C, 0x6D})
OUTS: Final = frozenset({0x6E, 0x6F})
OPCODES: Final = INS | OUTS
LONGEST: Final = 15  # bytes of an instruction
MOST: Final = 1 << 16  # elements of one exit: in between interrupts can be taken, as by a processor


@dataclass(slots=True)
class StringIO:
    """A REP INS or OUTS about to move its next element. gpa: of that element; count: elements that can go at once."""

    gpa: int
    count: int
    index: int  # the register that steps, EDI or ESI
    index_value: int
    counter_value: int
    mask: int  # address size

    def advance(self, uc: Uc, size: int) -> None:
        """Leave the last element to the instruction itself, which then steps over it."""
        step = (self.count - 1) * size
        uc.reg_write_batch(
            [
                (self.index, self.index_value & ~self.mask | self.index_value + step & self.mask),
                (x86.UC_X86_REG_ECX, self.counter_value - (self.count - 1)),
            ]
        )


def find_string(uc: Uc, cpu: UnicornCpu, size: int, opcodes: frozenset[int]) -> StringIO | None:
    """The string instruction at EIP, None when it is none or must go element by element."""
    cpu.load()
    code = cpu.read(cpu.segment_base(cpu.cs) + cpu.eip & 0xFFFFFFFF, 4)
    if code[0] not in REP and code[0] not in (0x66, 0x67) and code[0] not in SEGMENTS:
        return None
    code = cpu.read(cpu.segment_base(cpu.cs) + cpu.eip & 0xFFFFFFFF, LONGEST)
    wide, rep, segment = cpu.code_is_wide(), False, x86.UC_X86_REG_DS
    for byte in code:
        if byte in REP:
            rep = True
        elif byte == 0x67:
            wide = not cpu.code_is_wide()
        elif byte in SEGMENTS:
            segment = SEGMENTS[byte]
        elif byte != 0x66:
            break
    if not rep or byte not in opcodes or cpu.eflags & EFLAGS_DF:
        return None
    if opcodes is INS:
        segment, index = x86.UC_X86_REG_ES, x86.UC_X86_REG_EDI
    else:
        index = x86.UC_X86_REG_ESI
    return _extent(uc, cpu, size, segment, index, 0xFFFFFFFF if wide else 0xFFFF)


def _extent(uc: Uc, cpu: UnicornCpu, size: int, segment: int, index: int, mask: int) -> StringIO | None:
    selector, offset, counter = uc.reg_read_batch([segment, index, x86.UC_X86_REG_ECX])
    count = min(counter & mask, MOST, (mask + 1 - (offset & mask)) // size)
    linear = cpu.segment_base(selector) + (offset & mask) & 0xFFFFFFFF
    if cpu.cr0 & CR0_PG:
        count = min(count, (4096 - (linear & 4095)) // size)
    gpa = cpu.translate(linear, write=index == x86.UC_X86_REG_EDI)
    if count < 1 or gpa is None:
        return None
    return StringIO(gpa, count, index, offset, counter, mask)
