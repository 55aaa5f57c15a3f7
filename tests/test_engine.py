"""The Unicorn engine, in this process: tiny programs, and what the exit handler sees of them."""
from pathlib import Path

import pytest
from machine import ENTER_PROTECTED, RAM, START, Machine, assemble, pattern

from miniguest.frontend.engines.engine import Stop
from miniguest.frontend.engines.strings import MOST

PROTECTED = ENTER_PROTECTED + """
pm:     mov ax, 16
        mov ds, ax
        mov es, ax
        mov ss, ax
        mov esp, 0x7000
        mov dword ptr [0x4004], 0x6f00
        mov dword ptr [0x4008], 16
        mov ax, 0x28
        ltr ax
"""
PAGED = """
        mov dword ptr [0x100000], 0x101007      # 4 MiB, each page where it is, ring 0's
        mov edi, 0x101000
        mov eax, 3
        mov ecx, 512
1:      stosd
        add eax, 0x1000
        loop 1b
        or dword ptr [0x101000 + 9 * 4], 4      # but 0x9000 is the user's
        mov eax, 0x100000
        mov cr3, eax
        mov eax, cr0
        or eax, 0x80010000
        mov cr0, eax
"""
USER = "push 0x23\npush 0x9800\npushfd\npush 0x1b\npush 0x9000\niret\n"


def machine(directory: Path, source: str, **handler: object) -> Machine:
    return Machine(assemble(directory, source), **handler)


def protected(directory: Path, source: str) -> Machine:
    return machine(directory, PROTECTED + source)


# -- exits
def test_in_and_out_of_every_size(tmp_path: Path) -> None:
    m = machine(tmp_path, """
        in al, 0x10
        in ax, 0x11
        in eax, 0x12
        mov dx, 0xffff
        in al, dx
        mov eax, 0x89abcdef
        out 0x20, al
        out 0x21, ax
        out 0x22, eax
        out dx, ax
        in eax, 0x13
        mov [0x500], eax
        in al, 0x14
        mov [0x504], eax
        hlt
    """)
    m.exits.answers = {0x13: 0x12345678, 0x14: 0x9A}
    assert m.halts() == [
        ("in", 0x10, 1), ("in", 0x11, 2), ("in", 0x12, 4), ("in", 0xFFFF, 1), ("out", 0x20, 1, 0xEF), ("out", 0x21, 2, 0xCDEF),
        ("out", 0x22, 4, 0x89ABCDEF), ("out", 0xFFFF, 2, 0xCDEF), ("in", 0x13, 4), ("in", 0x14, 1),
    ]
    assert (m.dword(0x500), m.dword(0x504)) == (0x12345678, 0x1234569A)


@pytest.mark.parametrize(("suffix", "size"), [("b", 1), ("w", 2), ("d", 4)])
@pytest.mark.parametrize("wide", [False, True])
def test_a_string_in_is_one_exit(tmp_path: Path, suffix: str, size: int, wide: bool) -> None:
    body = f"""
        mov edi, 0x9000
        mov ecx, 5
        mov dx, 0x1f0
        rep ins{suffix}
        mov [0x500], edi
        mov [0x504], ecx
        hlt
    """
    m = protected(tmp_path, body) if wide else machine(tmp_path, body)
    assert m.halts() == [("ins", 0x1F0, size, 5, 0x9000)]
    assert m.ram[0x9000 : 0x9000 + 6 * size] == pattern(5 * size) + bytes(size)
    assert (m.dword(0x500), m.dword(0x504)) == (0x9000 + 5 * size, 0)


@pytest.mark.parametrize("prefix", ["", "es ", "fs ", "gs ", "ss ", "cs "])
def test_a_string_out_honours_its_segment(tmp_path: Path, prefix: str) -> None:
    segments = {"es": 0x1000, "fs": 0x1100, "gs": 0x1200, "ss": 0x1300, "": 0x1400, "cs": 0}
    loads = "\n".join(f"mov ax, {value}\nmov {name or 'ds'}, ax" for name, value in segments.items() if name != "cs")
    m = machine(tmp_path, f"{loads}\nmov si, 0x20\nmov cx, 3\nmov dx, 0x80\nrep {prefix}outsw\nhlt")
    for number, value in enumerate(segments.values()):
        m.ram[value * 16 + 0x20 : value * 16 + 0x26] = bytes([number] * 6)
    number = list(segments).index(prefix.strip())
    assert m.halts() == [("outs", 0x80, 2, bytes([number] * 6))]


