"""Guests that page: what they may do to pages, tables and tasks, whoever translates for them."""
from pathlib import Path

import pytest
from machine import Machine, assemble
from test_engine import HANDLER, PAGED, PROTECTED, USER, finish, returns, run_through

from miniguest.frontend.engines.engine import Stop


@pytest.fixture(params=[True, False], ids=["ours", "unicorn's"])
def ours(request: pytest.FixtureRequest) -> bool:
    """Who translates."""
    return bool(request.param)


def paged(directory: Path, source: str, ours: bool = True) -> Machine:
    m = Machine(assemble(directory, PROTECTED + source))
    if not ours:
        m.engine.leave_translation()
    return m


# A second task, at 0x4100, that writes what it is and comes back by IRET.
TASKS = """
        mov esi, offset gdt
        mov edi, 0x3000
        mov ecx, 12
        rep movsd
        mov dword ptr [0x3030], 0x41000067
        mov dword ptr [0x3034], 0x00008900
        mov word ptr [0x2ffa], 0x37
        mov dword ptr [0x2ffc], 0x3000
        lgdt [0x2ffa]
        mov dword ptr [0x4100 + 0x1c], 0x100000        # CR3
        mov dword ptr [0x4100 + 0x20], offset task
        mov dword ptr [0x4100 + 0x24], 2
        mov dword ptr [0x4100 + 0x38], 0x6000
        mov dword ptr [0x4100 + 0x48], 16
        mov dword ptr [0x4100 + 0x4c], 8
        mov dword ptr [0x4100 + 0x50], 16
        mov dword ptr [0x4100 + 0x54], 16
        mov dword ptr [0x4000 + 0x1c], 0x100000
        mov word ptr [0x5f4], 0x30
        jmp 1f
1:      {call}
        mov byte ptr [0x501], 1
        hlt
task:   mov byte ptr [0x500], 1
        iret
"""


FAR_CALLS = [".byte 0x9a, 0, 0, 0, 0, 0x30, 0", ".byte 0xff, 0x1d, 0xf0, 5, 0, 0", ".byte 0x66, 0x2e, 0x9a, 0, 0, 0x30, 0"]


@pytest.mark.parametrize("call", FAR_CALLS)
@pytest.mark.parametrize("paging", ["", PAGED], ids=["flat", "paged"])
def test_a_task_switch_enters_the_other_task(tmp_path: Path, paging: str, call: str, ours: bool) -> None:
    """Unicorn reads descriptors when it has the new task's EIP already: a miss of the TLB must not undo that."""
    m = paged(tmp_path, paging + TASKS.format(call=call), ours)
    m.ram[0x4066] = 0x68
    finish(m)
    assert tuple(m.ram[0x500:0x502]) == (1, 1)


# 0x400000 is a page of its own tables: page N of it is entry N of the table at 0x102000.
TEST_PAGES = PAGED.replace("mov eax, 0x100000\n", """mov dword ptr [0x100004], 0x102007
        mov edi, 0x103000                       # for PAE below
        mov eax, 0x100000
""")
PAGE = "        mov dword ptr [0x102000 + {index} * 4], {value}\n        invlpg [0x400000 + {index} * 4096]\n"
# Page faults are noted from 0x500 on (error code, CR2, ECX), and what {mend} says is done about them.
NOTES = """
faulted: push ebx
        mov ebx, [0x4f0]
        push dword ptr [esp + 4]
        pop dword ptr [0x500 + ebx]
        push eax
        mov eax, cr2
        mov [0x504 + ebx], eax
        pop eax
        mov [0x508 + ebx], ecx
        add dword ptr [0x4f0], 12
        pop ebx
        {mend}
        add esp, 4
        iret
"""
NOTED = HANDLER.format(vector=14).replace("(handler", "(faulted").replace("0xee00", "0x8e00")


def faults(m: Machine) -> list[tuple[int, int, int]]:
    """(error code, CR2, ECX) of each."""
    return [(m.dword(at), m.dword(at + 4), m.dword(at + 8)) for at in range(0x500, 0x500 + m.dword(0x4F0), 12)]


