"""The kvm engine: guest code on the host's processor, through /dev/kvm.

Taken only where a probe says that it works (kvm_probe): an emulating KVM is slower than Unicorn and knows less. CPUID
and MSRs are the kernel's business here, so they make no exits. A restart after `reset` leaves the MSRs as they are.

Nobody rings for a vCPU that runs, and the kernel does not watch the upcall byte: a timer has it looked at every LOOK nanoseconds.
"""
import ctypes
import mmap
import struct
from typing import Final

from miniguest.frontend.engines import kvm_abi as abi
from miniguest.frontend.engines.engine import ExitHandler, Stop
from miniguest.frontend.engines.kick_timer import KickTimer
from miniguest.frontend.engines.kvm_machine import KICK, KvmMachine, address_of
from miniguest.frontend.engines.kvm_strings import find_ins
from miniguest.ring import _core

FOUR_GIB: Final = 1 << 32
VGA_HOLE: Final = (0xA0000, 0xC0000)
BIOS_SHADOW: Final = 0x20000            # below 1 MiB: the last 128 KiB of the firmware
LOW, HIGH, ROM, PIECES = 0, 1, 2, 3     # memory slots; PIECES and up for what `show_memory` shows
LOOK: Final = 1_000_000                 # nanoseconds
APIC_BASE: Final = 0xFEE00900           # enabled, of the boot processor
CRASHES: Final = {
    abi.KVM_EXIT_SHUTDOWN: "triple fault",
    abi.KVM_EXIT_FAIL_ENTRY: "the processor refused the guest's state, reason",
    abi.KVM_EXIT_INTERNAL_ERROR: "KVM cannot go on, internal error",
}


