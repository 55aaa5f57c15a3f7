# The backend's end of a blkif ring (io/blkif.h): reads and writes are served here, a batch at a time and without Python.
cdef enum:
    BLK_I386_REQUEST = 108     # bytes of a request where a u64 is aligned to 4 bytes; to 8: four more, before the id
    BLK_BATCH = 32             # requests taken together
    BLK_PART = 8               # requests that are answered together, so that the frontend can go on: an event costs it as
    BLK_PART_BYTES = 256 << 10 # much as a few of 4 KiB; or so many bytes
    BLK_LINGERS = 64           # times that the next request is waited for before others get their turn

cpdef enum:
    BLK_MAX_SEGMENTS = SEGMENTS

cpdef enum:                    # why BlkServer.serve returned
    BLK_IDLE = 0               # nothing left; an event comes with the next request
    BLK_NOTIFY = 1             # the frontend asked to be notified of what was answered, and is not yet: `woken`
    BLK_RARE = 2               # the request in `slot` is the caller's: `problem` says why
    BLK_MORE = 3               # `left` is used up

cpdef enum:                    # BlkServer.problem
    BLK_OTHER = 1              # no read, no write
    BLK_BAD_COUNT = 2          # so many segments: `detail`
    BLK_BAD_NESTED = 3         # an indirect request for operation `detail`
    BLK_BAD_INDIRECT = 4       # `detail`, the grant of the segments, cannot be mapped
    BLK_READ_ONLY = 5
    BLK_BAD_SECTOR = 6         # there is no sector `detail`
    BLK_BAD_SEGMENT = 7        # sectors outside of their page, or beyond the disk's end, of a request at sector `detail`
    BLK_BAD_GRANT = 8          # one cannot be mapped, of a request at sector `detail`
    BLK_FAILED = 9             # an I/O error at sector `detail`

cdef enum:                     # blkback's counters, as statistics.FIELDS has them
    VBD_REQUESTS = 0
    VBD_RESPONSES = 1
    VBD_SENT = 2
    VBD_SAVED = 3
    VBD_READ = 4
    VBD_WRITTEN = 5
    VBD_ERRORS = 6
    VBD_COUNTERS = 7


cdef class RequestWatch(IoreqWatch):
    """Sees requests that nobody has taken yet."""
    cdef BackRing ring

    def __init__(self, buffer, BackRing ring not None):
        self.ring = ring

    cdef bint hit(self) noexcept nogil:
        return ld32(&self.ring.header.req_prod) != self.ring.req_cons