def test_the_address_size_prefix(tmp_path: Path) -> None:
    # In 16-bit code ECX and EDI as a whole; in 32-bit code CX and DI alone.
    m = machine(tmp_path, "mov edi, 0x12000\nxor ax, ax\nmov es, ax\nmov ecx, 3\n.byte 0x67, 0xf3, 0x6d\nhlt")
    assert m.run() in (Stop.HALT, Stop.CRASH)   # beyond the segment's 64 KiB: a processor faults, Unicorn knows no limits
    m = protected(tmp_path, """
        mov edi, 0x59000
        mov ecx, 0x70003
        .byte 0x67, 0xf3, 0x6c
        mov [0x500], edi
        mov [0x504], ecx
        hlt
    """)
    assert m.halts() == [("ins", 0, 1, 3, 0x9000)]
    assert (m.dword(0x500), m.dword(0x504)) == (0x59003, 0x70000)


def test_what_cannot_be_one_exit_goes_one_by_one(tmp_path: Path) -> None:
    m = machine(tmp_path, """
        mov dx, 0x60
        mov di, 0x9004
        mov cx, 3
        std
        rep insw                # downwards
        cld
        mov cx, 0
        rep insw                # nothing at all
        insb                    # no REP
        mov si, 0x9000
        outsb
        hlt
    """)
    m.exits.answers[0x60] = 0x4241
    m.ram[0x9000] = 0x5A
    assert m.halts() == [("in", 0x60, 2)] * 3 + [("in", 0x60, 1), ("out", 0x60, 1, 0x41)]
    assert m.ram[0x9000:0x9006] == b"ABABAB"


def test_a_handler_may_decline(tmp_path: Path) -> None:
    m = machine(tmp_path, "mov di, 0x9000\nmov cx, 3\nmov dx, 7\nrep insb\nmov si, 0x9000\nmov cx, 3\nrep outsb\nhlt")
    m.exits.strings = False
    m.exits.answers[7] = 0x33
    assert m.halts() == [("in", 7, 1)] * 3 + [("out", 7, 1, 0x33)] * 3


def test_a_string_over_the_end_of_a_segment_wraps(tmp_path: Path) -> None:
    m = machine(tmp_path, "mov ax, 0x2000\nmov es, ax\nmov di, 0xfffc\nmov cx, 6\nrep insw\nmov [0x500], di\nhlt")
    assert m.halts() == [("ins", 0, 2, 2, 0x2FFFC), ("ins", 0, 2, 4, 0x20000)]
    assert m.word(0x500) == 8


def test_long_strings_are_several_exits(tmp_path: Path) -> None:
    m = protected(tmp_path, f"mov edi, 0x100000\nmov ecx, {MOST + 10}\nrep insb\nmov [0x500], edi\nhlt")
    assert m.halts() == [("ins", 0, 1, MOST, 0x100000), ("ins", 0, 1, 10, 0x100000 + MOST)]
    assert m.dword(0x500) == 0x100000 + MOST + 10


def test_a_string_over_the_vga_hole_is_stores_to_it(tmp_path: Path) -> None:
    m = machine(tmp_path, """
        mov ax, 0x9ff0
        mov es, ax
        mov ds, ax
        mov di, 0xfe
        mov cx, 4
        rep insb
        mov si, 0x100
        mov cx, 2
        rep outsb
        hlt
    """)
    m.exits.answers = {0: 0x77, 0xA0000: 0x11, 0xA0001: 0x22}
    seen = m.halts()
    assert [item for item in seen if item[0] == "store" and item[3]] == [("store", 0xA0000, 1, 0x77), ("store", 0xA0001, 1, 0x77)]
    assert [item for item in seen if item[0] == "out"] == [("out", 0, 1, 0x11), ("out", 0, 1, 0x22)]
    assert m.ram[0xA0000:0xA0004] == bytes(4)


