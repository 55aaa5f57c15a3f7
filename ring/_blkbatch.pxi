# Many block requests with one call: their memory is granted for good, so that nothing is copied (io/blkif.h).
@cython.final
cdef class BlkBatch:
    """Buffers of one blkfront, all of the same size, each of which has at most one request out.

    requests: the blkfront's. pages: (frame, gref) of every buffer's pages, buffer by buffer, as `indirect` has one more for
    each buffer when they are of more than 11 pages. sectors: of a buffer. kept: the backend keeps what it maps.
    """
    cdef BlkRequests requests
    cdef readonly uint32_t buffers, sectors
    cdef bint kept
    cdef BlkRequest *reading                   # a request to read into each buffer, complete but for id and sector
    cdef uint32_t *gref
    cdef uint32_t nr_grefs                     # of one buffer, the indirect page's included
    cdef uint8_t *out                          # 1: its request is out; 2: it was answered, and not taken
    cdef uint32_t *done                        # buffers whose requests were answered, oldest first
    cdef int16_t *status
    cdef readonly uint32_t nr_done, nr_out

    def __init__(self, BlkRequests requests not None, pages, indirect, uint32_t sectors, bint kept):
        cdef uint32_t each = (sectors + BLK_PAGE_SECTORS - 1) // BLK_PAGE_SECTORS, i
        if requests.batch is not None:
            raise ValueError("there is a batch already")
        if not 0 < each <= PAGE // sizeof(Segment) or len(pages) % each or not 0 < len(pages) // each <= 65536:
            raise ValueError(f"{len(pages)} pages for buffers of {sectors} sectors")
        self.buffers = <uint32_t>len(pages) // each
        if len(indirect) != (self.buffers if each > BLK_SEGMENTS else 0):
            raise ValueError(f"{len(indirect)} indirect pages for {self.buffers} buffers")
        self.requests = requests
        self.sectors = sectors
        self.kept = kept
        self.nr_grefs = each + (each > BLK_SEGMENTS)
        self.reading = <BlkRequest *>calloc(self.buffers, sizeof(BlkRequest))
        self.gref = <uint32_t *>calloc(<size_t>self.buffers * self.nr_grefs, 4)
        self.out = <uint8_t *>calloc(self.buffers, 1)
        self.done = <uint32_t *>calloc(self.buffers, 4)
        self.status = <int16_t *>calloc(self.buffers, 2)
        if not (self.reading and self.gref and self.out and self.done and self.status):
            raise MemoryError()
        for i in range(self.buffers):
            self._prepare(i, each, pages[i * each : (i + 1) * each], indirect[i] if indirect else None)
        requests.batch = self

    def __dealloc__(self):
        free(self.reading)
        free(self.gref)
        free(self.out)
        free(self.done)
        free(self.status)

    cdef _prepare(self, uint32_t buffer, uint32_t each, pages, indirect):
        cdef BlkRequest *slot = &self.reading[buffer]
        cdef Segment *segment = slot.seg
        cdef uint32_t i, frame, gref, left = self.sectors
        if indirect is None:
            slot.nr_segments = <uint8_t>each
        else:
            frame, gref = indirect
            if frame >= self.requests.memory.size // PAGE or gref >= self.requests.entries.size // 8:
                raise IndexError(indirect)
            slot.operation = BLK_INDIRECT
            slot.handle = <uint16_t>each
            memcpy(<uint8_t *>slot.seg + 4, &gref, 4)
            self.gref[buffer * self.nr_grefs + each] = gref
            segment = <Segment *>(self.requests.memory.at + <uint64_t>frame * PAGE)
        for i in range(each):
            frame, gref = pages[i]
            if frame >= self.requests.memory.size // PAGE or gref >= self.requests.entries.size // 8:
                raise IndexError(pages[i])
            self.gref[buffer * self.nr_grefs + i] = gref
            segment[i].gref = gref
            segment[i].first_sect = 0
            segment[i].last_sect = <uint8_t>((left if left < BLK_PAGE_SECTORS else BLK_PAGE_SECTORS) - 1)
            segment[i].pad = 0
            left -= min(left, BLK_PAGE_SECTORS)

    def put(self, bint write, const uint64_t[::1] sectors not None, const uint32_t[::1] buffers not None):
        """Put a request for each of `buffers`, from sectors[i] on into or out of buffers[i], while there are slots; their number.

        Not pushed. ValueError, and none is put, when a buffer does not exist or has a request that was not taken.
        """
        cdef uint32_t i, count = <uint32_t>min(sectors.shape[0], buffers.shape[0]), room
        cdef FrontRing ring = self.requests.ring
        room = min(ring.slots - <uint32_t>(ring.req_prod_pvt - ring.rsp_cons), self.requests.nr_free)
        for i in range(count):
            if buffers[i] >= self.buffers or self.out[buffers[i]]:
                count = i
                break
            self.out[buffers[i]] = i < room
        if count < min(sectors.shape[0], buffers.shape[0]):
            for i in range(min(count, room)):
                self.out[buffers[i]] = 0
            raise ValueError(f"buffer {buffers[count]} is not there, or has a request that was not taken")
        count = min(count, room)
        for i in range(count):
            self._encode(<BlkRequest *>ring.request_at + i, buffers[i], sectors[i], BLK_WRITE if write else BLK_READ)
        self.nr_out += count
        ring.put(count)
        return count

    cdef void _encode(self, BlkRequest *slot, uint32_t buffer, uint64_t sector, uint8_t kind) noexcept nogil:
        cdef BlkOut *out = self.requests._enter(kind, self.sectors)
        out.buffer = buffer + 1
        slot[0] = self.reading[buffer]
        slot.id = out.id
        slot.sector = sector
        if slot.operation == BLK_INDIRECT:
            slot.nr_segments = kind
        else:
            slot.operation = kind

    cdef bint _take_back(self, uint32_t buffer, int16_t status) noexcept:
        """A buffer's request was answered. False when it is still mapped, by a backend that does not keep what it maps."""
        cdef uint32_t i, gref
        self._over(buffer, status)
        if self.kept:
            return True
        for i in range(self.nr_grefs):
            gref = self.gref[buffer * self.nr_grefs + i]
            if (<GrantEntry *>self.requests.entries.at + gref).flags & (GTF_reading | GTF_writing):
                self.status[self.nr_done - 1] = BLK_ERROR
                self.requests.lied = gref
                return False
        return True

    cdef void _failed(self, uint32_t buffer) noexcept:
        if self.out[buffer] == 1:
            self._over(buffer, BLK_ERROR)

    cdef void _over(self, uint32_t buffer, int16_t status) noexcept nogil:
        self.out[buffer] = 2
        self.done[self.nr_done] = buffer
        self.status[self.nr_done] = status
        self.nr_done += 1
        self.nr_out -= 1

    def take(self, uint32_t[::1] buffers not None, int16_t[::1] statuses not None):
        """The buffers whose requests were answered, oldest first, and their BLKIF_RSP_ statuses; how many. They are free again."""
        cdef uint32_t i, count = <uint32_t>min(self.nr_done, buffers.shape[0], statuses.shape[0])
        for i in range(count):
            buffers[i] = self.done[i]
            statuses[i] = self.status[i]
            self.out[buffers[i]] = 0
        self.nr_done -= count
        memmove(self.done, self.done + count, self.nr_done * 4)
        memmove(self.status, self.status + count, self.nr_done * 2)
        return count
