"""A UnicornEngine in this process, with nothing behind it: tiny programs, and a handler that notes every exit."""
import ctypes
import mmap
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from miniguest.frontend.engines.engine import Stop
from miniguest.frontend.engines.unicorn import UnicornEngine

RAM = 2 << 20
START = 0x7C00
FIRMWARE = 0x10000
FAR_JUMP = bytes((0xEA, START & 0xFF, START >> 8, 0, 0))


@dataclass
class Exits:
    """The exit handler. `answers`: what IN and loads give, by address; `seen`: the exits, in order."""

    ram: mmap.mmap
    seen: list[tuple[object, ...]] = field(default_factory=list)
    answers: dict[int, int] = field(default_factory=dict)
    strings: bool = True
    on_out: dict[int, object] = field(default_factory=dict)
    leaves: dict[int, tuple[int, int, int, int]] = field(default_factory=dict)

    def pio_in(self, port: int, size: int) -> int:
        self.seen.append(("in", port, size))
        return self.answers.get(port, (1 << 8 * size) - 1)

    def pio_out(self, port: int, size: int, value: int) -> None:
        self.seen.append(("out", port, size, value))
        if port in self.on_out:
            self.on_out[port]()                     # type: ignore[operator]

    def pio_in_string(self, port: int, size: int, count: int, gpa: int) -> bool:
        if self.strings:
            self.seen.append(("ins", port, size, count, gpa))
            self.ram[gpa : gpa + count * size] = pattern(count * size)
        return self.strings

    def pio_out_string(self, port: int, size: int, count: int, gpa: int) -> bool:
        if self.strings:
            self.seen.append(("outs", port, size, self.ram[gpa : gpa + count * size]))
        return self.strings

    def mmio_read(self, address: int, size: int) -> int:
        self.seen.append(("load", address, size))
        return self.answers.get(address, (1 << 8 * size) - 1)

    def mmio_write(self, address: int, size: int, value: int) -> None:
        self.seen.append(("store", address, size, value))
        if address in self.on_out:
            self.on_out[address]()                  # type: ignore[operator]

    def cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int] | None:
        self.seen.append(("cpuid", leaf, subleaf))
        return self.leaves.get(leaf)

    def msr(self, index: int, write: bool, value: int) -> None:
        self.seen.append(("msr", index, write, value))


def pattern(size: int) -> bytes:
    """Bytes that differ from their neighbours."""
    return bytes(index * 7 + 1 & 0xFF for index in range(size))


# From real to protected mode, at `pm`: flat segments 8 and 16, for ring 3 0x18 and 0x20; a TSS at 0x4000 is 0x28, the IDT is
# at 0x5000.
ENTER_PROTECTED = """
        cli
        xor ax, ax
        mov ds, ax
        lgdt [gdtr]
        lidt [idtr]
        mov eax, cr0
        or al, 1
        mov cr0, eax
        .att_syntax
        ljmp $8, $pm
        .intel_syntax noprefix
        .balign 8
gdt:    .quad 0
        .quad 0x00cf9a000000ffff
        .quad 0x00cf92000000ffff
        .quad 0x00cffa000000ffff
        .quad 0x00cff2000000ffff
        .quad 0x0000890040000067
gdtr:   .word gdtr - gdt - 1
        .long gdt
idtr:   .word 0x7ff
        .long 0x5000
        .code32
"""


def assemble(directory: Path, source: str) -> bytes:
    """Machine code for address 0x7c00. Intel syntax, 16-bit at first."""
    (directory / "code.s").write_text(f".intel_syntax noprefix\n.code16\n.globl _start\n_start:\n{source}\n")
    subprocess.run(["as", "--32", "-o", "code.o", "code.s"], cwd=directory, check=True)
    link = ["ld", "-m", "elf_i386", f"-Ttext={START:#x}", "--oformat=binary", "-o", "code.bin", "code.o"]
    subprocess.run(link, cwd=directory, check=True, stderr=subprocess.DEVNULL)
    return (directory / "code.bin").read_bytes()


class Machine:
    """A processor about to execute `code` at 0000:7C00, with 2 MiB of RAM. upcall[0]: the byte that stops it.

    It is the first byte behind RAM, or at `upcall_at` in RAM, for a guest that plays the other process as well.
    """

    def __init__(self, code: bytes, upcall_at: int = RAM, **handler: object) -> None:
        self.ram = mmap.mmap(-1, RAM + 4096)
        self.upcall = memoryview(self.ram)[upcall_at:]
        self.exits = Exits(self.ram, **handler)     # type: ignore[arg-type]
        firmware = bytearray(FIRMWARE)
        firmware[0xFFF0:0xFFF5] = FAR_JUMP
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.ram, upcall_at))
        self.engine = UnicornEngine(self.ram, RAM, bytes(firmware), self.exits, address)
        self.load(code)

    def load(self, code: bytes, at: int = START) -> None:
        """Put code into RAM, as a loader outside would."""
        self.ram[at : at + len(code)] = code
        self.engine.forget_code(at, len(code))

    def run(self, deadline_ns: int = 0) -> Stop:
        return self.engine.run(deadline_ns)

    def halts(self) -> list[tuple[object, ...]]:
        """Run to HLT; the exits on the way."""
        stop = self.run()
        assert stop is Stop.HALT, f"{stop}: {self.engine.crash}"
        return self.exits.seen

    def word(self, at: int) -> int:
        return int.from_bytes(self.ram[at : at + 2], "little")

    def dword(self, at: int) -> int:
        return int.from_bytes(self.ram[at : at + 4], "little")

    def set_vector(self, vector: int, offset: int) -> None:
        """A real mode handler at 0000:offset."""
        self.ram[vector * 4 : vector * 4 + 4] = offset.to_bytes(4, "little")
