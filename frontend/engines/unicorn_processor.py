"""Unicorn's processor: one that is made in advance, and what its CPUID says."""
from functools import cache
from typing import Final

from unicorn import Uc
from unicorn import unicorn_const as uc_const
from unicorn import x86_const as x86

from miniguest.frontend.engines.exception_state import layout

PAGE: Final = 4096
CPUID: Final = b"\x0f\xa2"
FEATURES: Final = 1                     # CPUID leaf

Registers = tuple[int, int, int, int]


@cache
def native_cpuid(leaf: int) -> Registers:
    """EAX, EBX, ECX and EDX of Unicorn's own CPUID."""
    uc = _make_processor()
    uc.mem_map(0, PAGE)
    uc.mem_write(0, CPUID)
    uc.reg_write(x86.UC_X86_REG_EAX, leaf)
    uc.emu_start(0, len(CPUID))
    registers = (x86.UC_X86_REG_EAX, x86.UC_X86_REG_EBX, x86.UC_X86_REG_ECX, x86.UC_X86_REG_EDX)
    eax, ebx, ecx, edx = (uc.reg_read(register) for register in registers)
    return eax, ebx, ecx, edx


def prepare() -> None:
    """Find out what Unicorn does not tell, and have a processor ready: for this process, and those that it will fork."""
    native_cpuid(FEATURES)
    layout()
    if not _spare:
        _spare.append(_make_processor())


def take_processor() -> Uc:
    """The one that is ready, or a new one."""
    return _spare.pop() if _spare else _make_processor()


def _make_processor() -> Uc:
    """A new one, which does not promise the long mode that this engine does not have."""
    uc = Uc(uc_const.UC_ARCH_X86, uc_const.UC_MODE_32)
    uc.ctl_set_cpu_model(x86.UC_CPU_X86_COREDUO)
    uc.reg_read(x86.UC_X86_REG_EAX)     # Unicorn makes it now, not when it is first used: a child shares what it does not change
    return uc


_spare: Final[list[Uc]] = []            # at most one