def test_mmio_of_every_size(tmp_path: Path) -> None:
    m = protected(tmp_path, """
        mov esi, 0xfee00000
        mov eax, [esi]
        mov ax, [esi + 4]
        mov al, [esi + 8]
        mov dword ptr [esi], 0x89abcdef
        mov word ptr [esi + 4], 0x1234
        mov byte ptr [esi + 8], 0x56
        mov ebx, [0xa0000]
        mov [0xbfffc], ebx
        add dword ptr [esi + 16], 1
        hlt
    """)
    m.exits.answers = {0xA0000: 0x01020304, 0xFEE00010: 41}
    assert m.halts() == [
        ("load", 0xFEE00000, 4), ("load", 0xFEE00004, 2), ("load", 0xFEE00008, 1), ("store", 0xFEE00000, 4, 0x89ABCDEF),
        ("store", 0xFEE00004, 2, 0x1234), ("store", 0xFEE00008, 1, 0x56), ("load", 0xA0000, 4), ("store", 0xBFFFC, 4, 0x01020304),
        ("load", 0xFEE00010, 4), ("store", 0xFEE00010, 4, 42),
    ]


def test_stores_to_rom_are_dropped_and_its_shadow_is_ram(tmp_path: Path) -> None:
    m = protected(tmp_path, """
        mov esi, 0xfffffff0
        mov al, [esi]
        mov byte ptr [esi], 0x12
        mov ah, [esi]
        mov [0x500], ax
        mov byte ptr [0xffff0], 0x34
        hlt
    """)
    assert m.halts() == []
    assert (m.word(0x500), m.ram[0xFFFF0]) == (0xEAEA, 0x34)


# -- stops
def test_a_kick_repeats_nothing(tmp_path: Path) -> None:
    # The guest kicks itself in the middle of every block.
    m = Machine(assemble(tmp_path, """
        1: inc dword ptr [0x600]
        mov byte ptr [0x500], 1
        lock add dword ptr [0x604], 1
        add dword ptr [0x608], 1
        cmp dword ptr [0x600], 2000
        jb 1b
        hlt
    """), upcall_at=0x500)
    kicks = 0
    while (stop := m.run()) is not Stop.HALT:
        assert stop is Stop.KICK
        kicks += 1
        m.upcall[0] = 0
    assert kicks == 2000
    assert (m.dword(0x600), m.dword(0x604), m.dword(0x608)) == (2000, 2000, 2000)


def test_kick_from_an_exit_lets_the_instruction_finish(tmp_path: Path) -> None:
    m = machine(tmp_path, "1: out 0x10, al\ninc word ptr [0x500]\njmp 1b")
    m.exits.on_out[0x10] = m.engine.kick
    for count in range(1, 6):
        assert m.run() is Stop.KICK
        assert m.word(0x500) == count
        assert len(m.exits.seen) == count


def test_a_deadline_in_the_past_stops_a_loop(tmp_path: Path) -> None:
    m = machine(tmp_path, "1: jmp 1b")
    assert m.run(1) is Stop.TIMER
    assert m.run(1) is Stop.TIMER


def test_a_triple_fault_says_what_happened_and_stays(tmp_path: Path) -> None:
    m = machine(tmp_path, "lidt [none]\nint 0x21\n1: jmp 1b\nnone: .word 0\n.long 0")
    assert m.run() is Stop.CRASH
    assert "triple fault" in m.engine.crash
    assert m.run() is Stop.CRASH


def test_a_triple_fault_between_runs_ends_the_next_at_once(tmp_path: Path) -> None:
    m = machine(tmp_path, "lidt [none]\nsti\nhlt\n1: inc word ptr [0x500]\njmp 1b\nnone: .word 0\n.long 0")
    assert m.run() is Stop.HALT
    m.engine.interrupt(8)
    assert m.run() is Stop.CRASH
    assert m.word(0x500) == 0


# -- interrupts
def interruptible_at(m: Machine) -> int:
    """Where the guest first can take an interrupt: its EIP then."""
    m.engine.want_interrupt(True)
    assert m.run() is Stop.WINDOW
    assert m.engine.interruptible()
    m.set_vector(8, 0x2000)
    m.load(b"\xf4", 0x2000)
    m.engine.interrupt(8)
    m.engine.want_interrupt(False)
    assert m.run() is Stop.HALT
    sp = 0x7000 - 6
    return m.word(sp)


