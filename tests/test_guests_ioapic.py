"""A guest whose interrupts come through the I/O APIC: the timer on pin 2, the UART on pin 4 as a level, the 8259As on pin 0."""
from pathlib import Path

from guests import Ran, boot, run
from test_guests import protected

SYMMETRIC = """
        mov al, 0xff            # the PICs say nothing, and nothing they say is heard
        out 0x21, al
        out 0xa1, al
        mov dword ptr [0xfee000f0], 0x1ff
        mov dword ptr [0xfee00350], 0x10000
        mov edx, 1
        call window
        call hex32
        mov eax, offset on_timer
        mov ecx, 0x30
        mov dl, 0x8e
        call gate
        mov eax, offset on_uart
        mov ecx, 0x31
        mov dl, 0x8e
        call gate
        mov eax, offset on_intr
        mov ecx, 8              # what SeaBIOS told the PIC
        mov dl, 0x8e
        call gate
        mov al, 0x34            # 100 Hz
        out 0x43, al
        mov al, 0x9c
        out 0x40, al
        mov al, 0x2e
        out 0x40, al

        mov ecx, 0x30           # pin 2: edges
        mov edx, 0x14
        call program
1:      sti
        hlt
        cli
        cmp dword ptr [ticks], 20
        jb 1b
        mov ecx, 0x10000
        mov edx, 0x14
        call program
        mov al, 'T'
        call putc32

        mov ecx, 0x8031         # pin 4: a level
        mov edx, 0x18
        call program
        mov dx, 0x3fc
        mov al, 8
        out dx, al
        mov dx, 0x3f9
        mov al, 2               # the transmitter is empty
        out dx, al
1:      sti
        hlt
        cli
        cmp dword ptr [heard], 3
        jb 1b
        mov edx, 0x18
        call window
        call hex32
        mov al, 'U'
        call putc32

        mov ecx, 0x700          # pin 0: what the PICs say
        mov edx, 0x10
        call program
        mov al, 0xfe
        out 0x21, al
1:      sti
        hlt
        cli
        cmp dword ptr [intrs], 3
        jb 1b
        mov al, 'E'
        call putc32
        jmp poweroff32

window: mov dword ptr [0xfec00000], edx
        mov eax, [0xfec00010]
        ret
program: # EDX index of an entry's low word, ECX what it becomes; the high word is 0: processor 0
        inc edx
        mov dword ptr [0xfec00000], edx
        mov dword ptr [0xfec00010], 0
        dec edx
        mov dword ptr [0xfec00000], edx
        mov dword ptr [0xfec00010], ecx
        ret
on_timer:
        inc dword ptr [ticks]
        mov dword ptr [0xfee000b0], 0
        iret
on_uart:                        # the third time it is asked what it wants: until then it goes on
        push eax
        push edx
        inc dword ptr [heard]
        cmp dword ptr [heard], 3
        jb 1f
        mov dx, 0x3f9
        xor al, al
        out dx, al
1:      mov dword ptr [0xfee000b0], 0
        pop edx
        pop eax
        iret
on_intr:
        push eax
        inc dword ptr [intrs]
        mov al, 0x20
        out 0x20, al
        pop eax
        iret
ticks:  .long 0
heard:  .long 0
intrs:  .long 0
"""


TOPOLOGY = """
[[guest]]
name = "g"
memory = 16
disk = [{ image = "guest.img", vdev = "hda" }]
"""
REPLAY = TOPOLOGY + 'engine = "replay"\ntrace = "trace"\n'


def check(ran: Ran) -> None:
    assert (ran.status, ran.guest["ended"]) == (0, "poweroff"), ran.stderr
    assert ran.console.endswith("00170011T00008031UE")      # no remote IRR is left


def counted(ran: Ran) -> list[tuple[object, ...]]:
    names = ("kind", "device", "address", "size", "exits", "elements")
    return [tuple(row[name] for name in names) for row in ran.guest["exits"]["rows"]]


def test_a_guest_in_symmetric_mode_and_its_recording(tmp_path: Path) -> None:
    (tmp_path / "record.toml").write_text(TOPOLOGY)
    (tmp_path / "replay.toml").write_text(REPLAY)
    (tmp_path / "guest.img").write_bytes(protected(tmp_path, SYMMETRIC).ljust(1 << 20, b"\0"))
    first = run(tmp_path, str(tmp_path / "record.toml"), "--record", str(tmp_path / "trace"), "--timeout", "60")
    check(first)
    assert {row[1] for row in counted(first)} >= {"ioapic", "lapic"}
    again = run(tmp_path, str(tmp_path / "replay.toml"), "--timeout", "60")
    check(again)
    assert counted(again) == counted(first)


def test_a_guest_in_symmetric_mode_in_real_and_in_virtual_time(tmp_path: Path) -> None:
    program = protected(tmp_path, SYMMETRIC)
    check(boot(tmp_path, program))
    (tmp_path / "virtual.toml").write_text('clock = "virtual"' + TOPOLOGY)
    one, other = (run(tmp_path, str(tmp_path / "virtual.toml"), "--timeout", "60") for _ in range(2))
    check(one)
    check(other)
    assert counted(one) == counted(other)
