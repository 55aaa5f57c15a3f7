# The device model's end of the ioreq page: requests taken, answered and told of, with Python only for the device itself.
cdef enum:
    ANSWERS = 64               # requests that are answered before others get their turn
    LINGER_NS = 10_000         # how long the next request is waited for: no longer than a turn of the loop would take


cdef class IoreqServer(IoreqWatch):
    """The slots of `vcpus` vCPUs in the ioreq page (hvm/ioreq.h), as their device model sees them, and the page of buffered
    requests."""
    cdef Ioreq *slots
    cdef BufferedPage buffered
    cdef readonly uint32_t vcpus
    cdef list ports
    cdef list channels
    cdef readonly bint answering               # a request is being answered: its vCPU looks at everything after it
    # By address << 5 | type << 4 | size: what is called for such an access, with nothing or with the value.
    cdef public dict readers, writers
    cdef public object before_answer           # called, once, when what is asked has been done, before it is answered

    def __init__(self, page, buffered, uint32_t vcpus):
        self.buffered = BufferedPage(buffered)
        if vcpus * IOREQ_SIZE > self.size:
            raise ValueError(f"no {vcpus} slots in {self.size} bytes")
        self.slots = <Ioreq *>self.at
        self.vcpus = vcpus
        self.ports = [None] * vcpus
        self.channels = [None] * vcpus
        self.readers, self.writers = {}, {}

    def connect(self, uint32_t vcpu, port):
        """The port (miniguest.ring.events.Port) that tells `vcpu` of its answers."""
        self.ports[vcpu] = port
        self.channels[vcpu] = port.channel

    cdef inline uint8_t *_state(self, uint32_t vcpu) noexcept nogil:
        return <uint8_t *>(self.slots + vcpu) + IOREQ_STATE

    cdef inline uint32_t _next(self) noexcept nogil:
        """The first vCPU that asks, or lies; `vcpus` when there is none. No request stays INPROCESS, so that is a lie, too."""
        cdef uint32_t vcpu
        cdef uint8_t state
        for vcpu in range(self.vcpus):
            state = ld8(self._state(vcpu)) & 15
            if state != STATE_NONE and state != STATE_RESP_READY:
                return vcpu
        return self.vcpus

    def looks_later(self, uint32_t vcpu):
        """Whether `vcpu` is going to look at lines, messages and frames without being told: it is within an exit."""
        if vcpu >= self.vcpus:
            raise IndexError(vcpu)
        # Full barrier: without it our look at the state could pass the store of what is to be looked at; a vCPU that took
        # its answer and then looked could have missed it, and we would take it for one that has not looked yet.
        mb()
        return ld8(self._state(vcpu)) & 15 != STATE_NONE

    cdef bint hit(self) noexcept nogil:
        # What the device model waits for while it answers is something else.
        return not self.answering and self._busy()

    cdef inline bint _busy(self) noexcept nogil:
        return self._next() != self.vcpus or self.buffered._count() != 0

    def serve(self, Upcall upcall not None, read, write, other):
        """Answer what is asked, and what comes soon after; the number of requests.

        read(type, address, size) -> value, write(type, address, size, value): one access of 1, 2, 4 or 8 bytes that is not
        in `readers` or `writers`; the types are 0 for ports and 1 for memory. other(vcpu, request): any other request, as
        IoreqSlot.take gives it; its answer, or None: it gets none, the vCPU has lied. Ends early when `upcall` has
        something pending. RingError when the page of buffered requests lies.
        """
        cdef uint32_t answered = 0, vcpu
        while answered < ANSWERS:
            if not self._busy():
                if not self._linger(upcall):
                    break
                continue
            self.answering = True
            try:
                # The state first: what its vCPU has buffered before it asked comes before what it asks.
                vcpu = self._next()
                answered += self._take_buffered(write)
                if vcpu != self.vcpus:
                    self._serve_one(vcpu, read, write, other)
                    answered += 1
            finally:
                self.answering = False
        return answered

    cdef uint32_t _take_buffered(self, write) except 0xffffffff:
        """Do what was buffered; the number of writes."""
        cdef uint64_t key
        if self.buffered._count() == 0:
            return 0
        writes = self.buffered.take()
        for type, address, size, data in writes:
            key = <uint64_t>address << 5 | <uint64_t>type << 4 | <uint64_t>size
            known = self.writers.get(key) if type <= TYPE_COPY else None
            if known is None:
                write(type, address, size, data)
            else:
                known(data)
        self._before_answer()
        return len(writes)

    cdef int _before_answer(self) except -1:
        if self.before_answer is not None:
            before, self.before_answer = self.before_answer, None
            before()
        return 0

    cdef int _serve_one(self, uint32_t vcpu, read, write, other) except -1:
        cdef uint8_t *state = self._state(vcpu)
        cdef uint8_t bits = ld8(state)
        cdef uint64_t answer = 0, key
        cdef Ioreq r
        if bits & 15 != STATE_READY:
            other(vcpu, bits & 15)
            cas8(state, &bits, STATE_NONE)     # told once, unless it says something else already
            return 0
        memcpy(&r, self.slots + vcpu, sizeof(r))
        bits = (bits & 0xf0) | STATE_INPROCESS
        st8(state, bits)
        if (r.count == 1 and not bits & 0x50 and r.type <= TYPE_COPY
                and (r.size in (1, 2, 4) or (r.size == 8 and r.type == TYPE_COPY))):
            key = r.addr << 5 | r.type << 4 | r.size       # of ports and of addresses below 2^59
            if bits & 0x20:
                known = self.readers.get(key) if r.addr >> 59 == 0 else None
                answer = read(r.type, r.addr, r.size) if known is None else known()
            else:
                r.data &= ~<uint64_t>0 >> (64 - 8 * r.size)
                known = self.writers.get(key) if r.addr >> 59 == 0 else None
                if known is None:
                    write(r.type, r.addr, r.size, r.data)
                else:
                    known(r.data)
        else:
            answered = other(vcpu, (r.type, r.addr, r.data, r.count, r.size, bits >> 5 & 1, bits >> 4 & 1, bits >> 6 & 1))
            if answered is None:
                cas8(state, &bits, STATE_NONE)
                return 0
            answer = answered
        self._before_answer()
        (self.slots + vcpu).data = answer
        st8(state, (bits & 0xf0) | STATE_RESP_READY)           # release: without it the vCPU could see the state before the data
        return self._tell(vcpu)

    cdef int _tell(self, uint32_t vcpu) except -1:
        cdef Channel channel = self.channels[vcpu]
        cdef int woken = -1 if channel is None else channel._send()
        if woken:
            self.ports[vcpu].finish(woken)
            self.channels[vcpu] = self.ports[vcpu].channel
        return 0

    cdef bint _linger(self, Upcall upcall) noexcept:
        """Whether a request comes soon."""
        cdef uint64_t until = 0
        cdef int k = 0
        while not self._busy():
            cpu_pause()
            k += 1
            if k & 15:
                continue
            if until == 0:
                until = monotonic_ns() + LINGER_NS
            if ld8(upcall.info + UPCALL_PENDING) or monotonic_ns() > until:
                return False
        return True