@pytest.mark.parametrize("opening", ["sti\nnop", "push 0x202\npopf", "push 0x202\npush 0\npush offset 2f\niret\n2:"])
def test_a_window_opens_with_if(tmp_path: Path, opening: str) -> None:
    code = assemble(tmp_path, f"cli\nmov sp, 0x7000\nnop\n{opening}\nhere: nop\ncli\n1: jmp 1b\n.long here")
    m = Machine(code)
    assert interruptible_at(m) == int.from_bytes(code[-4:], "little")


@pytest.mark.parametrize("load", ["mov ss, ax", "pop ss", "mov ss, [0x600]", "mov ss, [bx]", "mov ss, [bx + 0x1234]"])
def test_no_interrupt_between_ss_and_sp(tmp_path: Path, load: str) -> None:
    m = Machine(assemble(tmp_path, f"""
        xor ax, ax
        mov bx, 0x600
        mov sp, 0x5f0
        sti
        nop
        mov byte ptr [0x500], 1
        {load}
        mov sp, 0x7000
        1: jmp 1b
    """), upcall_at=0x500)
    assert m.run() is Stop.KICK
    assert stack_pointer(m) in (0x5F0, 0x5F2)
    assert not m.engine.interruptible()
    assert m.run() is Stop.KICK                 # nor at a second kick there
    assert not m.engine.interruptible()
    m.upcall[0] = 0
    m.engine.want_interrupt(True)
    assert m.run() is Stop.WINDOW
    assert stack_pointer(m) == 0x7000
    assert m.engine.interruptible()


def stack_pointer(m: Machine) -> int:
    m.engine._cpu.load()
    return m.engine._cpu.esp


@pytest.mark.parametrize("kicked", [False, True])
def test_sti_and_hlt_are_one(tmp_path: Path, kicked: bool) -> None:
    m = machine(tmp_path, "cli\nmov sp, 0x7000\nout 0x10, al\nsti\nhlt\nhere: hlt")
    want = m.engine.want_interrupt
    m.exits.on_out[0x10] = m.engine.kick if kicked else lambda: want(True)
    if kicked:                                  # it stops in front of HLT, where no interrupt may be taken
        assert m.run() is Stop.KICK
        assert not m.engine.interruptible()
    want(True)
    assert m.run() is Stop.HALT
    assert m.engine.interruptible()
    m.set_vector(8, 0x2000)
    m.load(b"\xcf", 0x2000)                    # iret: goes on behind the HLT
    m.engine.interrupt(8)
    want(False)
    assert m.run() is Stop.HALT
    m.engine._cpu.load()
    assert m.engine._cpu.eip == START + len(assemble(tmp_path, "cli\nmov sp, 0x7000\nout 0x10, al\nsti\nhlt\nhere: hlt"))


def test_sti_cli_opens_no_window(tmp_path: Path) -> None:
    m = machine(tmp_path, "sti\ncli\nhlt")
    m.engine.want_interrupt(True)
    assert m.run() is Stop.HALT
    assert not m.engine.interruptible()


def test_a_halt_without_sti_before_it_does_not_delay(tmp_path: Path) -> None:
    m = machine(tmp_path, "mov sp, 0x7000\nsti\nnop\njmp 1f\n1: hlt")
    m.engine.want_interrupt(True)
    assert m.run() is Stop.WINDOW


def test_hlt_with_interrupts_off(tmp_path: Path) -> None:
    m = machine(tmp_path, "cli\nhlt\nhere: hlt")
    assert m.run() is Stop.HALT
    assert not m.engine.interruptible()


# -- CPUID and MSRs
def test_cpuid_answers_are_the_handlers_or_the_engines(tmp_path: Path) -> None:
    m = machine(tmp_path, """
        mov eax, 0x40000000
        mov ecx, 7
        cpuid
        mov [0x500], eax
        mov [0x504], ebx
        mov [0x508], ecx
        mov [0x50c], edx
        xor eax, eax
        cpuid
        mov [0x510], ebx
        hlt
    """)
    m.exits.leaves[0x40000000] = (1, 2, 3, 0xFFFFFFFF)
    assert m.halts() == [("cpuid", 0x40000000, 7), ("cpuid", 0, 3)]
    assert [m.dword(at) for at in (0x500, 0x504, 0x508, 0x50C)] == [1, 2, 3, 0xFFFFFFFF]
    assert m.dword(0x510) == int.from_bytes(b"Genu", "little") or m.dword(0x510) == int.from_bytes(b"Auth", "little")


