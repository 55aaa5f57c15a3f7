# 2-level event channels: pending bits, the upcall, the doorbell rule and the adaptive wait.
cdef enum:                     # xen.h, struct shared_info and vcpu_info on x86-64
    VCPU_INFO_SIZE = 64
    UPCALL_PENDING = 0
    UPCALL_MASK = 1
    PENDING_SEL = 8
    EVTCHN_PENDING = 2048
    EVTCHN_MASK = 2560
    PORTS = 4096
    WORDS = 64
    VCPUS_PER_PAGE = 32
    DOORBELL = 1               # bits of Upcall.wait's answer
    DESCRIPTOR = 2
    PENDING = 4
    WATCHED = 8


cdef inline int set_pending(uint8_t *pages, uint32_t vcpu, uint32_t port) noexcept nogil:
    """Make `port` pending for `vcpu`: 1 when its owner sleeps and needs a doorbell, else 0.

    pages: the domain's shared_info frame, followed by the frame of the same layout for ports the hypervisor side of
    the domain consumes (vcpu 32 and up).
    """
    cdef uint8_t *page = pages + (vcpu // VCPUS_PER_PAGE) * PAGE
    cdef uint64_t bit = <uint64_t>1 << (port & 63)
    if or64(<uint64_t *>(page + EVTCHN_PENDING) + (port >> 6), bit) & bit:
        return 0               # whoever set it rings
    return announce(pages, vcpu, port)


cdef inline int announce(uint8_t *pages, uint32_t vcpu, uint32_t port) noexcept nogil:
    """Tell `vcpu` of a pending port, unless it is masked: 1 when it sleeps and needs a doorbell, else 0."""
    cdef uint8_t *page = pages + (vcpu // VCPUS_PER_PAGE) * PAGE
    cdef uint8_t *info = page + (vcpu % VCPUS_PER_PAGE) * VCPU_INFO_SIZE
    if ld64(<uint64_t *>(page + EVTCHN_MASK) + (port >> 6)) & <uint64_t>1 << (port & 63):
        return 0               # unmasking looks at the pending bit
    or64(<uint64_t *>(info + PENDING_SEL), <uint64_t>1 << (port >> 6))
    xchg8(info + UPCALL_PENDING, 1)
    # Full barrier between our store of upcall_pending and our load of upcall_mask. Without it the load could pass the
    # store: a receiver that clears the mask and then looks at pending sees 0, we see the mask still 1: nobody rings.
    mb()
    return ld8(info + UPCALL_MASK) == 0


cdef class Upcall(Shared):
    """One vCPU's upcall: which of its ports are pending, and waiting for one (xen.h, 2-level event channels).

    page: the shared_info frame (or the hypervisor-side one of the same layout). vcpu: 0..31, index in that page.
    The process masks its upcall while it runs, so that nobody rings a doorbell for a process that will look anyway.
    """
    cdef uint8_t *info
    cdef uint64_t *pending
    cdef uint64_t *mask
    cdef uint64_t mine[WORDS]
    cdef int doorbell, descriptor
    cdef public int64_t spin_ns, pause_ns, late_yield_ns, quiet_ns, longest_quiet_ns
    cdef uint64_t quiet_until
    cdef int64_t quiet                         # how long the last one was
    cdef readonly uint64_t spun, slept
    # What makes the doorbell silent again after it rang. That takes as long as much of what is to be done, so it is left
    # until the process would sleep otherwise: whoever rang has its answer by then.
    cdef public object drain
    cdef bint rang

    def __init__(self, page, uint32_t vcpu, int doorbell=-1, int descriptor=-1):
        if vcpu >= VCPUS_PER_PAGE or self.size < PAGE:
            raise ValueError(f"no vcpu_info {vcpu} in {self.size} bytes")
        self.info = self.at + vcpu * VCPU_INFO_SIZE
        self.pending = <uint64_t *>(self.at + EVTCHN_PENDING)
        self.mask = <uint64_t *>(self.at + EVTCHN_MASK)
        memset(self.mine, 0, sizeof(self.mine))
        self.doorbell = doorbell
        self.descriptor = descriptor
        self.pause_ns = 2_000
        self.spin_ns = 300_000
        self.late_yield_ns = 1_000_000
        self.quiet_ns = 5_000_000
        self.longest_quiet_ns = 160_000_000
        st8(self.info + UPCALL_MASK, 1)

    @property
    def pending_address(self):
        """Address of evtchn_upcall_pending, for an engine's own callback to watch."""
        return <uintptr_t>(self.info + UPCALL_PENDING)

    def bind(self, uint32_t port):
        """This vCPU takes `port` from now on. It starts unmasked, whatever the number's last user left behind."""
        if port >= PORTS:
            raise ValueError(f"port {port} is beyond 2-level event channels")
        self.mine[port >> 6] |= <uint64_t>1 << (port & 63)
        self.unmask_port(port)

    def unbind(self, uint32_t port):
        """This vCPU takes `port` no longer; a pending bit is dropped."""
        if port < PORTS:
            self.mine[port >> 6] &= ~(<uint64_t>1 << (port & 63))
            and64(self.pending + (port >> 6), ~(<uint64_t>1 << (port & 63)))

    def mask_port(self, uint32_t port):
        """Events on `port` no longer wake us; they stay pending."""
        if port >= PORTS:
            raise ValueError(f"port {port} is beyond 2-level event channels")
        or64(self.mask + (port >> 6), <uint64_t>1 << (port & 63))

    def unmask_port(self, uint32_t port):
        """Events on `port` wake us again; one that came meanwhile does so now."""
        cdef uint64_t bit = <uint64_t>1 << (port & 63)
        if port >= PORTS:
            raise ValueError(f"port {port} is beyond 2-level event channels")
        and64(self.mask + (port >> 6), ~bit)
        mb()                                   # the sender sets pending, then reads the mask: one of us must see it
        if ld64(self.pending + (port >> 6)) & bit:
            or64(<uint64_t *>(self.info + PENDING_SEL), <uint64_t>1 << (port >> 6))
            xchg8(self.info + UPCALL_PENDING, 1)

    def take(self):
        """The pending, unmasked ports bound to this vCPU, cleared: a list of port numbers, lowest first."""
        cdef uint64_t words, bits
        cdef int word
        if not ld8(self.info + UPCALL_PENDING):
            return NOTHING
        ports = []
        # upcall_pending first, then the selector, then the bits: the sender sets them in the opposite order, so a bit
        # set after we read its word leaves upcall_pending set for the next look.
        xchg8(self.info + UPCALL_PENDING, 0)
        words = xchg64(<uint64_t *>(self.info + PENDING_SEL), 0)
        while words:
            word = lowest(words)
            words &= words - 1
            bits = ld64(self.pending + word) & self.mine[word] & ~ld64(self.mask + word)
            and64(self.pending + word, ~bits)
            while bits:
                ports.append(word * 64 + lowest(bits))
                bits &= bits - 1
        return ports

    def hush(self, IoreqWatch watch not None, uint32_t port):
        """Events on `port`, which this vCPU takes, only tell of what `watch` sees: the port is masked but for while a
        wait with `watch` sleeps."""
        if watch.nr_hushed == MOST_HUSHED:
            raise ValueError("too many ports for one watch")
        self.mask_port(port)
        watch.hushed[watch.nr_hushed] = port
        watch.nr_hushed += 1

    cdef void _listen(self, IoreqWatch watch) noexcept nogil:
        """Unmask the ports of a watch, before its slots are looked at for the last time. What was pending is in the slots."""
        cdef uint32_t i, port
        for i in range(watch.nr_hushed):
            port = watch.hushed[i]
            and64(self.pending + (port >> 6), ~(<uint64_t>1 << (port & 63)))
            and64(self.mask + (port >> 6), ~(<uint64_t>1 << (port & 63)))

    cdef void _hush_again(self, IoreqWatch watch) noexcept nogil:
        cdef uint32_t i, port
        for i in range(watch.nr_hushed):
            port = watch.hushed[i]
            or64(self.mask + (port >> 6), <uint64_t>1 << (port & 63))

    cdef inline bint _hit(self, IoreqWatch watch) noexcept nogil:
        return ld8(self.info + UPCALL_PENDING) or watch.hit()

    cdef bint _spin(self, IoreqWatch watch, int64_t limit, bint events) noexcept nogil:
        """Spin until `watch` hits or, if `events`, a port is pending; False when that takes longer than `limit` ns, or
        somebody else wants the core."""
        cdef uint64_t start = monotonic_ns(), now = start, after
        cdef int k = 0 if self.pause_ns else 15    # without a pause it gives way at once
        while not (watch.hit() or (events and ld8(self.info + UPCALL_PENDING))):
            cpu_pause()
            k += 1
            if k & 15:
                continue
            now = monotonic_ns()
            if <int64_t>(now - start) > limit:
                return False
            if <int64_t>(now - start) >= self.pause_ns:
                cpu_yield()
                after = monotonic_ns()
                if <int64_t>(after - now) > self.late_yield_ns:
                    self._be_quiet(after)
                    return watch.hit() or (events and ld8(self.info + UPCALL_PENDING))
        return True

    cdef void _be_quiet(self, uint64_t now) noexcept nogil:
        """A yield came back late: somebody computes on this core, and each yield costs us a time slice, where a sleeper is
        woken at once. So sleep without spinning for a while, and for longer each time that it was still so after it.
        What makes way in less than a slice, such as a peer that copies, does not count."""
        if self.quiet and <int64_t>(now - self.quiet_until) < 4 * self.quiet:
            self.quiet = min(2 * self.quiet, self.longest_quiet_ns)
        else:
            self.quiet = self.quiet_ns
        self.quiet_until = now + <uint64_t>self.quiet

    cpdef int wait(self, int64_t timeout_ns=-1, IoreqWatch watch=None) except -1:
        """Wait until a port is pending, a descriptor is readable or `timeout_ns` passed (-1: for ever).

        Bits of the answer: 1 the doorbell's descriptor, 2 the other descriptor, 4 a port is pending, 8 the watched
        slots have something to do; 0 at the timeout or after a signal (the caller's interpreter runs its handler and calls
        again). The GIL is released. Spins first, then unmasks the upcall and sleeps.
        """
        cdef int woke = 0
        if watch is None:
            watch = NO_SLOTS
        if self._hit(watch):
            return self._answer(watch, 0)
        with nogil:
            woke = self._spin_first(watch, &timeout_ns)
        if not woke:
            if self.rang and self.drain is not None:
                self.rang = False
                self.drain()
            with nogil:
                woke = self._sleep(watch, timeout_ns)
            self.rang = self.rang or woke & DOORBELL
        return self._answer(watch, woke & (DOORBELL | DESCRIPTOR))

    cdef int _spin_first(self, IoreqWatch watch, int64_t *timeout_ns) noexcept nogil:
        """Whether something came within a spin; what the spin took is gone from the timeout."""
        cdef uint64_t start = monotonic_ns()
        cdef int64_t spin = self.spin_ns
        if 0 <= timeout_ns[0] < spin:
            spin = timeout_ns[0]
        if spin and start >= self.quiet_until and self._spin(watch, spin, True):
            self.spun += 1
            return PENDING
        if timeout_ns[0] > 0:
            timeout_ns[0] = max(<int64_t>0, timeout_ns[0] - <int64_t>(monotonic_ns() - start))
        return 0

    cdef int _sleep(self, IoreqWatch watch, int64_t timeout_ns) noexcept nogil:
        cdef int woke = 0
        self._listen(watch)
        st8(self.info + UPCALL_MASK, 0)
        # Full barrier: without it our look at pending, and at the slots, could pass the clearing of the masks; a
        # sender that set pending and then read a mask as 1 would not ring, and we would sleep on its event.
        mb()
        if not self._hit(watch):
            self.slept += 1
            woke = poll_two(self.doorbell, self.descriptor, timeout_ns)
        st8(self.info + UPCALL_MASK, 1)
        self._hush_again(watch)
        return woke

    cdef int _answer(self, IoreqWatch watch, int woke) noexcept:
        if ld8(self.info + UPCALL_PENDING):
            woke |= PENDING
        if watch.hit():
            woke |= WATCHED
        return woke

    def leave(self):
        """The process goes away: unmask, so that nobody takes it for awake."""
        st8(self.info + UPCALL_MASK, 0)


NOTHING = []
cdef IoreqWatch NO_SLOTS = IoreqWatch(bytearray(1))
cdef enum:                     # one u64 per port of a domain's event channel table; the hypervisor alone writes it
    EVTCHNSTAT_interdomain = 2


cdef class Channel:
    """The sending end of an interdomain event channel.

    local, remote: the two domains' event channel tables (arrays of 4096 u64: state, vcpu, remote domid u16, remote
    port u32). pages: the remote domain's two shared_info-layout frames, side by side.
    """
    cdef Shared local, remote, pages
    cdef uint64_t *entry
    cdef uint64_t *remote_entry
    cdef uint32_t remote_port
    cdef uint64_t expected, remote_expected
    cdef readonly uint64_t sent, saved

    def __init__(self, local, uint32_t port, uint16_t domid, remote, uint32_t remote_port, uint16_t remote_domid, pages):
        self.local = Shared(local)
        self.remote = Shared(remote)
        self.pages = Shared(pages)
        if (port >= PORTS or remote_port >= PORTS or self.pages.size < 2 * PAGE
                or min(self.local.size, self.remote.size) < PORTS * 8):
            raise ValueError("no such event channel")
        self.entry = <uint64_t *>self.local.at + port
        self.remote_entry = <uint64_t *>self.remote.at + remote_port
        self.remote_port = remote_port
        self.expected = <uint64_t>remote_port << 32 | <uint64_t>remote_domid << 16 | EVTCHNSTAT_interdomain
        self.remote_expected = <uint64_t>port << 32 | <uint64_t>domid << 16 | EVTCHNSTAT_interdomain

    def send(self):
        """EVTCHNOP_send. -1: the channel is no longer connected as it was; 0: sent, nobody to wake;
        v + 1: sent, ring the doorbell of the remote domain's vcpu v."""
        return self._send()

    cdef int _send(self) noexcept nogil:
        cdef uint64_t remote, now
        cdef uint32_t vcpu
        cdef int wake
        if ld64(self.entry) & <uint64_t>0xffffffffffff00ff != self.expected:
            return -1
        remote = ld64(self.remote_entry)
        if remote & <uint64_t>0xffffffffffff00ff != self.remote_expected:
            return -1
        vcpu = <uint32_t>(remote >> 8) & 63
        wake = set_pending(self.pages.at, vcpu, self.remote_port)
        # EVTCHNOP_bind_vcpu may have come between: then the old vCPU was told, whose port it is no more, and the new
        # one may have looked before. It looks after the table was written, we look at the table after setting pending.
        now = ld64(self.remote_entry)
        if now != remote and now & <uint64_t>0xffffffffffff00ff == self.remote_expected:
            vcpu = <uint32_t>(now >> 8) & 63
            wake = set_pending(self.pages.at, vcpu, self.remote_port) or announce(self.pages.at, vcpu, self.remote_port)
        if wake:
            self.sent += 1
            return <int>vcpu + 1
        self.saved += 1
        return 0


def raise_port(pages not None, uint32_t vcpu, uint32_t port):
    """Make `port` pending from outside (the hypervisor does, for a port whose sender died); True: ring its doorbell.

    A port that is pending already is announced again: a sender killed between the pending bit and the selector left
    a bit that nobody would ever look at.
    """
    cdef Shared shared = Shared(pages)
    if port >= PORTS or vcpu >= 64 or shared.size < 2 * PAGE:
        raise ValueError("no such port")
    if set_pending(shared.at, vcpu, port):
        return True
    return bool(announce(shared.at, vcpu, port))


def kick_vcpu(pages not None, uint32_t vcpu):
    """Set a vCPU's upcall_pending without any port, so that it looks at its state; True: ring its doorbell."""
    cdef Shared shared = Shared(pages)
    cdef uint8_t *info
    if vcpu >= 64 or shared.size < 2 * PAGE:
        raise ValueError("no such vcpu")
    info = shared.at + (vcpu // VCPUS_PER_PAGE) * PAGE + (vcpu % VCPUS_PER_PAGE) * VCPU_INFO_SIZE
    xchg8(info + UPCALL_PENDING, 1)
    mb()                                       # as in set_pending
    return ld8(info + UPCALL_MASK) == 0


def load64(buffer not None, Py_ssize_t index):
    """The u64 at `index` of a shared array, loaded at once (acquire)."""
    cdef Py_buffer view
    cdef uint64_t value = 0
    PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)      # no Shared: making one takes longer than all the rest
    cdef bint there = 0 <= index < view.len // 8
    if there:
        value = ld64(<uint64_t *>view.buf + index)
    PyBuffer_Release(&view)
    if not there:
        raise IndexError(index)
    return value


def store64(buffer not None, Py_ssize_t index, uint64_t value):
    """Store the u64 at `index` of a shared array at once (release)."""
    cdef Py_buffer view
    PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
    cdef bint there = 0 <= index < view.len // 8
    if there:
        st64(<uint64_t *>view.buf + index, value)
    PyBuffer_Release(&view)
    if not there:
        raise IndexError(index)
