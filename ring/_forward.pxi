# Where a frame goes (IEEE 802.1Q, 8.6): one port or all but its own, in the form that each takes.
cdef class Forwarding:
    """Ports and addresses: port 0 is the uplink, if any; each other one is a vif. `capture` gets all that crosses."""
    cdef void *port[PORTS_MAX]         # of Vif
    cdef uint32_t nr_ports
    cdef Uplink uplink
    cdef PcapWriter capture
    cdef MacTable macs
    cdef void **touched                # of VifQueue: those with responses to push, or somebody to notify
    cdef uint32_t nr_touched
    cdef void *blocker                 # of the last frame that was told to WAIT: a VifQueue; NULL: the uplink
    cdef readonly uint64_t frames, bytes, flooded, filtered

    def __cinit__(self, Uplink uplink=None, PcapWriter capture=None, *args, **kwargs):
        self.touched = <void **>calloc(PORTS_MAX * MAX_QUEUES, sizeof(void *))
        if self.touched == NULL:
            raise MemoryError()
        self.macs = MacTable()
        self.uplink = uplink
        self.capture = capture
        self.nr_ports = 1

    def __dealloc__(self):
        free(self.touched)

    cdef int _forward(self, NetPacket *p, uint64_t now) noexcept nogil:
        """Send a frame where it belongs: TAKEN or DROPPED, or WAIT: nothing was done, `blocker` says for whom."""
        cdef uint32_t out
        cdef int what = TAKEN
        self.macs._learn(p.head + MAC_SIZE, p.source, now)
        out = NO_PORT if is_multicast(p.head) else self.macs._find(p.head, now)
        if out == p.source:
            self.filtered += 1
            return TAKEN
        if out != NO_PORT:
            what = self._to_port(out, p, True, now)
            if what == WAIT:
                return WAIT
        self.frames += 1
        self.bytes += p.size
        if self.capture is not None:
            self.capture._add(p)
        if out == NO_PORT:
            self._flood(p, now)
        return what

    cdef void _flood(self, NetPacket *p, uint64_t now) noexcept nogil:
        """To every port but its own. Nobody waits: one slow receiver would stop them all."""
        cdef uint32_t out
        self.flooded += 1
        for out in range(self.nr_ports):
            if out != p.source and (out == 0 or self.port[out] != NULL and (<Vif>self.port[out])._wants(p.head)):
                self._to_port(out, p, False, now)

    cdef int _to_port(self, uint32_t out, NetPacket *p, bint may_wait, uint64_t now) noexcept nogil:
        """To one port, in the form that it takes: checksum complete, or cut into segments."""
        if out == 0:
            self.blocker = NULL
            return self._to_uplink(p, may_wait, now) if self.uplink is not None else DROPPED
        return self._to_vif(<Vif>self.port[out], p, may_wait, now)

    cdef int _to_uplink(self, NetPacket *p, bint may_wait, uint64_t now) noexcept nogil:
        cdef int what
        cdef Segments s
        cdef NetPacket frame
        if p.gso_type and self.uplink.kind != UPLINK_NULL:
            if not begin_segments(p, &s):
                return self.uplink._drop()
            if may_wait and self.uplink.out_end - self.uplink.out_start + p.size + s.count * (s.header + STREAM_HEADER) > STREAM_OUT \
                    and not self.uplink.broken and now - self.uplink.progress < PATIENCE_NS:
                return WAIT
            while next_segment(p, &s, &frame):
                self.uplink._send(&frame, False, now)
            return TAKEN
        if p.flags & RX_CSUM_BLANK:
            fill_checksum(p)
            p.part[0].iov_base = p.full
        what = self.uplink._send(p, may_wait, now)
        p.part[0].iov_base = p.head
        return what

    cdef int _to_vif(self, Vif vif, NetPacket *p, bint may_wait, uint64_t now) noexcept nogil:
        cdef void *to = vif.queue[vif._choose(p)]
        cdef uint16_t flags = p.flags
        cdef int what
        self.blocker = to
        self._touch(to)
        if p.gso_type and not (vif.gso_v6 if p.gso_type == GSO_TCPV6 else vif.gso_v4):
            return self._cut(<VifQueue>to, p, may_wait, now)
        if flags & RX_CSUM_BLANK and not p.gso_type and not (vif.csum_v6 if p.v6 else vif.csum_v4):
            fill_checksum(p)
            p.part[0].iov_base = p.full
            p.flags = RX_DATA_VALIDATED
        what = (<VifQueue>to)._offer(p, may_wait, now)
        p.part[0].iov_base = p.head
        p.flags = flags
        return what

    cdef int _cut(self, VifQueue to, NetPacket *p, bint may_wait, uint64_t now) noexcept nogil:
        """A GSO packet for a vif that takes none. All of its frames find a place, or it waits."""
        cdef Segments s
        cdef NetPacket frame
        cdef uint32_t bytes
        if not begin_segments(p, &s):
            return to._drop()
        bytes = p.size + s.count * (s.header + <uint32_t>sizeof(Waiting))
        if to.first != NULL:
            to._deliver_waiting(now)
        if may_wait and to.waiting_bytes + bytes > QUEUE_BYTES and to.vif.rx_notify and not to.stalled \
                and now - to.paced < PATIENCE_NS:
            return WAIT
        while next_segment(p, &s, &frame):
            to._offer(&frame, False, now)
        return TAKEN

    cdef void _touch(self, void *queue) noexcept nogil:
        if not (<VifQueue>queue).touched:
            (<VifQueue>queue).touched = True
            self.touched[self.nr_touched] = queue
            self.nr_touched += 1

    cdef void _push_touched(self) noexcept nogil:
        cdef uint32_t i
        for i in range(self.nr_touched):
            (<VifQueue>self.touched[i])._push_rx()

    cdef _tell(self):
        """Notify the frontends that asked for it."""
        cdef VifQueue q
        while self.nr_touched:
            self.nr_touched -= 1
            q = <VifQueue>self.touched[self.nr_touched]
            q.touched = False
            both = q.notify_tx is q.notify_rx
            tx, rx = q.tx_notify, q.rx_notify
            q.tx_notify = q.rx_notify = False
            if tx or (rx and both):
                q.notify_tx()
            if rx and not both:
                q.notify_rx()
