# The link's switch: senders in turn, back pressure instead of loss, and what happens with time.
cdef enum:
    TURN_SLOTS = 64            # packets that a queue sends in its turn
    TURN_BYTES = 512 << 10     # and bytes: half of what a ring holds
    RUN_TURNS = 16             # turns before events are looked at again
    LINK_STATS = 9


cdef class Switch(Forwarding):
    """The link between vifs, one uplink if any, and a capture of what crosses it.

    counters: room for LINK_STATS u64, as statistics.LINK_FIELDS names them; they are set at the end of each run.

    Every call that may move frames takes `now` in ns of a clock that does not go back. After each, look at `deadline`.
    """
    cdef list vifs                     # keeps them alive, by port
    cdef void **queue                  # all queues of all vifs
    cdef uint32_t nr_queues, turn_of
    cdef readonly bint trouble         # a vif has failed: ask `failed`
    cdef readonly int64_t deadline     # ns: when to call `run` even if nothing happens; -1: never
    cdef Shared counters

    def __cinit__(self, Uplink uplink=None, PcapWriter capture=None, counters=None):
        self.queue = <void **>calloc(PORTS_MAX * MAX_QUEUES, sizeof(void *))
        if self.queue == NULL:
            raise MemoryError()
        self.counters = None if counters is None else Shared(counters)
        if self.counters is not None and self.counters.size < LINK_STATS * 8:
            raise ValueError("no room for the counters")
        self.vifs = [None] * PORTS_MAX
        self.deadline = -1

    def __dealloc__(self):
        free(self.queue)

    # -- ports
    def attach(self, Vif vif not None):
        """A vif joins; its port. ValueError when the switch is full or the vif is somewhere already."""
        cdef uint32_t number = 1
        while number < PORTS_MAX and self.port[number] != NULL:
            number += 1
        if number == PORTS_MAX or vif.port:
            raise ValueError("no free port, or not a free vif")
        vif.port = number
        self.vifs[number] = vif
        self.port[number] = <void *>vif
        self.nr_ports = max(self.nr_ports, number + 1)
        self._list_queues()
        return number

    def detach(self, Vif vif not None):
        """A vif leaves: what waited for it is dropped, who waited for it goes on, its addresses are forgotten."""
        cdef VifQueue queue
        if not vif.port or self.port[vif.port] != <void *>vif:
            return
        for queue in vif.queues:
            self._wake(<void *>queue)
            queue.state = RUNNABLE             # who it waited for may go before it joins a switch again
            while queue.first != NULL:
                queue._drop()
                queue._forget_first()
        self.port[vif.port] = NULL
        self.vifs[vif.port] = None
        self.macs._sweep(0, vif.port)
        vif.port = 0
        self._list_queues()

    cdef void _list_queues(self):
        cdef VifQueue queue
        self.nr_queues = 0
        for vif in self.vifs:
            if vif is not None:
                for queue in (<Vif>vif).queues:
                    self.queue[self.nr_queues] = <void *>queue
                    self.nr_queues += 1

    def port_of(self, const uint8_t[::1] mac not None, uint64_t now):
        """The port an address is at; None when that is not known."""
        cdef uint32_t found = self.macs._find(&mac[0], now) if mac.shape[0] == MAC_SIZE else NO_PORT
        return None if found == NO_PORT else found

    # -- senders
    cdef void _serve(self, VifQueue q, uint64_t now) noexcept nogil:
        """One turn of a transmit queue."""
        cdef NetPacket p
        cdef uint32_t count = 0, bytes = 0
        cdef int what
        if not q.vif.fault:
            q._look_tx()
        while count < TURN_SLOTS and bytes < TURN_BYTES:
            what = CHAIN_FATAL if q.vif.fault else q._parse()
            if what == CHAIN_INCOMPLETE and q._more_tx():
                continue
            if what == CHAIN_INCOMPLETE or what == CHAIN_FATAL or q.vif.fault:
                q.state = IDLE
                break
            count += 1
            if what == CHAIN_DROP:
                self._refuse(q)
                continue
            if q.chain.change:
                q._answer(NET_RSP_OKAY if q.vif._change_filter(q.chain.change, q.chain.mac) else NET_RSP_ERROR)
                continue
            if not q.vif._may_send(q.chain.size, now):
                q.state = DELAYED
                break
            what = self._send_chain(q, &p, now)
            if what == WAIT:
                q.state = WAITING
                q.blocker = self.blocker
                break
            bytes += p.size
        q._push_tx()
        self._touch(<void *>q)

    cdef void _refuse(self, VifQueue q) noexcept nogil:
        q._answer(NET_RSP_ERROR)
        q.stat[STAT_TX_DROPPED] += 1

    cdef int _send_chain(self, VifQueue q, NetPacket *p, uint64_t now) noexcept nogil:
        """Send the packet of a checked chain and answer it, unless it has to WAIT."""
        cdef Chain *c = &q.chain
        cdef Segments s
        cdef int what
        if not q._map_chain(p):
            self._refuse(q)
            return DROPPED
        gather(p)
        p.source = q.vif.port
        p.gso_type = c.gso_type
        p.gso_size = c.gso_size
        p.flags = RX_DATA_VALIDATED if c.flags & NET_DATA_VALIDATED else 0
        if c.flags & NET_CSUM_BLANK or c.gso_type:
            p.flags = RX_CSUM_BLANK | RX_DATA_VALIDATED
        # What says that it is TCP or UDP, and that somebody else is to work on it, must be.
        if (p.flags & RX_CSUM_BLANK and not checksum_field(p)) or (c.gso_type and not begin_segments(p, &s)):
            q._unmap_chain(c.nr_data)
            self._refuse(q)
            return DROPPED
        what = self._forward(p, now)
        q._unmap_chain(c.nr_data)              # before the response: the pages are the frontend's again then
        if what != WAIT:
            if q.vif.credit_ns:
                q.vif._spend(p.size)
            q.stat[STAT_TX_PACKETS] += 1
            q.stat[STAT_TX_BYTES] += p.size
            q._answer(NET_RSP_OKAY)
        return what

    cdef void _receive(self, uint64_t now) noexcept nogil:
        """Frames from the uplink, a turn of them."""
        cdef NetPacket p
        cdef uint8_t *frame = NULL
        cdef uint32_t i, size
        for i in range(UPLINK_TURN):
            size = self.uplink._next(&frame)
            if size == 0:
                self.uplink.state = IDLE
                return
            if NET_LEAST <= size <= NET_MOST:
                p.size = size
                p.nr_parts = 2
                p.part[1].iov_base = frame
                p.part[1].iov_len = size
                gather(&p)
                p.source = 0
                p.flags = 0
                p.gso_type = p.hash_type = 0
                if self._forward(&p, now) == WAIT:
                    self.uplink.state = WAITING
                    self.uplink.blocker = self.blocker
                    return
            self.uplink._taken(size)

    cdef void _wake(self, void *blocker) noexcept nogil:
        """Whoever waited for that receiver tries again."""
        cdef uint32_t i
        for i in range(self.nr_queues):
            if (<VifQueue>self.queue[i]).state == WAITING and (<VifQueue>self.queue[i]).blocker == blocker:
                (<VifQueue>self.queue[i]).state = RUNNABLE
        if self.uplink is not None and self.uplink.state == WAITING and self.uplink.blocker == blocker:
            self.uplink.state = RUNNABLE

    # -- what happens
    def tx_event(self, VifQueue queue not None):
        """The frontend has put requests into the transmit ring. Then `run`."""
        if queue.state == IDLE:
            queue.state = RUNNABLE

    def rx_event(self, VifQueue queue not None):
        """The frontend has posted buffers. Then `run`."""
        queue.rx_event = True

    def uplink_event(self):
        """The uplink's descriptor is readable or writable, or it was given a frame. Then `run`."""
        if self.uplink is not None and self.uplink.state == IDLE:
            self.uplink.state = RUNNABLE

    def run(self, uint64_t now):
        """Move frames for a bounded while; whether there is more to do at once. Calls the queues' notify functions, after
        each turn: frontends are to work on half a ring while the other half is copied."""
        cdef uint32_t turns
        cdef bint more
        with nogil:
            self._look_around(now)
        self._tell()
        for turns in range(RUN_TURNS):
            with nogil:
                more = self._take_turn(now)
            if not more:
                break
            self._tell()
        with nogil:
            more = self._finish(now)
        self._tell()
        return more

    def failed(self):
        """The vifs whose frontends broke a rule, each told once: to be detached."""
        found = []
        self.trouble = False
        for vif in self.vifs:
            if vif is not None and (<Vif>vif).fault and not (<Vif>vif).fault_told:
                (<Vif>vif).fault_told = True
                found.append(vif)
        return found

    cdef bint _take_turn(self, uint64_t now) noexcept nogil:
        """The next queue's turn; False when none has anything to send."""
        cdef uint32_t i
        cdef void *at
        for i in range(self.nr_queues):
            at = self.queue[self.turn_of % self.nr_queues]
            self.turn_of = (self.turn_of + 1) % self.nr_queues
            if (<VifQueue>at).state == RUNNABLE:
                self._serve(<VifQueue>at, now)
                self._push_touched()
                return True
        return False

    cdef bint _finish(self, uint64_t now) noexcept nogil:
        """What follows the turns: the uplink's, and what is told of them all. Whether there is more to do at once."""
        if self.uplink is not None:
            if self.uplink.state == RUNNABLE:
                self._receive(now)
                self._push_touched()
            # Broken, or attached to another peer: there is nothing that could be read any more, and nobody to wait for.
            if self.uplink._flush(now) or self.uplink.broken or self.uplink.out_start == self.uplink.out_end:
                self._wake(NULL)
        if self.capture is not None:
            self.capture._flush()
        if self.counters is not None:
            self._count()
        return self._plan(now)

    cdef void _count(self) noexcept nogil:
        cdef uint64_t *count = <uint64_t *>self.counters.at
        count[0] = self.frames
        count[1] = self.bytes
        count[2] = self.flooded
        count[3] = self.filtered
        if self.uplink is not None:
            count[4] = self.uplink.sent_frames
            count[5] = self.uplink.sent_bytes
            count[6] = self.uplink.received_frames
            count[7] = self.uplink.received_bytes
            count[8] = self.uplink.dropped

    cdef void _look_around(self, uint64_t now) noexcept nogil:
        """What came since: buffers, credit, the end of somebody's patience."""
        cdef uint32_t i
        cdef void *at
        for i in range(self.nr_queues):
            at = self.queue[i]
            if (<VifQueue>at).vif.fault:
                self._wake(at)
                continue
            if (<VifQueue>at).rx_event or (<VifQueue>at).first != NULL:
                self._posted(at, now)
            if (<VifQueue>at).state == DELAYED \
                    and now >= (<VifQueue>at).vif.credit_since + (<VifQueue>at).vif.credit_ns:
                (<VifQueue>at).state = RUNNABLE
            elif (<VifQueue>at).state == WAITING and now >= self._patience((<VifQueue>at).blocker):
                (<VifQueue>at).state = RUNNABLE
        if self.uplink is not None and self.uplink.state == WAITING and now >= self._patience(self.uplink.blocker):
            self.uplink.state = RUNNABLE

    cdef void _posted(self, void *at, uint64_t now) noexcept nogil:
        """A queue's frontend may have posted buffers: deliver what waits for them, and let senders go on."""
        cdef bint posted = (<VifQueue>at).rx_event
        cdef uint32_t waited = (<VifQueue>at).waiting_frames
        (<VifQueue>at).rx_event = False
        (<VifQueue>at)._look_rx(now)
        if (<VifQueue>at).first != NULL:
            self._touch(at)
            (<VifQueue>at)._deliver_waiting(now)
            self._push_touched()
        # Not for nothing: more senders than have a turn in one run would keep it going, each waking the others.
        if posted or (<VifQueue>at).waiting_frames != waited:
            self._wake(at)

    cdef uint64_t _patience(self, void *blocker) noexcept nogil:
        """Until when senders wait for a receiver (NULL: the uplink)."""
        if blocker != NULL and (<VifQueue>blocker).first == NULL:
            return (<VifQueue>blocker).progress + MOMENT_NS
        return (self.uplink.progress if blocker == NULL else (<VifQueue>blocker).paced) + PATIENCE_NS

    cdef bint _plan(self, uint64_t now) noexcept nogil:
        """Set `deadline`; whether somebody is to run at once."""
        cdef uint32_t i
        cdef void *at
        cdef uint64_t next = ~<uint64_t>0
        cdef bint more = self.uplink is not None and self.uplink.state == RUNNABLE
        for i in range(self.nr_queues):
            at = self.queue[i]
            if (<VifQueue>at).vif.fault:
                self.trouble |= not (<VifQueue>at).vif.fault_told
                continue
            if (<VifQueue>at).state == RUNNABLE:
                more = True
            elif (<VifQueue>at).state == DELAYED:
                next = min(next, (<VifQueue>at).vif.credit_since + (<VifQueue>at).vif.credit_ns)
            elif (<VifQueue>at).state == WAITING:
                next = min(next, self._patience((<VifQueue>at).blocker))
            if (<VifQueue>at).first != NULL:
                next = min(next, (<VifQueue>at).first.since + DRAIN_NS)
        if self.uplink is not None and self.uplink.state == WAITING:
            next = min(next, self._patience(self.uplink.blocker))
        self.deadline = -1 if next == ~<uint64_t>0 else <int64_t>next
        return more
