"""The x86 state of a Unicorn engine, as interrupt delivery and string instructions need it: registers, segments, memory."""

import ctypes
from typing import Final

from unicorn import Uc, UcError
from unicorn import unicorn_const as uc_const
from unicorn import x86_const as x86
from unicorn.unicorn_py3.unicorn import uclib

from miniguest.frontend.engines.delivery import CR0_PE, CR0_PG, CR0_WP, EFLAGS_VM, PAGE_FAULT, Fault
from miniguest.frontend.engines.paging import walk

DELIVERY: Final = [
    x86.UC_X86_REG_EIP,
    x86.UC_X86_REG_CS,
    x86.UC_X86_REG_SS,
    x86.UC_X86_REG_ESP,
    x86.UC_X86_REG_EFLAGS,
    x86.UC_X86_REG_CR0,
    x86.UC_X86_REG_CR3,
    x86.UC_X86_REG_CR4,
]
DATA_SEGMENTS: Final = [x86.UC_X86_REG_ES, x86.UC_X86_REG_DS, x86.UC_X86_REG_FS, x86.UC_X86_REG_GS]


class Registers:
    """Registers of at most 64 bits, read together: in a fifth of the time that the binding's reg_read_batch takes."""

    def __init__(self, uc: Uc, registers: list[int]) -> None:
        self._uc = uc
        count = len(registers)
        self._ids = (ctypes.c_int * count)(*registers)
        self._values = (ctypes.c_uint64 * count)()
        base = ctypes.addressof(self._values)
        self._pointers = (ctypes.c_void_p * count)(*range(base, base + count * 8, 8))
        self._count = ctypes.c_int(count)

    def read(self) -> list[int]:
        """Their values."""
        status = uclib.uc_reg_read_batch(self._uc._uch, self._ids, self._pointers, self._count)
        if status:
            raise UcError(status)
        return list(self._values)


