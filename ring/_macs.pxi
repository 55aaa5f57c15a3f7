# Where stations are (IEEE 802.1Q, 8.7 and 8.8): addresses learned from what they send, forgotten with age.
cdef enum:
    PORTS_MAX = 1024           # of a switch; port 0 is the uplink
    MACS = 4096                # slots of the table
    MACS_MOST = 2048           # addresses in it
    MACS_OF_VIF = 256          # addresses one vif may be at: none can push out the others'
    NO_PORT = 0xffffffff

cdef uint64_t AGE_NS = 300 * SECOND            # an address not heard of is forgotten (802.1Q, table 8-6)

cdef struct MacEntry:
    uint64_t mac
    uint64_t seen              # ns
    uint32_t port
    bint used


cdef class MacTable:
    """From address to port. Open addressing; what is too old is swept out when room is needed."""
    cdef MacEntry *table
    cdef uint32_t at_port[PORTS_MAX]           # addresses of each port
    cdef uint32_t used
    cdef uint64_t swept

    def __cinit__(self):
        self.table = <MacEntry *>calloc(MACS, sizeof(MacEntry))
        if self.table == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.table)

    cdef MacEntry *_slot(self, uint64_t mac) noexcept nogil:
        """Where an address is in the table, or would be."""
        cdef uint32_t at = <uint32_t>(mac * <uint64_t>0x9e3779b97f4a7c15 >> 40) % MACS
        while self.table[at].used and self.table[at].mac != mac:
            at = (at + 1) % MACS
        return &self.table[at]

    cdef uint32_t _find(self, const uint8_t *mac, uint64_t now) noexcept nogil:
        """The port of an address, or NO_PORT."""
        cdef MacEntry *entry = self._slot(mac_number(mac))
        if not entry.used or now - entry.seen >= AGE_NS:
            return NO_PORT
        return entry.port

    cdef bint _is_full(self, MacEntry *entry, uint32_t port) noexcept nogil:
        return (port and self.at_port[port] >= MACS_OF_VIF) or (not entry.used and self.used >= MACS_MOST)

    cdef void _learn(self, const uint8_t *mac, uint32_t port, uint64_t now) noexcept nogil:
        """An address was heard at a port. Nothing is learned when there is no room."""
        cdef uint64_t number = mac_number(mac)
        cdef MacEntry *entry
        if is_multicast(mac) or number == 0:
            return
        entry = self._slot(number)
        if entry.used and entry.port == port:
            entry.seen = now
            return
        if self._is_full(entry, port):
            if now - self.swept < SECOND:      # a sweep costs: no more than one a second
                return
            self._sweep(now, NO_PORT)
            self.swept = now
            entry = self._slot(number)
            if self._is_full(entry, port):
                return
        if entry.used:
            self.at_port[entry.port] -= 1
        else:
            entry.used = True
            entry.mac = number
            self.used += 1
        entry.port = port
        entry.seen = now
        self.at_port[port] += 1

    cdef void _sweep(self, uint64_t now, uint32_t port) noexcept nogil:
        """Forget what is too old, and all of one port; the rest may move to another slot."""
        cdef MacEntry *old = self.table
        cdef MacEntry *new = <MacEntry *>calloc(MACS, sizeof(MacEntry))
        cdef uint32_t i
        if new == NULL:
            return
        self.table = new
        self.used = 0
        for i in range(MACS):
            if not old[i].used:
                continue
            if now >= old[i].seen + AGE_NS or old[i].port == port:
                self.at_port[old[i].port] -= 1
                continue
            self._slot(old[i].mac)[0] = old[i]
            self.used += 1
        free(old)
