from libc.stdlib cimport malloc

# A vif's queue, and its receive half (io/netif.h): frames into posted buffers, or kept until there are some.
cdef enum:
    RX_SLOT = 8
    QUEUE_BYTES = 512 << 10    # of memory for frames that wait for one queue's receiver
    TAKEN = 0                  # what became of a frame: it went on its way
    DROPPED = 1
    WAIT = 2                   # nowhere yet: the sender is to offer it again
    PACE = 16                  # buffers a second that a receiver must get through to be waited for

cdef uint64_t PATIENCE_NS = SECOND             # how long a sender waits for a receiver that does not move
cdef uint64_t MOMENT_NS = 5_000_000            # how long a big frame waits before memory is spent on it
cdef uint64_t DRAIN_NS = 10 * SECOND           # how long a frame waits for buffers
cdef uint64_t STALL_NS = 60 * SECOND           # without buffers, and nothing is kept any more

cdef struct Waiting:           # a frame that waits for its receiver's buffers; its bytes follow
    Waiting *next
    uint64_t since
    NetPacket packet


cdef class VifQueue(VifTransmit):
    """One queue of a vif: a transmit ring that is read, a receive ring that is filled, and the frames that wait for it."""
    cdef BackRing rx
    cdef object notify_rx
    cdef NetRxRequest rx_slots[NET_RING]       # private copies of the ring's slots, each in its own place
    cdef NetRxResponse rx_answers[NET_RING]    # in the same places, until they are pushed
    cdef uint32_t rx_copied                    # up to here
    cdef bint rx_notify, rx_event
    cdef bint touched                          # is on the switch's list of such
    cdef Waiting *first
    cdef Waiting *last
    cdef readonly uint32_t waiting_frames, waiting_bytes
    cdef uint64_t progress                     # when the receiver last had or posted buffers, ns
    # A receiver that posts one buffer now and then would hold up whoever sends to it, and so all that those send.
    cdef uint64_t paced                        # when it last got through PACE buffers, or frames began to wait, ns
    cdef uint32_t paced_at                     # req_cons then
    cdef readonly bint starved, stalled

    def __init__(self, Vif vif, BackRing tx, BackRing rx, notify_tx, notify_rx):
        VifTransmit.__init__(self, vif, tx, notify_tx)
        if rx.slot != RX_SLOT or rx.slots > NET_RING:
            raise ValueError("not a vif's receive ring")
        self.rx = rx
        self.notify_rx = notify_rx
        self.rx_copied = rx.req_cons

    def __dealloc__(self):
        while self.first != NULL:
            self._forget_first()

    cdef bint _look_rx(self, uint64_t now) noexcept nogil:
        cdef uint32_t before = self.rx_copied
        if not self._look(self.rx, <uint8_t *>self.rx_slots, &self.rx_copied, RX_SLOT, FAULT_RX_PROD):
            return False
        self.stat[STAT_RX_REQUESTS] += <uint32_t>(self.rx_copied - before)
        self.progress = now
        self.stalled = False
        return True

    cdef bint _has(self, uint32_t slots, uint64_t now) noexcept nogil:
        """Whether so many buffers are posted; if not, the frontend is asked to notify us of more."""
        if <uint32_t>(self.rx_copied - self.rx.req_cons) >= slots:
            return True
        while True:
            self._look_rx(now)
            if self.vif.fault:
                return False
            if <uint32_t>(self.rx_copied - self.rx.req_cons) >= slots:
                return True
            st32(&self.rx.header.req_event, self.rx_copied + 1)
            mb()                               # as in BackRing.final_check
            if not self._look_rx(now):
                return False

    cdef bint _deliver(self, NetPacket *p) noexcept nogil:
        """Copy a frame into posted buffers, of which there are enough; False when one of them cannot be mapped."""
        cdef NetRxResponse *response
        cdef uint32_t left = p.size, count, slot = 0
        cdef uint32_t bad = self._fill(p)
        cdef uint16_t flags = p.flags
        if p.gso_type or p.hash_type:
            flags |= NET_EXTRA_INFO
        while left:
            response = &self.rx_answers[self.rx.req_cons & self.rx.index_mask]
            count = left if left < PAGE else PAGE
            left -= count
            response.id = self.rx_slots[self.rx.req_cons & self.rx.index_mask].id
            response.offset = 0
            response.flags = flags | (NET_MORE_DATA if left else 0)
            response.status = NET_RSP_ERROR if bad >> slot & 1 else <int16_t>count
            self.rx.req_cons += 1
            if flags & NET_EXTRA_INFO:
                self._put_extras(p)
            flags = 0
            slot += 1
        self.rx.rsp_prod_pvt = self.rx.req_cons
        if not bad:
            self.stat[STAT_RX_PACKETS] += 1
            self.stat[STAT_RX_BYTES] += p.size
        else:
            self.stat[STAT_ERRORS] += 1
            self.stat[STAT_RX_DROPPED] += 1
        return not bad

    cdef uint32_t _fill(self, NetPacket *p) noexcept nogil:
        """Copy a frame into the next buffers, neighbours with one copy; bits of the slots that cannot be mapped."""
        cdef int32_t handles[NET_SLOTS]
        cdef uint32_t i, frame = 0, part = 0, bad = 0, length = 0, count = (p.size + PAGE - 1) // PAGE
        cdef uint32_t at = self.rx.req_cons
        cdef size_t skip = 0
        cdef uint8_t *page
        cdef uint8_t *start = NULL             # of neighbouring buffers: `length` bytes are to go there
        for i in range(count):
            handles[i] = self.static_grants._reach(self.rx_slots[at & self.rx.index_mask].gref, False, &frame)
            page = self.vif.memory.at + <uint64_t>frame * PAGE if handles[i] >= NOT_MAPPED else NULL
            if page == NULL:
                bad |= <uint32_t>1 << i
            if page == NULL or page != start + length:
                copy_parts(p, &part, &skip, start, length)
                start = page
                length = 0
            length += min(p.size - i * PAGE, <uint32_t>PAGE)
            at += 1 + ((p.gso_type != 0) + (p.hash_type != 0) if i == 0 else 0)
        copy_parts(p, &part, &skip, start, length)
        for i in range(count):                 # before the responses: the pages are the frontend's again then
            if handles[i] >= 0:
                self.vif.mapper._unmap(self.vif.table, handles[i])
        return bad

    cdef void _put_extras(self, NetPacket *p) noexcept nogil:
        """Extra infos take the place of the next buffers, which go back unused."""
        cdef NetExtra *extra
        if p.gso_type:
            extra = <NetExtra *>&self.rx_answers[self.rx.req_cons & self.rx.index_mask]
            memset(extra, 0, RX_SLOT)
            extra.type = NET_EXTRA_GSO
            extra.flags = NET_EXTRA_MORE if p.hash_type else 0
            memcpy(extra.bytes, &p.gso_size, 2)
            extra.bytes[2] = p.gso_type
            self.rx.req_cons += 1
        if p.hash_type:
            extra = <NetExtra *>&self.rx_answers[self.rx.req_cons & self.rx.index_mask]
            memset(extra, 0, RX_SLOT)
            extra.type = NET_EXTRA_HASH
            extra.bytes[0] = p.hash_type - 1
            extra.bytes[1] = <uint8_t>self.vif.hash_algorithm
            memcpy(extra.bytes + 2, &p.hash, 4)
            self.rx.req_cons += 1

    cdef void _push_rx(self) noexcept nogil:
        cdef uint32_t i, at, count = self.rx.rsp_prod_pvt - self.rx.pushed
        if count:
            for i in range(count):             # as in _push_tx
                at = (self.rx.pushed + i) & self.rx.index_mask
                memcpy(self.rx.ring + at * RX_SLOT, &self.rx_answers[at], sizeof(NetRxResponse))
            self.stat[STAT_RX_RESPONSES] += count
            if self.rx._push():
                self.rx_notify = True
                self.stat[STAT_RX_SENT] += 1
            else:
                self.stat[STAT_RX_SAVED] += 1

    # -- frames that wait for buffers
    cdef int _offer(self, NetPacket *p, bint may_wait, uint64_t now) noexcept nogil:
        """Deliver a frame, or keep it behind those that wait already: TAKEN, DROPPED, or WAIT when `may_wait`."""
        cdef uint32_t slots = (p.size + PAGE - 1) // PAGE + (p.gso_type != 0) + (p.hash_type != 0)
        if self.vif.fault or slots > self.rx.slots or (p.size > PAGE and not self.vif.sg):
            return self._drop()
        if self.progress == 0:                 # never asked for anything yet: its time begins now
            self.progress = now
        if self.first != NULL:
            self._deliver_waiting(now)
        if self.first == NULL and self._has(slots, now):
            self._deliver_at(p, now)
            return TAKEN
        # A big frame rather waits where it lies than being copied twice, as long as the receiver is only a moment behind.
        if may_wait and p.size > PAGE and self.first == NULL and self.vif.rx_notify and not self.vif.fault \
                and now - self.progress < MOMENT_NS:
            return WAIT
        if not self.starved:
            self.starved = True
        elif now - self.progress >= STALL_NS:
            self.stalled = True
        if self.vif.fault or self.stalled or not self.vif.rx_notify:
            return self._drop()
        if self.waiting_bytes + p.size + sizeof(Waiting) > QUEUE_BYTES:
            return WAIT if may_wait and now - self.paced < PATIENCE_NS else self._drop()
        return TAKEN if self._keep(p, now) else self._drop()

    cdef void _deliver_at(self, NetPacket *p, uint64_t now) noexcept nogil:
        """Deliver a frame for which there are buffers, and note that the receiver is alive."""
        self.starved = False
        self.progress = now
        self._deliver(p)
        if <uint32_t>(self.rx.req_cons - self.paced_at) >= PACE:
            self._mark_pace(now)

    cdef void _mark_pace(self, uint64_t now) noexcept nogil:
        self.paced = now
        self.paced_at = self.rx.req_cons

    cdef int _drop(self) noexcept nogil:
        self.stat[STAT_RX_DROPPED] += 1
        return DROPPED

    cdef bint _keep(self, NetPacket *p, uint64_t now) noexcept nogil:
        """A private copy at the end of the queue; False without memory."""
        cdef Waiting *frame = <Waiting *>malloc(sizeof(Waiting) + p.size)
        cdef uint32_t part = 0
        cdef size_t skip = 0
        if frame == NULL:
            return False
        frame.next = NULL
        frame.since = now
        frame.packet = p[0]
        copy_parts(p, &part, &skip, <uint8_t *>(frame + 1), p.size)
        frame.packet.nr_parts = 1
        frame.packet.part[0].iov_base = <uint8_t *>(frame + 1)
        frame.packet.part[0].iov_len = p.size
        if self.last == NULL:
            self.first = frame
            self._mark_pace(now)
        else:
            self.last.next = frame
        self.last = frame
        self.waiting_frames += 1
        self.waiting_bytes += p.size + <uint32_t>sizeof(Waiting)
        return True

    cdef void _forget_first(self) noexcept nogil:
        cdef Waiting *frame = self.first
        self.first = frame.next
        if self.first == NULL:
            self.last = NULL
        self.waiting_frames -= 1
        self.waiting_bytes -= frame.packet.size + <uint32_t>sizeof(Waiting)
        free(frame)

    cdef void _deliver_waiting(self, uint64_t now) noexcept nogil:
        """Deliver what waits, in order, while there are buffers; what waited too long is dropped."""
        cdef NetPacket *p
        while self.first != NULL and not self.vif.fault:
            p = &self.first.packet
            if self._has((p.size + PAGE - 1) // PAGE + (p.gso_type != 0) + (p.hash_type != 0), now):
                self._deliver_at(p, now)
            elif now - self.first.since >= DRAIN_NS:
                self._drop()
            else:
                return
            self._forget_first()
