# hvm/ioreq.h: the page of buffered requests, writes that nobody waits for.
cdef enum:
    BUFFERED_SLOTS = 511       # IOREQ_BUFFER_SLOT_NUM
    BUFFERED_OFFSET = 8        # of the slots: behind the two pointers

cdef struct BufIoreq:
    uint32_t control           # type 8 bits, pad 1, dir 1, size 2 (0: 1 byte, 1: 2, 2: 4, 3: 8, in two slots), addr 20
    uint32_t data


cdef class BufferedPage(Shared):
    """struct buffered_iopage: one writer, the vCPU's process, and one reader, the device model.

    The pointers run on; a slot is a pointer modulo 511. The writer keeps them small (HVM_IOREQSRV_BUFIOREQ_ATOMIC), so that
    they never wrap at 2^32, where the slots would not go on in order.
    """
    cdef uint64_t *pointers    # read_pointer below, write_pointer above: loaded at once, so that they belong together
    cdef BufIoreq *slots

    def __init__(self, page):
        if self.size < PAGE:
            raise ValueError("less than a frame")
        self.pointers = <uint64_t *>self.at
        self.slots = <BufIoreq *>(self.at + BUFFERED_OFFSET)

    cdef inline uint32_t _count(self) noexcept nogil:
        """Slots that are written and not read; more than there are when somebody lies."""
        cdef uint64_t now = ld64(self.pointers)
        return <uint32_t>((now >> 32) - now)

    cdef bint _put(self, uint8_t type, uint64_t address, int size, uint32_t data) noexcept nogil:
        """Buffer a write of 1, 2 or 4 bytes; False when it does not fit, in bits or in slots."""
        cdef uint64_t now = ld64(self.pointers), old
        cdef uint32_t write = <uint32_t>(now >> 32)
        cdef BufIoreq *slot = self.slots + write % BUFFERED_SLOTS
        if <uint32_t>(write - now) >= BUFFERED_SLOTS or address >> 20 or size > 4:
            return False
        slot.control = type | <uint32_t>(size >> 1) << 10 | <uint32_t>address << 12
        slot.data = data
        # Release: without it the device model could see the pointer before the slot.
        st32(<uint32_t *>self.pointers + 1, write + 1)
        now = ld64(self.pointers)
        while <uint32_t>now >= BUFFERED_SLOTS:             # the reader is past all slots: both pointers go back by as many
            old = now
            if cas64(self.pointers, &old, now - BUFFERED_SLOTS - (<uint64_t>BUFFERED_SLOTS << 32)):
                break
            now = old
        return True

    def put(self, uint8_t type, uint64_t address, int size, uint32_t data):
        """Buffer a write of 1, 2 or 4 bytes: False when there is no room for it, or for its address of 20 bits."""
        if size not in (1, 2, 4):
            raise ValueError(f"a buffered write of {size} bytes")
        return self._put(type, address, size, data)

    def take(self):
        """The writes there are: [(type, address, size, data)]. RingError when write_pointer lies or a slot is no write."""
        cdef uint32_t count = self._count()
        cdef BufIoreq slot
        taken = []
        if count > BUFFERED_SLOTS:
            self._drop()
            raise RingError(f"the buffered ioreqs' write_pointer is {count} ahead of read_pointer")
        while count:
            count -= 1
            self._next(&slot)
            size = 1 << (slot.control >> 10 & 3)
            data = slot.data
            if slot.control & 1 << 9 or (size == 8 and not count):
                self._drop()
                raise RingError(f"a buffered ioreq of {slot.control:#x} is no write")
            address = slot.control >> 12
            type = slot.control & 0xff
            if size == 8:
                count -= 1
                self._next(&slot)
                data |= <uint64_t>slot.data << 32
            taken.append((type, address, size, data & (~<uint64_t>0 >> (64 - 8 * size))))
        return taken

    cdef void _next(self, BufIoreq *copy) noexcept nogil:
        """Copy the next slot out, once, and give it back to the writer."""
        memcpy(copy, self.slots + <uint32_t>ld64(self.pointers) % BUFFERED_SLOTS, sizeof(BufIoreq))
        # A whole barrier: the writer may set both pointers back, and takes the slot for free once it sees this.
        add32(<uint32_t *>self.pointers, 1)

    cdef void _drop(self) noexcept nogil:
        st32(<uint32_t *>self.pointers, <uint32_t>(ld64(self.pointers) >> 32))
