# What the callbacks share, and Unicorn's functions that they call.
cdef enum:
    UC_X86_REG_CS = 11         # unicorn/x86.h
    UC_X86_REG_EFLAGS = 25
    UC_X86_REG_CR0 = 50
    UC_PROT_EXEC = 4
    FRAME_SHIFT = 12
    FRAMES = 1 << 20           # of 4 GiB
    STRINGS = 1024             # blocks whose search for string instructions is remembered

ctypedef int (*emu_stop_fn)(void *uc) noexcept nogil
ctypedef int (*reg_read_fn)(void *uc, int regid, void *value) noexcept nogil
ctypedef int (*vmem_read_fn)(void *uc, uint64_t address, int prot, void *data, size_t size) noexcept nogil
ctypedef int (*reg_read_batch_fn)(void *uc, int *registers, void **values, int count) noexcept nogil
ctypedef int (*ctl_fn)(void *uc, int control, ...) noexcept nogil
ctypedef int (*exit_fn)(void *path, int kind, uint64_t address, int size, uint64_t *value) noexcept nogil
ctypedef int (*vmem_translate_fn)(void *uc, uint64_t address, int prot, uint64_t *physical) noexcept nogil

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
