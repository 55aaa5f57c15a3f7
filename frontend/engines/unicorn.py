"""The Unicorn engine: unmodified 16- and 32-bit x86 software, no privileges needed.

One vCPU: its locked instructions are not atomic between processes. No long mode.
"""

import ctypes
import mmap
from typing import Any, Final

from unicorn import Uc, UcError
from unicorn import unicorn_const as uc_const
from unicorn import x86_const as x86
from unicorn.unicorn_py3.unicorn import uclib

from miniguest.frontend.engines import delivery, strings
from miniguest.frontend.engines._hooks import (
    FOUND_FAR,
    FOUND_IRET,
    FOUND_MSR,
    STOP_HOOKED,
    STOP_KICK,
    STOP_NONE,
    STOP_TIMER,
    STOP_WINDOW,
    Watch,
)
from miniguest.frontend.engines.engine import ExitHandler, Stop
from miniguest.frontend.engines.exception_state import take_error_code
from miniguest.frontend.engines.unicorn_cpu import DATA_SEGMENTS, UnicornCpu
from miniguest.frontend.engines.unicorn_memory import FOUR_GIB, Ram, UnicornMemory
from miniguest.frontend.engines.unicorn_processor import FEATURES, Registers, native_cpuid, take_processor
from miniguest.ring._core import ExitPath

BIOS_SHADOW: Final = 0x20000  # below 1 MiB: the last 128 KiB of the firmware
CR0_AT_RESET: Final = 0x60000010
STOPS: Final = {STOP_KICK: Stop.KICK, STOP_TIMER: Stop.TIMER, STOP_WINDOW: Stop.WINDOW}
TASK_SWITCHES: Final = {FOUND_FAR: "far", FOUND_IRET: "iret"}
EXCEPTIONS: Final = 32
TSC: Final = 1 << 4                     # its EDX: RDTSC
SEP: Final = 1 << 11                    # SYSENTER and SYSEXIT


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


