# File I/O straight into and out of frames that a domain granted, as blkif segments (io/blkif.h) ask for it.
cdef enum:
    SEGMENTS = 256             # the most one request may carry: what blkback offers as feature-max-indirect-segments
    PERSISTENT = 1056          # persistent grants kept per ring, as the classic 32 * 33
    RESERVE = 8                # one in so many of a mapper's handles is for rings and requests under way

cpdef enum:                    # answers of GrantedIO.transfer below 0
    IO_BAD_SEGMENT = -1
    IO_BAD_GRANT = -2
    IO_FAILED = -3


cdef class GrantedIO:
    """File I/O straight into and out of frames that a domain granted: no intermediate copy.

    mapper, table: who maps whose grants. memory: the granting domain's memory, frame N at byte N * 4096.
    persistent: keep mappings for the next request (blkif.h feature-persistent), up to 1056 of them and while the
    mapper has handles enough.
    """
    cdef Mapper mapper
    cdef GrantTable table
    cdef Shared memory
    cdef readonly bint persistent
    cdef int32_t *kept                         # by gref: handle + 1 of a kept mapping
    cdef uint32_t *kept_frame
    cdef readonly uint32_t nr_kept
    cdef readonly int error
    cdef int32_t handles[SEGMENTS]
    cdef iovec vec[SEGMENTS]

    def __init__(self, Mapper mapper not None, GrantTable table not None, memory, bint persistent=False):
        self.mapper = mapper
        self.table = table
        self.memory = Shared(memory)
        if self.memory.size // PAGE < table.nr_frames:
            raise ValueError(f"{self.memory.size} bytes of memory hold no {table.nr_frames} frames")
        self.persistent = persistent
        self.kept = <int32_t *>calloc(table.nr_entries, 4)
        self.kept_frame = <uint32_t *>calloc(table.nr_entries, 4)
        if self.kept == NULL or self.kept_frame == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.kept)
        free(self.kept_frame)

    def close(self):
        """Unmap what was kept."""
        cdef uint32_t gref
        for gref in range(self.table.nr_entries):
            if self.kept[gref]:
                self.mapper._unmap(self.table, self.kept[gref] - 1)
                self.kept[gref] = 0
        self.nr_kept = 0

    def transfer(self, const uint8_t[::1] segments not None, uint32_t count, bint write, int fd, int64_t offset,
                 uint64_t limit):
        """Move `count` blkif_request_segments (8 bytes each) between the file and the granted frames.

        write: from the frames to the file. offset: bytes in the file. limit: bytes the device still has from there
        on. The bytes moved, or an IO_ error below 0; for IO_FAILED `error` holds the errno (0: the file ended).
        """
        cdef int64_t status
        if count > SEGMENTS or segments.shape[0] < count * 8:
            return IO_BAD_SEGMENT
        with nogil:
            status = self._transfer(<const Segment *>&segments[0], count, write, fd, offset, limit)
        return status

    cdef int64_t _transfer(self, const Segment *segments, uint32_t count, bint write, int fd, int64_t offset,
                       uint64_t limit) noexcept nogil:
        cdef uint32_t i, frame, mapped = 0, parts = 0
        cdef uint64_t total = 0
        cdef int64_t status = 0
        cdef uint8_t *at
        cdef size_t size
        for i in range(count):
            if segments[i].last_sect > 7 or segments[i].first_sect > segments[i].last_sect:
                return IO_BAD_SEGMENT
            total += (segments[i].last_sect - segments[i].first_sect + 1) * SECTOR
        if total > limit:
            return IO_BAD_SEGMENT
        for i in range(count):
            self.handles[i] = self._map(segments[i].gref, write, &frame)
            if self.handles[i] < -1:
                status = IO_BAD_GRANT
                break
            mapped += 1
            at = self.memory.at + <uint64_t>frame * PAGE + segments[i].first_sect * SECTOR
            size = (segments[i].last_sect - segments[i].first_sect + 1) * SECTOR
            if parts and <uint8_t *>self.vec[parts - 1].iov_base + self.vec[parts - 1].iov_len == at:
                self.vec[parts - 1].iov_len += size        # frames that follow each other: one part for the kernel
            else:
                self.vec[parts].iov_base = at
                self.vec[parts].iov_len = size
                parts += 1
        if status == 0:
            status = self._move(parts, write, fd, offset, total)
        for i in range(mapped):
            if self.handles[i] >= 0:
                self.mapper._unmap(self.table, self.handles[i])
        return status

    cdef int32_t _map(self, uint32_t gref, bint readonly, uint32_t *frame) noexcept nogil:
        """A handle to unmap afterwards, -1 for a kept mapping, or below -1 for an error."""
        cdef int32_t handle
        if gref < self.table.nr_entries and self.kept[gref]:
            frame[0] = self.kept_frame[gref]
            return -1
        # A kept mapping serves both directions, so it maps for writing as blkif.h's feature-persistent asks.
        # The last handles are not kept: a few devices that keep many must not stop the others' requests.
        if self.persistent and self.nr_kept < PERSISTENT and self.mapper.nr_spare > self.mapper.handles // RESERVE:
            handle = self.mapper._map(self.table, gref, False, frame)
            if handle >= 0:
                self.kept[gref] = handle + 1
                self.kept_frame[gref] = frame[0]
                self.nr_kept += 1
                return -1
        handle = self.mapper._map(self.table, gref, readonly, frame)
        return handle if handle >= 0 else handle - 1

    cdef int64_t _move(self, uint32_t count, bint write, int fd, int64_t offset, uint64_t total) noexcept nogil:
        cdef iovec *vec = self.vec
        cdef uint32_t left = count
        cdef ssize_t moved
        cdef uint64_t done = 0
        while done < total:
            moved = pwritev(fd, vec, left, offset + done) if write else preadv(fd, vec, left, offset + done)
            if moved < 0 and errno == EINTR:
                continue
            if moved <= 0:
                self.error = errno if moved < 0 else 0
                return IO_FAILED
            done += moved
            while left and <size_t>moved >= vec.iov_len:       # a short transfer: go on behind it
                moved -= vec.iov_len
                vec += 1
                left -= 1
            if left:
                vec.iov_base = <uint8_t *>vec.iov_base + moved
                vec.iov_len -= moved
        return <int64_t>total
