# IN, OUT and memory-mapped accesses: by the exit path where that knows them, else by the interpreter.
cdef enum:
    PIO_IN = 0                 # miniguest.ring.exits.ExitKind
    PIO_OUT = 1
    MMIO_READ = 2
    MMIO_WRITE = 3
    EXIT_DONE = 0              # miniguest.ring._core.ExitPath
    EXIT_NEWS = 1
    EXIT_STARTED = 2
    EXIT_UNKNOWN = 3

cdef struct Region:            # memory-mapped: where it begins
    State *state
    uint64_t start
    Region *next               # all that were ever made

cdef bint may_be_string(void *uc, State *state) noexcept nogil:
    """Whether the block that is executed has a byte that INS or OUTS have (6C to 6F): to look at the registers costs ten
    times as much. Were its code another one meanwhile, elements would come one by one, as Unicorn calls."""
    cdef uint8_t code[LONGEST_BLOCK]
    cdef uint64_t size = state.end - state.last, i
    cdef Searched *known = state.searched + (state.last * 31 + state.end) % STRINGS
    if known.start == state.last and known.end == state.end and size:
        return known.found
    if size == 0 or size > LONGEST_BLOCK or state.vmem_read(uc, state.last, UC_PROT_EXEC, code, size):
        return True
    known.start, known.end, known.found = state.last, state.end, False
    for i in range(size):
        if 0x6c <= code[i] <= 0x6f:
            known.found = True
    return known.found


cdef uint64_t take_exit(State *state, int kind, uint64_t address, int size, uint64_t value) noexcept nogil:
    """An exit that is no string instruction: the value read."""
    cdef int how = EXIT_UNKNOWN
    if state.exit != NULL:
        how = state.exit(state.path, kind, address, size, &value)
    if how == EXIT_DONE:
        return value
    with gil:
        return (<Watch>state.watch).take_exit(how, kind, address, size, value)


cdef uint32_t on_in(void *uc, uint32_t port, int size, State *state) noexcept nogil:
    """UC_HOOK_INSN, IN and INS."""
    if may_be_string(uc, state):
        with gil:
            return (<Watch>state.watch).take_string(PIO_IN, port, size, 0)
    return <uint32_t>take_exit(state, PIO_IN, port, size, 0)


cdef void on_out(void *uc, uint32_t port, int size, uint32_t value, State *state) noexcept nogil:
    """UC_HOOK_INSN, OUT and OUTS."""
    if may_be_string(uc, state):
        with gil:
            (<Watch>state.watch).take_string(PIO_OUT, port, size, value)
    else:
        take_exit(state, PIO_OUT, port, size, value & (~<uint64_t>0 >> (64 - 8 * size)))


cdef uint64_t on_load(void *uc, uint64_t offset, uint32_t size, Region *region) noexcept nogil:
    """uc_mmio_map's read."""
    return take_exit(region.state, MMIO_READ, region.start + offset, size, 0)


cdef void on_store(void *uc, uint64_t offset, uint32_t size, uint64_t value, Region *region) noexcept nogil:
    """uc_mmio_map's write."""
    take_exit(region.state, MMIO_WRITE, region.start + offset, size, value & (~<uint64_t>0 >> (64 - 8 * size)))