def page(index: int, value: int) -> str:
    return PAGE.format(index=index, value=value)


@pytest.mark.parametrize("first", ["executed", "written", "both"])
def test_stores_through_one_address_change_the_code_at_another(tmp_path: Path, ours: bool, first: str) -> None:
    """The frame is executed at 0x400000, written at 0x401000, whichever has its entry in the TLB first."""
    before = {"executed": "call ecx\n", "written": "mov eax, [0x401ffc]\nmov [0x401ffc], eax\n",
              "both": "mov [0x401ffc], eax\nmov eax, [0x400ffc]\nmov [0x400ffc], eax\n"}[first]
    m = paged(tmp_path, TEST_PAGES + page(0, 0x180003) + page(1, 0x180003) + f"""
        mov ecx, 0x400000
        mov edi, 0x500
        mov dword ptr [0x180000], 0x1111b866            # mov ax, 0x1111; ret
        mov byte ptr [0x180004], 0xc3
        {before}
1:      add word ptr [0x401002], 1
        call ecx
        stosw
        add word ptr [0x180002], 1
        call ecx
        stosw
        cmp edi, 0x510
        jb 1b
        hlt
    """, ours)
    finish(m)
    assert [m.word(0x500 + 2 * index) for index in range(8)] == list(range(0x1112, 0x111A))


def test_a_block_may_write_itself_through_another_address(tmp_path: Path, ours: bool) -> None:
    m = paged(tmp_path, TEST_PAGES + page(0, 0x180003) + page(1, 0x180003) + """
        mov dword ptr [0x401ffc], 0                     # a store that needs no check, as yet
        mov ecx, 0x400000
        xor eax, eax
        call ecx
        mov [0x500], eax
        hlt
    """, ours)
    # mov byte ptr [0x401008], 0x42; mov al, 0x41; ret
    m.ram[0x180000:0x18000A] = bytes.fromhex("c6050810400042 b041 c3".replace(" ", ""))
    finish(m)
    assert m.dword(0x500) == 0x42


NO_EXECUTE = """
        mov dword ptr [0x100000], 0x101001
        mov dword ptr [0x101000], 0x102003
        mov dword ptr [0x101010], 0x103003               # 0x400000
        mov edi, 0x102000
        mov eax, 3
        mov ecx, 512
1:      mov [edi], eax
        add edi, 8
        add eax, 0x1000
        loop 1b
        mov ecx, 0xc0000080
        mov eax, 0x800
        xor edx, edx
        wrmsr
        mov eax, 0x20
        mov cr4, eax
        mov eax, 0x100000
        mov cr3, eax
        mov eax, cr0
        or eax, 0x80010000
        mov cr0, eax
"""


@pytest.mark.parametrize("access", ["mov word ptr [0x401002], {value}", "mov ax, [0x401002]\nmov word ptr [0x401002], {value}"])
def test_stores_through_a_page_that_may_not_be_executed_change_code(tmp_path: Path, access: str) -> None:
    """Unicorn checks no such store but the first. The last one here comes from the same block as the one before it."""
    stores = "\ncall ecx\nstosw\n".join(access.format(value=value) for value in (1, 2, 3, 4))
    m = paged(tmp_path, NO_EXECUTE + f"""
        mov dword ptr [0x103000], 0x180003
        mov dword ptr [0x103008], 0x180003
        mov dword ptr [0x10300c], 0x80000000
        mov dword ptr [0x180000], 0x1111b866            # mov ax, 0x1111; ret
        mov byte ptr [0x180004], 0xc3
        mov ecx, 0x400000
        mov edi, 0x500
        call ecx
        {stores}
        mov word ptr [0x401002], 5
        call ecx
        stosw
        hlt
    """)
    run_through(m)
    assert [m.word(0x500 + 2 * index) for index in range(4)] == [1, 2, 3, 5]