cdef class BlkServer:
    """Serves a blkif ring from a file. What is rare, and what is refused, it leaves to its caller, in its turn.

    ring: slots as the frontend's machine has them: 112 bytes a request on x86_64, 108 on i386. io: the frontend's frames.
    fd: the image, of `sectors` sectors of 512 bytes. counters: one u64 for each of statistics.FIELDS.
    left: the bytes that may still be moved in this turn, every request counting as 4096 more. channel: to the frontend; None
    while there is none.
    """
    cdef BackRing ring
    cdef RequestWatch watch
    cdef GrantedIO io
    cdef Shared counters
    cdef uint64_t *stat
    cdef int fd
    cdef uint64_t sectors
    cdef bint read_only
    cdef uint32_t wide                         # how much further the id and all behind it lie than on i386
    cdef uint32_t taken, answered, at          # of a batch: its requests, those in the ring again, those that have a status
    cdef public int64_t left
    cdef public Channel channel
    cdef readonly int woken                    # after BLK_NOTIFY: what Channel.send said, which is not 0
    cdef readonly int problem
    cdef readonly uint64_t detail
    cdef Segment segments[SEGMENTS]            # of an indirect request

    def __init__(self, BackRing ring not None, GrantedIO io not None, int fd, uint64_t sectors, bint read_only, counters):
        if ring.req_size not in (BLK_I386_REQUEST, BLK_I386_REQUEST + 4) or ring.rsp_size not in (12, 16):
            raise ValueError("not a blkif ring")
        self.counters = Shared(counters)
        if self.counters.size < VBD_COUNTERS * 8:
            raise ValueError("too few counters")
        self.stat = <uint64_t *>self.counters.at
        self.ring = ring
        self.watch = RequestWatch(bytearray(1), ring)
        self.io = io
        self.fd = fd
        self.sectors = sectors
        self.read_only = read_only
        self.wide = ring.req_size - BLK_I386_REQUEST

    @property
    def slot(self):
        """The request that is the caller's, as the frontend wrote it: a private copy."""
        return bytes(self.ring.requests[self.at * self.ring.req_size : (self.at + 1) * self.ring.req_size])

    @property
    def error(self):
        """The errno of a BLK_FAILED; 0: the file ended."""
        return self.io.error

    def serve(self, Upcall upcall=None):
        """Serve requests in their order until there is something for the caller: a BLK_ reason. RingError when req_prod lies.

        upcall: what comes soon after is served, too, until something is pending there. Meanwhile no event is asked for.
        """
        cdef int lingers = BLK_LINGERS if upcall is not None else 0
        while True:
            if self.at < self.taken and not self.problem:
                with nogil:
                    self._run()
            if self.answered < self.at and self._respond() and not self._told():
                return BLK_NOTIFY
            if self.at < self.taken:
                if self.problem:
                    return BLK_RARE
                continue
            if self.left <= 0:
                return BLK_MORE
            self.at = self.answered = 0
            self.taken = 0
            self.taken = self.ring.take(BLK_BATCH)
            if self.taken == 0:
                lingers -= 1
                if (lingers < 0 or not self._linger(upcall)) and not self.ring.final_check():
                    return BLK_IDLE

    cdef bint _linger(self, Upcall upcall):
        """Wait for the next request, or for events, by the rule of Upcall.wait; whether there is a request."""
        if monotonic_ns() < upcall.quiet_until:
            return False
        with nogil:
            upcall._spin(self.watch, upcall.spin_ns, True)
        return self.watch.hit()

    def answer(self, int16_t status):
        """The caller has dealt with the request in `slot`."""
        if self.problem == 0 or self.at == self.taken:
            raise ValueError("no request is the caller's")
        self._answer(status)

    def transfer(self):
        """Write the segments of the request in `slot`, one with the layout of a write; whether they were, else see `problem`."""
        if self.problem == 0 or self.at == self.taken:
            raise ValueError("no request is the caller's")
        cdef int problem
        with nogil:
            problem = self._plain(self.ring.request_at + self.at * self.ring.req_size, True)
        if problem:
            self.problem = problem
        return problem == 0

    cdef void _run(self) noexcept nogil:
        """Serve requests of the batch until one is the caller's (then `problem` is set), or enough was moved to answer."""
        cdef int64_t until = self.left - BLK_PART_BYTES
        while self.at < self.taken and self.left > until and self.at - self.answered < BLK_PART:
            self.problem = self._one(self.ring.request_at + self.at * self.ring.req_size)
            if self.problem:
                return
            self._answer(BLK_OKAY)

    cdef void _answer(self, int16_t status) noexcept nogil:
        cdef const uint8_t *slot = self.ring.request_at + self.at * self.ring.req_size
        cdef uint8_t *response = self.ring.response_at + self.at * self.ring.rsp_size
        memset(response, 0, self.ring.rsp_size)
        memcpy(response, slot + 4 + self.wide, 8)
        response[8] = slot[0]
        memcpy(response + 10, &status, 2)
        self.at += 1
        self.left -= PAGE
        self.problem = 0
        if status != BLK_OKAY:
            self.stat[VBD_ERRORS] += 1

    cdef bint _respond(self) noexcept:
        """Put the answers into the ring, and show them; whether the frontend is to be notified."""
        cdef uint32_t count = self.at - self.answered
        cdef bint notify
        # Only now, and at once: a response takes its request's place, and who is killed between that and the push leaves
        # a successor with neither.
        self.ring._out(self.ring.response_at + self.answered * self.ring.rsp_size, self.ring.rsp_prod_pvt, count, self.ring.rsp_size)
        self.ring.rsp_prod_pvt += count
        self.answered = self.at
        notify = self.ring._push()
        self.stat[VBD_REQUESTS] += count
        self.stat[VBD_RESPONSES] += count
        self.stat[VBD_SENT if notify else VBD_SAVED] += 1
        return notify

    cdef bint _told(self) noexcept:
        """Notify the frontend; whether nothing is left to do about that."""
        self.woken = -1 if self.channel is None else self.channel._send()
        return self.woken == 0

    # -- one request: 0, or why it is the caller's
    cdef int _one(self, const uint8_t *slot) noexcept nogil:
        if slot[0] == BLK_READ or slot[0] == BLK_WRITE:
            return self._plain(slot, slot[0] == BLK_WRITE)
        if slot[0] == BLK_INDIRECT:
            return self._indirect(slot)
        return BLK_OTHER

    cdef int _refuse(self, int problem, uint64_t detail) noexcept nogil:
        self.detail = detail
        return problem

    cdef int _plain(self, const uint8_t *slot, bint write) noexcept nogil:
        """struct blkif_request: nr_segments at 1, sector_number 12 (16), seg 20 (24)."""
        cdef uint64_t sector
        if slot[1] == 0 or slot[1] > BLK_SEGMENTS:
            return self._refuse(BLK_BAD_COUNT, slot[1])
        memcpy(&sector, slot + 12 + self.wide, 8)
        return self._transfer(<const Segment *>(slot + 20 + self.wide), slot[1], write, sector)

    cdef int _indirect(self, const uint8_t *slot) noexcept nogil:
        """struct blkif_request_indirect: indirect_op at 1, nr_segments 2, sector_number 12 (16), indirect_grefs 24 (28)."""
        cdef uint16_t count
        cdef uint64_t sector
        cdef uint32_t gref, frame = 0
        cdef int32_t handle
        memcpy(&count, slot + 2, 2)
        memcpy(&sector, slot + 12 + self.wide, 8)
        memcpy(&gref, slot + 24 + self.wide, 4)
        if slot[1] != BLK_READ and slot[1] != BLK_WRITE:
            return self._refuse(BLK_BAD_NESTED, slot[1])
        if count == 0 or count > SEGMENTS:                 # so many are all in the first of the pages
            return self._refuse(BLK_BAD_COUNT, count)
        handle = self.io._map(gref, True, &frame)
        if handle < -1:
            return self._refuse(BLK_BAD_INDIRECT, gref)
        # One private copy, as of the slot: the frontend could change its page while the segments are looked at.
        memcpy(self.segments, self.io.memory.at + <uint64_t>frame * PAGE, count * sizeof(Segment))
        if handle >= 0:
            self.io.mapper._unmap(self.io.table, handle)
        return self._transfer(self.segments, count, slot[1] == BLK_WRITE, sector)

    cdef int _transfer(self, const Segment *segments, uint32_t count, bint write, uint64_t sector) noexcept nogil:
        cdef int64_t moved
        if write and self.read_only:
            return BLK_READ_ONLY
        if sector >= self.sectors:
            return self._refuse(BLK_BAD_SECTOR, sector)
        moved = self.io._transfer(segments, count, write, self.fd, sector * SECTOR, (self.sectors - sector) * SECTOR)
        if moved == IO_BAD_SEGMENT:
            return self._refuse(BLK_BAD_SEGMENT, sector)
        if moved == IO_BAD_GRANT:
            return self._refuse(BLK_BAD_GRANT, sector)
        if moved < 0:
            return self._refuse(BLK_FAILED, sector)
        self.left -= moved
        self.stat[VBD_WRITTEN if write else VBD_READ] += moved
        return 0
