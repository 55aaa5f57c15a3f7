"""REP INS behind a KVM exit: where in RAM it goes, which the exit does not say (Intel SDM volume 2, INS and REP)."""
from collections.abc import Callable
from typing import Final

from miniguest.frontend.engines.kvm_machine import KvmMachine

EFLAGS_DF: Final = 1 << 10
INS: Final = frozenset({0x6C, 0x6D})
PREFIXES: Final = frozenset({0xF2, 0xF3, 0x66, 0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65})    # INS heeds no segment override
ADDRESS_SIZE: Final = 0x67
LONGEST: Final = 15                     # bytes of an instruction
PAGE: Final = 4096


def find_ins(machine: KvmMachine, read: Callable[[int, int], bytes]) -> int | None:
    """The guest-physical address of the next element of the INS at EIP; None when it is none, or goes downwards.

    read(guest-physical address, bytes): the guest's code. The elements of one exit are in one page: KVM sees to that.
    """
    regs, sregs = machine.regs(), machine.sregs()
    if regs.rflags & EFLAGS_DF:
        return None
    wide = bool(sregs.cs.db)
    for offset in range(LONGEST):
        byte = _code(machine, read, sregs.cs.base + regs.rip + offset & 0xFFFFFFFF)
        if byte == ADDRESS_SIZE:
            wide = not sregs.cs.db
        elif byte in INS:
            return machine.translate(sregs.es.base + (regs.rdi & (0xFFFFFFFF if wide else 0xFFFF)) & 0xFFFFFFFF)
        elif byte not in PREFIXES:
            return None
    return None


def _code(machine: KvmMachine, read: Callable[[int, int], bytes], linear: int) -> int | None:
    gpa = machine.translate(linear)
    return next(iter(read(gpa, 1)), None) if gpa is not None else None
