"""The kvm engine, in this process: tiny programs, beside Unicorn. What an emulating KVM can do is what they use."""
import ctypes
import mmap
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import FAR_JUMP, FIRMWARE, RAM, Exits, Machine, assemble, pattern

from miniguest.frontend.engines import kvm_abi as abi
from miniguest.frontend.engines import kvm_probe
from miniguest.frontend.engines.engine import Stop
from miniguest.frontend.engines.kvm import KvmEngine
from miniguest.frontend.engines.kvm_machine import DEVICE, KICK
from miniguest.ring import _core

pytestmark = pytest.mark.skipif(not os.access(DEVICE, os.R_OK | os.W_OK), reason=f"no {DEVICE}")

PROTECTED = """
        cli
        xor ax, ax
        mov ds, ax
        lgdt [gdtr]
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
gdtr:   .word gdtr - gdt - 1
        .long gdt
        .code32
pm:     mov ax, 16
        mov ds, ax
        mov es, ax
        mov ss, ax
        mov esp, 0x7000
"""


class KvmMachineUnderTest(Machine):
    """As Machine, on KVM."""

    def __init__(self, code: bytes) -> None:
        self.ram = mmap.mmap(-1, RAM + 2 * mmap.PAGESIZE)
        self.upcall = memoryview(self.ram)[RAM:]
        self.exits = Exits(self.ram)
        firmware = bytearray(FIRMWARE)
        firmware[0xFFF0:0xFFF5] = FAR_JUMP
        self.engine = KvmEngine(                        # type: ignore[assignment]
            self.ram, RAM, bytes(firmware), self.exits, ctypes.addressof(ctypes.c_char.from_buffer(self.ram, RAM))
        )
        self.load(code)


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


@pytest.fixture
def machines() -> Iterator[list[KvmMachineUnderTest]]:
    made: list[KvmMachineUnderTest] = []
    yield made
    for each in made:
        each.engine.close()


def on_kvm(machines: list[KvmMachineUnderTest], directory: Path, source: str) -> KvmMachineUnderTest:
    machines.append(KvmMachineUnderTest(assemble(directory, source)))
    return machines[-1]


