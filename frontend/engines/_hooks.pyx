# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""The Unicorn callbacks that run often: at every block (kicks, timers and interrupt windows), at new blocks (which frames
hold translated code, the search for RDMSR, WRMSR and task switches), at exits, and at every page that is first used.

Unicorn itself is reached through function addresses, so that this file needs none of its headers to build.
"""
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memset

cdef extern from *:
    """
    #include <stdint.h>
    #include <time.h>
    static inline uint64_t monotonic_ns(void)
    { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000000000ull + t.tv_nsec; }
    static inline uint8_t ld8(uint8_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline void set_bits(uint8_t *p, uint8_t bits) { __atomic_fetch_or(p, bits, __ATOMIC_RELAXED); }
    """
    uint64_t monotonic_ns() noexcept nogil
    uint8_t ld8(uint8_t *) noexcept nogil
    void set_bits(uint8_t *, uint8_t) noexcept nogil

ctypedef int (*emu_stop_fn)(void *uc) noexcept nogil
ctypedef int (*reg_read_fn)(void *uc, int regid, void *value) noexcept nogil
ctypedef int (*vmem_read_fn)(void *uc, uint64_t address, int prot, void *data, size_t size) noexcept nogil
ctypedef int (*reg_read_batch_fn)(void *uc, int *registers, void **values, int count) noexcept nogil
ctypedef int (*ctl_fn)(void *uc, int control, ...) noexcept nogil
ctypedef int (*exit_fn)(void *path, int kind, uint64_t address, int size, uint64_t *value) noexcept nogil
ctypedef int (*vmem_translate_fn)(void *uc, uint64_t address, int prot, uint64_t *physical) noexcept nogil

cpdef enum:                    # Watch.stopped
    STOP_NONE = 0
    STOP_KICK = 1
    STOP_TIMER = 2
    STOP_WINDOW = 3
    STOP_HOOKED = 4            # a hook was put into the block that is next

cpdef enum:                    # on_found
    FOUND_MSR = 0
    FOUND_FAR = 1
    FOUND_IRET = 2

cdef enum:
    UC_X86_REG_CS = 11
    UC_X86_REG_EFLAGS = 25
    UC_X86_REG_CR0 = 50
    UC_PROT_EXEC = 4
    EFLAGS_IF = 0x200
    STI_OPCODE = 0xfb
    POP_SS_OPCODE = 0x17
    MOV_SREG_OPCODE = 0x8e
    LONGEST_MOV = 7            # bytes of MOV SS with a SIB byte and a 32-bit displacement
    PATIENCE = 255             # blocks between looks at the clock
    FRAME_SHIFT = 12
    FRAMES = 1 << 20           # of 4 GiB
    STRINGS = 1024             # blocks whose search for string instructions is remembered
    LONGEST_BLOCK = 4096       # bytes

cdef struct Searched:          # a block, and whether it may hold a string instruction
    uint64_t start
    uint64_t end
    bint found

cdef struct State:
    emu_stop_fn emu_stop
    reg_read_fn reg_read
    vmem_read_fn vmem_read
    vmem_translate_fn vmem_translate
    reg_read_batch_fn reg_read_batch
    ctl_fn ctl
    void *uc
    uint8_t *ram               # as the guest has it from address 0
    uint64_t ram_size
    uint8_t *code_frames       # a bit for each frame that code was fetched from
    uint8_t *unchecked_frames  # and for each that stores may go to unchecked
    bint physical              # linear addresses are physical ones for now, whatever the guest says
    bint lent                  # Unicorn translates
    bint lent_for_good
    bint resumed               # the next block is the rest of one that a refused access ended
    int refused                # the last access that was: why
    uint64_t alias             # and its frame, for REFUSED_ALIAS
    uint8_t *upcall
    uint64_t deadline_ns
    uint32_t blocks            # looked at
    uint32_t executed          # blocks; those that were stopped before are looked at again
    uint32_t limit             # when `limited`: the count of executed blocks to stop at
    uint8_t limited
    uint8_t stopped
    uint8_t want_interrupt
    uint8_t request
    uint8_t shadow
    uint8_t running            # the first block of this run has begun
    uint64_t last              # the block executed last: where it begins and ends
    uint64_t end
    void *on_found
    void *watch                # the Watch: this struct is a part of it
    exit_fn exit               # the exit path, NULL without one
    void *path
    Searched searched[STRINGS]

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


include "_walk.pxi"
include "_tlb.pxi"
include "_tasks.pxi"
include "_exits.pxi"


cdef class Watch:
    """What the callbacks look at, and what they say.

    functions: addresses of Unicorn's uc_emu_stop, uc_reg_read, uc_vmem_read, uc_vmem_translate, uc_reg_read_batch and
    uc_ctl. engine: Unicorn's handle. ram: address and size of RAM. upcall: address of the byte that stops the guest. handler: the engine's ExitHandler. string_in(port, size) -> value, string_out(port, size,
    value): IN and OUT that may be string instructions. on_found(what, first, last, block, size): bytes of RDMSR or WRMSR, or of an
    instruction that may switch tasks, are at `last`, with prefixes from `first` on. path: the handler's exit path
    (miniguest.ring._core.ExitPath), if it has one.
    """
    cdef State state
    cdef object handler, string_in, string_out, on_found, path
    cdef Region *regions
    cdef public object error                   # what a handler raised

    def __init__(self, functions, uintptr_t engine, ram, uintptr_t upcall, handler, string_in, string_out, on_found, path=None):
        cdef uintptr_t emu_stop, reg_read, vmem_read, vmem_translate, reg_read_batch, ctl, base
        emu_stop, reg_read, vmem_read, vmem_translate, reg_read_batch, ctl = functions
        self.state.emu_stop = <emu_stop_fn><void *>emu_stop
        self.state.reg_read = <reg_read_fn><void *>reg_read
        self.state.vmem_read = <vmem_read_fn><void *>vmem_read
        self.state.vmem_translate = <vmem_translate_fn><void *>vmem_translate
        self.state.reg_read_batch = <reg_read_batch_fn><void *>reg_read_batch
        self.state.ctl = <ctl_fn><void *>ctl
        self.state.uc = <void *>engine
        base, self.state.ram_size = ram
        self.state.ram = <uint8_t *>base
        self.state.code_frames = <uint8_t *>PyMem_Calloc(FRAMES // 8, 1)
        self.state.unchecked_frames = <uint8_t *>PyMem_Calloc(FRAMES // 8, 1)
        if self.state.code_frames == NULL or self.state.unchecked_frames == NULL:
            raise MemoryError()
        self.state.upcall = <uint8_t *>upcall
        self.handler, self.string_in, self.string_out, self.on_found = handler, string_in, string_out, on_found
        self.state.on_found = <void *>on_found
        self.state.watch = <void *>self
        self.path = path
        if path is not None:
            self.state.exit = <exit_fn><void *><uintptr_t>path.function
            self.state.path = <void *><uintptr_t>path.address

    cdef uint64_t take_exit(self, int how, int kind, uint64_t address, int size, uint64_t value) noexcept:
        """What the exit path left to do, or did not know. An exception ends the run, which raises it."""
        handler = self.handler
        try:
            if how == EXIT_NEWS:
                handler.look()
            elif how == EXIT_STARTED:
                return handler.answer() & (~<uint64_t>0 >> (64 - 8 * size))
            elif kind == PIO_IN:
                return handler.pio_in(address, size)
            elif kind == PIO_OUT:
                handler.pio_out(address, size, value)
            elif kind == MMIO_READ:
                return handler.mmio_read(address, size)
            else:
                handler.mmio_write(address, size, value)
        except BaseException as error:
            self._failed(error)
        return value

    cdef uint32_t take_string(self, int kind, uint32_t port, int size, uint32_t value) noexcept:
        try:
            if kind == PIO_IN:
                return self.string_in(port, size)
            self.string_out(port, size, value)
        except BaseException as error:
            self._failed(error)
        return 0

    cdef void _failed(self, error) noexcept:
        if self.error is None:
            self.error = error
        self.state.request = True

    def __dealloc__(self):
        cdef Region *region
        PyMem_Free(self.state.code_frames)
        PyMem_Free(self.state.unchecked_frames)
        while self.regions != NULL:
            region = self.regions
            self.regions = region.next
            PyMem_Free(region)

    def forget_code(self, uint64_t gpa, uint64_t size):
        """Drop what was translated from the frames of `size` bytes at guest-physical `gpa`. Whether there was any."""
        cdef uint64_t frame
        cdef bint found = False
        for frame in range(gpa >> FRAME_SHIFT, min(((gpa + size - 1) >> FRAME_SHIFT) + 1, FRAMES)):
            if has_bit(self.state.code_frames, frame):
                forget_frame(self.state.uc, &self.state, frame)
                found = True
        if found:
            self.forget_strings()
        return found

    def forgot_all_code(self):
        """All translated code is gone: pages that were executed may be written at full speed again."""
        memset(self.state.code_frames, 0, FRAMES // 8)
        flush_tlb(self.state.uc, &self.state)
        self.forget_strings()

    def forget_strings(self):
        """Blocks may be other ones than they were."""
        memset(self.state.searched, 0, sizeof(self.state.searched))

    def region(self, uint64_t start):
        """user_data for `load_callback` and `store_callback`: a memory-mapped region that begins at `start`."""
        cdef Region *region = self.regions
        while region != NULL and region.start != start:
            region = region.next
        if region == NULL:
            region = <Region *>PyMem_Calloc(1, sizeof(Region))
            if region == NULL:
                raise MemoryError()
            region.state, region.start, region.next = &self.state, start, self.regions
            self.regions = region
        return <uintptr_t>region

    def take_refused(self):
        """Why our TLB hook refused the access that ended the run, if one did."""
        why, self.state.refused = self.state.refused, REFUSED_NONE
        return why

    def resume(self, int why):
        """Make what was refused possible, by a new run that begins where the old one ended."""
        if why == REFUSED_ALIAS:
            forget_frame(self.state.uc, &self.state, self.state.alias)
        else:
            lend(self.state.uc, &self.state)
        self.state.resumed = why != REFUSED_FETCH

    def lend(self):
        """Unicorn translates until the next block begins, where the guest pages: what is done to its registers meanwhile
        may read descriptors, and cannot be refused."""
        cdef uint32_t cr0 = 0
        self.state.reg_read(self.state.uc, UC_X86_REG_CR0, &cr0)
        if cr0 & CR0_PG:
            lend(self.state.uc, &self.state)

    def translate_anew(self):
        """Translation is ours, and the TLB empty."""
        self.state.lent = self.state.resumed = False
        self.state.ctl(self.state.uc, UC_CTL_TLB_TYPE, <int>UC_TLB_VIRTUAL)
        flush_tlb(self.state.uc, &self.state)
        if self.state.lent_for_good:
            lend(self.state.uc, &self.state)

    def lend_for_good(self):
        """Unicorn translates: what our way is compared with."""
        self.state.lent_for_good = True
        self.translate_anew()

    @property
    def address(self):
        """user_data for the other callbacks."""
        return <uintptr_t>&self.state

    @property
    def callbacks(self):
        """Addresses of the callbacks, by name."""
        return {
            "block": <uintptr_t><void *>&on_block, "edge": <uintptr_t><void *>&on_edge, "tlb_fill": <uintptr_t><void *>&on_tlb_fill,
            "far": <uintptr_t><void *>&on_far, "iret": <uintptr_t><void *>&on_iret,
            "in": <uintptr_t><void *>&on_in, "out": <uintptr_t><void *>&on_out,
            "load": <uintptr_t><void *>&on_load, "store": <uintptr_t><void *>&on_store,
        }

    @property
    def stopped(self):
        """Why the last run was stopped by a callback; STOP_NONE when it was not. Set it to STOP_NONE before a run."""
        return self.state.stopped

    @stopped.setter
    def stopped(self, uint8_t value):
        self.state.stopped = value
        self.state.running = False

    @property
    def shadow(self):
        """Whether the run stopped where no interrupt may be taken, whatever EFLAGS.IF says."""
        return self.state.shadow != 0

    @property
    def want_interrupt(self):
        """Stop as soon as the guest can take an interrupt."""
        return self.state.want_interrupt != 0

    @want_interrupt.setter
    def want_interrupt(self, bint value):
        self.state.want_interrupt = value

    @property
    def request(self):
        """Stop at the next block."""
        return self.state.request != 0

    @request.setter
    def request(self, bint value):
        self.state.request = value

    @property
    def deadline_ns(self):
        """Stop once CLOCK_MONOTONIC reaches this; 0 for never."""
        return self.state.deadline_ns

    @deadline_ns.setter
    def deadline_ns(self, uint64_t value):
        self.state.deadline_ns = value

    @property
    def blocks(self):
        """Blocks executed so far; a u32 that wraps."""
        return self.state.executed

    def limit_blocks(self, uint32_t count):
        """Stop, as at the deadline, once so many blocks more were executed; 0 for never."""
        self.state.limited = count != 0
        self.state.limit = self.state.executed + count