class KvmEngine:
    """A vCPU on KVM. ram: a shared mapping of at least `ram_size` bytes; firmware: the BIOS image; upcall: address of
    the byte that stops the guest when it is not 0. OSError when there is no KVM."""

    name = "kvm"

    def __init__(self, ram: mmap.mmap, ram_size: int, firmware: bytes, handler: ExitHandler, upcall: int) -> None:
        self.crash = ""
        self._handler = handler
        self._ram = ram
        self._ram_size = ram_size
        self._upcall = ctypes.c_uint8.from_address(upcall)
        self._wanted = False
        self._request = False
        self._unfinished = False        # the last exit's instruction: KVM finishes it at the next entry
        self._pieces: list[tuple[int, int, int]] = []
        self._machine = KvmMachine()
        self._timer = KickTimer(KICK)
        self._run = self._machine.run
        self._base, self._anchor = address_of(ram)
        self._rom = mmap.mmap(-1, len(firmware))
        self._rom[:] = firmware
        rom, self._rom_anchor = address_of(self._rom)
        self._machine.map(LOW, 0, VGA_HOLE[0], self._base)
        self._machine.map(HIGH, VGA_HOLE[1], ram_size - VGA_HOLE[1], self._base + VGA_HOLE[1])
        self._machine.map(ROM, FOUR_GIB - len(firmware), len(firmware), rom, read_only=True)
        sregs = self._machine.sregs()
        sregs.apic_base = APIC_BASE
        self._power_on = self._machine.regs(), sregs, self._machine.fpu()
        self.reset()

    def reset(self) -> None:
        """The first instruction is at 4 GiB - 16, in real mode; the firmware's shadow below 1 MiB as after power-on."""
        self._finish()                  # or KVM would finish the old instruction in the new state
        shadow = self._rom[-BIOS_SHADOW:]
        self._ram[0x100000 - len(shadow) : 0x100000] = shadow
        self.crash = ""
        self._machine.restore(*self._power_on)

    # -- running
    def run(self, deadline_ns: int) -> Stop:
        """Run until something stops it."""
        left = deadline_ns - _core.now_ns() if deadline_ns else LOOK
        self._timer.start(min(LOOK, max(1, left)), LOOK)
        try:
            while True:
                stop = self._stop(deadline_ns) or self._enter()
                if stop is not None:
                    return stop
        finally:
            self._timer.stop()
            self._request = False

    def _stop(self, deadline_ns: int) -> Stop | None:
        """Why the guest is not to go on, if so; its last instruction is then finished, unless that leads to new exits."""
        if self.crash:
            return Stop.CRASH
        if self._request or self._upcall.value:
            return Stop.KICK if self._finish() else None
        if deadline_ns and _core.now_ns() >= deadline_ns:
            return Stop.TIMER if self._finish() else None
        if self._wanted and not self._unfinished and self.interruptible():
            return Stop.WINDOW
        return None

    def _finish(self) -> bool:
        """Let KVM finish the instruction of the last exit, without beginning another; whether that is done.

        api.rst, section 5, KVM_EXIT_IO: the operation is complete only after another KVM_RUN. A string instruction
        then exits again, which is for the caller to go on with.
        """
        if self._unfinished:
            self._run[abi.IMMEDIATE_EXIT] = 1
            try:
                self._enter()
            finally:
                self._run[abi.IMMEDIATE_EXIT] = 0
        return not self._unfinished

    def _enter(self) -> Stop | None:
        """One KVM_RUN, and what it ended with."""
        self._run[abi.REQUEST_INTERRUPT_WINDOW] = self._wanted
        reason = self._machine.enter()
        self._unfinished = reason in (abi.KVM_EXIT_IO, abi.KVM_EXIT_MMIO)
        if reason == abi.KVM_EXIT_IO:
            self._io()
        elif reason == abi.KVM_EXIT_MMIO:
            self._mmio()
        elif reason == abi.KVM_EXIT_HLT:
            return Stop.HALT
        elif reason == abi.KVM_EXIT_IRQ_WINDOW_OPEN:
            return Stop.WINDOW
        elif reason != abi.KVM_EXIT_INTR:
            self.crash = self._explain(reason)
            return Stop.CRASH
        return None

    def _explain(self, reason: int) -> str:
        what = CRASHES.get(reason, f"exit reason {reason}")
        if reason in (abi.KVM_EXIT_FAIL_ENTRY, abi.KVM_EXIT_INTERNAL_ERROR):
            what += f" {int.from_bytes(self._run[abi.DETAILS : abi.DETAILS + 4], 'little'):#x}"
        return f"{what} at {self._machine.sregs().cs.selector:04x}:{self._machine.regs().rip:08x}"

    # -- exits
    def _io(self) -> None:
        direction, size, port, count, at = struct.unpack_from(abi.IO, self._run, abi.DETAILS)
        data = memoryview(self._run)[at : at + size * count]
        if direction == abi.IO_IN:
            if count == 1 or not self._in_string(port, size, count, data):
                for index in range(0, len(data), size):
                    data[index : index + size] = self._handler.pio_in(port, size).to_bytes(size, "little")
        else:
            for index in range(0, len(data), size):
                self._handler.pio_out(port, size, int.from_bytes(data[index : index + size], "little"))
        data.release()

    def _in_string(self, port: int, size: int, count: int, data: memoryview) -> bool:
        """REP INS as one exit. The device model writes to RAM; KVM then writes the same there again, and steps on."""
        gpa = find_ins(self._machine, self._read_ram)
        if gpa is None or not self._is_ram(gpa, len(data)) or not self._handler.pio_in_string(port, size, count, gpa):
            return False
        data[:] = self._ram[gpa : gpa + len(data)]
        return True

    def _mmio(self) -> None:
        address, data, size, is_write = struct.unpack_from(abi.MMIO, self._run, abi.DETAILS)
        if not is_write:
            value = self._handler.mmio_read(address, size) & (1 << 8 * size) - 1
            self._run[abi.MMIO_DATA : abi.MMIO_DATA + size] = value.to_bytes(size, "little")
        elif not self._is_rom(address):         # a store to read-only memory comes here, too, and is dropped
            self._handler.mmio_write(address, size, int.from_bytes(data[:size], "little"))

    def _is_rom(self, address: int) -> bool:
        return address >= FOUR_GIB - len(self._rom) or any(start <= address < start + size for start, _, size in self._pieces)

    def _is_ram(self, gpa: int, size: int) -> bool:
        return gpa + size <= VGA_HOLE[0] or (gpa >= VGA_HOLE[1] and gpa + size <= self._ram_size)

    def _read_ram(self, gpa: int, size: int) -> bytes:
        """Code at a guest-physical address; empty where there is neither RAM nor firmware."""
        rom = gpa - (FOUR_GIB - len(self._rom))
        if rom >= 0:
            return self._rom[rom : rom + size]
        return self._ram[gpa : gpa + size] if self._is_ram(gpa, size) else b""

    # -- interrupts and the rest of the engine interface
    def want_interrupt(self, wanted: bool) -> None:
        """Stop with WINDOW when KVM says that an interrupt can be taken."""
        self._wanted = wanted

    def interruptible(self) -> bool:
        """EFLAGS.IF, outside the shadow of MOV SS or STI, and none on its way."""
        return bool(self._run[abi.READY_FOR_INTERRUPT_INJECTION])

    def interrupt(self, vector: int) -> None:
        """Taken at the next entry."""
        self._machine.interrupt(vector)
        self._run[abi.READY_FOR_INTERRUPT_INJECTION] = 0        # KVM says so only after it

    def kick(self) -> None:
        """Stop before the next instruction: only this process calls, so the guest does not run now."""
        self._request = True

    def forget_code(self, gpa: int, size: int) -> None:
        """Nothing: processors look at memory."""

    def forget_all_code(self) -> None:
        """Nothing."""

    def show_memory(self, pieces: list[tuple[int, int, int]]) -> None:
        """Read-only memory slots. One that overlaps something else stays what an exit answers."""
        shown: list[tuple[int, int, int]] = []
        at, end = self._ram_size, FOUR_GIB - len(self._rom)
        for address, offset, size in sorted(pieces):
            if at <= address and address + size <= end:
                shown.append((address, offset, size))
                at = address + size
        if shown == self._pieces:
            return
        for slot, (address, offset, _) in enumerate(self._pieces, PIECES):
            self._machine.map(slot, address, 0, self._base + offset)
        for slot, (address, offset, size) in enumerate(shown, PIECES):
            self._machine.map(slot, address, size, self._base + offset, read_only=True)
        self._pieces = shown

    def close(self) -> None:
        """Free the virtual machine; the mapping of RAM stays its owner's."""
        self._timer.close()
        self._machine.close()
        del self._anchor, self._rom_anchor