def test_page_fault_error_codes_of_reserved_bits_and_fetches(tmp_path: Path, ours: bool) -> None:
    m = paged(tmp_path, NOTED + NO_EXECUTE + """
        mov dword ptr [0x103000], 0x180003
        mov dword ptr [0x103004], 0x80000000             # not to be executed
        mov dword ptr [0x103008], 0x180003
        mov dword ptr [0x10300c], 0x00010000             # reserved
        mov ebp, offset 1f
        mov eax, 0x400000
        jmp eax
1:      mov ebp, offset 1f
        mov eax, [0x401000]
1:      mov ebp, offset 1f
        mov [0x401000], eax
1:      mov ebp, offset 1f
        mov eax, [0x402000]
1:      hlt
    """ + NOTES.format(mend="mov [esp + 4], ebp"), ours)
    run_through(m)
    codes = [(0x11, 0x400000), (0x09, 0x401000), (0x0B, 0x401000), (0, 0x402000)]
    assert [(code, address) for code, address, _ in faults(m)] == codes


@pytest.mark.parametrize("protects", [False, True])
def test_ring_0_writes_read_only_pages_unless_cr0_wp(tmp_path: Path, ours: bool, protects: bool) -> None:
    clear = "" if protects else "mov eax, cr0\nand eax, 0xfffeffff\nmov cr0, eax\n"
    m = paged(tmp_path, NOTED + TEST_PAGES + clear + page(0, 0x180001) + """
        mov ebp, offset 1f
        mov eax, [0x400000]
        mov byte ptr [0x400000], 0x55
1:      hlt
    """ + NOTES.format(mend="mov [esp + 4], ebp"), ours)
    finish(m)
    assert m.ram[0x180000] == (0 if protects else 0x55)
    assert [fault[:2] for fault in faults(m)] == ([(3, 0x400000)] if protects else [])


def test_accessed_and_dirty_bits(tmp_path: Path, ours: bool) -> None:
    """A load, a fetch, a store, a load that is followed by a store, a fault for a store, nothing; and in a large page."""
    m = paged(tmp_path, NOTED + TEST_PAGES + "".join(page(index, 0x180003) for index in range(6)) + page(4, 0x180001) + """
        mov byte ptr [0x180000], 0xc3
        mov dword ptr [0x100008], 0x83
        mov dword ptr [0x10000c], 0x83
        mov eax, 0x10
        mov cr4, eax
        mov dword ptr [0x100004], 0x102003
        mov eax, cr3
        mov cr3, eax
        mov eax, [0x400000]
        mov ecx, 0x401000
        call ecx
        mov [0x402004], eax
        mov eax, [0x403000]
        mov [0x403004], eax
        mov ebp, offset 1f
        mov [0x404004], eax
1:      mov eax, [0x800500]
        mov [0xc00600], eax
        hlt
    """ + NOTES.format(mend="mov [esp + 4], ebp"), ours)
    finish(m)
    assert [m.dword(0x102000 + 4 * index) & 0x60 for index in range(6)] == [0x20, 0x20, 0x60, 0x60, 0, 0]
    assert [m.dword(0x100000 + 4 * index) & 0x60 for index in range(4)] == [0x20, 0x20, 0x20, 0x60]


@pytest.mark.parametrize("access", ["mov eax, [0x400000]", "mov [0x400000], eax", "mov eax, 0x400000\ncall eax"])
def test_a_directory_entry_is_accessed_and_never_dirty(tmp_path: Path, ours: bool, access: str) -> None:
    m = paged(tmp_path, TEST_PAGES + page(0, 0x180003) + f"mov byte ptr [0x180000], 0xc3\n{access}\nhlt", ours)
    finish(m)
    assert m.dword(0x100004) & 0x60 == 0x20


