# What is done at every block (kicks, timers, interrupt windows) and at new ones (which frames hold translated code, and the
# search for RDMSR, WRMSR and task switches).
cdef enum:
    EFLAGS_IF = 0x200
    STI_OPCODE = 0xfb
    POP_SS_OPCODE = 0x17
    MOV_SREG_OPCODE = 0x8e
    LONGEST_MOV = 7            # bytes of MOV SS with a SIB byte and a 32-bit displacement
    LONGEST_BLOCK = 4096       # bytes
    PATIENCE = 255             # blocks between looks at the clock

cdef struct Block:             # unicorn.h, struct uc_tb
    uint64_t pc
    uint16_t icount
    uint16_t size


cdef bint loads_ss(const uint8_t *code, uint32_t size) noexcept nogil:
    """Whether `size` bytes of code may end with POP SS or MOV SS."""
    cdef uint32_t i
    if code[size - 1] == POP_SS_OPCODE:
        return True
    for i in range(size - 1):
        if code[i] == MOV_SREG_OPCODE and (code[i + 1] >> 3 & 7) == 2:
            return True
    return False


cdef bint in_shadow(void *uc, State *state, uint64_t address) noexcept nogil:
    """Whether no interrupt may be taken before the block at `address`, for the instruction before it inhibits them.

    STI: an interrupt between it and a HLT would be used up, and HLT sleep for ever. MOV SS and POP SS: the stack
    pointer that belongs to SS is loaded next. Unicorn ends a block behind all three, and makes the next one of a single
    instruction. Some other instruction may be taken for one of them: then the interrupt comes a block later.
    """
    cdef uint8_t code[LONGEST_MOV]
    cdef uint32_t size = <uint32_t>min(state.end - state.last, LONGEST_MOV)
    if address != state.end or size == 0 or state.vmem_read(uc, address - size, UC_PROT_EXEC, code, size):
        return False
    return code[size - 1] == STI_OPCODE or loads_ss(code, size)


cdef bint opens_window(void *uc, State *state, uint64_t address) noexcept nogil:
    """Whether an interrupt can be taken before the block at `address`. Firmware computes for long with IF clear, so that is
    looked at first."""
    cdef uint32_t flags = 0
    state.reg_read(uc, UC_X86_REG_EFLAGS, &flags)
    if not flags & EFLAGS_IF:
        return False
    state.shadow = in_shadow(uc, state, address)
    return not state.shadow


cdef void note_code(void *uc, State *state, uint64_t address, uint32_t size) noexcept nogil:
    """Code was translated from the frames behind `size` bytes at linear `address`: a page of it, and perhaps the next."""
    cdef uint64_t page, frame, physical
    for page in range(address >> FRAME_SHIFT, ((address + size - 1) >> FRAME_SHIFT) + 1):
        if state.vmem_translate(uc, <uint32_t>(page << FRAME_SHIFT), UC_PROT_EXEC, &physical) == 0:
            frame = physical >> FRAME_SHIFT & (FRAMES - 1)
            note_fetch(uc, state, frame)


cdef void on_block(void *uc, uint64_t address, uint32_t size, State *state) noexcept nogil:
    """UC_HOOK_BLOCK. Stopping here stops before the block's first instruction, so nothing is executed twice."""
    cdef bint kicked
    if state.stopped:
        return
    if state.resumed:
        if not state.last <= address < state.end:
            state.last = address
        state.resumed, state.end = False, address + size
        return
    if state.lent and not state.lent_for_good:
        take_back(uc, state)
    if not state.running and size:
        # Unicorn tells of a new block when another one led to it: of the first one of a run it may not.
        state.running = True
        note_code(uc, state, address, size)
    state.blocks += 1
    kicked = ld8(state.upcall) or state.request
    if kicked:
        state.shadow = in_shadow(uc, state, address)
        state.stopped = STOP_KICK
    elif state.want_interrupt and opens_window(uc, state, address):
        state.stopped = STOP_WINDOW
    elif (state.limited and <int32_t>(state.executed - state.limit) >= 0) or (
            not state.blocks & PATIENCE and state.deadline_ns and monotonic_ns() >= state.deadline_ns):
        state.shadow = in_shadow(uc, state, address)
        state.stopped = STOP_TIMER
    if state.stopped:
        state.emu_stop(uc)
    else:
        state.shadow = False
        state.executed += 1
        state.last = address
        state.end = address + size


cdef void on_edge(void *uc, Block *current, Block *previous, State *state) noexcept nogil:
    """UC_HOOK_EDGE_GENERATED: a new block. Unicorn has no hook for RDMSR, WRMSR and task switches, so find their bytes."""
    cdef uint8_t code[LONGEST_BLOCK]
    cdef uint32_t i, size = current.size
    if size:
        note_code(uc, state, current.pc, size)
    if size < 2 or size > LONGEST_BLOCK or state.vmem_read(uc, current.pc, UC_PROT_EXEC, code, size):
        return
    for i in range(size - 1):
        if code[i] == 0x0f and (code[i + 1] == 0x30 or code[i + 1] == 0x32):
            with gil:
                (<object>state.on_found)(FOUND_MSR, current.pc + i, current.pc + i, current.pc, size)
    find_far(uc, state, current.pc, code, size)
