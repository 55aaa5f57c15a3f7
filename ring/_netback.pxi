# netback's data path (io/netif.h): a vif's queues, from the slots in shared memory to checked chains and copied frames.
from libc.stdlib cimport malloc

cdef enum:
    NET_RING = 256             # the most slots that one page holds
    TX_SLOT = 12
    RX_SLOT = 8
    FATAL_SLOTS = 20           # so many continuation slots are no packet but an attack
    MAX_EXTRAS = 4             # there are four types
    MAX_QUEUES = 8
    MAX_MCAST = 64             # addresses of a vif's multicast filter
    MAX_MAPPING = 128          # entries of the table from hash to queue
    QUEUE_BYTES = 512 << 10    # of memory for frames that wait for one queue's receiver
    NET_RSP_ERROR = -1
    EXTRA_MCAST_ADD = 2
    EXTRA_MCAST_DEL = 3
    CHAIN_READY = 0
    CHAIN_INCOMPLETE = 1
    CHAIN_DROP = 2             # an error response for every slot
    CHAIN_FATAL = 3            # the vif is disabled
    TAKEN = 0                  # what became of a frame: it went on its way
    DROPPED = 1
    WAIT = 2                   # nowhere yet: the sender is to offer it again
    IDLE = 0                   # states of a transmit queue
    RUNNABLE = 1
    WAITING = 2                # for a receiver's buffers
    DELAYED = 3                # for credit

cdef enum:                     # why a vif is disabled
    FAULT_TX_PROD = 1
    FAULT_RX_PROD = 2
    FAULT_EXTRA_TYPE = 3
    FAULT_EXTRAS = 4
    FAULT_SLOTS = 5
    FAULT_CROSSES = 6
    FAULT_GSO_SIZE = 7
    FAULT_GSO_TYPE = 8

FAULTS = {
    FAULT_TX_PROD: "transmit ring: req_prod {:#x} is not within the ring's size of rsp_prod {:#x}, or moved back",
    FAULT_RX_PROD: "receive ring: req_prod {:#x} is not within the ring's size of rsp_prod {:#x}, or moved back",
    FAULT_EXTRA_TYPE: "an extra info of type {}",
    FAULT_EXTRAS: "more than {} extra infos with one packet",
    FAULT_SLOTS: "a packet with {} continuation slots",
    FAULT_CROSSES: "a fragment at offset {} of {} bytes crosses its page's end",
    FAULT_GSO_SIZE: "a GSO packet with a segment size of {}",
    FAULT_GSO_TYPE: "a GSO packet of type {}",
}

cdef enum:                     # vif counters, as statistics.VIF_FIELDS has them
    STAT_TX_REQUESTS = 0
    STAT_TX_RESPONSES = 1
    STAT_TX_SENT = 2
    STAT_TX_SAVED = 3
    STAT_RX_REQUESTS = 4
    STAT_RX_RESPONSES = 5
    STAT_RX_SENT = 6
    STAT_RX_SAVED = 7
    STAT_TX_PACKETS = 8
    STAT_TX_BYTES = 9
    STAT_RX_PACKETS = 10
    STAT_RX_BYTES = 11
    STAT_TX_DROPPED = 12
    STAT_RX_DROPPED = 13
    STAT_ERRORS = 14
    STATS = 15

cdef uint64_t SECOND = 1_000_000_000
cdef uint64_t PATIENCE_NS = SECOND             # how long a sender waits for a receiver that does not move
cdef uint64_t DRAIN_NS = 10 * SECOND           # how long a frame waits for buffers
cdef uint64_t STALL_NS = 60 * SECOND           # without buffers, and nothing is kept any more
cdef uint64_t LEAST_BURST = 131072             # bytes: the largest frames must pass whatever the rate is

cdef struct Waiting:           # a frame that waits for its receiver's buffers; its bytes follow
    Waiting *next
    uint64_t since
    NetPacket packet


