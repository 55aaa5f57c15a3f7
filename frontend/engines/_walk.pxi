# What the guest's page tables say of an access, where that is certain: Intel SDM volume 3, sections 4.3 (32-bit), 4.4 (PAE),
# 4.6 (rights) and 4.8 (accessed and dirty). All that faults, and all that is rare, is left to Unicorn's own walk.
cdef enum:
    UC_MEM_WRITE = 17
    UC_MEM_FETCH = 18
    UC_X86_REG_CR3 = 53
    UC_X86_REG_CR4 = 54
    UC_X86_REG_SS = 49
    UC_X86_REG_MSR = 248
    CR0_PE = 1
    CR0_WP = 0x10000
    CR0_PG = 0x80000000u
    CR4_PSE = 1 << 4
    CR4_PAE = 1 << 5
    CR4_UNUSUAL = 1 << 12 | 1 << 20 | 1 << 21 | 1 << 22    # LA57, SMEP, SMAP, PKE
    EFLAGS_NT = 0x4000
    EFLAGS_VM = 0x20000
    MSR_EFER = 0xc0000080u
    EFER_NXE = 0x800
    PRESENT = 1
    WRITABLE = 1 << 1
    USER = 1 << 2
    ACCESSED = 1 << 5
    DIRTY = 1 << 6
    LARGE = 1 << 7
    VGA_START = 0xa0000        # a hole in RAM
    VGA_END = 0xc0000

cdef struct Mode:              # what translation depends on, as reg_read_batch gives it
    uint64_t cr0
    uint64_t cr3
    uint64_t cr4
    uint64_t cs
    uint64_t ss
    uint64_t flags
    uint64_t unknown           # bits of entries; not a register

cdef struct Msr:               # x86.h, struct uc_x86_msr
    uint32_t index
    uint64_t value

cdef struct Entry:             # of a page directory or table
    uint64_t *at
    uint64_t value

cdef struct Page:              # 4 KiB, be it a part of a large page
    uint64_t frame
    bint writable              # without anything more to note in the tables
    bint executable
    bint large

cdef int[6] MODE_REGISTERS = [UC_X86_REG_CR0, UC_X86_REG_CR3, UC_X86_REG_CR4, UC_X86_REG_CS, UC_X86_REG_SS, UC_X86_REG_EFLAGS]


cdef void read_mode(void *uc, State *state, Mode *mode) noexcept nogil:
    cdef void *values[6]
    cdef int i
    memset(mode, 0, sizeof(Mode))                   # most of them are narrower than their place
    for i in range(6):
        values[i] = <uint64_t *>mode + i
    state.reg_read_batch(uc, MODE_REGISTERS, values, 6)


cdef bint no_execute(void *uc, State *state) noexcept nogil:
    """EFER.NXE."""
    cdef Msr efer
    efer.index, efer.value = MSR_EFER, 0
    state.reg_read(uc, UC_X86_REG_MSR, &efer)
    return efer.value & EFER_NXE != 0


cdef bint is_user(const Mode *mode) noexcept nogil:
    """Whether the guest is in ring 3. Of two selectors that disagree, in the middle of a change, the lesser one counts."""
    return mode.flags & EFLAGS_VM or mode.cs & 3 == 3 or mode.ss & 3 == 3


cdef uint64_t *entry_at(State *state, uint64_t gpa) noexcept nogil:
    """An entry of a table, of 4 or 8 bytes; NULL where no RAM is."""
    if gpa + 8 > state.ram_size or VGA_START <= gpa < VGA_END:
        return NULL
    return <uint64_t *>(state.ram + gpa)


cdef bint read_entry(State *state, const Mode *mode, Entry *entry, uint64_t table, uint32_t index) noexcept nogil:
    """The entry of a table that begins at the frame of `table`. False: it is not present, or what it says is unusual."""
    cdef bint wide = mode.cr4 & CR4_PAE != 0
    entry.at = entry_at(state, (table & 0xfffff000u) + index * (8 if wide else 4))
    if entry.at == NULL:
        return False
    entry.value = entry.at[0] if wide else (<const uint32_t *>entry.at)[0]
    return entry.value & PRESENT and not entry.value & mode.unknown


cdef bint find_directory(State *state, const Mode *mode, uint32_t linear, Entry *directory) noexcept nogil:
    """The entry of the page directory."""
    cdef uint64_t *pointer
    if not mode.cr4 & CR4_PAE:
        return read_entry(state, mode, directory, mode.cr3, linear >> 22)
    pointer = entry_at(state, (mode.cr3 & 0xffffffe0u) + (linear >> 30) * 8)
    if pointer == NULL or not pointer[0] & PRESENT or pointer[0] >> 32:
        return False
    return read_entry(state, mode, directory, pointer[0], linear >> 21 & 511)


cdef bint find_leaf(State *state, const Mode *mode, uint32_t linear, const Entry *directory, Entry *leaf, Page *page) noexcept nogil:
    """The entry that names the frame, and which frame that is."""
    cdef uint64_t inside = 0xfff                    # the bits of an address that are the page's own
    page.large = directory.value & LARGE and mode.cr4 & (CR4_PSE | CR4_PAE)
    if page.large:
        leaf[0] = directory[0]
        inside = 0x1fffff if mode.cr4 & CR4_PAE else 0x3fffff
        if leaf.value & inside & ~<uint64_t>0x1fff: # reserved, or high bits of an address
            return False
    elif not read_entry(state, mode, leaf, directory.value, linear >> 12 & (511 if mode.cr4 & CR4_PAE else 1023)):
        return False
    page.frame = ((leaf.value & 0xffffffffu & ~inside) | (linear & inside)) >> FRAME_SHIFT
    return True


cdef bint walk(void *uc, State *state, Mode *mode, uint32_t linear, int access, Page *page) noexcept nogil:
    """The page behind a linear address, noted as accessed and dirty. False: it faults, or that is not certain.

    The access may be one at supervisor level, to a descriptor, though the guest is in ring 3. What is allowed then is
    more; the rights told are those of ring 3.
    """
    cdef Entry directory, leaf
    cdef bint user = is_user(mode), writable
    cdef uint64_t rights
    if mode.cr4 & CR4_UNUSUAL or not mode.cr0 & CR0_PE:
        return False
    if mode.cr4 & CR4_PAE:                          # 4 GiB and more, of which there is nothing; NX where it is reserved
        mode.unknown = 0x7fffffff00000000u if no_execute(uc, state) else 0xffffffff00000000u
    if not find_directory(state, mode, linear, &directory) or not find_leaf(state, mode, linear, &directory, &leaf, page):
        return False
    rights = directory.value & leaf.value
    writable = rights & WRITABLE or not (user or mode.cr0 & CR0_WP)
    page.executable = not (directory.value | leaf.value) >> 63
    if user and not rights & USER:
        return False
    if (access == UC_MEM_WRITE and not writable) or (access == UC_MEM_FETCH and not page.executable):
        return False
    page.writable = note_access(&directory, &leaf, access) and writable
    return True


cdef bint note_access(const Entry *directory, const Entry *leaf, int access) noexcept nogil:
    """Note an access in the tables. Whether the page is noted as dirty."""
    cdef uint64_t bits = ACCESSED | DIRTY if access == UC_MEM_WRITE else ACCESSED
    if not directory.value & ACCESSED:
        set_bits(<uint8_t *>directory.at, ACCESSED)
    if leaf.value & bits != bits:
        set_bits(<uint8_t *>leaf.at, <uint8_t>bits)
    return (leaf.value | bits) & DIRTY != 0