def run_through(m: Machine) -> None:
    """Run to HLT; a new RDMSR or WRMSR stops it on the way."""
    while (stop := m.run()) is not Stop.HALT:
        assert stop is Stop.KICK, m.engine.crash


def test_every_msr_access_is_told_once(tmp_path: Path) -> None:
    m = machine(tmp_path, """
        mov bx, 3
        1: inc word ptr [0x500]
        mov ecx, 0x174
        mov edx, 5
        mov eax, ebx
        wrmsr
        xor eax, eax
        rdmsr
        mov [0x504], eax
        dec bx
        jnz 1b
        wrmsr
        hlt
        mov eax, 0x320f300f     # bytes of both inside another instruction
    """)
    run_through(m)
    told = [("msr", 0x174, True, 5 << 32 | 3), ("msr", 0x174, False, 5 << 32), ("msr", 0x174, True, 5 << 32 | 2)]
    assert m.exits.seen[:3] == told
    assert len(m.exits.seen) == 7
    assert (m.word(0x500), m.dword(0x504)) == (3, 1)


def test_msrs_are_told_behind_paging_too(tmp_path: Path) -> None:
    m = protected(tmp_path, PAGED + """
        mov dword ptr [0x101000 + 0x1ff * 4], 0x9003     # 0x1ff000 is 0x9000
        mov dword ptr [0x9000], 0xf4320f
        mov ecx, 0x1b
        mov eax, 0x1ff000
        jmp eax
    """)
    run_through(m)
    assert [item[:3] for item in m.exits.seen] == [("msr", 0x1B, False)]


# -- memory behind its back
@pytest.mark.parametrize("everything", [False, True])
def test_code_changed_from_outside_is_run_anew(tmp_path: Path, everything: bool) -> None:
    m = machine(tmp_path, "1: mov al, 1\nout 0x10, al\njmp 1b")
    m.exits.on_out[0x10] = m.engine.kick
    assert m.run() is Stop.KICK
    m.ram[START + 1] = 2
    if everything:
        m.engine.forget_all_code()
    else:
        m.engine.forget_code(START + 1, 1)
    while len(m.exits.seen) < 2:
        m.run()
    assert m.exits.seen == [("out", 0x10, 1, 1), ("out", 0x10, 1, 2)]


def test_all_code_may_be_dropped_under_the_running_block(tmp_path: Path) -> None:
    m = machine(tmp_path, "mov cx, 300\n1: mov ax, cx\nout 0x10, ax\ncall 2f\nloop 1b\nhlt\n2: inc word ptr [0x500]\nret")

    def change() -> None:
        m.engine.forget_all_code()

    m.exits.on_out[0x10] = change
    run_through(m)
    assert [item[3] for item in m.exits.seen] == list(range(300, 0, -1))
    assert m.word(0x500) == 300


def test_self_modifying_and_string_loaded_code(tmp_path: Path) -> None:
    m = machine(tmp_path, """
        mov bx, 2
        1: mov di, 0x9000
        mov cx, 8
        mov dx, 0x1f0
        rep insb
        mov byte ptr [0x9008], 0xc3
        push bx
        call 0x9000
        pop bx
        dec bx
        jnz 1b
        hlt
    """)
    letters = iter(b"ab")

    def load(port: int, size: int, count: int, gpa: int) -> bool:
        m.ram[gpa : gpa + count] = bytes((0xB0, next(letters), 0xE6, 0x80, 0x90, 0x90, 0x90, 0x90))
        return True

    m.exits.pio_in_string = load                # type: ignore[method-assign]
    m.engine._uc.reg_write(30, 0x7000)
    assert [item[3] for item in m.halts()] == [ord("a"), ord("b")]


