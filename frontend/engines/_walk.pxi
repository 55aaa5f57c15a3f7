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

cdef struct Msr:               # x86.h, struct uc_x86_msr
    uint32_t index
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


cdef uint64_t load_entry(const uint64_t *entry, bint wide) noexcept nogil:
    return entry[0] if wide else (<const uint32_t *>entry)[0]


cdef bint walk(void *uc, State *state, const Mode *mode, uint32_t linear, int access, Page *page) noexcept nogil:
    """The page behind a linear address, noted as accessed and dirty. False: it faults, or that is not certain.

    The access may be one at supervisor level, to a descriptor, though the guest is in ring 3. What is allowed then is
    more; the rights told are those of ring 3.
    """
    cdef bint wide = mode.cr4 & CR4_PAE != 0, user = is_user(mode), writable
    cdef uint64_t unknown = 0, rights, directory_entry, leaf, needed, mask
    cdef uint64_t *directory
    cdef uint64_t *at
    if mode.cr4 & CR4_UNUSUAL or not mode.cr0 & CR0_PE:
        return False
    if wide:
        # Addresses of 4 GiB and more, of which there is nothing, and NX where it is reserved.
        unknown = 0x7fffffff00000000u if no_execute(uc, state) else 0xffffffff00000000u
        at = entry_at(state, (mode.cr3 & 0xffffffe0u) + (linear >> 30) * 8)
        if at == NULL or not at[0] & PRESENT or at[0] >> 32:
            return False
        directory = entry_at(state, (at[0] & 0xfffff000u) + (linear >> 21 & 511) * 8)
    else:
        directory = entry_at(state, (mode.cr3 & 0xfffff000u) + (linear >> 22) * 4)
    if directory == NULL:
        return False
    directory_entry = rights = leaf = load_entry(directory, wide)
    if not leaf & PRESENT or leaf & unknown:
        return False
    at = directory
    mask = 0xfff
    page.large = leaf & LARGE and (wide or mode.cr4 & CR4_PSE)
    if page.large:
        mask = 0x1fffff if wide else 0x3fffff
        if leaf & mask & ~<uint64_t>0x1fff:         # reserved, or high bits of an address
            return False
    else:
        at = entry_at(state, (leaf & 0xfffff000u) + ((linear >> 12 & 511) * 8 if wide else (linear >> 12 & 1023) * 4))
        if at == NULL:
            return False
        leaf = load_entry(at, wide)
        rights &= leaf
        if not leaf & PRESENT or leaf & unknown:
            return False
    writable = rights & WRITABLE or not (user or mode.cr0 & CR0_WP)
    page.executable = not (directory_entry | leaf) >> 63
    if (user and not rights & USER) or (access == UC_MEM_WRITE and not writable) or (
            access == UC_MEM_FETCH and not page.executable):
        return False
    if not directory_entry & ACCESSED:
        set_bits(<uint8_t *>directory, ACCESSED)
    needed = ACCESSED | DIRTY if access == UC_MEM_WRITE else ACCESSED
    if leaf & needed != needed:
        set_bits(<uint8_t *>at, <uint8_t>needed)
    page.writable = writable and (leaf | needed) & DIRTY
    page.frame = ((leaf & 0xffffffffu & ~mask) | (linear & mask)) >> FRAME_SHIFT
    return True