class UnicornCpu:
    """A processor for `delivery.deliver`, over a Unicorn engine in 32-bit mode."""

    def __init__(self, uc: Uc) -> None:
        self._uc = uc
        self._delivery = Registers(uc, DELIVERY)
        self._clear = False
        self._privileged = True
        self.eip = self.cs = self.ss = self.esp = self.eflags = self.cr0 = self._cr3 = self._cr4 = 0

    def load(self) -> None:
        """Read the fields from the processor."""
        self._clear = False
        self.eip, self.cs, self.ss, self.esp, self.eflags, self.cr0, self._cr3, self._cr4 = self._delivery.read()
        self._privileged = not self.cr0 & CR0_PE or (self.cs & 3 == 0 and not self.eflags & EFLAGS_VM)

    def store(self) -> None:
        """Write them back. One batch: EIP written alone inside a hook is lost at the next stop.

        The order matters, since Unicorn checks each selector: EFLAGS says whether it is V86, CS at which level SS is.
        """
        if not self._privileged and self.cs & 3 == 0:
            self._become_privileged()
        registers = [(x86.UC_X86_REG_EFLAGS, self.eflags), (x86.UC_X86_REG_CS, self.cs), (x86.UC_X86_REG_SS, self.ss)]
        if self._clear:
            registers += [(register, 0) for register in DATA_SEGMENTS]
        registers += [(x86.UC_X86_REG_ESP, self.esp), (x86.UC_X86_REG_EIP, self.eip)]
        self._uc.reg_write_batch(registers)

    def _become_privileged(self) -> None:
        """Enter ring 0. Unicorn lets no selector in that the present level may not load; only real mode has no levels."""
        self._uc.reg_write(x86.UC_X86_REG_EFLAGS, self.eflags & ~EFLAGS_VM)
        self._uc.reg_write(x86.UC_X86_REG_CR0, self.cr0 & ~(CR0_PE | CR0_PG))
        self._uc.reg_write(x86.UC_X86_REG_SS, 0)
        self._uc.reg_write(x86.UC_X86_REG_CR0, self.cr0)

    def idt(self) -> tuple[int, int]:
        """(base, limit)."""
        _, base, limit, _ = self._uc.reg_read(x86.UC_X86_REG_IDTR)
        return base, limit

    def task_state(self) -> tuple[int, int, int, bool]:
        """(selector, base, limit, whether 32-bit), from TR and its descriptor."""
        selector, base, limit, _ = self._uc.reg_read(x86.UC_X86_REG_TR)
        descriptor = self.descriptor(selector) or 0
        return selector, base, limit, bool(descriptor >> 43 & 1)

    def data_segments(self) -> tuple[int, int, int, int]:
        """ES, DS, FS, GS."""
        es, ds, fs, gs = self._uc.reg_read_batch(DATA_SEGMENTS)
        return es, ds, fs, gs

    def clear_data_segments(self) -> None:
        """Null them with the next `store`."""
        self._clear = True

    def descriptor(self, selector: int) -> int | None:
        """A descriptor's 8 bytes from the GDT or LDT."""
        if selector & 0xFFFC == 0:
            return None
        table = x86.UC_X86_REG_LDTR if selector & 4 else x86.UC_X86_REG_GDTR
        _, base, limit, _ = self._uc.reg_read(table)
        if (selector | 7) > limit:
            return None
        return int.from_bytes(self.read(base + (selector & 0xFFF8), 8), "little")

    def segment_base(self, selector: int) -> int:
        """A segment's base as the mode at the last `load` says: shifted selector, or its descriptor's."""
        if not self.cr0 & CR0_PE or self.eflags & EFLAGS_VM:
            return selector << 4
        descriptor = self.descriptor(selector) or 0
        return descriptor >> 16 & 0xFFFFFF | descriptor >> 32 & 0xFF000000

    def code_is_wide(self) -> bool:
        """Whether code has 32-bit operands and addresses by default (the D bit), as at the last `load`."""
        if not self.cr0 & CR0_PE or self.eflags & EFLAGS_VM:
            return False
        return bool((self.descriptor(self.cs) or 0) >> 54 & 1)

    def translate(self, linear: int, write: bool = False) -> int | None:
        """The guest-physical address of a linear one at the level the guest runs at; None when it may not go there."""
        if not self.cr0 & CR0_PG:
            return linear & 0xFFFFFFFF
        physical = ctypes.c_uint64()
        prot = uc_const.UC_PROT_WRITE if write else uc_const.UC_PROT_READ
        if uclib.uc_vmem_translate(
            self._uc._uch, ctypes.c_uint64(linear), ctypes.c_uint32(prot), ctypes.byref(physical)
        ):
            return None
        return physical.value

    def _supervisor(self, linear: int, write: bool = False) -> int | None:
        """As `translate`, at supervisor level and without a trace in CR2."""
        if not self.cr0 & CR0_PG:
            return linear
        return walk(self._entry, self._cr3, self._cr4, linear, write and bool(self.cr0 & CR0_WP))

    def _entry(self, gpa: int, size: int) -> int:
        return int.from_bytes(self._physical(gpa, size), "little")

    def _physical(self, gpa: int, size: int) -> bytes:
        try:
            return bytes(self._uc.mem_read(gpa, size))
        except UcError:
            return b"\xff" * size

    def read(self, linear: int, size: int) -> bytes:
        """Bytes at a linear address; ones where nothing is mapped."""
        out = b""
        while len(out) < size:
            at = linear + len(out) & 0xFFFFFFFF
            part = min(size - len(out), 4096 - (at & 4095))
            physical = self._supervisor(at)
            out += self._physical(physical, part) if physical is not None else b"\xff" * part
        return out

    def write(self, linear: int, data: bytes) -> None:
        """Bytes to a linear address. Fault, a page fault, when a page is not there; nothing is written then."""
        parts = []
        done = 0
        while done < len(data):
            at = linear + done & 0xFFFFFFFF
            part = data[done : done + 4096 - (at & 4095)]
            parts.append((self._writable(at), part))
            done += len(part)
        for physical, part in parts:
            try:
                self._uc.mem_write(physical, part)
            except UcError:                 # no RAM there: the bus drops it
                continue

    def _writable(self, linear: int) -> int:
        physical = self._supervisor(linear, write=True)
        if physical is None:
            self._uc.reg_write(x86.UC_X86_REG_CR2, linear)
            raise Fault(PAGE_FAULT, 2 | (self._supervisor(linear) is not None))
        return physical
