# A vif as its backend knows it (io/netif.h): whose memory, what its frontend takes, what it may send and wants to hear.
cdef enum:
    MAX_QUEUES = 8
    MAX_MCAST = 64             # addresses of a vif's multicast filter
    MAX_MAPPING = 128          # entries of the table from hash to queue
    EXTRA_MCAST_ADD = 2
    EXTRA_MCAST_DEL = 3

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
cdef uint64_t LEAST_BURST = 131072             # bytes: the largest frames must pass whatever the rate is


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