def test_reset_is_as_power_on(tmp_path: Path) -> None:
    m = protected(tmp_path, PAGED + """
        mov eax, cr4
        or eax, 0x10
        mov cr4, eax
        mov ecx, 0x174
        mov eax, 0x1234
        xor edx, edx
        wrmsr
        mov byte ptr [0xffff5], 0xcc
        hlt
    """)
    run_through(m)
    m.engine.reset()
    m.exits.seen.clear()
    m.load(assemble(tmp_path, """
        mov [0x500], esp
        mov [0x504], edi
        mov eax, cr4
        mov [0x508], eax
        mov eax, cr0
        mov [0x50c], eax
        mov eax, cr3
        mov [0x510], eax
        mov ecx, 0x174
        rdmsr
        mov [0x514], eax
        pushfd
        pop eax
        mov [0x518], eax
        mov ax, cs
        mov [0x51c], ax
        hlt
    """))
    run_through(m)
    assert [m.dword(at) for at in range(0x500, 0x518, 4)] == [0, 0, 0, 0x60000010, 0, 0]
    assert m.dword(0x518) & 0x200 == 0
    assert m.word(0x51C) == 0
    assert m.ram[0xFFFF5] == 0
    assert m.exits.seen == [("msr", 0x174, False, 0)]


# -- levels and paging
HANDLER = """
        mov dword ptr [0x5000 + {vector} * 8], 0x80000 + (handler - _start + 0x7c00)
        mov dword ptr [0x5000 + {vector} * 8 + 4], 0xee00
"""


@pytest.mark.parametrize("pae", [False, True])
def test_ring_3_reaches_ring_0_through_pages_that_are_not_its_own(tmp_path: Path, pae: bool) -> None:
    tables = PAGED if not pae else """
        mov dword ptr [0x100000], 0x101001
        mov dword ptr [0x101000], 0x102007
        mov edi, 0x102000
        mov eax, 3
        mov ecx, 512
1:      mov [edi], eax
        add edi, 8
        add eax, 0x1000
        loop 1b
        or dword ptr [0x102000 + 9 * 8], 4
        mov eax, cr4
        or eax, 0x20
        mov cr4, eax
        mov eax, 0x100000
        mov cr3, eax
        mov eax, cr0
        or eax, 0x80010000
        mov cr0, eax
    """
    m = protected(tmp_path, HANDLER.format(vector=0x30) + tables + USER + """
handler: mov eax, [esp]
        out 0x10, eax
        mov eax, [esp + 12]
        out 0x10, eax
        mov eax, esp
        out 0x10, eax
        hlt
    """)
    m.load(b"\xcd\x30", 0x9000)
    assert [item[3] for item in m.halts()] == [0x9002, 0x9800, 0x6F00 - 20]


@pytest.mark.parametrize(("user", "address", "code"), [
    (b"\xa1\x00\x80\x00\x00", 0x8000, 5),          # mov eax, [0x8000]: a page of ring 0's
    (b"\xa3\x00\x80\x00\x00", 0x8000, 7),
    (b"\xa1\x00\x00\x20\x00", 0x200000, 4),        # no page at all
    (b"\xe9\xfb\x6f\x1f\x00", 0x200000, 4),        # jmp 0x200000
])
def test_page_faults_of_ring_3_tell_where_and_why(tmp_path: Path, user: bytes, address: int, code: int) -> None:
    m = protected(tmp_path, HANDLER.format(vector=14) + PAGED + USER + """
handler: pop eax
        out 0x10, eax
        mov eax, cr2
        out 0x11, eax
        mov eax, [esp]
        out 0x12, eax
        hlt
    """)
    m.load(user, 0x9000)
    eip = address if user[0] == 0xE9 else 0x9000
    assert m.halts() == [("out", 0x10, 4, code), ("out", 0x11, 4, address), ("out", 0x12, 4, eip)]


def test_a_stack_that_is_not_mapped_is_a_double_then_a_triple_fault(tmp_path: Path) -> None:
    m = protected(tmp_path, HANDLER.format(vector=14) + HANDLER.format(vector=8) + PAGED + """
        mov esp, 0x200000 + 0x1000
        ud2
handler: hlt
    """)
    assert m.run() is Stop.CRASH
    assert "triple fault" in m.engine.crash


