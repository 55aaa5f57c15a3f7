"""What a Unicorn guest may do with its pages: write, execute, write again; whatever the mode that it is in by then."""
from collections.abc import Callable
from pathlib import Path

import pytest
from machine import Machine, assemble
from test_engine import PAGED, PROTECTED, USER

from miniguest.frontend.engines.engine import Stop

# Puts `mov ax, IMMEDIATE; ret` at 0x9000 and calls it, three times; the results are at 0x500. The page holds data before.
WRITES_CODE = """
        mov edi, 0x500
        mov ebx, 0x1111
        mov dword ptr [0x9000], 0x12345678
again:  mov byte ptr [0x9000], 0xb8
        mov word ptr [0x9001], bx
        mov byte ptr [{last}], 0xc3
        mov eax, 0x9000
        call {call}
        mov word ptr [edi], ax
        add edi, 2
        add ebx, 0x1111
        cmp ebx, 0x4444
        jne again
"""
REAL = WRITES_CODE.format(last="0x9003", call="ax")
WIDE = WRITES_CODE.replace("mov word ptr [0x9001], bx", "mov dword ptr [0x9001], ebx").format(last="0x9005", call="eax")


def wrote(m: Machine) -> list[int]:
    return [m.word(0x500 + 2 * index) for index in range(3)]


@pytest.mark.parametrize("source", [REAL + "hlt", PROTECTED + WIDE + "hlt", PROTECTED + PAGED + WIDE + "hlt"],
                         ids=["real mode", "protected", "paged"])
def test_code_that_is_written_again_is_executed_as_written(tmp_path: Path, source: str) -> None:
    m = Machine(assemble(tmp_path, source))
    assert m.halts() == []
    assert wrote(m) == [0x1111, 0x2222, 0x3333]


def test_ring_3_without_paging_writes_what_ring_0_executed(tmp_path: Path) -> None:
    """The two levels have TLB entries of their own: what one may write without a check the other must not have fetched."""
    m = Machine(assemble(tmp_path, PROTECTED + """
        mov dword ptr [0x8000], 0x1111b866       # mov ax, 0x1111; ret
        mov byte ptr [0x8004], 0xc3
        mov eax, 0x8000
        call eax
        mov [0x500], ax
        mov dword ptr [0x5000 + 0x80 * 8], offset ring0 + 0x80000
        mov dword ptr [0x5004 + 0x80 * 8], 0xee00
        """ + USER.replace("push 0x9000", "push offset user") + """
user:   mov ax, 0x23
        mov ds, ax
        mov word ptr [0x8002], 0x2222
        mov eax, 0x8000
        call eax
        mov [0x502], ax
        mov word ptr [0x8002], 0x3333
        int 0x80
ring0:  mov ax, 16
        mov ds, ax
        mov eax, 0x8000
        call eax
        mov [0x504], ax
        hlt
    """))
    assert m.halts() == []
    assert wrote(m) == [0x1111, 0x2222, 0x3333]


def test_a_page_where_linear_is_not_physical(tmp_path: Path) -> None:
    """From the instruction behind the one that turns paging on, the guest's own tables count."""
    m = Machine(assemble(tmp_path, PROTECTED + """
        mov dword ptr [0x30000], 0x11111111
        mov dword ptr [0x31000], 0x22222222
        mov eax, [0x30000]                       # a TLB entry that is wrong soon
""" + PAGED.replace("mov eax, 0x100000\n", "mov dword ptr [0x101000 + 0x30 * 4], 0x31003\n        mov eax, 0x100000\n") + """
        mov eax, [0x30000]
        mov [0x500], eax
        mov dword ptr [0x30004], 0x33333333
        mov eax, cr0
        and eax, 0x7fffffff
        mov cr0, eax
        mov eax, [0x30000]
        mov [0x504], eax
        hlt
    """))
    assert m.halts() == []
    assert (m.dword(0x500), m.dword(0x504), m.dword(0x31004)) == (0x22222222, 0x11111111, 0x33333333)


def test_a_reset_brings_flat_memory_back(tmp_path: Path) -> None:
    m = Machine(assemble(tmp_path, PROTECTED + PAGED + "hlt"))
    m.halts()
    m.engine.reset()
    m.load(assemble(tmp_path, REAL + "hlt"))
    m.halts()
    assert wrote(m) == [0x1111, 0x2222, 0x3333]


def test_dma_into_code_is_seen(tmp_path: Path) -> None:
    m = Machine(assemble(tmp_path, "mov ax, 0x1111\nmov [0x500], ax\nout 0x10, al\nmov ax, 0x2222\nmov [0x502], ax\nhlt"))

    def dma() -> None:
        code = bytes(m.ram[0x7C00:0x7C20]).replace(b"\x22\x22", b"\x44\x44")
        m.ram[0x7C00:0x7C20] = code
        m.engine.forget_code(0x7C00, 0x20)

    m.exits.on_out = {0x10: dma}
    m.halts()
    assert m.word(0x500) == 0x1111
    m.engine.reset()
    m.halts()
    assert m.word(0x502) == 0x4444


@pytest.mark.parametrize("source", ["in al, 0x10", "out 0x10, al", "mov al, [0xa0000]", "mov [0xa0000], al"])
def test_what_a_handler_raises_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    m = Machine(assemble(tmp_path, f"xor eax, eax\nmov ax, 0xa000\nmov ds, ax\n{source.replace('0xa0000', '0')}\nhlt"))

    def broken(*_: object) -> int:
        raise RuntimeError("broken")

    for name in ("pio_in", "pio_out", "mmio_read", "mmio_write"):
        monkeypatch.setattr(m.exits, name, broken)
    with pytest.raises(RuntimeError, match="broken"):
        m.run()


def test_a_handler_that_kicks_stops_the_guest_behind_its_exit(tmp_path: Path) -> None:
    m = Machine(assemble(tmp_path, "out 0x10, al\njmp 1f\n1: out 0x11, al\nhlt"))
    kick: Callable[[], None] = m.engine.kick
    m.exits.on_out = {0x10: kick}
    assert m.run() is Stop.KICK
    assert m.exits.seen == [("out", 0x10, 1, 0)]
    assert m.halts() == [("out", 0x10, 1, 0), ("out", 0x11, 1, 0)]
