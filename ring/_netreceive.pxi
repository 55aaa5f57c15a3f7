# netfront's receive ring (io/netif.h): frames copied out of the granted pages, or looked at there.
@cython.no_gc_clear                    # the collector would forget the views below without releasing them
cdef class NetReceive:
    """The frontend's receive ring. ring: slots of netif_rx_request and _response.

    `data` and `info` hold what `take` found: frames end to end, and per frame 16 bytes: length u32, NETRXF_ flags u16,
    GSO size u16, GSO type u8, hash type u8, parts u16, hash u32 at 12.

    Or frames are looked at where they are: `look` copies nothing. `parts` then has 8 bytes per piece of a frame, frame by
    frame: number of the page, offset in it, bytes, and number of the frame, u16 each; the page is its finder's until
    `give_back`. It stays granted all the time: nothing keeps a hostile backend from writing to it while it is looked at.
    So read once what something is decided by, or copy it first. A ring is for `take` or for `look`, whichever comes first.
    """
    cdef FrontRing ring
    cdef NetPages pages
    cdef readonly object data          # a private mapping: pages of it that no frame reaches take up no memory
    cdef readonly bytearray info
    cdef readonly bytearray parts
    cdef Py_buffer data_view, info_view, parts_view
    cdef uint8_t *data_at
    cdef NetFrame *info_at
    cdef NetPart *parts_at
    cdef readonly uint32_t nr_parts    # of the frames that the last `look` found
    cdef uint16_t *posted              # ids by ring index: an extra info stands in the place of a posted page
    cdef readonly uint64_t frames, bytes, dropped
    cdef uint32_t expected             # ring index of the next response
    # A frame whose last slots have not come yet.
    cdef uint32_t tail                 # its bytes, which lie at the end of what was handed out
    cdef uint32_t handed               # bytes handed out by the last `take`
    cdef uint32_t chain                # its slots so far
    cdef uint32_t tail_parts           # when it is looked at: those lie behind `nr_parts`, and it has no bytes in `data`
    cdef bint bad, in_extras, used, in_place
    cdef NetFrame building

    def __init__(self, FrontRing ring not None, NetPages pages not None):
        if ring.req_size != sizeof(NetRxRequest) or ring.rsp_size != sizeof(NetRxResponse):
            raise ValueError("not a receive ring")
        self.ring = ring
        self.pages = pages
        self.data = mmap.mmap(-1, ring.slots * PAGE + NET_MOST + PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.info = bytearray((ring.slots + 1) * sizeof(NetFrame))
        PyObject_GetBuffer(self.data, &self.data_view, PyBUF_WRITABLE)
        self.parts = bytearray((ring.slots + NET_RX_PARTS) * sizeof(NetPart))
        PyObject_GetBuffer(self.info, &self.info_view, PyBUF_WRITABLE)
        PyObject_GetBuffer(self.parts, &self.parts_view, PyBUF_WRITABLE)
        self.data_at = <uint8_t *>self.data_view.buf
        self.info_at = <NetFrame *>self.info_view.buf
        self.parts_at = <NetPart *>self.parts_view.buf
        self.posted = <uint16_t *>calloc(ring.slots, 2)
        self.expected = ring.rsp_cons
        if self.posted == NULL:
            raise MemoryError()

    def __dealloc__(self):
        if self.data_at != NULL:
            PyBuffer_Release(&self.data_view)
        if self.info_at != NULL:
            PyBuffer_Release(&self.info_view)
        if self.parts_at != NULL:
            PyBuffer_Release(&self.parts_view)
        free(self.posted)

    @property
    def posted_buffers(self):
        """Pages that wait for frames."""
        return self.ring.outstanding

    cpdef uint32_t post(self, uint32_t limit=0xffffffff) noexcept:
        """Post as many of the spare pages as there are slots; their number. Not yet pushed."""
        cdef uint32_t i, count = self.ring.slots - (self.ring.req_prod_pvt - self.ring.rsp_cons)
        cdef NetRxRequest *request = <NetRxRequest *>self.ring.request_at
        cdef uint16_t *ids
        count = min(count, self.pages.nr_spare, limit)
        ids = self.pages._give(count)
        for i in range(count):
            self.posted[(self.ring.req_prod_pvt + i) & self.ring.index_mask] = ids[i]
            request[i].id = ids[i]
            request[i].pad = 0
            request[i].gref = self.pages.gref[ids[i]]
        self.ring.put(count)
        return count

    cpdef bint push(self) noexcept:
        """Show the backend what was posted; whether it is to be notified."""
        return self.ring.push()

    cpdef bint final_check(self) noexcept:
        """Ask for a notification of the next frame; True when one is there already."""
        return self.ring.final_check()

    def take(self):
        """Copy out the frames there are, into `data` and `info`; their number. RingError when the backend lies.

        A fragment outside of its page, or a frame of more than 65,535 bytes, costs that frame only. ValueError after `look`.
        """
        cdef uint32_t frames, at = 0
        self._use(False)
        if self.tail:                                      # the beginning of a frame stays, at the front
            memmove(self.data_at, self.data_at + self.handed, self.tail)
        frames = self._walk(&at)
        self.handed = at
        return frames

    def look(self):
        """Find the frames there are, and leave them where they are: sets `parts` and `info`; their number. As `take`.

        A frame in more than 128 pieces is dropped, too.
        """
        cdef uint32_t at = 0
        self._use(True)
        memmove(self.parts_at, self.parts_at + self.nr_parts, self.tail_parts * sizeof(NetPart))
        self.nr_parts = 0
        return self._walk(&at)

    def give_back(self, const uint16_t[:] pages not None):
        """Pages that `look` found are not looked at any more, and may be posted again. ValueError, for the rest of them,
        at one that is not its finder's."""
        cdef Py_ssize_t i
        for i in range(pages.shape[0]):
            if pages[i] >= self.pages.count or self.pages.out[pages[i]] != PAGE_HELD:
                raise ValueError(f"page {pages[i]} is not looked at")
            self.pages._keep(pages[i])

    cdef _use(self, bint in_place):
        if self.used and self.in_place != in_place:
            raise ValueError("frames of a ring are taken, or looked at, but not both")
        self.used = True
        self.in_place = in_place

    cdef uint32_t _walk(self, uint32_t *at) except? 0xffffffff:
        cdef uint32_t i, count, frames = 0
        cdef NetRxResponse *response = <NetRxResponse *>self.ring.response_at
        cdef int lie = 0
        cdef uint16_t id = 0
        count = self.ring.take()
        for i in range(count):
            lie = self._response(&response[i], at, &frames, &id)
            if lie:
                break
        if lie == 1:
            raise RingError(f"a response to receive request {id}, which is not out")
        if lie == 2:
            raise RingError(f"receive request {id} was answered with its grant still mapped")
        if lie == 3:
            raise RingError("an extra info of no known type")
        return frames

    cdef int _response(self, NetRxResponse *response, uint32_t *at, uint32_t *frames, uint16_t *whose) noexcept nogil:
        """One slot. `at`: bytes of whole frames so far, which the unfinished one lies behind. whose: set to the request's
        id. Not 0 for a lie."""
        cdef uint16_t id = self.posted[self.expected & self.ring.index_mask] if self.in_extras else response.id
        cdef NetExtra *extra
        self.expected += 1
        whose[0] = id
        if not self.pages._is_out(id):
            return 1
        if self.in_extras:
            extra = <NetExtra *>response
            if extra.type == 0 or extra.type >= NET_EXTRA_MAX:
                return 3
            if not self.pages._take_back(id):
                return 2
            self.in_extras = extra.flags & NET_EXTRA_MORE
            if extra.type == NET_EXTRA_GSO:
                memcpy(&self.building.gso_size, extra.bytes, 2)
                self.building.gso_type = extra.bytes[2]
            elif extra.type == NET_EXTRA_HASH:
                self.building.hash_type = extra.bytes[0]
                memcpy(&self.building.hash, extra.bytes + 2, 4)
            if not self.in_extras and not self.building.flags & NET_MORE_DATA:
                self._finish(at, frames)
            return 0
        if self.pages._is_mapped(id):
            return 2
        if response.status < 0 or response.offset > PAGE or response.status > PAGE - response.offset \
                or self.tail + response.status > NET_MOST or self.tail_parts == NET_RX_PARTS:
            self.bad = True
        elif self.in_place and response.status:
            self._add_part(id, response)
        else:
            memcpy(self.data_at + at[0] + self.tail, self.pages.at[id] + response.offset, response.status)
            self.tail += response.status
        if self.pages.out[id] == PAGE_OUT:
            self.pages._keep(id)
        if self.chain == 0:
            self.building.flags = response.flags
            self.in_extras = response.flags & NET_EXTRA_INFO
        else:
            self.building.flags = self.building.flags & ~NET_MORE_DATA | response.flags & NET_MORE_DATA
        self.chain += 1
        if not self.in_extras and not response.flags & NET_MORE_DATA:
            self._finish(at, frames)
        return 0

    cdef void _add_part(self, uint16_t id, NetRxResponse *response) noexcept nogil:
        cdef NetPart *part = &self.parts_at[self.nr_parts + self.tail_parts]
        part.page = id
        part.offset = response.offset
        part.length = <uint16_t>response.status
        self.pages.out[id] = PAGE_HELD
        self.tail_parts += 1
        self.tail += response.status

    cdef void _finish(self, uint32_t *at, uint32_t *frames) noexcept nogil:
        """The frame is whole."""
        cdef uint32_t i
        if self.bad or self.tail < NET_LEAST:
            self.dropped += 1
            for i in range(self.tail_parts):
                self.pages._keep(self.parts_at[self.nr_parts + i].page)
        else:
            self.building.length = self.tail
            self.building.flags &= ~(NET_MORE_DATA | NET_EXTRA_INFO)
            self.building.parts = <uint16_t>self.tail_parts
            self.info_at[frames[0]] = self.building
            for i in range(self.tail_parts):
                self.parts_at[self.nr_parts + i].frame = <uint16_t>frames[0]
            self.nr_parts += self.tail_parts
            frames[0] += 1
            at[0] += self.tail
            self.frames += 1
            self.bytes += self.tail
        self.bad = False
        self.tail = self.tail_parts = 0
        self.chain = 0
        memset(&self.building, 0, sizeof(NetFrame))
