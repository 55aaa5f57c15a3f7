# io/ring.h rings, both ends.
cdef struct RingHeader:        # io/ring.h, DEFINE_RING_TYPES: struct __name##_sring
    uint32_t req_prod
    uint32_t req_event
    uint32_t rsp_prod
    uint32_t rsp_event


cdef enum:                     # the waiting rule of ring/_events.pxi: pause first, then let others have the core
    PAUSE_NS = 2_000
    LOOKS = 64                 # pauses of some 20 to 50 ns: about a microsecond or two


cdef inline void copy_entry(uint8_t *to, const uint8_t *entry, uint32_t size) noexcept nogil:
    """Copy one entry. Of the sizes that responses have it is a move or two; a call of memcpy takes longer than they do."""
    if size == 16:
        memcpy(to, entry, 16)
    elif size == 4:
        memcpy(to, entry, 4)
    elif size == 8:
        memcpy(to, entry, 8)
    else:
        memcpy(to, entry, size)


cdef class SharedRing(Shared):
    """What both ends of an io/ring.h ring know: the shared page(s), the slot size and the private copies of slots.

    buffer: one or more pages. req_size, rsp_size: bytes of a request and of a response. `requests` and `responses`
    are private bytearrays of `slots` entries each: a slot is copied there once and never read from the ring again.
    """
    cdef RingHeader *header
    cdef uint8_t *ring
    cdef readonly uint32_t slots, req_size, rsp_size
    cdef uint32_t slot, index_mask
    cdef readonly bytearray requests
    cdef readonly bytearray responses
    cdef Py_buffer request_view, response_view
    cdef uint8_t *request_at
    cdef uint8_t *response_at

    def __cinit__(self, buffer, uint32_t req_size, uint32_t rsp_size, *args, **kwargs):
        cdef uint32_t room, slots = 1
        self.slot = req_size if req_size > rsp_size else rsp_size
        if req_size == 0 or rsp_size == 0:
            raise ValueError("a ring of empty slots")
        if self.size < SLOTS_OFFSET + self.slot:
            raise RingError(f"a ring of {self.size} bytes has no room for a slot of {self.slot}")
        room = <uint32_t>((self.size - SLOTS_OFFSET) // self.slot)
        while slots * 2 <= room:               # io/ring.h: __RING_SIZE rounds down to a power of two
            slots *= 2
        self.header = <RingHeader *>self.at
        self.ring = self.at + SLOTS_OFFSET
        self.slots = slots
        self.index_mask = slots - 1
        self.req_size = req_size
        self.rsp_size = rsp_size
        self.requests = bytearray(slots * req_size)
        self.responses = bytearray(slots * rsp_size)
        PyObject_GetBuffer(self.requests, &self.request_view, PyBUF_WRITABLE)
        PyObject_GetBuffer(self.responses, &self.response_view, PyBUF_WRITABLE)
        self.request_at = <uint8_t *>self.request_view.buf
        self.response_at = <uint8_t *>self.response_view.buf

    def __dealloc__(self):
        if self.request_at != NULL:
            PyBuffer_Release(&self.request_view)
        if self.response_at != NULL:
            PyBuffer_Release(&self.response_view)

    @property
    def indices(self):
        """(req_prod, req_event, rsp_prod, rsp_event) as they stand in the shared page."""
        return (ld32(&self.header.req_prod), ld32(&self.header.req_event),
                ld32(&self.header.rsp_prod), ld32(&self.header.rsp_event))

    cdef void _in(self, uint8_t *private, uint32_t index, uint32_t count, uint32_t size) noexcept nogil:
        """Copy `count` slots from `index` on out of the ring into packed private entries of `size` bytes."""
        cdef uint32_t i, first = index & self.index_mask, run = self.slots - first
        if size == self.slot:
            if run > count:
                run = count
            memcpy(private, self.ring + first * size, run * size)
            memcpy(private + run * size, self.ring, (count - run) * size)
        else:
            for i in range(count):
                copy_entry(private + i * size, self.ring + ((index + i) & self.index_mask) * self.slot, size)

    cdef void _out(self, const uint8_t *private, uint32_t index, uint32_t count, uint32_t size) noexcept nogil:
        """Copy `count` packed private entries of `size` bytes into the ring from `index` on."""
        cdef uint32_t i, first = index & self.index_mask, run = self.slots - first
        if size == self.slot:
            if run > count:
                run = count
            memcpy(self.ring + first * size, private, run * size)
            memcpy(self.ring, private + run * size, (count - run) * size)
        else:
            for i in range(count):
                copy_entry(self.ring + ((index + i) & self.index_mask) * self.slot, private + i * size, size)

    cdef bint _soon(self, uint32_t *prod, uint32_t cons, uint32_t least) noexcept nogil:
        """Look at a producer index for about as long as a peer takes that is at it: no clock is asked, no GIL let go, since
        both take longer than most answers do. Whether it is `least` beyond `cons`."""
        cdef int k
        for k in range(LOOKS):
            if <uint32_t>(ld32(prod) - cons) >= least:
                return True
            cpu_pause()
        return False

    cdef void _spin(self, uint32_t *prod, uint32_t cons, uint32_t least, int64_t limit) noexcept nogil:
        """Look at a producer index until it is `least` beyond `cons` or `limit` ns have passed. What it says is not
        believed here: a lie ends the spin, and the take that follows finds it."""
        cdef uint64_t start = monotonic_ns()
        cdef int64_t spun
        cdef int k = 0
        while <uint32_t>(ld32(prod) - cons) < least:
            cpu_pause()
            k += 1
            if k & 15:
                continue
            spun = <int64_t>(monotonic_ns() - start)
            if spun >= limit:
                return
            if spun >= PAUSE_NS:
                cpu_yield()


cdef class FrontRing(SharedRing):
    """The frontend's end of an io/ring.h ring. It initialises the shared page unless `attach` is True.

    attach: take up a ring that is already in use, at `index` (both producer indices; reconnects and tests of the
    wrap-around start elsewhere than 0). With attach False the shared indices are set to `index`.
    """
    cdef uint32_t req_prod_pvt, pushed, rsp_cons, seen

    def __init__(self, buffer, uint32_t req_size, uint32_t rsp_size, bint attach=False, uint32_t index=0):
        if not attach:
            memset(self.at, 0, SLOTS_OFFSET)
            self.header.req_event = index + 1      # io/ring.h SHARED_RING_INIT: the first slot gets a notification
            self.header.rsp_event = index + 1
            self.header.rsp_prod = index
            st32(&self.header.req_prod, index)
        self.req_prod_pvt = index
        self.pushed = index
        self.rsp_cons = index
        self.seen = index

    @property
    def free(self):
        """Slots that `put` can still fill."""
        return self.slots - <uint32_t>(self.req_prod_pvt - self.rsp_cons)

    @property
    def outstanding(self):
        """Requests put whose response was not taken yet."""
        return <uint32_t>(self.req_prod_pvt - self.rsp_cons)

    cpdef uint32_t put(self, uint32_t count) noexcept:
        """Put the first `count` entries of `requests` into the ring, as many as fit; the number put. Not yet pushed."""
        cdef uint32_t room = self.slots - <uint32_t>(self.req_prod_pvt - self.rsp_cons)
        if count > room:
            count = room
        self._out(self.request_at, self.req_prod_pvt, count, self.req_size)
        self.req_prod_pvt += count
        return count

    cpdef bint send(self, uint32_t count) except -1:
        """`put` and `push` in one call: True when the backend is to be notified. ValueError when there is no room."""
        if count > self.slots - <uint32_t>(self.req_prod_pvt - self.rsp_cons):
            raise ValueError("more requests than free slots")
        self.put(count)
        return self.push()

    cpdef bint push(self) noexcept:
        """Show the backend what was put; True when it asked to be notified (RING_PUSH_REQUESTS_AND_CHECK_NOTIFY)."""
        cdef uint32_t old = self.pushed, new = self.req_prod_pvt
        self.pushed = new
        # Release: without it the backend could see the new index before the slots' contents.
        st32(&self.header.req_prod, new)
        # Full barrier: without it our read of req_event could pass our store of req_prod; the backend, which stores
        # req_event and then reads req_prod, could then go to sleep while we see its old req_event: nobody notifies.
        mb()
        return <uint32_t>(new - ld32(&self.header.req_event)) < <uint32_t>(new - old)

    cpdef uint32_t take(self, uint32_t limit=0xffffffff) except? 0xffffffff:
        """Copy up to `limit` responses into `responses`; their number. RingError when rsp_prod lies."""
        cdef uint32_t prod = ld32(&self.header.rsp_prod), count = prod - self.rsp_cons     # acquire: indices before slots
        # What was not pushed cannot have been answered; what was seen cannot be taken back.
        if count > <uint32_t>(self.pushed - self.rsp_cons) or <uint32_t>(prod - self.seen) > self.slots:
            raise RingError(f"rsp_prod {prod:#x} is ahead of the {self.pushed - self.rsp_cons & 0xffffffff} outstanding"
                            f" requests or moved back from {self.seen:#x}")
        self.seen = prod
        if count > limit:
            count = limit
        self._in(self.response_at, self.rsp_cons, count, self.rsp_size)
        self.rsp_cons += count
        return count

    def take_within(self, int64_t spin_ns, uint32_t least=1, uint32_t limit=0xffffffff):
        """`take`, once `least` responses are there (or all that can come) or `spin_ns` have passed. The GIL is
        released after a first look of a microsecond or two.

        For a backend that is at it right now. Keep it below a millisecond: signals wait for it, and Upcall.wait sleeps.
        """
        return self._take_within(spin_ns, least, limit)

    cdef uint32_t _take_within(self, int64_t spin_ns, uint32_t least, uint32_t limit) except? 0xffffffff:
        least = min(least, <uint32_t>(self.pushed - self.rsp_cons))
        if not self._soon(&self.header.rsp_prod, self.rsp_cons, least):
            with nogil:
                self._spin(&self.header.rsp_prod, self.rsp_cons, least, spin_ns)
        return self.take(limit)

    def exchange(self, uint32_t count, int64_t spin_ns, uint32_t least=1, uint32_t limit=0xffffffff):
        """`send` and `take_within` in one call, for two ends that look at the ring all the time: nobody is notified."""
        self.send(count)
        return self._take_within(spin_ns, least, limit)

    cpdef bint final_check(self) noexcept:
        """Ask for a notification of the next response; True when one is there already (RING_FINAL_CHECK_FOR_RESPONSES)."""
        if ld32(&self.header.rsp_prod) != self.rsp_cons:
            return True
        st32(&self.header.rsp_event, self.rsp_cons + 1)
        # Full barrier: without it our second read of rsp_prod could pass the store of rsp_event, and a response
        # pushed in between would find no event asked for and we would find no response: a missed wake.
        mb()
        return ld32(&self.header.rsp_prod) != self.rsp_cons


cdef class BackRing(SharedRing):
    """The backend's end of an io/ring.h ring that the frontend initialised; `index` is where both indices stand.

    BACK_RING_ATTACH: req_cons and rsp_prod_pvt start at `index`.
    """
    cdef uint32_t req_cons, rsp_prod_pvt, pushed, seen

    def __init__(self, buffer, uint32_t req_size, uint32_t rsp_size, uint32_t index=0):
        self.req_cons = index
        self.rsp_prod_pvt = index
        self.seen = index
        self.pushed = index

    @property
    def unanswered(self):
        """Requests taken whose response was not put yet."""
        return <uint32_t>(self.req_cons - self.rsp_prod_pvt)

    cpdef uint32_t take(self, uint32_t limit=0xffffffff) except? 0xffffffff:
        """Copy up to `limit` requests into `requests`; their number. RingError when req_prod lies."""
        cdef uint32_t prod = ld32(&self.header.req_prod), count           # acquire: the index before the slots
        if <uint32_t>(prod - self.rsp_prod_pvt) > self.slots or <uint32_t>(prod - self.seen) > self.slots:
            raise RingError(f"req_prod {prod:#x} is not within {self.slots} slots of rsp_prod {self.rsp_prod_pvt:#x}"
                            f" or moved back from {self.seen:#x}")
        self.seen = prod
        count = prod - self.req_cons
        if count > limit:
            count = limit
        self._in(self.request_at, self.req_cons, count, self.req_size)
        self.req_cons += count
        return count

    def take_within(self, int64_t spin_ns, uint32_t least=1, uint32_t limit=0xffffffff):
        """`take`, once `least` requests are there (or all that can come) or `spin_ns` have passed, as FrontRing's."""
        return self._take_within(spin_ns, least, limit)

    cdef uint32_t _take_within(self, int64_t spin_ns, uint32_t least, uint32_t limit) except? 0xffffffff:
        least = min(least, <uint32_t>(self.slots - <uint32_t>(self.req_cons - self.rsp_prod_pvt)))
        if not self._soon(&self.header.req_prod, self.req_cons, least):
            with nogil:
                self._spin(&self.header.req_prod, self.req_cons, least, spin_ns)
        return self.take(limit)

    def exchange(self, uint32_t count, int64_t spin_ns, uint32_t least=1, uint32_t limit=0xffffffff):
        """`respond` and `take_within` in one call, for two ends that look at the ring all the time: nobody is notified."""
        self.put(count)
        self._push()
        return self._take_within(spin_ns, least, limit)

    def respond(self, uint32_t count):
        """`put` and `push` in one call: True when the frontend is to be notified."""
        self.put(count)
        return self._push()

    cpdef put(self, uint32_t count):
        """Put the first `count` entries of `responses` into the ring. Not yet pushed."""
        if count > <uint32_t>(self.req_cons - self.rsp_prod_pvt):
            raise ValueError("more responses than requests")
        self._out(self.response_at, self.rsp_prod_pvt, count, self.rsp_size)
        self.rsp_prod_pvt += count

    cpdef bint push(self) noexcept:
        """Show the frontend what was put; True when it asked to be notified (RING_PUSH_RESPONSES_AND_CHECK_NOTIFY)."""
        return self._push()

    cdef bint _push(self) noexcept nogil:
        cdef uint32_t old = self.pushed, new = self.rsp_prod_pvt
        self.pushed = new
        st32(&self.header.rsp_prod, new)       # release: slots before the index, or the frontend reads stale slots
        mb()                                   # as in FrontRing.push, the roles exchanged
        return <uint32_t>(new - ld32(&self.header.rsp_event)) < <uint32_t>(new - old)

    cpdef bint final_check(self) noexcept:
        """Ask for a notification of the next request; True when one is there already (RING_FINAL_CHECK_FOR_REQUESTS)."""
        if ld32(&self.header.req_prod) != self.req_cons:
            return True
        st32(&self.header.req_event, self.req_cons + 1)
        mb()                                   # as in FrontRing.final_check, the roles exchanged
        return ld32(&self.header.req_prod) != self.req_cons
