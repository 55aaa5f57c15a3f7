# netfront's data path (io/netif.h): frames between plain buffers and pages that are granted to the backend for good.
#
# A page is granted once, when its ring is made, and used again and again: copying into it and out of it costs less than
# granting anew. Each page belongs to one request id.
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
    uint16_t pad
    uint32_t hash

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


cdef class NetPages:
    """The pages of one ring's requests: page N belongs to request id N.

    memory: the frontend's memory, frame N at byte N * 4096. entries: its grant table. pages: (gref, frame) each.
    """
    cdef Shared memory, entries
    cdef readonly uint32_t count
    cdef uint32_t *gref
    cdef uint8_t **at
    cdef uint8_t *out                  # whether the backend has it
    cdef uint16_t *spare
    cdef readonly uint32_t nr_spare

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
            self.spare[i] = self.count - 1 - i
        self.nr_spare = self.count

    def __dealloc__(self):
        free(self.gref)
        free(self.at)
        free(self.out)
        free(self.spare)

    cdef uint16_t _give(self) noexcept nogil:
        cdef uint16_t id
        self.nr_spare -= 1
        id = self.spare[self.nr_spare]
        self.out[id] = 1
        return id

    cdef bint _is_out(self, uint16_t id) noexcept nogil:
        return id < self.count and self.out[id]

    cdef bint _take_back(self, uint16_t id) noexcept nogil:
        """False when the backend still has the page mapped: it could read or write what comes into it next."""
        if (<GrantEntry *>self.entries.at + self.gref[id]).flags & (GTF_reading | GTF_writing):
            return False
        self.out[id] = 0
        self.spare[self.nr_spare] = id
        self.nr_spare += 1
        return True