class UnicornEngine:
    """A vCPU on Unicorn. ram: a shared mapping of at least `ram_size` bytes; firmware: the BIOS image; upcall: address of
    the byte that stops the guest when it is not 0. path: the way of frequent exits, of a
    handler that is a PathHandler."""

    name = "unicorn"

    def __init__(
        self, ram: mmap.mmap, ram_size: int, firmware: bytes, handler: ExitHandler, upcall: int, path: ExitPath | None = None
    ) -> None:
        self.crash = ""
        self._handler = handler
        self._ram = ram
        self._firmware = firmware
        self.counts_blocks = False      # what `run` is given is then a number of blocks, not a time
        self._running = False
        self._forget_all = False
        self._found: set[tuple[int, int, int]] = set()      # instructions that have a hook of their own
        self._uc = uc = take_processor()
        self._cpu = UnicornCpu(uc)
        functions = (
            uclib.uc_emu_stop, uclib.uc_reg_read, uclib.uc_vmem_read, uclib.uc_vmem_translate,
            uclib.uc_reg_read_batch, uclib.uc_ctl,
        )
        mapped = Ram(ram, ram_size)
        self._watch = Watch(
            tuple(map(_address, functions)), uc._uch.value, (mapped.base, ram_size), upcall, handler,
            self._string_in, self._string_out, self._instruction_found, path,
        )
        self._callbacks = self._watch.callbacks
        self._memory = UnicornMemory(uc, self._watch, mapped, firmware)
        uc.ctl_exits_enabled(True)
        uc.ctl_set_exits([])
        self._hook_compiled(uc_const.UC_HOOK_BLOCK, "block")
        self._hook_compiled(uc_const.UC_HOOK_EDGE_GENERATED, "edge")
        self._hook_compiled(uc_const.UC_HOOK_TLB_FILL, "tlb_fill")
        self._hook_compiled(uc_const.UC_HOOK_INSN, "in", x86.UC_X86_INS_IN)
        self._hook_compiled(uc_const.UC_HOOK_INSN, "out", x86.UC_X86_INS_OUT)
        uc.hook_add(uc_const.UC_HOOK_INSN, self._cpuid, aux1=x86.UC_X86_INS_CPUID)
        uc.hook_add(uc_const.UC_HOOK_INTR, self._interrupt)
        uc.hook_add(uc_const.UC_HOOK_INSN_INVALID, self._undefined)
        uc.hook_add(uc_const.UC_HOOK_MEM_WRITE_PROT, self._rom_write, begin=ram_size, end=FOUR_GIB - 1)
        self._power_on = uc.context_save()
        self.reset()

    def _hook_compiled(self, kind: int, callback: str, instruction: int = 0, begin: int = 1, end: int = 0) -> None:
        handle = ctypes.c_size_t()
        status = uclib.uc_hook_add(
            self._uc._uch,
            ctypes.byref(handle),
            kind,
            ctypes.c_void_p(self._callbacks[callback]),
            ctypes.c_void_p(self._watch.address),
            ctypes.c_uint64(begin),
            ctypes.c_uint64(end),
            ctypes.c_int(instruction),
        )
        if status:
            raise UcError(status)

    def _rom_write(self, _uc: Uc, _access: int, address: int, size: int, _value: int, _data: object) -> bool:
        """A store to ROM, which Unicorn carries out when we say that it is all right: undone at the end of the block."""
        self._memory.note_rom_store(address, size)
        self.kick()
        return True

    # -- exits
    def _string_in(self, port: int, size: int) -> int:
        string = self._find_string(size, strings.INS)
        if string and self._handler.pio_in_string(port, size, string.count, string.gpa):
            self.forget_code(string.gpa, string.count * size)
            string.advance(self._uc, size)
            # The instruction itself stores what we return, at the place of the first element.
            return int.from_bytes(self._ram[string.gpa : string.gpa + size], "little")
        return self._handler.pio_in(port, size)

    def _string_out(self, port: int, size: int, value: int) -> None:
        string = self._find_string(size, strings.OUTS)
        if string and self._handler.pio_out_string(port, size, string.count, string.gpa):
            string.advance(self._uc, size)
        else:
            self._handler.pio_out(port, size, value & (1 << 8 * size) - 1)

    def _find_string(self, size: int, opcodes: frozenset[int]) -> strings.StringIO | None:
        """The string instruction that this exit is of, if all its elements are in RAM."""
        string = strings.find_string(self._uc, self._cpu, size, opcodes)
        return string if string and self._memory.is_ram(string.gpa, string.count * size) else None

    def _cpuid(self, uc: Uc, _: object) -> int:
        leaf, subleaf = uc.reg_read_batch([x86.UC_X86_REG_EAX, x86.UC_X86_REG_ECX])
        answer = self._handler.cpuid(leaf, subleaf)
        if answer is None and leaf == FEATURES:
            answer = self._features()
        if answer is None:
            return 0
        registers = (x86.UC_X86_REG_EAX, x86.UC_X86_REG_EBX, x86.UC_X86_REG_ECX, x86.UC_X86_REG_EDX)
        uc.reg_write_batch(list(zip(registers, answer, strict=True)))
        return 1

    def _features(self) -> Registers:
        """What the processor can do: SYSENTER does nothing in Unicorn, and RDTSC tells the host's time whatever the guest's
        clock says."""
        eax, ebx, ecx, edx = native_cpuid(FEATURES)
        return eax, ebx, ecx, edx & ~(SEP | TSC if self.counts_blocks else SEP)

    def _instruction_found(self, what: int, first: int, last: int, block: int, size: int) -> None:
        """A new block may hold an instruction that needs a hook, which the block is made anew with."""
        if (what, first, last) in self._found:
            return
        self._found.add((what, first, last))
        if what == FOUND_MSR:
            self._uc.hook_add(uc_const.UC_HOOK_CODE, self._msr, begin=first, end=last)
        else:
            self._hook_compiled(uc_const.UC_HOOK_CODE, TASK_SWITCHES[what], begin=first, end=last)
        self._uc.ctl_remove_cache(block, block + size)
        self._watch.stopped = STOP_KICK if what == FOUND_MSR else STOP_HOOKED
        self._uc.emu_stop()

    def _msr(self, uc: Uc, address: int, _size: int, _: object) -> None:
        self._cpu.load()
        opcode = self._cpu.read(address, 2)
        if opcode in (b"\x0f\x30", b"\x0f\x32"):
            index, low, high = uc.reg_read_batch([x86.UC_X86_REG_ECX, x86.UC_X86_REG_EAX, x86.UC_X86_REG_EDX])
            self._handler.msr(index, opcode[1] == 0x30, high << 32 | low)

    # -- interrupts and exceptions
    def _interrupt(self, uc: Uc, vector: int, _: object) -> None:
        software = vector >= EXCEPTIONS or self._is_software(vector)
        if software or vector not in delivery.WITH_ERROR_CODE | delivery.CONTRIBUTORY:
            self._deliver(vector, None, software)
        else:
            self._deliver(vector, take_error_code(uc), software)

    def _is_software(self, vector: int) -> bool:
        """INT n leaves EIP behind itself, an exception at the faulting instruction: the bytes before EIP tell."""
        self._cpu.load()
        before = self._cpu.read(self._cpu.segment_base(self._cpu.cs) + self._cpu.eip - 2, 2)
        return (
            before == bytes((0xCD, vector))
            or (vector == 3 and before[1] == 0xCC)
            or (vector == 4 and before[1] == 0xCE)
        )

    def _undefined(self, _uc: Uc, _: object) -> bool:
        self._deliver(6, None, False)
        return True

    def _deliver(self, vector: int, error_code: int | None, software: bool) -> None:
        self._watch.lend()
        try:
            delivery.deliver(self._cpu, vector, error_code, software)
        except delivery.TripleFault as fault:
            self.crash = f"triple fault {fault}, delivering vector {vector:#x}"
            self._uc.emu_stop()

    # -- the engine interface
    def reset(self) -> None:
        """CS:IP F000:FFF0, real mode, and the firmware's shadow below 1 MiB as after power-on."""
        shadow = self._firmware[-BIOS_SHADOW:]
        self._ram[0x100000 - len(shadow) : 0x100000] = shadow
        self.crash = ""
        self._uc.context_restore(self._power_on)        # all that no register below names: control, debug, x87, MSRs
        self._uc.reg_write(x86.UC_X86_REG_CR0, CR0_AT_RESET)
        self._uc.reg_write(x86.UC_X86_REG_IDTR, (0, 0, 0x3FF, 0))
        for register in (*DATA_SEGMENTS, x86.UC_X86_REG_SS):
            self._uc.reg_write(register, 0)
        self._uc.reg_write(x86.UC_X86_REG_EFLAGS, 2)
        self._uc.reg_write(x86.UC_X86_REG_CS, 0xF000)
        self._uc.reg_write(x86.UC_X86_REG_EIP, 0xFFF0)
        self._watch.translate_anew()
        self.forget_all_code()

    def run(self, deadline_ns: int) -> Stop:
        """Run until something stops it."""
        if self.crash:                  # delivering an interrupt before this run was its end
            return Stop.CRASH
        watch = self._watch
        self._memory.settle()
        if self._forget_all:
            self._forget_all = False
            self._uc.ctl_flush_tb()
            self._watch.forgot_all_code()
        watch.stopped = STOP_NONE
        watch.deadline_ns = 0 if self.counts_blocks else deadline_ns
        watch.limit_blocks(deadline_ns if self.counts_blocks else 0)
        self._running = True
        try:
            self._emulate()
        finally:
            self._running = False
        if watch.error is not None:
            error, watch.error = watch.error, None
            raise error
        watch.request = False
        self._memory.undo_rom_stores()
        if self.crash:
            return Stop.CRASH
        return STOPS.get(watch.stopped, Stop.HALT)

    def _emulate(self) -> None:
        while self._goes_on():
            pass

    def _goes_on(self) -> bool:
        """Run; whether what ended it is over and the guest has not noticed."""
        try:
            self._uc.emu_start(self._uc.reg_read(x86.UC_X86_REG_EIP), 0)
        except UcError as error:
            refused = self._watch.take_refused()
            if refused and error.errno == uc_const.UC_ERR_EXCEPTION and not self.crash:
                self._watch.resume(refused)
                return True
            if error.errno == uc_const.UC_ERR_EXCEPTION or not self.crash:
                self.crash = f"{error} at {self._where()}"
        hooked: bool = self._watch.stopped == STOP_HOOKED
        if hooked:
            self._watch.stopped = STOP_NONE
        return hooked

    @property
    def blocks(self) -> int:
        """Blocks of code executed so far; a u32 that wraps."""
        return self._watch.blocks

    def _where(self) -> str:
        self._cpu.load()
        return f"{self._cpu.cs:04x}:{self._cpu.eip:08x}"

    def want_interrupt(self, wanted: bool) -> None:
        """Stop with WINDOW when IF is set."""
        self._watch.want_interrupt = wanted

    def interruptible(self) -> bool:
        """EFLAGS.IF, outside the shadow of MOV SS or STI."""
        return not self._watch.shadow and bool(self._uc.reg_read(x86.UC_X86_REG_EFLAGS) & delivery.EFLAGS_IF)

    def interrupt(self, vector: int) -> None:
        """Enter the handler of an external interrupt."""
        self._deliver(vector, None, False)

    def kick(self) -> None:
        """Stop at the next block."""
        self._watch.request = True

    def forget_code(self, gpa: int, size: int) -> None:
        """Drop translated blocks of a range of RAM."""
        self._watch.forget_code(gpa, size)

    def forget_all_code(self) -> None:
        """Drop every translated block; from inside an exit at the end of the block, which is one of them."""
        self._forget_all = True
        if self._running:
            self.kick()

    def show_memory(self, pieces: list[tuple[int, int, int]]) -> None:
        """Show pieces of the shared mapping above RAM. One that overlaps something else stays what an exit answers."""
        if self._memory.show(pieces) and self._running:
            self.kick()

    def leave_translation(self) -> None:
        """Leave all translation to Unicorn: what ours is compared with, in tests and measurements."""
        self._watch.lend_for_good()

    def close(self) -> None:
        """Free Unicorn's engine; the mapping of RAM stays its owner's."""
        del self._uc
