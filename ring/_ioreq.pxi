# hvm/ioreq.h: one device request slot per vCPU; and the exit counters a reader may sample while the guest runs.
cdef enum:
    IOREQ_SIZE = 32
    IOREQ_STATE = 30           # bits 0-3 state, 4 data_is_ptr, 5 dir, 6 df; byte 31 is the type
    STATE_NONE = 0
    STATE_READY = 1
    STATE_INPROCESS = 2
    STATE_RESP_READY = 3

cdef struct Ioreq:
    uint64_t addr
    uint64_t data
    uint32_t count
    uint32_t size
    uint32_t vp_eport
    uint16_t pad
    uint8_t bits
    uint8_t type


cdef class IoreqSlot(Shared):
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

    @property
    def state(self):
        """STATE_IOREQ_NONE, STATE_IOREQ_READY, STATE_IOREQ_INPROCESS or STATE_IORESP_READY; others are lies."""
        return ld8(self.state_at) & 15

    cpdef start(self, uint8_t type, uint64_t addr, uint64_t data, uint32_t count, uint32_t size, uint8_t direction,
                bint data_is_ptr=False, bint df=False):
        """Fill the slot and make it STATE_IOREQ_READY. direction: IOREQ_READ or IOREQ_WRITE."""
        self.slot.addr = addr
        self.slot.data = data
        self.slot.count = count
        self.slot.size = size
        self.slot.type = type
        # Release: without it the device model could see READY before the request it names.
        st8(self.state_at, STATE_READY | data_is_ptr << 4 | (direction & 1) << 5 | df << 6)

    cpdef uint64_t finish(self) noexcept:
        """The data of an answered request; the slot becomes STATE_IOREQ_NONE."""
        cdef uint64_t data = self.slot.data    # `wait` loaded the state with acquire, so the data is the answer's
        st8(self.state_at, STATE_NONE)
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

    cpdef complete(self, uint64_t data):
        """Answer the request taken: STATE_IORESP_READY."""
        self.slot.data = data
        st8(self.state_at, (ld8(self.state_at) & 0xf0) | STATE_RESP_READY)     # release: data before state


cdef enum:
    EXIT_HEADER = 64
    EXIT_ROW = 64

cdef struct ExitRow:
    uint64_t exits
    uint64_t elements
    uint64_t total_ns
    uint64_t min_ns
    uint64_t max_ns
    uint64_t address
    uint8_t kind
    uint8_t size
    char device[14]


cdef class ExitTable(Shared):
    """Exit counters in shared memory: a header (u64: rows in use) and rows of 64 bytes. One writer, any number of readers.

    A row: exits, elements, total, min and max nanoseconds, address (u64 each), kind u8, size u8, device char[14].
    """
    cdef readonly uint32_t capacity

    def __init__(self, buffer):
        self.capacity = <uint32_t>((self.size - EXIT_HEADER) // EXIT_ROW)

    @property
    def rows(self):
        """Rows in use."""
        return ld64(<uint64_t *>self.at)

    def add_row(self, uint8_t kind, uint8_t size, uint64_t address, bytes device not None):
        """A new row's index, or the last one's when the table is full (that row then counts everything else)."""
        cdef uint64_t index = ld64(<uint64_t *>self.at)
        cdef ExitRow *row
        if index >= self.capacity:
            return self.capacity - 1
        row = <ExitRow *>(self.at + EXIT_HEADER) + index
        memset(row, 0, sizeof(ExitRow))
        row.kind = kind
        row.size = size
        row.address = address
        memcpy(row.device, PyBytes_AS_STRING(device), min(len(device), 13))
        st64(<uint64_t *>self.at, index + 1)   # release: a reader sees the row's name before its index
        return index

    cpdef void count(self, uint32_t index, uint64_t elements, uint64_t ns) noexcept:
        """One exit of `elements` elements that took `ns` nanoseconds, on row `index`."""
        cdef ExitRow *row = <ExitRow *>(self.at + EXIT_HEADER) + index
        row.elements += elements
        row.total_ns += ns
        if ns < row.min_ns or row.exits == 0:
            row.min_ns = ns
        if ns > row.max_ns:
            row.max_ns = ns
        st64(&row.exits, row.exits + 1)


def now_ns():
    """CLOCK_MONOTONIC in nanoseconds."""
    return monotonic_ns()
