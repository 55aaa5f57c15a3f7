"""Guests of our own, booted by SeaBIOS: what the processor, the interrupt controllers and the devices must do for them."""
import hashlib
import random
from pathlib import Path

import pytest
from guests import LIBRARY, LOADER, SECTOR, Conversation, assemble, boot, run

# Protected mode, flat, for programs that want it; ESI etc. are free. `idt` has 64 gates; handlers go in with `gate`.
PROTECTED = """
        cli
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
        .quad 0x00cffa000000ffff
        .quad 0x00cff2000000ffff
tss_descriptor: .quad 0
gdtr:   .word gdtr - gdt - 1
        .long gdt
        .code32
putc32: push edx
        push eax
        mov dx, 0x3fd
1:      in al, dx
        test al, 0x20
        jz 1b
        pop eax
        mov dx, 0x3f8
        out dx, al
        pop edx
        ret
puts32: lodsb
        test al, al
        jz 1f
        call putc32
        jmp puts32
1:      ret
hex32:  mov ecx, 8              # EAX in hex
1:      rol eax, 4
        push eax
        and al, 15
        cmp al, 10
        jb 2f
        add al, 39
2:      add al, '0'
        call putc32
        pop eax
        loop 1b
        ret
poweroff32:
        mov dx, 0xb004
        mov ax, 0x2000
        out dx, ax
1:      cli
        hlt
        jmp 1b
gate:   # EAX handler, ECX vector, DL type
        lea edi, idt[ecx * 8]
        mov [edi], ax
        mov word ptr [edi + 2], 8
        mov byte ptr [edi + 4], 0
        mov [edi + 5], dl
        shr eax, 16
        mov [edi + 6], ax
        ret
idtr:   .word 64 * 8 - 1
        .long idt
        .set idt, 0x5000
pm:     mov ax, 16
        mov ds, ax
        mov es, ax
        mov ss, ax
        mov esp, 0x7000
        mov edi, 0x5000
        xor eax, eax
        mov ecx, 128
        rep stosd
        lidt [idtr]
"""


def real_mode(directory: Path, body: str) -> bytes:
    # Interrupts off: at the next tick the BIOS would print what it still has to say into our lines.
    return assemble(directory, f"cli\nxor ax, ax\nmov ds, ax\nmov es, ax\nmov ss, ax\nmov sp, 0x7c00\n{body}\n{LIBRARY}")


def protected(directory: Path, body: str) -> bytes:
    return assemble(directory, LOADER + PROTECTED + body, sectors=8)


def test_serial_output_and_power_off(tmp_path: Path) -> None:
    ran = boot(tmp_path, real_mode(tmp_path, "mov si, offset text\ncall puts\njmp poweroff\ntext: .asciz \"hello, world\\r\\n\""))
    assert (ran.status, ran.guest["ended"]) == (0, "poweroff")
    assert ran.console.endswith("hello, world\r\n")
    assert "hello, world" in ran.stdout


def test_halt_with_interrupts_off_is_the_end(tmp_path: Path) -> None:
    ran = boot(tmp_path, real_mode(tmp_path, "cli\nhlt"))
    assert (ran.status, ran.guest["ended"]) == (0, "halt")


def test_timeout(tmp_path: Path) -> None:
    ran = boot(tmp_path, real_mode(tmp_path, "mov si, offset t\ncall puts\n1: jmp 1b\nt: .asciz \"spin\""), "--timeout", "4")
    assert (ran.status, ran.guest["ended"]) == (3, "timeout")
    assert "spin" in ran.console


def test_triple_fault_is_a_crash(tmp_path: Path) -> None:
    program = real_mode(tmp_path, "cli\nlidt [none]\nint 3\n1: jmp 1b\nnone: .word 0\n.long 0")
    ran = boot(tmp_path, program)
    assert (ran.status, ran.guest["ended"]) == (1, "crash")


def test_sti_hlt_wakes_for_every_timer_interrupt(tmp_path: Path) -> None:
    # 100 sleeps with interrupts opened only in front of HLT: one lost wake and it would sleep for ever.
    body = """
        mov cx, 100
        1: cli
        nop
        sti
        hlt
        loop 1b
        mov si, offset text
        call puts
        jmp poweroff
        text: .asciz "100 ticks"
    """
    ran = boot(tmp_path, real_mode(tmp_path, body))
    assert ran.console.endswith("100 ticks")
    assert ran.guest["exits"]["by_kind"]["hlt"] >= 100


def test_interrupt_window_of_two_instructions(tmp_path: Path) -> None:
    # sti; nop; cli: the only place where the timer interrupt can be taken.
    body = """
        mov ax, [0x46c]
        mov bx, ax
        1: sti
        nop
        cli
        mov ax, [0x46c]
        sub ax, bx
        cmp ax, 5
        jb 1b
        mov si, offset text
        call puts
        jmp poweroff
        text: .asciz "ticked"
    """
    assert boot(tmp_path, real_mode(tmp_path, body)).console.endswith("ticked")


