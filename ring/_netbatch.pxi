# Frames that lie in granted pages already, put by reference: nothing is copied (io/netif.h).
cdef enum:
    BATCH_FREE = 0             # a page: nobody's,
    BATCH_PLACED = 1           # promised to whoever asked for places,
    BATCH_OUT = 2              # the backend's,
    BATCH_ANSWERED = 3         # answered, but its frame was not taken


@cython.final
cdef class NetBatch:
    """Pages of a transmit ring besides those that it copies into. A frame takes neighbouring ones, from its beginning on.

    grefs: of each page, all of them granted read-only, within the grant table `entries`. Page N has the request id N
    behind the ids of the ring's own pages. One for a ring.
    """
    cdef NetTransmit transmit
    cdef Shared entries
    cdef readonly uint32_t count
    cdef NetTxRequest *prepared        # each page's request, for one that is neither a frame's first nor its last
    cdef uint8_t *state
    cdef uint16_t *first               # by page: the first one of its frame
    cdef uint16_t *left                # by first page: pages that were not answered
    cdef uint16_t *pages               # by first page
    cdef int16_t *status               # by first page: the worst
    cdef uint16_t *done                # first pages of frames that were answered, oldest first
    cdef readonly uint32_t nr_done, nr_out
    cdef public bint static            # as NetPages'
    cdef uint32_t cursor               # the page behind the last frame that was placed

    def __init__(self, NetTransmit transmit not None, entries, grefs):
        cdef uint32_t i
        self.count = <uint32_t>len(grefs)
        self.entries = Shared(entries)
        if transmit.batch is not None:
            raise ValueError("there is a batch already")
        if not 0 < len(grefs) <= 65536 - transmit.pages.count:
            raise ValueError(f"{len(grefs)} pages")
        self.prepared = <NetTxRequest *>calloc(self.count, sizeof(NetTxRequest))
        self.state = <uint8_t *>calloc(self.count, 1)
        self.first = <uint16_t *>calloc(self.count, 2)
        self.left = <uint16_t *>calloc(self.count, 2)
        self.pages = <uint16_t *>calloc(self.count, 2)
        self.status = <int16_t *>calloc(self.count, 2)
        self.done = <uint16_t *>calloc(self.count, 2)
        if not (self.prepared and self.state and self.first and self.left and self.pages and self.status and self.done):
            raise MemoryError()
        for i in range(self.count):
            if not 0 <= grefs[i] < self.entries.size // 8:
                raise IndexError(grefs[i])
            self.prepared[i].gref = grefs[i]
            self.prepared[i].id = <uint16_t>(transmit.pages.count + i)
            self.prepared[i].size = PAGE
            self.prepared[i].flags = NET_MORE_DATA
        self.transmit = transmit
        transmit.batch = self

    def __dealloc__(self):
        free(self.prepared)
        free(self.state)
        free(self.first)
        free(self.left)
        free(self.pages)
        free(self.status)
        free(self.done)

    cdef bint _all(self, uint32_t page, uint32_t count, uint8_t most) noexcept nogil:
        """Whether these pages exist, and none is beyond that state."""
        cdef uint32_t i
        if page >= self.count or count > self.count - page:
            return False
        for i in range(page, page + count):
            if self.state[i] > most:
                return False
        return True

    def place(self, const uint32_t[::1] lengths not None, uint32_t[::1] firsts not None, uint32_t start=0):
        """Find free pages for frames of so many bytes, from lengths[start] on, one behind the other; how many found room.

        Sets firsts[start] and up to the frames' first pages, which are nobody else's until they were put and taken. Pages
        are looked at in turn, so frames that are answered in order leave no holes. ValueError for a first frame that has
        no bytes or more than there are pages.
        """
        cdef uint32_t i, pages, at, end = <uint32_t>min(lengths.shape[0], firsts.shape[0])
        for i in range(start, end):
            if not 0 < lengths[i] <= <uint64_t>self.count * PAGE:
                if i == start:
                    raise ValueError(f"a frame of {lengths[i]} bytes")
                return i - start
            pages = (lengths[i] + PAGE - 1) // PAGE
            at = self.cursor if pages <= self.count - self.cursor else 0
            if not self._all(at, pages, BATCH_FREE):
                return i - start
            memset(self.state + at, BATCH_PLACED, pages)
            firsts[i] = at
            self.cursor = at + pages
        return end - start if end > start else 0

    def put(self, const uint32_t[::1] firsts not None, const uint32_t[::1] lengths not None, uint32_t start=0,
            uint16_t flags=0):
        """Put the frames that begin with the pages firsts[start] and up, as many as there are slots for; their number.

        lengths: bytes. flags: NETTXF_csum_blank and NETTXF_data_validated, of each. Not pushed. ValueError when the first
        one is shorter than 14 bytes or longer than the backend takes, or in a page that is not there or not taken back.
        """
        cdef uint32_t i, pages, slots = 0, count = 0, length = 0
        cdef FrontRing ring = self.transmit.ring
        cdef uint32_t room = ring.slots - (ring.req_prod_pvt - ring.rsp_cons)
        cdef bint bad = False
        for i in range(start, <uint32_t>min(firsts.shape[0], lengths.shape[0])):
            length = lengths[i]
            pages = (length + PAGE - 1) // PAGE
            if length < NET_LEAST or length > NET_MOST or (length > PAGE and not self.transmit.sg) \
                    or not self._all(firsts[i], pages, BATCH_PLACED):
                bad = True
                break
            if slots + pages > room:
                break
            self._encode(<NetTxRequest *>ring.request_at + slots, firsts[i], pages, length, flags)
            slots += pages
            count += 1
        ring.put(slots)
        if bad and count == 0:
            raise ValueError(f"a frame of {length} bytes from page {firsts[start]} of {self.count} on, or its pages are not free")
        return count

    cdef void _encode(self, NetTxRequest *request, uint32_t first, uint32_t pages, uint32_t length,
                      uint16_t flags) noexcept nogil:
        cdef uint32_t i
        memcpy(request, self.prepared + first, pages * sizeof(NetTxRequest))
        memset(self.state + first, BATCH_OUT, pages)
        for i in range(first, first + pages):
            self.first[i] = <uint16_t>first
        self.pages[first] = self.left[first] = <uint16_t>pages
        self.status[first] = NET_RSP_OKAY
        # netif.h: the first request of a frame has the whole frame's size, each other one its own.
        request[pages - 1].size = <uint16_t>(length - (pages - 1) * PAGE)
        request[pages - 1].flags = 0
        request[0].size = <uint16_t>length
        request[0].flags |= flags & NET_TX_FLAGS
        self.nr_out += 1
        self.transmit.frames += 1
        self.transmit.bytes += length

    cdef _answered(self, uint32_t page, int16_t status):
        """A page's response. RingError when it is a lie."""
        cdef uint32_t first
        if page >= self.count or self.state[page] != BATCH_OUT:
            raise RingError(f"a response to transmit request {self.transmit.pages.count + page}, which is not out")
        if not self.static and \
                (<GrantEntry *>self.entries.at + self.prepared[page].gref).flags & (GTF_reading | GTF_writing):
            raise RingError(f"transmit grant {self.prepared[page].gref} is still mapped after its response")
        self.state[page] = BATCH_ANSWERED
        first = self.first[page]
        self.status[first] = min(self.status[first], status)
        self.left[first] -= 1
        if self.left[first] == 0:
            self.done[self.nr_done] = <uint16_t>first
            self.nr_done += 1
            self.nr_out -= 1

    def take(self, uint32_t[::1] firsts not None, int16_t[::1] statuses not None):
        """The first pages of frames that were answered, oldest first, and their NETIF_RSP_ statuses; how many.

        Their pages are free again. NetTransmit.take finds the responses.
        """
        cdef uint32_t i, count = <uint32_t>min(self.nr_done, firsts.shape[0], statuses.shape[0])
        for i in range(count):
            firsts[i] = self.done[i]
            statuses[i] = self.status[firsts[i]]
            memset(self.state + firsts[i], BATCH_FREE, self.pages[firsts[i]])
        self.nr_done -= count
        memmove(self.done, self.done + count, self.nr_done * 2)
        return count