cdef class Vif:
    """A connected vif: whose memory it is, what its frontend can take, and what it may send.

    mapper, table, memory: as in GrantedIO. counters: 15 u64, as statistics.VIF_FIELDS names them.
    """
    cdef Mapper mapper
    cdef GrantTable table
    cdef Shared memory, counters
    cdef uint64_t *stat
    cdef readonly list queues
    cdef void *queue[MAX_QUEUES]
    cdef readonly uint32_t nr_queues
    cdef public bint sg, rx_notify, csum_v4, csum_v6, gso_v4, gso_v6, multicast_control
    cdef uint32_t port                 # of the switch; 0: of none
    cdef int fault
    cdef uint64_t fault_values[2]
    cdef bint fault_told
    cdef uint64_t mcast[MAX_MCAST]
    cdef readonly uint32_t nr_mcast
    # Rate limit. credit_ns 0: none
    cdef uint64_t credit_bytes, credit_ns, credit, credit_since
    # The control ring's settings
    cdef public uint32_t hash_algorithm, hash_flags
    cdef uint8_t key[HASH_KEY_MAX]
    cdef uint32_t mapping[MAX_MAPPING]
    cdef readonly uint32_t mapping_size
    cdef uint32_t nr_learned

    def __init__(self, Mapper mapper not None, GrantTable table not None, memory, counters):
        self.mapper = mapper
        self.table = table
        self.memory = Shared(memory)
        self.counters = Shared(counters)
        if self.memory.size // PAGE < table.nr_frames or self.counters.size < STATS * 8:
            raise ValueError("not this table's memory, or no room for the counters")
        self.stat = <uint64_t *>self.counters.at
        self.queues = []
        self.csum_v4 = True

    def add_queue(self, BackRing tx not None, BackRing rx not None, notify_tx, notify_rx):
        """One more queue: its rings, and what to call when the frontend is to be notified of responses in each."""
        if self.nr_queues == MAX_QUEUES or self.port:
            raise ValueError("no more queues")
        queue = VifQueue(self, tx, rx, notify_tx, notify_rx)
        self.queue[self.nr_queues] = <void *>queue
        self.queues.append(queue)
        self.nr_queues += 1
        return queue

    def limit(self, uint32_t credit_bytes, uint32_t credit_usec, uint64_t now):
        """Let it send `credit_bytes` in every `credit_usec`; 0 microseconds: as much as it likes. now: ns."""
        self.credit_bytes = self.credit = credit_bytes
        self.credit_ns = <uint64_t>credit_usec * 1000
        self.credit_since = now

    @property
    def failure(self):
        """The rule that the frontend broke, for which the vif is to be disabled; None while it did not."""
        if not self.fault:
            return None
        return FAULTS[self.fault].format(self.fault_values[0], self.fault_values[1])

    def set_hash_key(self, const uint8_t[::1] key not None):
        """The key of the Toeplitz hash, at most 40 bytes; zeros behind it."""
        if key.shape[0] > HASH_KEY_MAX:
            raise ValueError(f"a key of {key.shape[0]} bytes")
        memset(self.key, 0, HASH_KEY_MAX)
        for i in range(key.shape[0]):
            self.key[i] = key[i]

    def set_mapping_size(self, uint32_t size):
        """A new table from hash to queue, of zeros; size 0: the hash modulo the number of queues."""
        if size > MAX_MAPPING:
            raise ValueError(f"a mapping of {size} entries")
        memset(self.mapping, 0, sizeof(self.mapping))
        self.mapping_size = size

    def set_mapping(self, uint32_t offset, queues):
        """Entries of the table from `offset` on. ValueError when they do not fit it, or a queue is none."""
        if offset + len(queues) > self.mapping_size or any(not 0 <= queue < self.nr_queues for queue in queues):
            raise ValueError("no such entries, or queues")
        for index, queue in enumerate(queues):
            self.mapping[offset + index] = queue

    cdef void _fail(self, int fault, uint64_t first, uint64_t second) noexcept nogil:
        if not self.fault:
            self.fault = fault
            self.fault_values[0] = first
            self.fault_values[1] = second

    cdef bint _may_send(self, uint32_t size, uint64_t now) noexcept nogil:
        """Whether there is credit for a frame of so many bytes. More comes `credit_ns` after the last did."""
        cdef uint64_t most = self.credit_bytes if self.credit_bytes > LEAST_BURST else LEAST_BURST
        if self.credit_ns == 0 or size <= self.credit:
            return True
        if now < self.credit_since + self.credit_ns:
            return False
        # As many windows as passed, but never more than one burst: what was not used is not kept for ever.
        self.credit += min((now - self.credit_since) // self.credit_ns, LEAST_BURST) * self.credit_bytes
        if self.credit > most:
            self.credit = most
        self.credit_since = now - (now - self.credit_since) % self.credit_ns
        return size <= self.credit

    cdef void _spend(self, uint32_t size) noexcept nogil:
        self.credit -= size

    cdef void _count_learned(self, int32_t change) noexcept nogil:
        self.nr_learned += change

    cdef bint _change_filter(self, uint8_t type, const uint8_t *mac) noexcept nogil:
        """XEN_NETIF_EXTRA_TYPE_MCAST_ADD and _DEL; False when the filter is full."""
        cdef uint64_t number = mac_number(mac)
        cdef uint32_t i
        for i in range(self.nr_mcast):
            if self.mcast[i] == number:
                if type == EXTRA_MCAST_DEL:
                    self.nr_mcast -= 1
                    self.mcast[i] = self.mcast[self.nr_mcast]
                return True
        if type == EXTRA_MCAST_DEL:
            return True
        if self.nr_mcast == MAX_MCAST:
            return False
        self.mcast[self.nr_mcast] = number
        self.nr_mcast += 1
        return True

    cdef bint _wants(self, const uint8_t *mac) noexcept nogil:
        """Whether a flooded frame to that address passes the multicast filter."""
        cdef uint64_t number = mac_number(mac)
        cdef uint32_t i
        if not self.multicast_control or not is_multicast(mac) or is_broadcast(mac):
            return True
        for i in range(self.nr_mcast):
            if self.mcast[i] == number:
                return True
        return False

    cdef uint32_t _choose(self, NetPacket *p) noexcept nogil:
        """The receive queue for a frame, always the same for frames of a flow; sets the hash that goes with it."""
        p.hash_type = 0
        if self.hash_algorithm and self.hash_flags:
            self._hash(p)
        if p.hash_type == 0:
            return flow(p) % self.nr_queues if self.nr_queues > 1 else 0
        if self.mapping_size:
            return self.mapping[p.hash % self.mapping_size]
        return p.hash % self.nr_queues

    cdef void _hash(self, NetPacket *p) noexcept nogil:
        """The Toeplitz hash over the most that the frontend asked for (io/netif.h, hash types)."""
        cdef uint8_t data[36]
        cdef uint32_t addresses = 32 if p.v6 else 8
        cdef uint32_t plain = HASH_IPV6 if p.v6 else HASH_IPV4
        if p.l3 == 0:
            return
        memcpy(data, p.head + p.l3 + (8 if p.v6 else 12), addresses)
        if p.l4 and p.protocol == IPPROTO_TCP and self.hash_flags >> (plain + 1) & 1:
            memcpy(data + addresses, p.head + p.l4, 4)
            p.hash = toeplitz(self.key, data, addresses + 4)
            p.hash_type = <uint8_t>(plain + 2)
        elif self.hash_flags >> plain & 1:
            p.hash = toeplitz(self.key, data, addresses)
            p.hash_type = <uint8_t>(plain + 1)


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


cdef class VifQueue:
    """One queue of a vif: a transmit ring that is read, a receive ring that is filled, and the frames that wait for it."""
    cdef Vif vif
    cdef uint64_t *stat                        # the vif's
    cdef BackRing tx, rx
    cdef object notify_tx, notify_rx
    cdef NetTxRequest tx_slots[NET_RING]       # private copies of the ring's slots, each in its own place
    cdef NetRxRequest rx_slots[NET_RING]
    cdef uint32_t tx_copied, rx_copied         # up to here
    cdef Chain chain
    cdef int32_t handles[18]
    cdef int state
    cdef void *blocker                         # while WAITING: the receiving VifQueue; NULL: the uplink
    cdef bint tx_notify, rx_notify, touched, listed, rx_event
    cdef Waiting *first
    cdef Waiting *last
    cdef readonly uint32_t waiting_frames, waiting_bytes
    cdef uint64_t progress                     # when the receiver last had or posted buffers, ns
    cdef readonly bint starved, stalled

    def __init__(self, Vif vif, BackRing tx, BackRing rx, notify_tx, notify_rx):
        if tx.slot != TX_SLOT or rx.slot != RX_SLOT or tx.slots > NET_RING or rx.slots > NET_RING:
            raise ValueError("not the rings of a vif")
        self.vif = vif
        self.stat = vif.stat
        self.tx = tx
        self.rx = rx
        self.notify_tx = notify_tx
        self.notify_rx = notify_rx
        self.tx_copied = tx.req_cons
        self.rx_copied = rx.req_cons
        self.state = RUNNABLE

    def __dealloc__(self):
        while self.first != NULL:
            self._forget_first()

    # -- the transmit ring
    cdef bint _look(self, BackRing ring, uint8_t *copies, uint32_t *copied, uint32_t size, int fault) noexcept nogil:
        """Copy the slots that are new, once, to their place in `copies`. False when there are none, or the index lies."""
        cdef uint32_t prod = ld32(&ring.header.req_prod), index         # acquire: the index before the slots
        if prod == copied[0]:
            return False
        # Ahead of what it may be, or behind what it was: copied - rsp_prod_pvt is within the ring, so is the difference.
        if <uint32_t>(prod - ring.rsp_prod_pvt) > ring.slots \
                or <uint32_t>(prod - ring.rsp_prod_pvt) < <uint32_t>(copied[0] - ring.rsp_prod_pvt):
            self.vif._fail(fault, prod, ring.rsp_prod_pvt)
            return False
        for index in range(<uint32_t>(prod - copied[0])):
            memcpy(copies + ((copied[0] + index) & ring.index_mask) * size,
                   ring.ring + ((copied[0] + index) & ring.index_mask) * size, size)
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
        """Map the chain's grants and point the packet's parts at them; False when one cannot be, and none is then."""
        cdef Chain *c = &self.chain
        cdef uint32_t i, frame = 0
        p.nr_parts = c.nr_data + 1
        p.size = c.size
        for i in range(c.nr_data):
            self.handles[i] = self.vif.mapper._map(self.vif.table, c.data[i].gref, True, &frame)
            if self.handles[i] < 0:
                self._unmap_chain(i)
                return False
            p.part[i + 1].iov_base = self.vif.memory.at + <uint64_t>frame * PAGE + c.data[i].offset
            p.part[i + 1].iov_len = c.data[i].size
        return True

    cdef void _unmap_chain(self, uint32_t count) noexcept nogil:
        cdef uint32_t i
        for i in range(count):
            self.vif.mapper._unmap(self.vif.table, self.handles[i])

    cdef void _answer(self, int16_t status) noexcept nogil:
        """Respond to every slot of the chain: `status`, but for extra infos, whose slots get NETIF_RSP_NULL."""
        cdef Chain *c = &self.chain
        cdef uint32_t i, at
        cdef NetTxResponse *response
        for i in range(c.slots):
            at = self.tx.req_cons & self.tx.index_mask
            response = <NetTxResponse *>(self.tx.ring + at * TX_SLOT)
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
        cdef uint32_t count = self.tx.rsp_prod_pvt - self.tx.pushed
        if count:
            self.stat[STAT_TX_RESPONSES] += count
            if self.tx._push():
                self.tx_notify = True
                self.stat[STAT_TX_SENT] += 1
            else:
                self.stat[STAT_TX_SAVED] += 1

    cdef void _push_rx(self) noexcept nogil:
        cdef uint32_t count = self.rx.rsp_prod_pvt - self.rx.pushed
        if count:
            self.stat[STAT_RX_RESPONSES] += count
            if self.rx._push():
                self.rx_notify = True
                self.stat[STAT_RX_SENT] += 1
            else:
                self.stat[STAT_RX_SAVED] += 1

    # -- the receive ring
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
        cdef NetRxRequest *request
        cdef uint32_t left = p.size, count, frame = 0, part = 0
        cdef size_t skip = 0
        cdef uint16_t flags = p.flags
        cdef int32_t handle
        cdef bint good = True
        if p.gso_type or p.hash_type:
            flags |= NET_EXTRA_INFO
        while left:
            request = &self.rx_slots[self.rx.req_cons & self.rx.index_mask]
            response = <NetRxResponse *>(self.rx.ring + (self.rx.req_cons & self.rx.index_mask) * RX_SLOT)
            count = left if left < PAGE else PAGE
            handle = self.vif.mapper._map(self.vif.table, request.gref, False, &frame)
            copy_parts(p, &part, &skip, self.vif.memory.at + <uint64_t>frame * PAGE if handle >= 0 else NULL, count)
            if handle >= 0:
                self.vif.mapper._unmap(self.vif.table, handle)
            else:
                good = False
            left -= count
            response.id = request.id
            response.offset = 0
            response.flags = flags | (NET_MORE_DATA if left else 0)
            response.status = <int16_t>count if handle >= 0 else NET_RSP_ERROR
            self.rx.req_cons += 1
            if flags & NET_EXTRA_INFO:
                self._put_extras(p)
            flags = 0
        self.rx.rsp_prod_pvt = self.rx.req_cons
        if good:
            self.stat[STAT_RX_PACKETS] += 1
            self.stat[STAT_RX_BYTES] += p.size
        else:
            self.stat[STAT_ERRORS] += 1
            self.stat[STAT_RX_DROPPED] += 1
        return good

    cdef void _put_extras(self, NetPacket *p) noexcept nogil:
        """Extra infos take the place of the next buffers, which go back unused."""
        cdef NetExtra *extra
        if p.gso_type:
            extra = <NetExtra *>(self.rx.ring + (self.rx.req_cons & self.rx.index_mask) * RX_SLOT)
            memset(extra, 0, RX_SLOT)
            extra.type = NET_EXTRA_GSO
            extra.flags = NET_EXTRA_MORE if p.hash_type else 0
            memcpy(extra.bytes, &p.gso_size, 2)
            extra.bytes[2] = p.gso_type
            self.rx.req_cons += 1
        if p.hash_type:
            extra = <NetExtra *>(self.rx.ring + (self.rx.req_cons & self.rx.index_mask) * RX_SLOT)
            memset(extra, 0, RX_SLOT)
            extra.type = NET_EXTRA_HASH
            extra.bytes[0] = p.hash_type - 1
            extra.bytes[1] = <uint8_t>self.vif.hash_algorithm
            memcpy(extra.bytes + 2, &p.hash, 4)
            self.rx.req_cons += 1

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
            self.starved = False
            self.progress = now
            self._deliver(p)
            return TAKEN
        if not self.starved:
            self.starved = True
        elif now - self.progress >= STALL_NS:
            self.stalled = True
        if self.vif.fault or self.stalled or not self.vif.rx_notify:
            return self._drop()
        if self.waiting_bytes + p.size + sizeof(Waiting) > QUEUE_BYTES:
            return WAIT if may_wait and now - self.progress < PATIENCE_NS else self._drop()
        return TAKEN if self._keep(p, now) else self._drop()

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
                self.starved = False
                self.progress = now
                self._deliver(p)
            elif now - self.first.since >= DRAIN_NS:
                self._drop()
            else:
                return
            self._forget_first()


cdef void copy_parts(NetPacket *p, uint32_t *part, size_t *skip, uint8_t *to, uint32_t count) noexcept nogil:
    """Copy the next `count` bytes of a frame from (part, skip) on, which move; to NULL: pass over them."""
    cdef size_t length
    while count:
        length = p.part[part[0]].iov_len - skip[0]
        if length > count:
            length = count
        if to != NULL:
            memcpy(to, <uint8_t *>p.part[part[0]].iov_base + skip[0], length)
            to += length
        count -= <uint32_t>length
        skip[0] += length
        if skip[0] == p.part[part[0]].iov_len:
            part[0] += 1
            skip[0] = 0
