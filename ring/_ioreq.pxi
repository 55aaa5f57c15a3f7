# hvm/ioreq.h: one device request slot per vCPU.
cdef enum:
    IOREQ_SIZE = 32
    IOREQ_STATE = 30           # bits 0-3 state, 4 data_is_ptr, 5 dir, 6 df; byte 31 is the type
    STATE_NONE = 0
    STATE_READY = 1
    STATE_INPROCESS = 2
    STATE_RESP_READY = 3
    TYPE_PIO = 0
    TYPE_COPY = 1
    MOST_HUSHED = 32           # as many as there are vCPUs with an upcall in shared_info

cdef struct Ioreq:
    uint64_t addr
    uint64_t data
    uint32_t count
    uint32_t size
    uint32_t vp_eport
    uint16_t pad
    uint8_t bits
    uint8_t type


cdef class IoreqWatch(Shared):
    """Slots of the ioreq page that a wait looks at besides the events.

    Who spins sees a slot change without being told. So the ports that tell of it (Upcall.hush) are masked but for while
    the process sleeps: a notification then costs its sender one look, and its receiver nothing.
    """
    cdef uint32_t hushed[MOST_HUSHED]
    cdef uint32_t nr_hushed

    cdef bint hit(self) noexcept nogil:
        """Whether there is something to do."""
        return False


cdef class IoreqSlot(IoreqWatch):
    """One vCPU's struct ioreq in the ioreq page (hvm/ioreq.h); `vcpu` is its index there.

    The hypervisor's side (the vCPU process) calls `start` and `finish`, the device model `take` and `complete`.
    """
    cdef Ioreq *slot
    cdef uint8_t *state_at

    def __init__(self, page, uint32_t vcpu):
        if (vcpu + 1) * IOREQ_SIZE > self.size:
            raise ValueError(f"no ioreq slot {vcpu}")
        self.slot = <Ioreq *>(self.at + vcpu * IOREQ_SIZE)
        self.state_at = <uint8_t *>self.slot + IOREQ_STATE

    cdef bint hit(self) noexcept nogil:
        return ld8(self.state_at) & 15 == STATE_RESP_READY

    @property
    def state(self):
        """STATE_IOREQ_NONE, STATE_IOREQ_READY, STATE_IOREQ_INPROCESS or STATE_IORESP_READY; others are lies."""
        return ld8(self.state_at) & 15

    def start(self, uint8_t type, uint64_t addr, uint64_t data, uint32_t count, uint32_t size, uint8_t direction,
              bint data_is_ptr=False, bint df=False):
        """Fill the slot and make it STATE_IOREQ_READY. direction: IOREQ_READ or IOREQ_WRITE."""
        self._start(type, addr, data, count, size, (direction & 1) << 5 | data_is_ptr << 4 | df << 6)

    cdef inline void _start(self, uint8_t type, uint64_t addr, uint64_t data, uint32_t count, uint32_t size,
                            uint8_t bits) noexcept nogil:
        self.slot.addr = addr
        self.slot.data = data
        self.slot.count = count
        self.slot.size = size
        self.slot.type = type
        # Release: without it the device model could see READY before the request it names.
        st8(self.state_at, STATE_READY | bits)

    def finish(self):
        """The data of an answered request; the slot becomes STATE_IOREQ_NONE."""
        return self._finish()

    cdef inline uint64_t _finish(self) noexcept nogil:
        cdef uint64_t data = self.slot.data    # `wait` loaded the state with acquire, so the data is the answer's
        st8(self.state_at, STATE_NONE)
        # Full barrier: without it the looks at lines and messages that follow could pass this store. A device model that
        # changed one and then saw the answer not taken (IoreqServer.looks_later) would not kick, and we had looked before.
        mb()
        return data

    def take(self):
        """The ready request as (type, addr, data, count, size, dir, data_is_ptr, df), copied once; the slot becomes
        STATE_IOREQ_INPROCESS. Any other state comes back as the number it is: it is read once.
        """
        cdef uint8_t bits = ld8(self.state_at)
        cdef Ioreq copy
        if bits & 15 != STATE_READY:
            return bits & 15
        memcpy(&copy, self.slot, sizeof(copy))
        st8(self.state_at, (bits & 0xf0) | STATE_INPROCESS)
        return copy.type, copy.addr, copy.data, copy.count, copy.size, bits >> 5 & 1, bits >> 4 & 1, bits >> 6 & 1

    def complete(self, uint64_t data):
        """Answer the request taken: STATE_IORESP_READY."""
        self.slot.data = data
        st8(self.state_at, (ld8(self.state_at) & 0xf0) | STATE_RESP_READY)     # release: data before state
