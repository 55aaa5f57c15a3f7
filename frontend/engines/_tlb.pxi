# The TLB's entries: which pages may be written without a check for translated code.
#
# Unicorn checks each store to a page that can be executed: 77 ns instead of 6. By itself it takes every page for one that
# can be; here only those are whose frame code was ever fetched from, through whatever address. The rule: no entry lets a
# store to a frame that holds code pass unchecked. So the first fetch from a frame that such an entry was made for flushes
# the TLB, and what was fetched from gets the right to execute, which makes Unicorn check.
#
# An access that the tables do not allow, or may not, is refused. That ends the run before the access is made, as exactly as
# a page fault would. The engine lends translation to Unicorn and starts again: Unicorn makes the access, or the fault, and
# with the next block translation is ours again.
cdef enum:
    UC_PROT_READ = 1
    UC_PROT_WRITE = 2
    UC_CTL_TB_REMOVE = 1 << 30 | 2 << 26 | 9
    UC_CTL_TLB_FLUSH = 1 << 30 | 11
    UC_CTL_TLB_TYPE = 1 << 30 | 1 << 26 | 12
    UC_TLB_CPU = 0
    UC_TLB_VIRTUAL = 1

cpdef enum:                    # Watch.refused
    REFUSED_NONE = 0
    REFUSED_DATA = 1           # in the middle of a block
    REFUSED_FETCH = 2          # in front of one
    REFUSED_ALIAS = 3          # a page that may not be executed, of a frame that holds code

cdef struct TlbEntry:          # unicorn.h, struct uc_tlb_entry
    uint64_t paddr
    uint32_t perms


cdef bint has_bit(const uint8_t *bits, uint64_t frame) noexcept nogil:
    return bits[frame >> 3] >> (frame & 7) & 1


cdef void set_bit(uint8_t *bits, uint64_t frame) noexcept nogil:
    bits[frame >> 3] |= 1 << (frame & 7)


cdef void flush_tlb(void *uc, State *state) noexcept nogil:
    state.ctl(uc, UC_CTL_TLB_FLUSH)
    memset(state.unchecked_frames, 0, FRAMES // 8)


cdef void note_fetch(void *uc, State *state, uint64_t frame) noexcept nogil:
    """Code is fetched from a frame: from now on stores to it are checked."""
    if has_bit(state.unchecked_frames, frame):
        flush_tlb(uc, state)
    set_bit(state.code_frames, frame)


cdef void lend(void *uc, State *state) noexcept nogil:
    """Unicorn translates, until the next block begins."""
    state.lent = True
    state.ctl(uc, UC_CTL_TLB_TYPE, <int>UC_TLB_CPU)


cdef void take_back(void *uc, State *state) noexcept nogil:
    """Translation is ours again. Unicorn lets all pages be executed, so that it checks stores to them, but those with NX."""
    state.lent = False
    state.ctl(uc, UC_CTL_TLB_TYPE, <int>UC_TLB_VIRTUAL)
    if no_execute(uc, state):
        flush_tlb(uc, state)


cdef void tell_large_page(void *uc, State *state, uint32_t linear, int access) noexcept nogil:
    """Have Unicorn's own walk note that a large page is there, so that INVLPG for any address in it forgets all of it."""
    cdef uint64_t physical
    cdef int prot = UC_PROT_READ
    if access == UC_MEM_WRITE:
        prot = UC_PROT_WRITE
    elif access == UC_MEM_FETCH:
        prot = UC_PROT_EXEC
    state.ctl(uc, UC_CTL_TLB_TYPE, <int>UC_TLB_CPU)
    state.vmem_translate(uc, linear, prot, &physical)
    state.ctl(uc, UC_CTL_TLB_TYPE, <int>UC_TLB_VIRTUAL)


cdef bint refuse(State *state, int why) noexcept nogil:
    state.refused = why
    return False


cdef bint on_tlb_fill(void *uc, uint64_t address, int access, TlbEntry *entry, State *state) noexcept nogil:
    """UC_HOOK_TLB_FILL, of UC_TLB_VIRTUAL: a page that is in no TLB. False ends the run before the access is made."""
    cdef Mode mode
    cdef Page page
    cdef uint32_t linear = <uint32_t>address
    page.frame, page.writable, page.executable, page.large = linear >> FRAME_SHIFT, True, True, False
    entry.paddr, entry.perms = <uint64_t>page.frame << FRAME_SHIFT, UC_PROT_READ | UC_PROT_EXEC
    if state.physical:
        return True
    read_mode(uc, state, &mode)
    if mode.cr0 & CR0_PG:
        if not walk(uc, state, &mode, linear, access, &page):
            return refuse(state, REFUSED_FETCH if access == UC_MEM_FETCH else REFUSED_DATA)
        entry.paddr = page.frame << FRAME_SHIFT
    if access == UC_MEM_FETCH:
        note_fetch(uc, state, page.frame)
    if page.large:                                  # behind any flush, which would forget that again
        tell_large_page(uc, state, linear, access)
    return grant(state, &page, entry)


cdef bint grant(State *state, const Page *page, TlbEntry *entry) noexcept nogil:
    """The rights to a page that the guest has, less those to execute and to write that would let a store pass unchecked.

    A page that may not be executed, of a frame that holds code: no entry makes Unicorn check its stores. The code goes first.
    """
    entry.perms = UC_PROT_READ | (UC_PROT_WRITE if page.writable else 0)
    if not has_bit(state.code_frames, page.frame):
        if page.writable:
            set_bit(state.unchecked_frames, page.frame)
    elif page.executable:
        entry.perms |= UC_PROT_EXEC
    else:
        state.alias = page.frame
        return refuse(state, REFUSED_ALIAS)
    return True


cdef void forget_frame(void *uc, State *state, uint64_t frame) noexcept nogil:
    """Drop a frame's translated code. Unicorn wants a linear address that can be fetched from, which may not exist."""
    cdef uint64_t gpa = frame << FRAME_SHIFT
    state.ctl(uc, UC_CTL_TLB_TYPE, <int>UC_TLB_VIRTUAL)
    flush_tlb(uc, state)
    state.physical = True
    state.ctl(uc, UC_CTL_TB_REMOVE, gpa, gpa + (1 << FRAME_SHIFT))
    state.physical = False
    flush_tlb(uc, state)
    state.code_frames[frame >> 3] &= ~(1 << (frame & 7))
    if state.lent:
        lend(uc, state)
