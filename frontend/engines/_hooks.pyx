# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""The Unicorn callbacks that run often: at blocks (_blocks.pxi, _tasks.pxi), at exits (_exits.pxi), and at every page that is
first used (_tlb.pxi, _walk.pxi).

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

include "_state.pxi"
include "_blocks.pxi"
include "_walk.pxi"
include "_tlb.pxi"
include "_tasks.pxi"
include "_exits.pxi"


cdef class Watch:
    """What the callbacks look at, and what they say.

    functions: addresses of Unicorn's uc_emu_stop, uc_reg_read, uc_vmem_read, uc_vmem_translate, uc_reg_read_batch and
    uc_ctl. engine: Unicorn's handle. ram: address and size of RAM. upcall: address of the byte that stops the guest.
    handler: the engine's ExitHandler. string_in(port, size) -> value, string_out(port, size, value): IN and OUT that may be
    string instructions. on_found(what, first, last, block, size): bytes of RDMSR or WRMSR, or of an instruction that may
    switch tasks, are at `last`, with prefixes from `first` on. path: the handler's exit path (miniguest.ring._core.ExitPath),
    if it has one.
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