def test_exceptions_and_software_interrupts_in_protected_mode(tmp_path: Path) -> None:
    body = """
        mov eax, offset on_div
        mov ecx, 0
        mov dl, 0x8e
        call gate
        mov eax, offset on_ud
        mov ecx, 6
        mov dl, 0x8e
        call gate
        mov eax, offset on_soft
        mov ecx, 0x30
        mov dl, 0x8e
        call gate
        mov eax, offset on_gp
        mov ecx, 13
        mov dl, 0x8e
        call gate
        mov ax, 0
        mov cl, 0
        div cl
        ud2
        int 0x30
        mov ax, 0x1003
        mov gs, ax              # beyond the GDT: a general protection fault with its selector as the error code
        mov al, '.'
        call putc32
        jmp poweroff32
on_div: mov al, 'D'
        call putc32
        add dword ptr [esp], 2  # the instruction that faulted is skipped
        iret
on_ud:  mov al, 'U'
        call putc32
        add dword ptr [esp], 2
        iret
on_soft: mov al, 'S'
        call putc32
        iret                    # the instruction is behind us already
on_gp:  mov al, 'G'
        call putc32
        add esp, 4
        add dword ptr [esp], 2
        iret
    """
    assert boot(tmp_path, protected(tmp_path, body)).console.endswith("DUSG.")


def test_ring_3_and_back_through_the_task_state(tmp_path: Path) -> None:
    body = """
        mov eax, 0x4000         # a task state segment, for the stack of ring 0
        mov edi, eax
        mov ecx, 26
        push eax
        xor eax, eax
        rep stosd
        pop eax
        mov dword ptr [eax + 4], 0x6f00
        mov word ptr [eax + 8], 16
        mov word ptr [tss_descriptor], 103
        mov [tss_descriptor + 2], ax
        mov byte ptr [tss_descriptor + 4], 0
        mov word ptr [tss_descriptor + 5], 0x0089
        mov byte ptr [tss_descriptor + 7], 0
        mov ax, 0x28
        ltr ax
        mov eax, offset call_from_3
        mov ecx, 0x30
        mov dl, 0xee            # ring 3 may
        call gate
        mov eax, offset denied
        mov ecx, 13
        mov dl, 0x8e
        call gate
        push 0x23
        push 0x6000
        pushfd
        push 0x1b
        push offset user
        iret
user:   mov ax, 0x23
        mov ds, ax
        mov es, ax
        int 0x30
        int 0x31                # no gate: general protection
        jmp user
call_from_3:
        mov eax, esp
        call hex32              # the frame of five words below the ring 0 stack's top
        mov eax, [esp + 4]
        and al, 3
        add al, '0'
        call putc32
        iret
denied: mov al, 'X'
        call putc32
        mov ax, cs
        and al, 3
        add al, '0'
        call putc32
        jmp poweroff32
    """
    assert boot(tmp_path, protected(tmp_path, body)).console.endswith("00006eec3X0")


def test_paging_page_fault_and_strings_across_pages(tmp_path: Path) -> None:
    # Linear 0x400000 maps to 0x200000, the page behind it to 0x300000: a REP INSW of a sector across both.
    body = """
        mov edi, 0x100000
        mov ecx, 2048
        xor eax, eax
        rep stosd
        mov dword ptr [0x100000], 0x101007
        mov dword ptr [0x100004], 0x102007
        mov edi, 0x101000
        mov eax, 7
        mov ecx, 1024
1:      stosd
        add eax, 0x1000
        loop 1b
        mov edi, 0x102000
        mov ecx, 1024
        xor eax, eax
        rep stosd
        mov dword ptr [0x102000], 0x200007
        mov dword ptr [0x102004], 0x300007
        mov eax, offset on_fault
        mov ecx, 14
        mov dl, 0x8e
        call gate
        mov eax, 0x100000
        mov cr3, eax
        mov eax, cr0
        or eax, 0x80000000
        mov cr0, eax
        jmp 2f
2:      mov byte ptr [0x402123], 1      # none of these is mapped until the handler does it
        mov al, [0x403000]
        mov [0x404ffc], eax
        mov dx, 0x1f6
        mov al, 0xe0
        out dx, al
        mov dx, 0x1f2
        mov al, 1
        out dx, al
        inc dx
        mov al, 20
        out dx, al
        inc dx
        xor al, al
        out dx, al
        inc dx
        out dx, al
        mov dx, 0x1f7
        mov al, 0x20
        out dx, al
3:      in al, dx
        test al, 0x80
        jnz 3b
        test al, 8
        jz 3b
        mov dx, 0x1f0
        mov edi, 0x400f00       # 256 bytes in each page
        mov ecx, 256
        rep insw
        mov eax, [0x400f00]
        call hex32
        mov eax, [0x4010fc]
        call hex32
        mov eax, edi
        call hex32
        jmp poweroff32
on_fault:
        pop eax                 # the error code: bit 1 for writes
        push ecx
        call hex32
        mov eax, cr2
        call hex32
        mov ecx, cr2
        shr ecx, 12
        and ecx, 0x3ff
        mov dword ptr [0x102000 + ecx * 4], 0x301007
        pop ecx
        mov eax, cr3
        mov cr3, eax
        iret
    """
    program = protected(tmp_path, body).ljust(20 * SECTOR, b"\0")
    data = bytes(range(4)) * 127 + b"\x44\x33\x22\x11"
    ran = boot(tmp_path, program + data)
    first = int.from_bytes(data[:4], "little")
    faults = "0000000200402123" "0000000000403000" "0000000200404ffc"
    assert ran.console.endswith(f"{faults}{first:08x}1122334400401100")
    word_reads = [row for row in ran.guest["exits"]["rows"] if (row["kind"], row["address"], row["size"]) == ("pio_in", 0x1F0, 2)]
    assert sum(row["elements"] for row in word_reads) % 256 == 0