PROGRAMS = {
    "every size of IN and OUT": """
        in al, 0x10
        in ax, 0x11
        in eax, 0x12
        mov [0x500], eax
        mov eax, 0x89abcdef
        out 0x20, al
        out 0x21, ax
        out 0x22, eax
        mov dx, 0xffff
        in al, dx
        hlt""",
    "sums and shifts": """
        mov ecx, 20
        mov eax, 1
        mov ebx, 0x12345678
1:      add eax, ebx
        rol ebx, 3
        adc eax, ecx
        imul eax, eax, 7
        xor ebx, eax
        dec ecx
        jnz 1b
        mov [0x500], eax
        mov [0x504], ebx
        out 0x80, eax
        hlt""",
    "stack, calls and strings": """
        mov sp, 0x7000
        mov cx, 5
        mov di, 0x600
        mov si, 0x7c00
        cld
        push cx
        call 2f
        rep movsb
        pop cx
        mov eax, [0x600]
        out 0x80, eax
        hlt
2:      mov ax, 0x1234
        out 0x81, ax
        ret""",
    "memory that is a device's": PROTECTED + """
        mov eax, [0xfee00020]
        mov byte ptr [0xfee00080], 7
        mov word ptr [0xf0000000], 0x1234
        mov [0x500], eax
        hlt""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_as_unicorn_does(machines: list[KvmMachineUnderTest], tmp_path: Path, name: str) -> None:
    kvm, unicorn = on_kvm(machines, tmp_path, PROGRAMS[name]), Machine(assemble(tmp_path, PROGRAMS[name]))
    for each in (kvm, unicorn):
        each.exits.answers = {0x12: 0x12345678, 0xFEE00020: 0x01000000}
    assert kvm.halts() == unicorn.halts()
    assert kvm.exits.seen
    assert kvm.ram[0x500:0x620] == unicorn.ram[0x500:0x620]


@pytest.mark.parametrize(("suffix", "size"), [("b", 1), ("w", 2), ("d", 4)])
@pytest.mark.parametrize("wide", [False, True])
def test_a_string_in_is_one_exit(
    machines: list[KvmMachineUnderTest], tmp_path: Path, suffix: str, size: int, wide: bool
) -> None:
    body = f"mov edi, 0x9000\nmov ecx, 5\nmov dx, 0x1f0\ncld\nrep ins{suffix}\nmov [0x500], edi\nmov [0x504], ecx\nhlt"
    m = on_kvm(machines, tmp_path, PROTECTED + body if wide else f"xor ax, ax\nmov es, ax\nmov ds, ax\n{body}")
    assert m.halts() == [("ins", 0x1F0, size, 5, 0x9000)]
    assert m.ram[0x9000 : 0x9000 + 6 * size] == pattern(5 * size) + bytes(size)
    assert (m.dword(0x500), m.dword(0x504)) == (0x9000 + 5 * size, 0)


def test_a_string_that_goes_down_or_that_nobody_takes_comes_element_by_element(
    machines: list[KvmMachineUnderTest], tmp_path: Path
) -> None:
    start = "xor ax, ax\nmov es, ax\nmov di, 0x9002\nmov cx, 3\nmov dx, 0x70\n"
    m = on_kvm(machines, tmp_path, start + "std\nrep insb\ncld\nmov cx, 2\nrep insb\nhlt")
    m.exits.answers = {0x70: 0x5A}
    m.exits.strings = False
    assert m.halts() == [("in", 0x70, 1)] * 5
    assert m.ram[0x9000:0x9003] == b"\x5a" * 3


def test_a_string_out(machines: list[KvmMachineUnderTest], tmp_path: Path) -> None:
    m = on_kvm(machines, tmp_path, "xor ax, ax\nmov ds, ax\nmov si, 0x9000\nmov cx, 3\nmov dx, 0x80\ncld\nrep outsb\nhlt")
    m.ram[0x9000:0x9003] = b"abc"
    assert m.halts() == [("out", 0x80, 1, value) for value in b"abc"]


def test_a_kick_from_an_exit_stops_behind_its_instruction(machines: list[KvmMachineUnderTest], tmp_path: Path) -> None:
    m = on_kvm(machines, tmp_path, "in al, 0x10\nout 0x20, al\nmov [0x500], al\nin al, 0x11\nhlt")
    m.exits.answers = {0x10: 0x77}
    m.exits.on_out[0x20] = m.engine.kick
    assert m.run() is Stop.KICK
    assert m.exits.seen == [("in", 0x10, 1), ("out", 0x20, 1, 0x77)]
    assert m.ram[0x500] == 0
    assert m.run() is Stop.HALT
    assert (m.ram[0x500], m.exits.seen[2:]) == (0x77, [("in", 0x11, 1)])


def test_the_upcall_byte_and_the_deadline_stop_a_guest_that_spins(
    machines: list[KvmMachineUnderTest], tmp_path: Path
) -> None:
    m = on_kvm(machines, tmp_path, "1: inc dword ptr [0x500]\njmp 1b")
    assert m.run(_core.now_ns() + 3_000_000) is Stop.TIMER
    assert m.dword(0x500) > 0
    m.upcall[0] = 1
    assert m.run() is Stop.KICK
    m.upcall[0] = 0
    # Set by the guest itself, as another process would: seen at the next look.
    m.load(assemble(tmp_path, "mov eax, 0x200000\nmov ebx, 1\n1: jmp 1b"))
    m.engine.reset()
    child = os.fork()
    if child == 0:
        m.upcall[0] = 1
        os._exit(0)
    assert m.run() is Stop.KICK
    os.waitpid(child, 0)


def test_an_interrupt_waits_for_its_window(machines: list[KvmMachineUnderTest], tmp_path: Path) -> None:
    m = on_kvm(machines, tmp_path, "cli\nmov sp, 0x7000\nxor ax, ax\nmov ss, ax\nout 0x20, al\nsti\nnop\nnop\n1: jmp 1b")
    m.set_vector(0x30, 0x600)
    m.ram[0x600:0x602] = b"\xf4\xf4"                    # hlt
    m.exits.on_out[0x20] = lambda: m.engine.want_interrupt(True)
    assert m.run() is Stop.WINDOW
    assert m.engine.interruptible()
    m.engine.interrupt(0x30)
    assert not m.engine.interruptible()
    m.engine.want_interrupt(False)
    assert m.run() is Stop.HALT
    assert not m.engine.interruptible()                 # the handler runs with interrupts off


@pytest.mark.parametrize(("reason", "crash"), [
    (abi.KVM_EXIT_SHUTDOWN, "triple fault at "),
    (abi.KVM_EXIT_FAIL_ENTRY, "the processor refused the guest's state, reason 0x21 at "),
    (abi.KVM_EXIT_INTERNAL_ERROR, "KVM cannot go on, internal error 0x21 at "), (99, "exit reason 99 at "),
])
def test_what_no_guest_survives_is_a_crash(
    machines: list[KvmMachineUnderTest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int, crash: str
) -> None:
    """Which of them a fault leads to is the kernel's business: an emulating one has its own ideas."""
    m = on_kvm(machines, tmp_path, "hlt")
    machine = m.engine._machine                         # type: ignore[attr-defined]
    machine.run[abi.DETAILS] = 0x21
    with monkeypatch.context() as patch:
        patch.setattr(machine, "enter", lambda: reason)
        assert m.run() is Stop.CRASH
    assert m.engine.crash.startswith(crash)
    assert m.run() is Stop.CRASH
    m.engine.reset()
    assert m.run() is Stop.HALT


def test_memory_shown_is_read_without_exits_and_not_written(machines: list[KvmMachineUnderTest], tmp_path: Path) -> None:
    m = on_kvm(machines, tmp_path, PROTECTED + """
        mov eax, [0x40000000]
        mov dword ptr [0x40000000], 1
        mov ebx, [0x40000000]
        mov [0x500], eax
        mov [0x504], ebx
        out 0x20, al
        mov eax, [0x40000000]
        hlt""")
    m.ram[RAM + 4096 : RAM + 4100] = b"ROM!"
    m.engine.show_memory([(0x40000000, RAM + 4096, 4096), (0, RAM + 4096, 4096)])
    m.exits.on_out[0x20] = lambda: m.engine.show_memory([])
    assert m.halts() == [("out", 0x20, 1, ord("R")), ("load", 0x40000000, 4)]
    assert m.ram[0x500:0x508] == b"ROM!ROM!"
    assert m.ram[RAM + 4096 : RAM + 4100] == b"ROM!"


def test_the_firmware_is_read_only_and_shadowed(machines: list[KvmMachineUnderTest], tmp_path: Path) -> None:
    m = on_kvm(machines, tmp_path, PROTECTED + "mov byte ptr [0xfffffff0], 1\nmov al, [0xfffffff0]\nmov [0x500], al\nhlt")
    assert m.halts() == []
    assert m.ram[0x500] == FAR_JUMP[0]
    assert m.ram[0xFFFF0:0xFFFF5] == FAR_JUMP


def test_a_guest_sees_no_long_mode(machines: list[KvmMachineUnderTest], tmp_path: Path) -> None:
    m = on_kvm(machines, tmp_path, "mov eax, 0x80000001\ncpuid\nmov [0x500], edx\nmov eax, 1\ncpuid\nmov [0x504], ecx\nhlt")
    m.halts()
    assert not m.dword(0x500) >> 29 & 1
    assert not m.dword(0x504) >> 31 & 1


def test_what_another_process_writes_to_ram_is_seen(machines: list[KvmMachineUnderTest], tmp_path: Path) -> None:
    m = on_kvm(machines, tmp_path, "out 0x20, al\n1: cmp byte ptr [0x500], 9\njne 1b\nhlt")

    def other() -> None:
        if os.fork() == 0:
            m.ram[0x500] = 9
            os._exit(0)

    m.exits.on_out[0x20] = other
    assert m.run() is Stop.HALT
    os.wait()


def test_closing_leaves_no_signal_behind(tmp_path: Path) -> None:
    m = KvmMachineUnderTest(assemble(tmp_path, "hlt"))
    assert m.run() is Stop.HALT
    signal.pthread_kill(threading.get_ident(), KICK)
    m.engine.close()
    assert KICK not in signal.sigpending()


def test_the_probe_says_something_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    said = kvm_probe.reason_against()
    assert said == kvm_probe._ask_child()               # the same, asked again
    assert "\n" not in said
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.parametrize(("child", "reason"), [
    (lambda writer: os._exit(7), "the probe ended with status 7"),
    (lambda writer: signal.pause(), "the probe does not end in 0.01 s"),
    (lambda writer: (os.write(writer, b"works"), os._exit(0)), ""),
])
def test_a_probe_that_goes_wrong(monkeypatch: pytest.MonkeyPatch, child: object, reason: str) -> None:
    if reason.endswith("0.01 s"):
        monkeypatch.setattr(kvm_probe, "SECONDS", 0.01)
    monkeypatch.setattr(kvm_probe, "_child", child)
    assert kvm_probe._ask_child() == reason