def test_v86_and_back(tmp_path: Path) -> None:
    m = protected(tmp_path, HANDLER.format(vector=13) + """
        push 0x66               # GS, FS, DS, ES
        push 0x55
        push 0x44
        push 0x33
        push 0x900              # SS:SP
        push 0x80
        push 0x20002            # EFLAGS: VM
        push 0x9a0              # CS:IP 9a0:0
        push 0
        iret
handler: mov ecx, 10
1:      pop eax
        out 0x10, eax
        loop 1b
        hlt
    """)
    m.load(b"\xcd\x21", 0x9A00)                # int 0x21 with IOPL 0: general protection
    frame = [0, 0, 0x9A0, 0x20002, 0x80, 0x900, 0x33, 0x44, 0x55, 0x66]
    seen = [item[3] for item in m.halts()]
    assert [seen[0], *seen[1:3], seen[3] & ~0x10000, *seen[4:]] == frame


def test_int_n_into_a_16_bit_gate(tmp_path: Path) -> None:
    m = protected(tmp_path, """
        mov dword ptr [0x5000 + 0x30 * 8], 0x80000 + (handler - _start + 0x7c00)
        mov dword ptr [0x5000 + 0x30 * 8 + 4], 0x8700
        sti
        int 0x30
handler: mov eax, [esp]
        out 0x10, eax
        mov eax, esp
        out 0x10, eax
        pushfd
        pop eax
        and eax, 0x200
        out 0x10, eax
        hlt
    """)
    seen = [item[3] for item in m.halts()]
    assert seen[0] >> 16 == 8
    assert seen[1:] == [0x7000 - 6, 0x200]


def test_the_ram_is_the_callers(tmp_path: Path) -> None:
    m = protected(tmp_path, f"mov dword ptr [{RAM - 4}], 0x55aa1234\nhlt")
    m.halts()
    assert m.dword(RAM - 4) == 0x55AA1234
    m.engine.close()


# -- memory that is shown above RAM
ROM = 0xC0000000
SEEN_ABOVE_RAM = f"""
        mov eax, [{ROM:#x}]
        mov [0x500], eax
        mov dword ptr [{ROM + 4:#x}], 0x11111111
        jmp 1f
1:      mov eax, [{ROM + 4:#x}]
        mov [0x504], eax
        mov eax, [{ROM + 0x1000:#x}]
        mov eax, {ROM + 0x100:#x}
        call eax
        mov [0x508], eax
        out 0x20, al
        jmp 1f
1:      mov eax, [{ROM:#x}]
        mov [0x50c], eax
        hlt
"""


def finish(m: Machine) -> list[tuple[object, ...]]:
    """Run to HLT; a store to ROM stops on the way, for it is undone."""
    while (stop := m.run()) is Stop.KICK:
        pass
    assert stop is Stop.HALT, m.engine.crash
    return m.exits.seen


def with_rom(directory: Path) -> Machine:
    """A machine whose first page of memory is also to be seen at ROM."""
    m = protected(directory, SEEN_ABOVE_RAM)
    m.ram[:8] = bytes.fromhex("55aa556601020304")
    m.ram[0x100:0x106] = bytes.fromhex("b877665544c3")      # mov eax, 0x44556677; ret
    return m


def test_shown_memory_is_read_and_executed_without_exits_and_not_written(tmp_path: Path) -> None:
    m = with_rom(tmp_path)
    m.engine.show_memory([(ROM, 0, 0x1000)])
    assert finish(m) == [("load", ROM + 0x1000, 4), ("out", 0x20, 1, 0x77)]
    assert [m.dword(at) for at in (0x500, 0x504, 0x508, 0x50C)] == [0x6655AA55, 0x04030201, 0x44556677, 0x6655AA55]
    assert m.dword(4) == 0x04030201


def test_shown_memory_goes_from_inside_an_exit(tmp_path: Path) -> None:
    m = with_rom(tmp_path)
    m.engine.show_memory([(ROM, 0, 0x1000)])
    m.exits.on_out[0x20] = lambda: m.engine.show_memory([])
    assert finish(m)[-1] == ("load", ROM, 4)
    assert m.dword(0x50C) == 0xFFFFFFFF


@pytest.mark.parametrize("at", [0, RAM - 0x1000, 0xFFFFF000, 0xFFFF0000 - 0x800])
def test_memory_shown_where_something_else_is_stays_away(tmp_path: Path, at: int) -> None:
    m = with_rom(tmp_path)
    m.engine.show_memory([(at, 0x1000, 0x1000), (ROM, 0, 0x1000)])
    finish(m)
    assert m.dword(0x500) == 0x6655AA55 and m.ram[0x7C00:0x7C01] == b"\xfa"