BUSMASTER = """
        mov eax, 0x80000904     # 00:01.1: bus master and I/O on
        mov dx, 0xcf8
        out dx, eax
        mov dx, 0xcfc
        mov ax, 5
        out dx, ax
        mov eax, 0x80000920
        mov dx, 0xcf8
        out dx, eax
        mov dx, 0xcfc
        in eax, dx
        and eax, 0xfff0
        mov ebp, eax            # the bus master's registers
        jmp dma_end
dma:    # EBX LBA, AL command, AH direction bit (8: to memory), table at 0x3000; LBA48 as two writes of each register
        push eax
        mov edx, ebp
        mov al, ah
        out dx, al
        lea edx, [ebp + 2]
        mov al, 6
        out dx, al
        lea edx, [ebp + 4]
        mov eax, 0x3000
        out dx, eax
        mov dx, 0x1f6
        mov al, 0xe0
        out dx, al
        mov dx, 0x1f2
        xor al, al
        out dx, al
        mov al, [sectors]
        out dx, al
        mov dx, 0x1f3
        mov eax, ebx
        shr eax, 24
        out dx, al
        mov al, bl
        out dx, al
        inc dx
        xor al, al
        out dx, al
        mov al, bh
        out dx, al
        inc dx
        xor al, al
        out dx, al
        mov eax, ebx
        shr eax, 16
        out dx, al
        mov dx, 0x1f7
        pop eax
        push eax
        out dx, al
        mov edx, ebp
        mov al, ah
        or al, 1
        out dx, al
        lea edx, [ebp + 2]
1:      in al, dx
        test al, 4
        jz 1b
        mov edx, ebp
        xor al, al
        out dx, al
        mov dx, 0x1f7
        in al, dx
        pop ecx
        ret
sectors: .byte 0
dma_end:
"""


def test_bus_master_dma_reads_and_writes_with_lba48(tmp_path: Path) -> None:
    body = BUSMASTER + """
        mov dword ptr [0x3000], 0x00800000      # two pieces of 24 KiB, of which the second begins at an odd place
        mov dword ptr [0x3004], 0x00006000
        mov dword ptr [0x3008], 0x00900002
        mov dword ptr [0x300c], 0x80006000
        mov byte ptr [sectors], 96
        mov ebx, 64
        mov ax, 0x0825
        call dma
        mov ebx, 512
        mov ax, 0x0035
        call dma
        mov dx, 0x1f7
        mov al, 0xea
        out dx, al
2:      in al, dx
        test al, 0x80
        jnz 2b
        mov al, '!'
        call putc32
        jmp poweroff32
    """
    data = random.Random(7).randbytes(96 * SECTOR)
    program = protected(tmp_path, body).ljust(64 * SECTOR, b"\0") + data
    ran = boot(tmp_path, program)
    assert ran.console.endswith("!")
    image = (tmp_path / "guest.img").read_bytes()
    assert hashlib.sha256(image[512 * SECTOR : 608 * SECTOR]).digest() == hashlib.sha256(data).digest()
    assert ran.guest["disks"][0]["bytes_written"] == 96 * SECTOR


