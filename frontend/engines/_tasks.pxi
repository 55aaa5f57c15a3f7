# Task switches, which Unicorn translates for by itself.
#
# It reads descriptors when it has the new task's EIP and flags already. A miss of the TLB would undo that: our hook is called
# with the state that the instruction began with. The instructions that may switch tasks end a block; there they are looked
# for when the block is new, and get a hook.
cdef enum:
    LONGEST_FAR = 7            # bytes of a far jump or call, without prefixes


cdef bint has_tasks(void *uc, State *state) noexcept nogil:
    """Protected mode."""
    cdef uint32_t cr0 = 0
    state.reg_read(uc, UC_X86_REG_CR0, &cr0)
    return cr0 & CR0_PE


cdef bint is_prefix(uint8_t byte) noexcept nogil:
    """An operand or address size, or a segment."""
    return byte in (0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67)


cdef void find_far(void *uc, State *state, uint64_t pc, const uint8_t *code, uint32_t size) noexcept nogil:
    """A far jump, a far call or an IRET at the end of a block: 9A and EA with 4 or 6 bytes, FF /3 and /5 with 1 to 6, CF."""
    cdef uint32_t back, first
    cdef uint8_t byte
    cdef int found = FOUND_MSR
    for back in range(1, min(size, LONGEST_FAR) + 1):
        byte = code[size - back]
        if (byte == 0x9a or byte == 0xea) and (back == 5 or back == 7):
            found = FOUND_FAR
        elif byte == 0xff and back > 1 and (code[size - back + 1] >> 3 & 7) in (3, 5) and code[size - back + 1] < 0xc0:
            found = FOUND_FAR
        elif byte == 0xcf and back == 1:
            found = FOUND_IRET
        else:
            continue
        if has_tasks(uc, state):                    # where it has none, the block is another one
            first = size - back
            while first and is_prefix(code[first - 1]):
                first -= 1
            with gil:
                (<object>state.on_found)(found, pc + first, pc + size - back, pc, size)


cdef void on_far(void *uc, uint64_t address, uint32_t size, State *state) noexcept nogil:
    """UC_HOOK_CODE, in front of a far jump or call."""
    if has_tasks(uc, state):
        lend(uc, state)


cdef void on_iret(void *uc, uint64_t address, uint32_t size, State *state) noexcept nogil:
    """UC_HOOK_CODE, in front of an IRET. That switches tasks when NT is set."""
    cdef uint32_t flags = 0
    if has_tasks(uc, state):                        # the flags take longer to read
        state.reg_read(uc, UC_X86_REG_EFLAGS, &flags)
        if flags & EFLAGS_NT:
            lend(uc, state)