cdef class NetTransmit:
    """The frontend's transmit ring. ring: slots of netif_tx_request and _response. sg: the backend takes chains.

    Counts frames put and answered with an error. `put` and `put_frame` are not seen by the backend before `push`.
    """
    cdef FrontRing ring
    cdef NetPages pages
    cdef readonly bint sg
    cdef readonly uint64_t frames, bytes, refused
    cdef uint32_t extras               # slots of extra infos whose response has not come

    def __init__(self, FrontRing ring not None, NetPages pages not None, bint sg):
        if ring.req_size != sizeof(NetTxRequest) or ring.rsp_size != sizeof(NetTxResponse):
            raise ValueError("not a transmit ring")
        self.ring = ring
        self.pages = pages
        self.sg = sg

    @property
    def outstanding(self):
        """Slots that the backend has not answered."""
        return self.ring.outstanding

    cpdef bint fits(self, uint32_t length, bint gso=False) noexcept:
        """Whether a frame of so many bytes can be put now."""
        cdef uint32_t slots = (length + PAGE - 1) // PAGE
        return slots <= self.pages.nr_spare and slots + gso <= self.ring.slots - (self.ring.req_prod_pvt - self.ring.rsp_cons)

    cdef uint32_t _put(self, const uint8_t *frame, uint32_t length, uint16_t flags, uint8_t gso_type, uint16_t gso_size,
                       uint32_t entry) noexcept nogil:
        """Encode one frame, which fits, into the requests from `entry` on; the number of slots."""
        cdef NetTxRequest *request
        cdef NetExtra *extra
        cdef uint32_t first = entry, at = 0, size
        cdef uint16_t id
        while at < length:
            size = length - at
            if size > PAGE:
                size = PAGE
            id = self.pages._give()
            memcpy(self.pages.at[id], frame + at, size)
            request = <NetTxRequest *>self.ring.request_at + entry
            request.gref = self.pages.gref[id]
            request.offset = 0
            request.id = id
            # netif.h: the first request of a frame has the whole frame's size, each other one its own.
            request.size = <uint16_t>(size if at else length)
            request.flags = NET_MORE_DATA if at + size < length else 0
            if at == 0:
                request.flags |= flags & NET_TX_FLAGS
            at += size
            entry += 1
            if at == size and gso_type:
                (<NetTxRequest *>self.ring.request_at + first).flags |= NET_EXTRA_INFO
                extra = <NetExtra *>(<NetTxRequest *>self.ring.request_at + entry)
                memset(extra, 0, sizeof(NetTxRequest))
                extra.type = NET_EXTRA_GSO
                memcpy(extra.bytes, &gso_size, 2)
                extra.bytes[2] = gso_type
                self.extras += 1
                entry += 1
        self.frames += 1
        self.bytes += length
        return entry - first

    def put_frame(self, const uint8_t[::1] frame not None, uint16_t flags=0, uint8_t gso_type=0, uint16_t gso_size=0):
        """Put a frame of 14 to 65,535 bytes; False when there is no room for it now. ValueError when there never is.

        flags: NETTXF_csum_blank and NETTXF_data_validated. gso_type, gso_size: of XEN_NETIF_EXTRA_TYPE_GSO.
        """
        cdef uint32_t length = <uint32_t>frame.shape[0]
        if not NET_LEAST <= frame.shape[0] <= NET_MOST or (length > PAGE and not self.sg):
            raise ValueError(f"a frame of {frame.shape[0]} bytes")
        if not self.fits(length, gso_type != 0):
            return False
        self.ring.put(self._put(&frame[0], length, flags, gso_type, gso_size, 0))
        return True

    def put(self, const uint8_t[::1] data not None, const uint32_t[::1] lengths not None, uint32_t first=0, uint64_t offset=0):
        """Put the frames that lie in `data` end to end from `offset` on, from lengths[first] on, as many as there is
        room for; their number. ValueError when one is shorter than 14 bytes or longer than the backend takes."""
        cdef uint32_t i, length, slots = 0, room, count = 0
        cdef uint64_t at = offset, size = data.shape[0]
        cdef bint bad = False
        with nogil:
            room = self.ring.slots - (self.ring.req_prod_pvt - self.ring.rsp_cons)
            for i in range(first, <uint32_t>lengths.shape[0]):
                length = lengths[i]
                if length < NET_LEAST or length > NET_MOST or (length > PAGE and not self.sg) or at > size or length > size - at:
                    bad = True
                    break
                if (length + PAGE - 1) // PAGE > self.pages.nr_spare or slots + (length + PAGE - 1) // PAGE > room:
                    break
                slots += self._put(&data[at], length, 0, 0, 0, slots)
                at += length
                count += 1
        self.ring.put(slots)
        if bad and count == 0:
            raise ValueError(f"a frame of {length} bytes")
        return count

    cpdef bint push(self) noexcept:
        """Show the backend what was put; whether it is to be notified."""
        return self.ring.push()

    cpdef bint final_check(self) noexcept:
        """Ask for a notification of the next response; True when one is there already."""
        return self.ring.final_check()

    def take(self):
        """Take up the responses there are; their number. RingError when the backend lies."""
        cdef uint32_t i, count = self.ring.take()
        cdef NetTxResponse *response = <NetTxResponse *>self.ring.response_at
        for i in range(count):
            if response[i].status == NET_RSP_NULL and self.extras:
                self.extras -= 1       # the slot of an extra info, which has no id
                continue
            if not self.pages._is_out(response[i].id):
                raise RingError(f"a response to transmit request {response[i].id}, which is not out")
            if not self.pages._take_back(response[i].id):
                raise RingError(f"transmit grant {self.pages.gref[response[i].id]} is still mapped after its response")
            if response[i].status < 0:
                self.refused += 1
        return count