def test_code_that_dma_replaced_is_run_anew(tmp_path: Path) -> None:
    # The page at 0x800000 is executed, then overwritten by DMA, then executed again.
    body = BUSMASTER + """
        mov dword ptr [0x3000], 0x00800000
        mov dword ptr [0x3004], 0x80000200
        mov byte ptr [sectors], 1
        mov ebx, 64
4:      push ebx
        mov ax, 0x0825
        call dma
        mov edi, 0x800000
        call edi
        call putc32
        pop ebx
        inc ebx
        cmp ebx, 70
        jb 4b
        jmp poweroff32
    """
    sectors = b"".join((b"\xb0" + bytes([letter]) + b"\xc3").ljust(SECTOR, b"\0") for letter in b"abcdef")
    ran = boot(tmp_path, protected(tmp_path, body).ljust(64 * SECTOR, b"\0") + sectors)
    assert ran.console.endswith("abcdef")


def test_serial_input_by_interrupt(tmp_path: Path) -> None:
    body = """
        cli
        mov dx, 0x3fa
        mov al, 0xc7            # FIFOs on and empty, an interrupt at 14 characters: the rest come by time-out
        out dx, al
        mov word ptr [0x30], offset irq4
        mov word ptr [0x32], 0
        mov dx, 0x3f9
        mov al, 1
        out dx, al
        mov dx, 0x3fc
        mov al, 0x0b
        out dx, al
        mov al, 0xef            # nothing but IRQ 4: the BIOS looks for serial input at every tick
        out 0x21, al
        mov si, offset text
        call puts
        sti
        1: hlt
        cmp byte ptr [last], '.'
        jne 1b
        jmp poweroff
irq4:   push ax
        push dx
        2: mov dx, 0x3fa        # the FIFO holds the line up until it is empty: an edge comes only after that
        in al, dx
        test al, 1
        jnz 3f
        mov dx, 0x3f8
        in al, dx
        mov [last], al
        xor al, 0x20
        call putc
        jmp 2b
        3: mov al, 0x20
        out 0x20, al
        pop dx
        pop ax
        iret
last:   .byte 0
text:   .asciz "ready"
    """
    image = tmp_path / "guest.img"
    image.write_bytes(real_mode(tmp_path, body).ljust(1 << 20, b"\0"))
    with Conversation("--disk", str(image), "--timeout", "60") as guest:
        guest.read_until(b"ready")          # the BIOS takes what comes before for keys
        guest.write(b"Shared Memory, at a length that no FIFO holds.")
        guest.read_until(b"sHARED\0mEMORY\x0c\0AT\0A\0LENGTH\0THAT\0NO\0fifo\0HOLDS\x0e")
        assert guest.wait() == 0


@pytest.mark.parametrize("access", ["ro", "rw"])
def test_bios_writes_reach_the_image_unless_it_is_read_only(tmp_path: Path, access: str) -> None:
    body = """
        mov ax, 0x0301
        mov bx, 0x7c00
        mov cx, 0x0003
        mov dx, 0x0080
        int 0x13
        mov al, ah
        call hex
        jmp poweroff
    """
    image = tmp_path / "disk.img"
    program = real_mode(tmp_path, body)
    image.write_bytes(program.ljust(1 << 20, b"\0"))
    topology = tmp_path / "t.toml"
    topology.write_text(f'[[guest]]\nname = "g"\ndisk = [{{ image = "disk.img", vdev = "hda", access = "{access}" }}]\n')
    ran = run(tmp_path, str(topology), "--timeout", "60")
    written = image.read_bytes()[2 * SECTOR : 3 * SECTOR]
    assert ran.status == 0
    assert (written == program) == (access == "rw")
    assert ran.console.endswith("00") == (access == "rw")


@pytest.mark.parametrize("how", ["cf9", "i8042", "port92"])
def test_reset_starts_over(tmp_path: Path, how: str) -> None:
    # A word on the disk outlives the reset: the second time round the program powers off.
    resets = {
        "cf9": "mov dx, 0xcf9\nmov al, 2\nout dx, al\nmov al, 6\nout dx, al",
        "i8042": "mov al, 0xfe\nout 0x64, al",
        "port92": "in al, 0x92\nor al, 1\nout 0x92, al",
    }
    body = f"""
        mov si, offset text
        call puts
        mov ax, 0x0201
        mov bx, 0x8000
        mov cx, 2
        mov dx, 0x80
        int 0x13
        cmp word ptr [0x8000], 0x5a5a
        je poweroff
        mov word ptr [0x8000], 0x5a5a
        mov ax, 0x0301
        int 0x13
        cli
        {resets[how]}
        1: hlt
        jmp 1b
        text: .asciz "up"
    """
    ran = boot(tmp_path, real_mode(tmp_path, body), "--timeout", "20")
    assert ran.guest["ended"] == "poweroff"
    assert ran.console.count("SeaBIOS") == 2
    assert ran.console.count("up") == 2
