"""Guests that page, made at random: what they did is in their RAM at the end, whoever translated.

A guest is a row of slots, one small thing in each: a load, a store, a call into what may be code, a string over the end of
a page, a new page table entry with its INVLPG. A page fault is noted, and goes on with the next slot.
"""
import random
import struct
from pathlib import Path

from machine import ENTER_PROTECTED, Machine, assemble

from miniguest.frontend.engines.engine import Stop

SLOTS, SLOT, STACK = 0x10000, 64, 0x1F000        # the user's, identity mapped, as are all 2 MiB of RAM for ring 0
LOG, NEXT_LOG = 0x20000, 0x3000
DIRECTORY, IDENTITY, TABLE, LARGE = 0x100000, 0x101000, 0x102000, 0x103000   # LARGE: PAE's second directory level
FRAMES = range(0x180, 0x190)
PAGES = 24
TEST, LARGE_TEST = 0x400000, 0x800000             # linear: pages of TABLE, two large pages from the start of memory
FUNCTIONS = range(0x400, 0x800, 0x40)             # offsets in each frame of `mov eax, value; ret`
DATA = (*range(0, 0x3C0, 0x24), *range(0x800, 0xF00, 0x2C), 0xFFC, 0xFFE)
NX = 1 << 63
PRESENT, WRITABLE, USER, BIG = 1, 2, 4, 0x80

KERNEL = ENTER_PROTECTED + """
pm:     mov ax, 0x23
        mov ds, ax
        mov es, ax
        mov ax, 16
        mov ss, ax
        mov esp, {stack}
        mov dword ptr [0x4004], 0x6f00
        mov dword ptr [0x4008], 16
        mov ax, 0x28
        ltr ax
        mov dword ptr [0x5000 + 14 * 8], offset fault + 0x80000
        mov dword ptr [0x5004 + 14 * 8], 0xee00
        mov dword ptr [0x5000 + 0x30 * 8], offset service + 0x80000
        mov dword ptr [0x5004 + 0x30 * 8], 0xee00
        mov dword ptr [{next_log}], {log}
        .if {nx}
        mov ecx, 0xc0000080
        mov eax, 0x800
        xor edx, edx
        wrmsr
        .endif
        mov eax, {cr4}
        mov cr4, eax
        mov eax, {cr3}
        mov cr3, eax
        mov eax, cr0
        or eax, 0x80010000
        mov cr0, eax
        xor edx, edx
        mov eax, {slots}
        jmp eax
fault:  push eax
        push ebx
        mov ebx, [{next_log}]
        mov eax, [esp + 8]
        mov [ebx], eax                  # error code, CR2, EIP, ECX, ESI, EDI, EDX, EAX
        mov eax, cr2
        mov [ebx + 4], eax
        mov eax, [esp + 12]
        mov [ebx + 8], eax
        mov [ebx + 12], ecx
        mov [ebx + 16], esi
        mov [ebx + 20], edi
        mov [ebx + 24], edx
        mov eax, [esp + 4]
        mov [ebx + 28], eax
        add ebx, 32
        mov [{next_log}], ebx
        mov [esp + 12], ebp
        pop ebx
        pop eax
        add esp, 4
        iret
service: cmp eax, 1                     # 0: write an entry, INVLPG; 1: the same with CR3; 2: WP; 3: ring 0; 4: ring 3
        ja 1f
        mov [ebx], ecx
        .if {wide}
        mov [ebx + 4], edi
        .endif
        test eax, eax
        jnz 2f
        invlpg [esi]
        iret
2:      mov eax, cr3
        mov cr3, eax
        iret
1:      cmp eax, 3
        ja 4f
        je 3f
        mov eax, cr0
        xor eax, 0x10000
        mov cr0, eax
        iret
3:      mov ax, 16
        mov ss, ax
        mov esp, {stack}
        jmp ebp
4:      push 0x23
        push {stack}
        pushfd
        push 0x1b
        push ebp
        iret
"""


