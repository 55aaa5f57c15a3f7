# blkfront's data path (io/blkif.h): requests from plain bytes into granted pages, and back.
cdef struct BlkPage:
    uint32_t frame
    uint32_t gref
    uint32_t next                      # of a chain: of one request, or of those that are spare

cdef struct BlkOut:                    # a request that is out, or answered and not ended
    uint64_t id                        # what its response will have; 0: this entry is free
    uint32_t sectors
    uint32_t first                     # of its pages, the indirect one last
    uint32_t buffer                    # of a batch, plus one; 0: a request with bytes
    uint8_t kind
    bint answered

cdef enum:
    BLK_NO_PAGE = 0xffffffff
    BLK_PAGE_SECTORS = PAGE // SECTOR
    BLK_INDEX_BITS = 16                # of an id: an index of `out`; above it a number that grows
    BLK_NOT_OUT = 1                    # a response to a request that is not out
    BLK_MAPPED = 2                     # a page of a batch that is still mapped


cdef class BlkBatch


@cython.final
cdef class BlkRequests:
    """The requests that a blkfront has out, and the pages of those with bytes.

    ring: of blkif requests in the layout of x86_64. memory: the frontend's own, frame N at byte N * 4096. entries: its
    grant table. most: pages that may be its at a time. Ids grow.
    """
    cdef FrontRing ring
    cdef Shared memory, entries
    cdef BlkPage *page                 # by index; those without a page are a chain, too
    cdef uint32_t nr_pages, unused, spare
    cdef readonly uint32_t nr_spare
    cdef BlkOut *out
    cdef uint16_t *free_out
    cdef uint32_t nr_out, nr_free
    cdef uint64_t serial
    cdef readonly uint32_t writes_out
    cdef BlkBatch batch
    cdef int lie_kind
    cdef uint64_t lied

    def __init__(self, FrontRing ring not None, memory, entries, uint32_t most):
        cdef uint32_t i
        if ring.req_size != sizeof(BlkRequest) or ring.rsp_size != sizeof(BlkResponse):
            raise ValueError("not a blkif ring")
        self.ring = ring
        self.memory = Shared(memory)
        self.entries = Shared(entries)
        self.nr_pages = most
        # An answered request keeps its entry until it is ended, when as many new ones may be out already.
        self.nr_out = self.nr_free = ring.slots * 2
        self.page = <BlkPage *>calloc(most, sizeof(BlkPage))
        self.out = <BlkOut *>calloc(self.nr_out, sizeof(BlkOut))
        self.free_out = <uint16_t *>calloc(self.nr_out, 2)
        if not (self.page and self.out and self.free_out):
            raise MemoryError()
        for i in range(most):
            self.page[i].next = i + 1 if i + 1 < most else BLK_NO_PAGE
        for i in range(self.nr_out):
            self.free_out[i] = self.nr_out - 1 - i
        self.unused = 0 if most else BLK_NO_PAGE
        self.spare = BLK_NO_PAGE

    def __dealloc__(self):
        free(self.page)
        free(self.out)
        free(self.free_out)

    @property
    def lie(self):
        """What the backend lied about in the responses that `take` found last; None if it did not."""
        if self.lie_kind == BLK_NOT_OUT:
            return f"a response to request {self.lied}, which is not out"
        if self.lie_kind == BLK_MAPPED:
            return f"grants [{self.lied}] are still mapped after their request was answered"
        return None

    # -- pages
    def add_page(self, uint32_t frame, uint32_t gref):
        """A page that is granted to the backend, for requests to come."""
        cdef uint32_t at = self.unused
        if at == BLK_NO_PAGE:
            raise MemoryError("more pages than there may be")
        if frame >= self.memory.size // PAGE or gref >= self.entries.size // 8:
            raise IndexError((frame, gref))
        self.unused = self.page[at].next
        self.page[at].frame = frame
        self.page[at].gref = gref
        self._put_spare(at)

    def take_page(self):
        """A page that no request has, which leaves this object: (frame, gref); None when there is none."""
        cdef uint32_t at = self.spare
        if at == BLK_NO_PAGE:
            return None
        self.spare = self.page[at].next
        self.nr_spare -= 1
        self.page[at].next = self.unused
        self.unused = at
        return self.page[at].frame, self.page[at].gref

    cdef void _put_spare(self, uint32_t at) noexcept nogil:
        self.page[at].next = self.spare
        self.spare = at
        self.nr_spare += 1

    cdef uint32_t _take_spare(self, uint32_t *chain) noexcept nogil:
        """A spare page, which there is, at the end of a chain; where the chain goes on is set."""
        cdef uint32_t at = self.spare
        self.spare = self.page[at].next
        self.nr_spare -= 1
        self.page[at].next = BLK_NO_PAGE
        chain[0] = at
        return at

    # -- requests with bytes
    def start(self, uint8_t kind, uint64_t sector, uint32_t count, const uint8_t[::1] data=None, uint64_t offset=0):
        """Put a request for `count` sectors into the ring, not pushed: its id; 0 without a slot, or pages enough spare.

        kind: a BLKIF_OP_; one that has no sectors to move has a count of 0. data, offset: what a write writes, from where on.
        """
        cdef uint32_t pages = (count + BLK_PAGE_SECTORS - 1) // BLK_PAGE_SECTORS
        cdef BlkRequest *slot = <BlkRequest *>self.ring.request_at
        cdef BlkOut *out
        if kind == BLK_WRITE and (data is None or offset > <uint64_t>data.shape[0]
                                  or <uint64_t>data.shape[0] - offset < <uint64_t>count * SECTOR):
            raise ValueError("a write of more than there is")
        if pages > PAGE // sizeof(Segment):
            raise ValueError(f"a request of {count} sectors")
        if not self._room() or pages + (pages > BLK_SEGMENTS) > self.nr_spare:
            return 0
        out = self._enter(kind, count)
        memset(slot, 0, sizeof(BlkRequest))
        slot.id = out.id
        slot.sector = sector
        self._encode(slot, out, pages, &data[0] + offset if kind == BLK_WRITE and count else NULL)
        self.ring.put(1)
        return out.id

    def start_discard(self, uint8_t kind, uint64_t sector, uint64_t count):
        """The same for a struct blkif_request_discard."""
        cdef BlkRequest *slot = <BlkRequest *>self.ring.request_at
        cdef BlkOut *out
        if not self._room():
            return 0
        out = self._enter(kind, 0)
        memset(slot, 0, sizeof(BlkRequest))
        slot.operation = kind
        slot.id = out.id
        slot.sector = sector
        memcpy(slot.seg, &count, 8)                        # nr_sectors follows sector_number
        self.ring.put(1)
        return out.id

    cdef bint _room(self) noexcept nogil:
        return self.nr_free > 0 and self.ring.slots != <uint32_t>(self.ring.req_prod_pvt - self.ring.rsp_cons)

    cdef BlkOut *_enter(self, uint8_t kind, uint32_t count) noexcept nogil:
        cdef BlkOut *out
        self.nr_free -= 1
        out = &self.out[self.free_out[self.nr_free]]
        self.serial += 1
        out.id = self.serial << BLK_INDEX_BITS | self.free_out[self.nr_free]
        out.kind = kind
        out.sectors = count
        out.first = BLK_NO_PAGE
        out.buffer = 0
        out.answered = False
        if kind == BLK_WRITE:
            self.writes_out += 1
        return out

    cdef void _encode(self, BlkRequest *slot, BlkOut *out, uint32_t pages, const uint8_t *data) noexcept nogil:
        """Pages for a request, filled with what it writes, and the segments that name them."""
        cdef Segment *segment = slot.seg
        cdef uint32_t i, at, sectors, left = out.sectors
        cdef uint32_t *chain = &out.first
        if pages > BLK_SEGMENTS:
            at = self._take_spare(chain)                   # the indirect page: the first of the chain
            chain = &self.page[at].next
            segment = <Segment *>(self.memory.at + <uint64_t>self.page[at].frame * PAGE)
            slot.operation = BLK_INDIRECT
            slot.nr_segments = out.kind
            slot.handle = <uint16_t>pages
            memcpy(<uint8_t *>slot.seg + 4, &self.page[at].gref, 4)
        else:
            slot.operation = out.kind
            slot.nr_segments = <uint8_t>pages
        for i in range(pages):
            at = self._take_spare(chain)
            chain = &self.page[at].next
            sectors = left if left < BLK_PAGE_SECTORS else BLK_PAGE_SECTORS
            if data != NULL:
                memcpy(self.memory.at + <uint64_t>self.page[at].frame * PAGE, data + i * PAGE, sectors * SECTOR)
            segment[i].gref = self.page[at].gref
            segment[i].first_sect = 0
            segment[i].last_sect = <uint8_t>(sectors - 1)
            segment[i].pad = 0
            left -= sectors

    # -- responses
    def take(self):
        """Take up the responses there are: (how many, [(id, status)] of requests with bytes). RingError when rsp_prod lies.

        Those of a batch are its own. What comes behind a lie is not looked at: `lie`.
        """
        cdef uint32_t i, index, count = self.ring.take()
        cdef BlkResponse *response = <BlkResponse *>self.ring.response_at
        cdef BlkOut *out
        answers = []
        for i in range(count):
            index = response[i].id & ((1 << BLK_INDEX_BITS) - 1)
            out = &self.out[index]
            if index >= self.nr_out or response[i].id == 0 or out.id != response[i].id or out.answered:
                self.lie_kind = BLK_NOT_OUT
                self.lied = response[i].id
                break
            if out.kind == BLK_WRITE:
                self.writes_out -= 1
            out.answered = True
            if not out.buffer:
                answers.append((response[i].id, response[i].status))
            else:
                if not self.batch._take_back(out.buffer - 1, response[i].status):
                    self.lie_kind = BLK_MAPPED
                    break
                self._leave(out)
        return count, answers

    cdef void _leave(self, BlkOut *out) noexcept nogil:
        out.id = 0
        self.free_out[self.nr_free] = <uint16_t>(out - self.out)
        self.nr_free += 1

    def end(self, uint64_t id, bint read):
        """An answered request is over, its pages are spare: the bytes it read, if `read`."""
        cdef BlkOut *out = &self.out[id & ((1 << BLK_INDEX_BITS) - 1)]
        cdef uint32_t at, next, count = 0
        if id & ((1 << BLK_INDEX_BITS) - 1) >= self.nr_out or id == 0 or out.id != id or not out.answered:
            raise KeyError(id)
        data = self._bytes(out) if read else None
        at = out.first
        while at != BLK_NO_PAGE:
            next = self.page[at].next
            self._put_spare(at)
            at = next
        self._leave(out)
        return data

    cdef object _bytes(self, BlkOut *out):
        cdef uint32_t at = out.first, sectors, left = out.sectors
        data = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>left * SECTOR)
        cdef uint8_t *to = <uint8_t *>PyBytes_AS_STRING(data)
        if left > BLK_SEGMENTS * BLK_PAGE_SECTORS:
            at = self.page[at].next                        # behind the indirect page
        while left:
            sectors = left if left < BLK_PAGE_SECTORS else BLK_PAGE_SECTORS
            memcpy(to, self.memory.at + <uint64_t>self.page[at].frame * PAGE, sectors * SECTOR)
            to += sectors * SECTOR
            left -= sectors
            at = self.page[at].next
        return data

    def abandon(self):
        """Nothing that is out will be answered. A batch is told so; the pages of all others leave this object: [(frame, gref)]."""
        cdef uint32_t i, at, next
        pages = []
        for i in range(self.nr_out):
            if self.out[i].id == 0:
                continue
            if self.out[i].buffer:
                self.batch._failed(self.out[i].buffer - 1)
            at = self.out[i].first
            while at != BLK_NO_PAGE:
                next = self.page[at].next
                pages.append((self.page[at].frame, self.page[at].gref))
                self.page[at].next = self.unused
                self.unused = at
                at = next
            self._leave(&self.out[i])
        self.writes_out = 0
        return pages
