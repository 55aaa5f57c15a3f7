# netfront's data path (io/netif.h): pages that are granted to the backend for good, and what goes into the rings.
#
# A page is granted once, when its ring is made, and used again and again: copying into it and out of it costs less than
# granting anew, and using it where it is costs nothing. Each page belongs to one request id.
cdef struct NetTxRequest:              # struct netif_tx_request
    uint32_t gref
    uint16_t offset
    uint16_t flags
    uint16_t id
    uint16_t size

cdef struct NetRxRequest:              # struct netif_rx_request
    uint16_t id
    uint16_t pad
    uint32_t gref

cdef struct NetRxResponse:             # struct netif_rx_response
    uint16_t id
    uint16_t offset
    uint16_t flags
    int16_t status

cdef struct NetTxResponse:             # struct netif_tx_response
    uint16_t id
    int16_t status

cdef struct NetExtra:                  # struct netif_extra_info; `words` are size, type and pad, features of a GSO
    uint8_t type
    uint8_t flags
    uint8_t bytes[6]

cdef struct NetFrame:                  # what a frontend is told of a frame it received
    uint32_t length
    uint16_t flags
    uint16_t gso_size
    uint8_t gso_type
    uint8_t hash_type
    uint16_t parts                     # of a frame that is looked at in place
    uint32_t hash

cdef struct NetPart:                   # a piece of a received frame, in the page it came in
    uint16_t page
    uint16_t offset
    uint16_t length
    uint16_t frame                     # which of those that were found


cdef enum:
    NET_MORE_DATA = 4                  # NETTXF_more_data, NETRXF_more_data
    NET_EXTRA_INFO = 8                 # NETTXF_extra_info, NETRXF_extra_info
    NET_TX_FLAGS = 3                   # NETTXF_csum_blank, NETTXF_data_validated
    NET_EXTRA_GSO = 1                  # XEN_NETIF_EXTRA_TYPE_GSO
    NET_EXTRA_HASH = 4                 # XEN_NETIF_EXTRA_TYPE_HASH
    NET_EXTRA_MAX = 5
    NET_EXTRA_MORE = 1                 # XEN_NETIF_EXTRA_FLAG_MORE
    NET_MOST = 65535                   # XEN_NETIF_MAX_TX_SIZE
    NET_SLOTS = 18                     # XEN_NETIF_NR_SLOTS_MIN
    NET_LEAST = 14                     # an Ethernet header
    NET_RSP_OKAY = 0
    NET_RSP_NULL = 1
    NET_RX_PARTS = 128                 # of a frame that is looked at in place: half a ring's pages
    PAGE_SPARE = 0                     # who has a page: nobody,
    PAGE_OUT = 1                       # the backend,
    PAGE_HELD = 2                      # whoever looks at what came in it


cdef class NetPages:
    """The pages of one ring's requests: page N belongs to request id N.

    memory: the frontend's memory, frame N at byte N * 4096. entries: its grant table. pages: (gref, frame) each.
    """
    cdef Shared memory, entries
    cdef readonly uint32_t count
    cdef uint32_t *gref
    cdef uint8_t **at
    cdef uint8_t *out                  # who has it: PAGE_SPARE, _OUT or _HELD
    cdef uint16_t *spare
    cdef readonly uint32_t nr_spare
    cdef public bint static            # the backend has them mapped all the time, or may have

    def __init__(self, memory, entries, pages):
        cdef uint32_t i
        self.memory = Shared(memory)
        self.entries = Shared(entries)
        self.count = <uint32_t>len(pages)
        self.gref = <uint32_t *>calloc(self.count, 4)
        self.at = <uint8_t **>calloc(self.count, sizeof(uint8_t *))
        self.out = <uint8_t *>calloc(self.count, 1)
        self.spare = <uint16_t *>calloc(self.count, 2)
        if self.count == 0 or self.count > 65536 or not (self.gref and self.at and self.out and self.spare):
            raise MemoryError()
        for i in range(self.count):
            gref, frame = pages[i]
            if not 0 <= frame < self.memory.size // PAGE or not 0 <= gref < self.entries.size // 8:
                raise IndexError((gref, frame))
            self.gref[i] = gref
            self.at[i] = self.memory.at + <uint64_t>frame * PAGE
            self.spare[i] = i
        self.nr_spare = self.count

    def __dealloc__(self):
        free(self.gref)
        free(self.at)
        free(self.out)
        free(self.spare)

    cdef uint16_t *_give(self, uint32_t count) noexcept nogil:
        """So many spare pages, which there are: those that came back last, in the order in which they did.

        Pages that came back side by side are so given again: a copy to or from them is one copy.
        """
        cdef uint32_t i
        self.nr_spare -= count
        for i in range(count):
            self.out[self.spare[self.nr_spare + i]] = PAGE_OUT
        return self.spare + self.nr_spare

    cdef bint _is_out(self, uint16_t id) noexcept nogil:
        return id < self.count and self.out[id] == PAGE_OUT

    cdef bint _is_mapped(self, uint16_t id) noexcept nogil:
        """Whether the backend still has the page mapped, but should not: it could read or write what comes into it next."""
        return not self.static and (<GrantEntry *>self.entries.at + self.gref[id]).flags & (GTF_reading | GTF_writing)

    cdef void _keep(self, uint16_t id) noexcept nogil:
        self.out[id] = PAGE_SPARE
        self.spare[self.nr_spare] = id
        self.nr_spare += 1

    cdef bint _take_back(self, uint16_t id) noexcept nogil:
        """False when the backend still has the page mapped."""
        if self._is_mapped(id):
            return False
        self._keep(id)
        return True