class Guest:
    """kind: 32, pse, pae or nx. It never patches a function through a page that may not be executed: who translates decides
    what Unicorn does then."""

    def __init__(self, directory: Path, kind: str, seed: int, slots: int = 250) -> None:
        self.random = random.Random(f"{kind} {seed}")
        self.kind = kind
        self.wide = kind in ("pae", "nx")
        self.entries = [0] * PAGES
        self.machine = Machine(b"")
        self.slots = self.ring = 0
        self.calls_large = bool(seed & 1)       # functions in large pages
        self.kernel = assemble_kernel(directory, kind)
        self._lay_out()
        for _ in range(slots):
            self._slot(self._action())
        self._slot(self._call_service(3))
        self._slot(b"\xf4")

    def run(self, by_unicorn: bool) -> bytes:
        """All of its RAM, once it has halted, and how many blocks it executed."""
        if by_unicorn:
            self.machine.engine.leave_translation()
        while (stop := self.machine.run()) is Stop.KICK:        # its WRMSR was found
            pass
        assert stop is Stop.HALT, self.machine.engine.crash
        return bytes(self.machine.ram) + dword(self.machine.engine.blocks)

    # -- memory
    def _lay_out(self) -> None:
        ram = self.machine.ram
        self.machine.load(self.kernel)
        for page in range(512):
            flags = PRESENT | WRITABLE | (USER if 0x10 <= page < 0x20 else 0)
            self._set(IDENTITY, page, page << 12 | flags)
        for frame in FRAMES:
            ram[frame << 12 : (frame + 1) << 12] = self.random.randbytes(4096)
            for offset in FUNCTIONS:
                ram[(frame << 12) + offset : (frame << 12) + offset + 6] = function(self.random.randrange(1 << 32))
        for page in range(PAGES):
            self._set(TABLE, page, self._new_entry(page))
        if self.wide:
            self._set(DIRECTORY, 0, LARGE | PRESENT)
        top = LARGE if self.wide else DIRECTORY
        self._set(top, 0, IDENTITY | 7)
        self._set(top, self._top_index(TEST), TABLE | 7)
        if self.kind != "32":
            for index in range(2):
                self._set(top, self._top_index(LARGE_TEST) + index, self._large_entry())

    def _top_index(self, linear: int) -> int:
        return linear >> (21 if self.wide else 22)

    def _place(self, table: int, index: int) -> int:
        return table + index * (8 if self.wide else 4)

    def _set(self, table: int, index: int, value: int) -> None:
        at = self._place(table, index)
        self.machine.ram[at : at + (8 if self.wide else 4)] = value.to_bytes(8 if self.wide else 4, "little")

    def _new_entry(self, page: int) -> int:
        flags = sum(bit for bit in (PRESENT, WRITABLE, USER) if self.random.random() < 0.8)
        value = self.random.choice(FRAMES) << 12 | flags | (0x20 if self.random.random() < 0.2 else 0)
        if self.wide and (chance := self.random.random()) < 0.3:
            value |= NX if chance < 0.25 else 1 << self.random.randrange(40, 52)
        self.entries[page] = value
        return value

    def _large_entry(self) -> int:
        flags = sum(bit for bit in (PRESENT, WRITABLE, USER) if self.random.random() < 0.9)
        return flags | BIG | ((1 << 13 if self.wide else 1 << 21) if self.random.random() < 0.1 else 0)

    # -- what it does
    def _linear(self, offset: int, patch: bool = False, call: bool = False) -> int:
        """An address in the test's pages."""
        if self.kind != "32" and self.random.random() < 0.3 and (self.calls_large or not call):
            large = LARGE_TEST + self.random.randrange(2) * (1 << (21 if self.wide else 22))
            return large + (self.random.choice(FRAMES) << 12) + offset
        pages = [page for page in range(PAGES) if not (patch and self.entries[page] & NX)]
        return TEST + (self.random.choice(pages) << 12) + offset

    def _action(self) -> bytes:
        weights = {self._load: 4, self._store: 6, self._modify: 3, self._patch: 6, self._call: 8, self._string: 3, self._entry: 5,
                   self._large: 2, self._mode: 2}
        return self.random.choices(list(weights), list(weights.values()))[0]()

    def _load(self) -> bytes:
        return b"\x03\x15" + dword(self._linear(self.random.choice(DATA)))              # add edx, [linear]

    def _store(self) -> bytes:
        first = b"\x89\x15" + dword(self._linear(self.random.choice(DATA)))             # mov [linear], edx
        second = b"\xc7\x05" + dword(self._linear(self.random.choice(DATA))) + dword(self.random.randrange(1 << 32))
        return first + second if self.random.random() < 0.5 else second

    def _modify(self) -> bytes:
        """Loads and stores of one instruction. RCL and RCR are not among them: in Unicorn, of a page that is read-only, they
        change CF before they fault, and so once more when they are tried again."""
        address = dword(self._linear(self.random.choice(DATA)))
        stack = b"\x89\xe3\x8d\x25" + address + b"\x60\x61\x89\xdc"       # pushad and popad, on a stack there
        return self.random.choice([
            stack if self.ring else b"\x90",        # in ring 0 a fault of it would be a triple one
            b"\xd1\x05" + address,                  # rol dword ptr [linear], 1
            b"\xc1\x3d" + address + b"\x03",         # sar dword ptr [linear], 3
            b"\x0f\xbb\x15" + address,              # btc [linear], edx
            b"\xff\x05" + address,                  # inc dword ptr [linear]
            b"\x19\x15" + address + b"\x0f\x92\x05" + address,          # sbb [linear], edx; setb [linear]
            b"\x0f\xa5\x15" + address,              # shld [linear], edx, cl
            b"\xf0\x01\x15" + address,              # lock add [linear], edx
            b"\x87\x15" + address,                  # xchg edx, [linear]
            b"\x0f\xb1\x15" + address,              # cmpxchg [linear], edx
            b"\x11\x15" + address,                  # adc [linear], edx
        ])

    def _patch(self) -> bytes:
        """Change the value that a function returns."""
        linear = self._linear(self.random.choice(FUNCTIONS) + 1, patch=True)
        return b"\xc7\x05" + dword(linear) + dword(self.random.randrange(1 << 32))

    def _call(self) -> bytes:
        linear = self._linear(self.random.choice(FUNCTIONS), call=True)
        return b"\xb9" + dword(linear) + b"\xff\xd1\x31\xc2\xd1\xc2"      # mov ecx, linear; call ecx; xor edx, eax; rol edx

    def _string(self) -> bytes:
        """MOVS or STOS, often over the end of a page into one that is not there."""
        count = self.random.randrange(1, 40)
        to = self._linear(self.random.choice((0xF80, 0xFF0, 0x900)))
        start = self._linear(self.random.choice((0xF80, 0xFF2, 0x900)))
        code = b"\xb9" + dword(count) + b"\xbf" + dword(to) + b"\xbe" + dword(start)
        return code + self.random.choice((b"\xf3\xa5", b"\xf3\xa4", b"\xf3\xab", b"\xf3\xaa", b"\xf3\xa6"))

    def _entry(self) -> bytes:
        page = self.random.randrange(PAGES)
        value = self._new_entry(page)
        return self._call_service(self.random.randrange(2), self._place(TABLE, page), value, TEST + (page << 12) + 0x123)

    def _large(self) -> bytes:
        """A large page changes, and INVLPG names any address in it. Code there Unicorn would go on executing, where it has it
        at hand, until CR3 is written."""
        if self.kind == "32":
            return self._entry()
        size = 1 << (21 if self.wide else 22)
        linear = LARGE_TEST + self.random.randrange(2) * size
        place = self._place(LARGE if self.wide else DIRECTORY, self._top_index(linear))
        return self._call_service(int(self.calls_large), place, self._large_entry(), linear + self.random.randrange(size))

    def _mode(self) -> bytes:
        number = self.random.choice((2, 3, 4, 4))
        self.ring = {3: 0, 4: 3}.get(number, self.ring)
        return self._call_service(number)

    def _call_service(self, number: int, place: int = 0, value: int = 0, linear: int = 0) -> bytes:
        code = b"\xb8" + dword(number)
        if place:
            code += b"\xbb" + dword(place) + b"\xb9" + dword(value) + b"\xbf" + dword(value >> 32) + b"\xbe" + dword(linear)
        return code + b"\xcd\x30"

    def _slot(self, code: bytes) -> None:
        at = SLOTS + self.slots * SLOT
        code = b"\xbd" + dword(at + SLOT) + b"\xbc" + dword(STACK) + code         # mov ebp, next slot; mov esp, stack
        jump = b"\xff\xe5"                                                        # jmp ebp
        assert len(code) + len(jump) <= SLOT
        self.machine.ram[at : at + SLOT] = (code + jump).ljust(SLOT, b"\x90")
        self.slots += 1


def assemble_kernel(directory: Path, kind: str) -> bytes:
    """The part that all guests of a kind share."""
    wide = kind in ("pae", "nx")
    cr4 = {"32": 0, "pse": 0x10}.get(kind, 0x20)
    return assemble(directory, KERNEL.format(
        stack=STACK, next_log=NEXT_LOG, log=LOG, nx=int(kind == "nx"), wide=int(wide), cr4=cr4, cr3=DIRECTORY, slots=SLOTS))


def function(value: int) -> bytes:
    """mov eax, value; ret"""
    return b"\xb8" + dword(value) + b"\xc3"


def dword(value: int) -> bytes:
    return struct.pack("<I", value & 0xFFFFFFFF)