def test_shown_memory_may_move_and_touch(tmp_path: Path) -> None:
    m = with_rom(tmp_path)
    for pieces in ([(ROM, 0, 0x2000)], [(RAM, 0, 0x1000), (ROM, 0, 0x1000), (ROM + 0x1000, 0, 0x1000)], [(ROM, 0, 0x1000)]):
        m.engine.show_memory(pieces)
        m.engine.reset()
        m.load((tmp_path / "code.bin").read_bytes())
        m.exits.seen.clear()
        assert (finish(m)[0][0] == "load") == (pieces == [(ROM, 0, 0x1000)])
        assert m.dword(0x500) == 0x6655AA55


def test_cpuid_promises_no_sysenter(tmp_path: Path) -> None:
    """Unicorn takes SYSENTER for a NOP; an operating system that believes in it crashes its first process."""
    m = machine(tmp_path, "mov eax, 1\ncpuid\nmov [0x500], edx\nmov [0x504], eax\nmov eax, 0\ncpuid\nmov [0x508], ebx\nhlt")
    m.halts()
    fpu, sep, mmx = 1, 1 << 11, 1 << 23
    assert m.dword(0x500) & (fpu | sep | mmx) == fpu | mmx
    assert m.dword(0x504) >> 8 & 15 == 6 and m.ram[0x508:0x50C] == b"Genu"


# -- DMA while the guest's paging is on
ELSEWHERE = PAGED + """
        and dword ptr [0x101000 + 0x40 * 4], ~1        # 0x40000 is nowhere
        mov dword ptr [0x101000 + 0x50 * 4], 0x60003    # 0x50000 is frame 0x60
        mov dword ptr [0x101000 + 0x51 * 4], 0xd0000003 # 0x51000 is a device
        mov eax, cr3
        mov cr3, eax
        mov eax, 0x50000
        call eax
        mov [0x500], ebx
        mov [0x51000], eax
        jmp 1f
1:      mov eax, 0x50000
        call eax
        mov [0x504], ebx
        hlt
"""


def returns(value: int) -> bytes:
    """mov ebx, value; ret"""
    return b"\xbb" + value.to_bytes(4, "little") + b"\xc3"


@pytest.mark.parametrize("also", [(0x40000, 0x1000), (0x61000, 0x1000), (0x5FFFF, 2), (0x60000, 0x1000)])
def test_code_that_dma_replaced_is_translated_anew_wherever_it_is_mapped(tmp_path: Path, also: tuple[int, int]) -> None:
    m = protected(tmp_path, ELSEWHERE)
    m.ram[0x60000:0x60006] = returns(1)

    def dma() -> None:
        m.ram[0x60000:0x60006] = returns(2)
        m.engine.forget_code(*also)             # addresses of memory, which the guest sees elsewhere, or not at all
        m.engine.forget_code(0x60000, 6)
        m.engine.kick()                         # what Unicorn left behind would come out when it starts again

    m.exits.on_out[0xD0000000] = dma
    assert finish(m) == [("store", 0xD0000000, 4, 0x50000)]
    assert (m.dword(0x500), m.dword(0x504)) == (1, 2)


def test_dma_to_where_no_code_is_leaves_the_guest_alone(tmp_path: Path) -> None:
    m = protected(tmp_path, ELSEWHERE)
    m.ram[0x60000:0x60006] = returns(1)

    def dma() -> None:
        m.engine.forget_code(0x40000, 0x1000)
        m.engine.kick()

    m.exits.on_out[0xD0000000] = dma
    finish(m)
    assert m.dword(0x504) == 1


@pytest.mark.parametrize("counts", [False, True])
def test_a_processor_whose_time_is_its_blocks_promises_no_time_stamp_counter(tmp_path: Path, counts: bool) -> None:
    m = machine(tmp_path, "mov eax, 1\ncpuid\nmov [0x500], edx\nhlt")
    m.engine.counts_blocks = counts
    m.halts()
    assert bool(m.dword(0x500) & 1 << 4) is not counts