def test_invlpg_of_any_address_forgets_a_whole_large_page(tmp_path: Path, ours: bool) -> None:
    m = paged(tmp_path, TEST_PAGES + """
        mov dword ptr [0x80000], 1
        mov dword ptr [0x81000], 2
        mov eax, 0x10
        mov cr4, eax
        mov dword ptr [0x100008], 0x83
        mov eax, [0x880000]
        mov [0x881004], eax
        mov dword ptr [0x100008], 0x102003              # small pages
        mov dword ptr [0x102000 + 0x80 * 4], 0x180003
        mov dword ptr [0x102000 + 0x81 * 4], 0x181003
        invlpg [0x8f0000]
        mov dword ptr [0x180000], 3
        mov dword ptr [0x181000], 4
        mov eax, [0x880000]
        mov [0x500], eax
        mov dword ptr [0x881008], 5
        mov eax, [0x881000]
        mov [0x504], eax
        hlt
    """, ours)
    finish(m)
    assert (m.dword(0x500), m.dword(0x504), m.dword(0x81008), m.dword(0x181008)) == (3, 4, 0, 5)


def test_invlpg_and_cr3_forget_translations(tmp_path: Path, ours: bool) -> None:
    m = paged(tmp_path, TEST_PAGES + page(0, 0x180003) + """
        mov dword ptr [0x400000], 1
        mov dword ptr [0x102000], 0x181003
        invlpg [0x400abc]
        mov dword ptr [0x400000], 2
        mov dword ptr [0x102000], 0x182003
        mov eax, cr3
        mov cr3, eax
        mov dword ptr [0x400000], 3
        hlt
    """, ours)
    finish(m)
    assert [m.dword(at) for at in (0x180000, 0x181000, 0x182000)] == [1, 2, 3]


