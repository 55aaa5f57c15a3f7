# Which pages may be executed, for as long as the guest neither pages nor leaves ring 0.
#
# Unicorn checks each store to a page that can be executed for translated code: 77 ns instead of 6. By itself it takes every
# page for one that can be; here only those are that were ever fetched from.
cdef enum:
    UC_MEM_FETCH = 18
    FLAT_PERMISSIONS = 3       # read and write
    CR0_PE = 1
    CR0_PG = 0x80000000u
    EFLAGS_VM = 0x20000

cdef struct TlbEntry:          # unicorn.h, struct uc_tlb_entry
    uint64_t paddr
    uint32_t perms


cdef bint is_flat(void *uc, State *state) noexcept nogil:
    """Whether linear addresses are physical ones and the guest is in ring 0, whose entries of the TLB are the only ones."""
    cdef uint32_t cr0 = 0, cs = 0, flags = 0
    state.reg_read(uc, UC_X86_REG_CR0, &cr0)
    state.reg_read(uc, UC_X86_REG_CS, &cs)
    state.reg_read(uc, UC_X86_REG_EFLAGS, &flags)
    return not cr0 & CR0_PG and (not cr0 & CR0_PE or (not cs & 3 and not flags & EFLAGS_VM))


cdef bint on_tlb_fill(void *uc, uint64_t address, int access, TlbEntry *entry, State *state) noexcept nogil:
    """UC_HOOK_TLB_FILL, of UC_TLB_VIRTUAL: a page that is in no TLB. False ends the run before the access is made: the
    engine then leaves translation to Unicorn."""
    cdef uint32_t frame = <uint32_t>(address >> FRAME_SHIFT) & (FRAMES - 1)
    if not is_flat(uc, state):
        state.left_flat = True
        return False
    if access == UC_MEM_FETCH:
        state.fetched_frames[frame >> 3] |= 1 << (frame & 7)
    entry.paddr = <uint64_t>frame << FRAME_SHIFT
    entry.perms = FLAT_PERMISSIONS
    if state.fetched_frames[frame >> 3] >> (frame & 7) & 1:
        entry.perms |= UC_PROT_EXEC
    return True
