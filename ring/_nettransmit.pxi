# netfront's transmit ring (io/netif.h): frames are copied into granted pages, or lie in such already (`_netbatch`).
cdef class NetBatch


cdef class NetTransmit:
    """The frontend's transmit ring. ring: slots of netif_tx_request and _response. sg: the backend takes chains.

    Counts frames put and answered with an error. `put` and `put_frame` are not seen by the backend before `push`.
    """
    cdef FrontRing ring
    cdef NetPages pages
    cdef NetBatch batch                # None: everything is copied
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
        cdef uint16_t *ids = self.pages._give((length + PAGE - 1) // PAGE)
        cdef uint16_t id
        while at < length:
            size = length - at
            if size > PAGE:
                size = PAGE
            id = ids[at // PAGE]
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
            if self.batch is not None and response[i].id >= self.pages.count:
                self.batch._answered(response[i].id - self.pages.count, response[i].status)
            elif not self.pages._is_out(response[i].id):
                raise RingError(f"a response to transmit request {response[i].id}, which is not out")
            elif not self.pages._take_back(response[i].id):
                raise RingError(f"transmit grant {self.pages.gref[response[i].id]} is still mapped after its response")
            if response[i].status < 0:
                self.refused += 1
        return count