@pytest.mark.parametrize(("moves", "size"), [("movsd", 4), ("movsb", 1), ("stosd", 4)])
def test_a_string_goes_on_where_it_faulted(tmp_path: Path, ours: bool, moves: str, size: int) -> None:
    """The handler maps the page that was missing; the count it sees is what was left."""
    count = 64 // size
    m = paged(tmp_path, NOTED + TEST_PAGES + page(0, 0x180003) + page(1, 0) + f"""
        mov esi, 0x10000
        mov edi, 0x400fe0
        mov eax, 0x04030201
        mov ecx, {count}
        rep {moves}
        mov [0x600], ecx
        mov [0x604], edi
        hlt
    """ + NOTES.format(mend="mov dword ptr [0x102004], 0x181003"), ours)
    m.ram[0x10000:0x10040] = source = bytes(range(64)) if moves != "stosd" else bytes((1, 2, 3, 4)) * 16
    finish(m)
    assert faults(m) == [(2, 0x401000, count // 2)]
    assert m.ram[0x180FE0:0x181000] + m.ram[0x181000:0x181020] == source
    assert (m.dword(0x600), m.dword(0x604)) == (0, 0x401020)


def test_what_a_block_did_before_its_fault_is_done_once(tmp_path: Path, ours: bool) -> None:
    m = paged(tmp_path, NOTED + TEST_PAGES + page(0, 0) + """
        xor ecx, ecx
        inc dword ptr [0x600]
        inc ecx
        add dword ptr [0x400000], 7
        inc dword ptr [0x604]
        inc ecx
        mov [0x608], ecx
        hlt
    """ + NOTES.format(mend="mov dword ptr [0x102000], 0x180003"), ours)
    finish(m)
    assert [m.dword(at) for at in (0x600, 0x604, 0x608, 0x180000)] == [1, 1, 2, 7]
    assert faults(m) == [(0, 0x400000, 1)]              # Unicorn loads first


def test_a_store_over_the_end_of_a_page_changes_nothing_when_the_next_is_missing(tmp_path: Path, ours: bool) -> None:
    m = paged(tmp_path, NOTED + TEST_PAGES + page(0, 0x180003) + page(1, 0) + """
        mov ebp, offset 1f
        mov dword ptr [0x400ffe], 0x55555555
1:      hlt
    """ + NOTES.format(mend="mov [esp + 4], ebp"), ours)
    finish(m)
    assert faults(m)[0][:2] == (2, 0x401000)
    assert m.word(0x180FFE) == 0


def test_code_over_the_end_of_a_page_that_is_missing(tmp_path: Path, ours: bool) -> None:
    m = paged(tmp_path, NOTED + TEST_PAGES + page(0, 0x180003) + page(1, 0) + """
        mov byte ptr [0x180fff], 0xb8
        mov dword ptr [0x181000], 0x12345678
        mov byte ptr [0x181004], 0xc3
        mov ecx, 0x400fff
        call ecx
        mov [0x600], eax
        hlt
    """ + NOTES.format(mend="mov dword ptr [0x102004], 0x181003"), ours)
    finish(m)
    assert [fault[1] for fault in faults(m)] == [0x401000]
    assert m.dword(0x600) == 0x12345678


def test_tables_where_no_ram_is_are_unicorns_to_read(tmp_path: Path, ours: bool) -> None:
    """They are all ones: present, writable, and what they name is no memory either."""
    m = paged(tmp_path, TEST_PAGES + """
        mov dword ptr [0x10000c], 0xd0000003
        mov eax, [0xc00000]
        mov [0x500], eax
        hlt
    """, ours)
    m.exits.answers = dict.fromkeys(range(0xD0000000, 0xD0001000, 4), 0x180003)
    m.ram[0x180000:0x180004] = b"abcd"
    finish(m)
    assert m.dword(0x500) == int.from_bytes(b"abcd", "little")


def test_no_interrupt_behind_sti_though_its_block_begins_again(tmp_path: Path, ours: bool) -> None:
    """CR4.SMEP is nothing our walk knows: each block that misses the TLB is begun again by Unicorn."""
    m = paged(tmp_path, TEST_PAGES + page(0, 0x180003) + page(1, 0x181003) + """
        mov eax, 0x100000
        mov cr4, eax
        cli
        nop
        sti
        mov [0x400000], eax
        mov [0x401000], eax
        jmp 1f
1:      hlt
    """, ours)
    m.engine.want_interrupt(True)
    finish_at_window(m)
    assert (m.dword(0x180000), m.dword(0x181000)) == (0x100000, 0)


def finish_at_window(m: Machine) -> None:
    assert m.run() is Stop.WINDOW, m.engine.crash


def test_interrupts_are_delivered_while_a_guest_of_ring_3_pages(tmp_path: Path, ours: bool) -> None:
    """Entering ring 0 reads descriptors that ring 3 may not."""
    m = paged(tmp_path, HANDLER.format(vector=0x30) + PAGED + USER + """
handler: mov ax, 16
        mov ds, ax
        inc dword ptr [0x500]
        mov ax, 0x23
        mov ds, ax
        iret
    """, ours)
    m.ram[0x9000:0x9002] = b"\xeb\xfe"
    for _ in range(4):
        assert m.run(deadline_ns=1) is Stop.TIMER
        m.engine.interrupt(0x30)
        assert m.run(deadline_ns=1) is Stop.TIMER
    assert m.dword(0x500) == 4


def test_code_that_dma_replaced_is_written_at_full_speed_again(tmp_path: Path, ours: bool) -> None:
    """And again checked, once it is executed."""
    m = paged(tmp_path, TEST_PAGES + page(0, 0x180003) + page(1, 0x180003) + """
        mov ecx, 0x400000
        mov edi, 0x500
2:      call ecx
        mov [edi], ebx
        add edi, 4
        out 0x10, al
        jmp 1f
1:      add dword ptr [0x401001], 1
        call ecx
        mov [edi], ebx
        add edi, 4
        cmp edi, 0x510
        jb 2b
        hlt
    """, ours)
    m.ram[0x180000:0x180006] = returns(1)

    def dma() -> None:
        m.ram[0x180000:0x180006] = returns(0x100)
        m.engine.forget_code(0x180000, 6)

    m.exits.on_out[0x10] = dma
    finish(m)
    assert [m.dword(0x500 + 4 * index) for index in range(4)] == [1, 0x101, 0x101, 0x101]
