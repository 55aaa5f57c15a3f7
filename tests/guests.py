"""Guest programs for tests: boot sectors assembled from source, put in front of a disk image, and run to their end."""
import json
import os
import select
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECTOR = 512
MINIGUEST = [sys.executable, "-m", "miniguest.deploy"]

# What the programs share: print a string at DS:SI, or AL in hex, on COM1; power off through ACPI.
LIBRARY = """
putc:   push dx
        push ax
        mov dx, 0x3fd
1:      in al, dx
        test al, 0x20
        jz 1b
        pop ax
        mov dx, 0x3f8
        out dx, al
        pop dx
        ret
puts:   lodsb
        test al, al
        jz 1f
        call putc
        jmp puts
1:      ret
hex:    push ax
        shr al, 4
        call nibble
        pop ax
        push ax
        and al, 15
        call nibble
        pop ax
        ret
nibble: cmp al, 10
        jb 1f
        add al, 'a' - '0' - 10
1:      add al, '0'
        jmp putc
poweroff:
        mov dx, 0xb004
        mov ax, 0x2000
        out dx, ax
1:      cli
        hlt
        jmp 1b
"""


def assemble(directory: Path, source: str, sectors: int = 1) -> bytes:
    """A program of so many sectors for address 0x7c00, with the boot signature. Intel syntax, 16-bit at first."""
    (directory / "guest.s").write_text(f".intel_syntax noprefix\n.code16\n.globl _start\n_start:\n{source}\n")
    subprocess.run(["as", "--32", "-o", "guest.o", "guest.s"], cwd=directory, check=True)
    link = ["ld", "-m", "elf_i386", "-Ttext=0x7c00", "--oformat=binary", "-o", "guest.bin", "guest.o"]
    subprocess.run(link, cwd=directory, check=True, stderr=subprocess.DEVNULL)
    code = (directory / "guest.bin").read_bytes()
    assert len(code) <= sectors * SECTOR - (2 if sectors == 1 else 0), f"{len(code)} bytes of code"
    if sectors == 1:
        return code.ljust(SECTOR - 2, b"\0") + b"\x55\xaa"
    assert len(code) > SECTOR and code[510:512] == b"\x55\xaa", "put the signature at 510 yourself"
    return code.ljust(sectors * SECTOR, b"\0")


# Loads the rest of a program of more than one sector, then goes on at `main`.
LOADER = """
        cli
        xor ax, ax
        mov ds, ax
        mov es, ax
        mov ss, ax
        mov sp, 0x7c00
        sti
        mov [drive], dl
        mov ah, 0x42
        mov si, offset packet
        int 0x13
        jc failed
        jmp main
failed: mov si, offset broken
        call puts
        cli
        hlt
broken: .asciz "loader failed"
drive:  .byte 0
        .balign 4
packet: .byte 16, 0
        .word 7, 0x7e00, 0
        .quad 1
""" + LIBRARY + """
        .org 510
        .word 0xaa55
main:
"""


@dataclass
class Ran:
    """What a run of `miniguest run --json` was like."""

    status: int
    stdout: str
    stderr: str
    report: dict[str, Any]

    @property
    def guest(self) -> dict[str, Any]:
        return self.report["guests"][0]

    @property
    def console(self) -> str:
        return self.guest["console"]


def run(directory: Path, *arguments: str, stdin: bytes | None = None, seconds: float = 120) -> Ran:
    """Run the command to its end."""
    out = directory / "report.json"
    done = subprocess.run(
        [*MINIGUEST, "run", *arguments, "--json", str(out)], input=stdin, capture_output=True, timeout=seconds,
        stdin=subprocess.DEVNULL if stdin is None else None,
    )
    report = json.loads(out.read_bytes()) if out.exists() and out.stat().st_size else {}
    return Ran(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"), report)


def boot(directory: Path, program: bytes, *arguments: str, size: int = 1 << 20, **how: Any) -> Ran:
    """Boot a program from a disk of `size` bytes in a default guest."""
    image = directory / "guest.img"
    image.write_bytes(program.ljust(size, b"\0"))
    return run(directory, "--disk", str(image), "--timeout", "60", *arguments, **how)


class Conversation:
    """A run whose serial line is talked to: `read_until` some bytes, then `write` an answer."""

    def __init__(self, *arguments: str, seconds: float = 60) -> None:
        self._seconds = seconds
        self.process = subprocess.Popen(
            [*MINIGUEST, "run", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.said = b""

    def __enter__(self) -> "Conversation":
        return self

    def read_until(self, wanted: bytes) -> None:
        """Read the console until `wanted` was on it since the last call; fails at the end of the output."""
        assert self.process.stdout is not None
        start = len(self.said)
        while wanted not in self.said[start:]:
            ready, _, _ = select.select([self.process.stdout], [], [], self._seconds)
            data = os.read(self.process.stdout.fileno(), 4096) if ready else b""
            assert data, f"{wanted!r} did not come; the guest said {self.said[start:]!r}"
            self.said += data

    def write(self, data: bytes) -> None:
        """Type something."""
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def wait(self) -> int:
        """The command's exit status."""
        self.said += self.process.communicate(timeout=self._seconds)[0]
        return self.process.returncode

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.communicate(timeout=self._seconds)
