# The transmit half of a vif's queue (io/netif.h): from slots in shared memory to checked chains and mapped pages.
cdef enum:
    NET_RING = 256             # the most slots that one page holds
    TX_SLOT = 12
    FATAL_SLOTS = 20           # so many continuation slots are no packet but an attack
    MAX_EXTRAS = 4             # there are four types
    CHAIN_READY = 0
    CHAIN_INCOMPLETE = 1
    CHAIN_DROP = 2             # an error response for every slot
    CHAIN_FATAL = 3            # the vif is disabled
    IDLE = 0                   # states of a transmit queue
    RUNNABLE = 1
    WAITING = 2                # for a receiver's buffers
    DELAYED = 3                # for credit
    NET_RSP_ERROR = -1


cdef struct Chain:             # one packet in the transmit ring, checked
    uint32_t slots             # of the ring, extra infos included
    uint32_t extras
    uint32_t nr_data
    uint32_t size
    uint16_t flags             # of the first slot
    uint16_t gso_size
    uint8_t gso_type
    uint8_t change             # EXTRA_MCAST_ADD or _DEL
    uint8_t mac[6]
    NetTxRequest data[18]      # private copies; the first one's size is its own


cdef class VifTransmit:
    """A transmit ring that is read, and where its reader stands."""
    cdef Vif vif
    cdef uint64_t *stat                        # the vif's
    cdef BackRing tx
    cdef object notify_tx
    cdef readonly StaticGrants static_grants   # of both rings
    cdef NetTxRequest tx_slots[NET_RING]       # private copies of the ring's slots, each in its own place
    cdef NetTxResponse tx_answers[NET_RING]    # in the same places, until they are pushed
    cdef uint32_t tx_copied                    # up to here
    cdef Chain chain
    cdef int32_t handles[18]
    cdef int state
    cdef void *blocker                         # while WAITING: the receiving VifQueue; NULL: the uplink
    cdef bint tx_notify

    def __init__(self, Vif vif, BackRing tx, notify_tx):
        if tx.slot != TX_SLOT or tx.slots > NET_RING:
            raise ValueError("not a vif's transmit ring")
        self.vif = vif
        self.stat = vif.stat
        self.static_grants = StaticGrants(vif.mapper, vif.table)
        self.tx = tx
        self.notify_tx = notify_tx
        self.tx_copied = tx.req_cons
        self.state = RUNNABLE

    cdef bint _look(self, BackRing ring, uint8_t *copies, uint32_t *copied, uint32_t size, int fault) noexcept nogil:
        """Copy the slots that are new, once, to their place in `copies`. False when there are none, or the index lies."""
        cdef uint32_t prod = ld32(&ring.header.req_prod), first, count, run     # acquire: the index before the slots
        if prod == copied[0]:
            return False
        # Ahead of what it may be, or behind what it was: copied - rsp_prod_pvt is within the ring, so is the difference.
        if <uint32_t>(prod - ring.rsp_prod_pvt) > ring.slots \
                or <uint32_t>(prod - ring.rsp_prod_pvt) < <uint32_t>(copied[0] - ring.rsp_prod_pvt):
            self.vif._fail(fault, prod, ring.rsp_prod_pvt)
            return False
        first = copied[0] & ring.index_mask
        count = prod - copied[0]
        run = min(count, ring.slots - first)
        memcpy(copies + first * size, ring.ring + first * size, run * size)
        memcpy(copies, ring.ring, (count - run) * size)
        copied[0] = prod
        return True

    cdef bint _look_tx(self) noexcept nogil:
        cdef uint32_t before = self.tx_copied
        if not self._look(self.tx, <uint8_t *>self.tx_slots, &self.tx_copied, TX_SLOT, FAULT_TX_PROD):
            return False
        self.stat[STAT_TX_REQUESTS] += <uint32_t>(self.tx_copied - before)
        return True

    cdef bint _more_tx(self) noexcept nogil:
        """Ask for a notification of what comes next; whether more is there already."""
        if self._look_tx():
            return True
        # As in BackRing.final_check, but counted from what was seen: a chain that is not complete stays in the ring.
        st32(&self.tx.header.req_event, self.tx_copied + 1)
        mb()
        return self._look_tx()

    cdef int _parse(self) noexcept nogil:
        """Check the packet at req_cons: a CHAIN_ answer, and `chain`. Only private copies of slots are looked at."""
        cdef Chain *c = &self.chain
        cdef uint32_t here = self.tx.req_cons, there = <uint32_t>(self.tx_copied - here), mask = self.tx.index_mask
        cdef uint32_t left
        cdef bint more, drop = False
        cdef NetTxRequest *slot
        if there == 0:
            return CHAIN_INCOMPLETE
        slot = &self.tx_slots[here & mask]
        memset(c, 0, sizeof(Chain))
        c.data[0] = slot[0]
        c.flags = slot.flags
        c.size = left = slot.size
        c.slots = c.nr_data = 1
        more = slot.flags & NET_EXTRA_INFO
        while more:
            if c.extras == MAX_EXTRAS:
                self.vif._fail(FAULT_EXTRAS, MAX_EXTRAS, 0)
                return CHAIN_FATAL
            if c.slots == there:
                return CHAIN_INCOMPLETE
            slot = &self.tx_slots[(here + c.slots) & mask]
            if not self._extra(c, <NetExtra *>slot):
                return CHAIN_FATAL
            more = (<NetExtra *>slot).flags & NET_EXTRA_MORE
            c.slots += 1
        more = c.flags & NET_MORE_DATA
        while more:
            if c.slots == there:
                return CHAIN_INCOMPLETE
            slot = &self.tx_slots[(here + c.slots) & mask]
            if c.nr_data == FATAL_SLOTS:
                self.vif._fail(FAULT_SLOTS, c.nr_data, 0)
                return CHAIN_FATAL
            if slot.offset + slot.size > PAGE:
                self.vif._fail(FAULT_CROSSES, slot.offset, slot.size)
                return CHAIN_FATAL
            if slot.size > left or c.nr_data >= NET_SLOTS:
                drop = True
            else:
                left -= slot.size
                c.data[c.nr_data] = slot[0]
            more = slot.flags & NET_MORE_DATA
            c.slots += 1
            c.nr_data += 1
        if c.change and not drop:
            return CHAIN_READY                 # a request without data: only its extra infos count
        if drop or c.size < NET_LEAST:
            return CHAIN_DROP
        if c.data[0].offset + left > PAGE:
            self.vif._fail(FAULT_CROSSES, c.data[0].offset, left)
            return CHAIN_FATAL
        c.data[0].size = <uint16_t>left
        return CHAIN_READY

    cdef bint _extra(self, Chain *c, NetExtra *extra) noexcept nogil:
        """One extra info; False when it disables the vif."""
        if extra.type == 0 or extra.type >= NET_EXTRA_MAX:
            self.vif._fail(FAULT_EXTRA_TYPE, extra.type, 0)
            return False
        c.extras += 1
        if extra.type == NET_EXTRA_GSO:
            memcpy(&c.gso_size, extra.bytes, 2)
            c.gso_type = extra.bytes[2]
            if c.gso_size == 0:
                self.vif._fail(FAULT_GSO_SIZE, 0, 0)
            elif c.gso_type != GSO_TCPV4 and c.gso_type != GSO_TCPV6:
                self.vif._fail(FAULT_GSO_TYPE, c.gso_type, 0)
            return not self.vif.fault
        if extra.type == EXTRA_MCAST_ADD or extra.type == EXTRA_MCAST_DEL:
            if not c.change:
                c.change = extra.type
                memcpy(c.mac, extra.bytes, MAC_SIZE)
        return True                            # a sender's own hash is nothing to us

    cdef bint _map_chain(self, NetPacket *p) noexcept nogil:
        """Map the chain's grants and point the packet's parts at them, neighbours being one; False when one cannot be
        mapped, and none is then."""
        cdef Chain *c = &self.chain
        cdef uint32_t i, frame = 0
        cdef uint8_t *at
        cdef iovec *part = &p.part[0]          # the head's, which gather fills in: nothing lies behind it
        cdef uint8_t *end = NULL
        p.size = c.size
        for i in range(c.nr_data):
            self.handles[i] = self.static_grants._reach(c.data[i].gref, True, &frame)
            if self.handles[i] < NOT_MAPPED:
                self._unmap_chain(i)
                return False
            at = self.vif.memory.at + <uint64_t>frame * PAGE + c.data[i].offset
            if at == end:
                part.iov_len += c.data[i].size
            else:
                part += 1
                part.iov_base = at
                part.iov_len = c.data[i].size
            end = at + c.data[i].size
        p.nr_parts = <uint32_t>(part - &p.part[0]) + 1
        return True

    cdef void _unmap_chain(self, uint32_t count) noexcept nogil:
        cdef uint32_t i
        for i in range(count):
            if self.handles[i] >= 0:
                self.vif.mapper._unmap(self.vif.table, self.handles[i])

    cdef void _answer(self, int16_t status) noexcept nogil:
        """Respond to every slot of the chain: `status`, but for extra infos, whose slots get NETIF_RSP_NULL."""
        cdef Chain *c = &self.chain
        cdef uint32_t i, at
        cdef NetTxResponse *response
        for i in range(c.slots):
            at = self.tx.req_cons & self.tx.index_mask
            response = &self.tx_answers[at]
            if 1 <= i <= c.extras:
                response.id = 0
                response.status = NET_RSP_NULL
            else:
                response.id = self.tx_slots[at].id
                response.status = status
            self.tx.req_cons += 1
        self.tx.rsp_prod_pvt = self.tx.req_cons
        if status != NET_RSP_OKAY:
            self.stat[STAT_ERRORS] += 1

    cdef void _push_tx(self) noexcept nogil:
        cdef uint32_t i, at, count = self.tx.rsp_prod_pvt - self.tx.pushed
        if count:
            # Only now, and at once: a response takes its request's place, and who is killed between that and the push
            # leaves a successor with neither.
            for i in range(count):
                at = (self.tx.pushed + i) & self.tx.index_mask
                memcpy(self.tx.ring + at * TX_SLOT, &self.tx_answers[at], sizeof(NetTxResponse))
            self.stat[STAT_TX_RESPONSES] += count
            if self.tx._push():
                self.tx_notify = True
                self.stat[STAT_TX_SENT] += 1
            else:
                self.stat[STAT_TX_SAVED] += 1