@cython.no_gc_clear                    # the collector would forget the views below without releasing them
cdef class NetReceive:
    """The frontend's receive ring. ring: slots of netif_rx_request and _response.

    `data` and `info` hold what `take` found: frames end to end, and per frame 16 bytes: length u32, NETRXF_ flags u16,
    GSO size u16, GSO type u8, hash type u8, hash u32 at 12.
    """
    cdef FrontRing ring
    cdef NetPages pages
    cdef readonly bytearray data
    cdef readonly bytearray info
    cdef Py_buffer data_view, info_view
    cdef uint8_t *data_at
    cdef NetFrame *info_at
    cdef uint16_t *posted              # ids by ring index: an extra info stands in the place of a posted page
    cdef readonly uint64_t frames, bytes, dropped
    cdef uint32_t expected             # ring index of the next response
    # A frame whose last slots have not come yet.
    cdef uint32_t tail                 # its bytes, which lie at the end of what was handed out
    cdef uint32_t handed               # bytes handed out by the last `take`
    cdef uint32_t chain                # its slots so far
    cdef bint bad, in_extras
    cdef NetFrame building

    def __init__(self, FrontRing ring not None, NetPages pages not None):
        if ring.req_size != sizeof(NetRxRequest) or ring.rsp_size != sizeof(NetRxResponse):
            raise ValueError("not a receive ring")
        self.ring = ring
        self.pages = pages
        self.data = bytearray(ring.slots * PAGE + NET_MOST + PAGE)
        self.info = bytearray((ring.slots + 1) * sizeof(NetFrame))
        PyObject_GetBuffer(self.data, &self.data_view, PyBUF_WRITABLE)
        PyObject_GetBuffer(self.info, &self.info_view, PyBUF_WRITABLE)
        self.data_at = <uint8_t *>self.data_view.buf
        self.info_at = <NetFrame *>self.info_view.buf
        self.posted = <uint16_t *>calloc(ring.slots, 2)
        self.expected = ring.rsp_cons
        if self.posted == NULL:
            raise MemoryError()

    def __dealloc__(self):
        if self.data_at != NULL:
            PyBuffer_Release(&self.data_view)
        if self.info_at != NULL:
            PyBuffer_Release(&self.info_view)
        free(self.posted)

    @property
    def posted_buffers(self):
        """Pages that wait for frames."""
        return self.ring.outstanding

    cpdef uint32_t post(self, uint32_t limit=0xffffffff) noexcept:
        """Post as many of the spare pages as there are slots; their number. Not yet pushed."""
        cdef uint32_t i, count = self.ring.slots - (self.ring.req_prod_pvt - self.ring.rsp_cons)
        cdef NetRxRequest *request = <NetRxRequest *>self.ring.request_at
        cdef uint16_t id
        count = min(count, self.pages.nr_spare, limit)
        for i in range(count):
            id = self.pages._give()
            self.posted[(self.ring.req_prod_pvt + i) & self.ring.index_mask] = id
            request[i].id = id
            request[i].pad = 0
            request[i].gref = self.pages.gref[id]
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

        A fragment outside of its page, or a frame of more than 65,535 bytes, costs that frame only.
        """
        cdef uint32_t i, count, frames = 0, at = 0
        cdef NetRxResponse *response = <NetRxResponse *>self.ring.response_at
        cdef int lie = 0
        cdef uint16_t id = 0
        if self.tail:                                      # the beginning of a frame stays, at the front
            memmove(self.data_at, self.data_at + self.handed, self.tail)
        count = self.ring.take()
        for i in range(count):
            lie = self._response(&response[i], &at, &frames, &id)
            if lie:
                break
        if lie == 1:
            raise RingError(f"a response to receive request {id}, which is not out")
        if lie == 2:
            raise RingError(f"receive request {id} was answered with its grant still mapped")
        if lie == 3:
            raise RingError("an extra info of no known type")
        self.handed = at
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
        if response.status < 0 or response.offset > PAGE or response.status > PAGE - response.offset \
                or self.tail + response.status > NET_MOST:
            self.bad = True
        else:
            memcpy(self.data_at + at[0] + self.tail, self.pages.at[id] + response.offset, response.status)
            self.tail += response.status
        if not self.pages._take_back(id):
            return 2
        if self.chain == 0:
            self.building.flags = response.flags
            self.in_extras = response.flags & NET_EXTRA_INFO
        else:
            self.building.flags = self.building.flags & ~NET_MORE_DATA | response.flags & NET_MORE_DATA
        self.chain += 1
        if not self.in_extras and not response.flags & NET_MORE_DATA:
            self._finish(at, frames)
        return 0

    cdef void _finish(self, uint32_t *at, uint32_t *frames) noexcept nogil:
        """The frame is whole."""
        if self.bad or self.tail < NET_LEAST:
            self.dropped += 1
        else:
            self.building.length = self.tail
            self.building.flags &= ~(NET_MORE_DATA | NET_EXTRA_INFO)
            self.info_at[frames[0]] = self.building
            frames[0] += 1
            at[0] += self.tail
            self.frames += 1
            self.bytes += self.tail
        self.bad = False
        self.tail = 0
        self.chain = 0
        memset(&self.building, 0, sizeof(NetFrame))
