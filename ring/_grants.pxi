# Grant table v1 (grant_table.h): mapping grants, what was mapped, and I/O straight into granted frames.
cdef enum:
    GTF_permit_access = 1
    GTF_type_mask = 3
    GTF_readonly = 4
    GTF_reading = 8
    GTF_writing = 16
    GNTST_okay = 0
    GNTST_general_error = -1
    GNTST_bad_gntref = -3
    GNTST_bad_handle = -4
    GNTST_no_device_space = -7
    GNTST_bad_page = -9
    GNTST_bad_copy_arg = -10
    TRACK_STATE = 7            # of a map track entry: what its process is about, should it be killed
    TRACK_FREE = 0
    TRACK_INTENT = 1           # about to lock the gref: not counted in its pins
    TRACK_COMING = 2           # counted from the moment the lock is let go
    TRACK_HELD = 3             # counted
    TRACK_GOING = 4            # counted until the moment the lock is let go
    TRACK_READONLY = 8
    MOST_PINS = 0xffff
    PATIENT_LOOKS = 64         # at a lock before giving way to whoever holds it

cdef struct GrantEntry:        # struct grant_entry_v1
    uint16_t flags
    uint16_t domid
    uint32_t frame

cdef struct Segment:           # io/blkif.h, struct blkif_request_segment
    uint32_t gref
    uint8_t first_sect
    uint8_t last_sect
    uint16_t pad


cdef class GrantTable(Shared):
    """A domain's grant table as those who map its grants see it.

    entries: its grant frames (v1 entries, in the granting domain's memory). pins: one u64 per entry in a file of the
    hypervisor's: mappings that read (bits 0-15), that write (16-31), and the owner of the entry's lock (32-63).
    nr_frames: frames of the granting domain's memory. domid: the granting domain.
    """
    cdef Shared pins
    cdef readonly uint32_t nr_entries, nr_frames
    cdef readonly uint16_t domid

    def __init__(self, entries, pins, uint32_t nr_frames, uint16_t domid):
        self.pins = Shared(pins)
        self.nr_entries = <uint32_t>min(self.size, self.pins.size) // 8
        self.nr_frames = nr_frames
        self.domid = domid

    cdef uint64_t _lock(self, uint32_t gref, uint32_t owner) noexcept nogil:
        """Take an entry's lock for `owner`; the pins as they stand. Held for a few instructions only; the hypervisor
        breaks the lock of a process that died with it."""
        cdef uint64_t *at = <uint64_t *>self.pins.at + gref
        cdef uint64_t old = ld64(at)
        cdef int looks = 0
        while True:
            if old >> 32:
                cpu_pause()
                looks += 1
                if looks % PATIENT_LOOKS == 0:     # its holder may wait for this core, or the one who breaks it
                    cpu_yield()
                old = ld64(at)
            elif cas64(at, &old, old | <uint64_t>owner << 32):
                return old

    cdef void _unlock(self, uint32_t gref, uint64_t pins) noexcept nogil:
        st64(<uint64_t *>self.pins.at + gref, pins)     # release: flags before the lock is seen free

    cdef int32_t _pin(self, uint32_t gref, uint16_t domid, bint readonly, uint32_t owner, uint32_t *frame,
                      uint64_t *record) noexcept nogil:
        """Count a mapping of `gref`, whose entry in the map track is `record`; its frame. A GNTST_ status."""
        cdef GrantEntry *entry = <GrantEntry *>self.at + gref
        cdef uint32_t *head = <uint32_t *>entry           # flags and domid change together: one word
        cdef uint32_t old, wanted = GTF_reading if readonly else GTF_reading | GTF_writing
        cdef uint64_t pins
        cdef uint64_t one = 1 if readonly else 0x10000
        cdef int32_t status = GNTST_okay
        if gref >= self.nr_entries:
            return GNTST_bad_gntref
        pins = self._lock(gref, owner)
        if pins & one * MOST_PINS == one * MOST_PINS:
            self._unlock(gref, pins)
            return GNTST_no_device_space
        old = ld32(head)
        while True:
            if old & GTF_type_mask != GTF_permit_access or old >> 16 != domid or (old & GTF_readonly and not readonly):
                status = GNTST_general_error
                break
            if cas32(head, &old, old | wanted):
                break
        if status == GNTST_okay:
            # The granter must not change an entry in use, so the frame is read after the bits are set.
            frame[0] = ld32(&entry.frame)
            if frame[0] >= self.nr_frames:
                status = GNTST_bad_page
                self._clear(entry, pins)
        if status == GNTST_okay:
            pins += one
            # Letting go of the lock stores the new count too, in the same word: killed before it, we hold the lock and
            # are not counted; killed after it, we do not hold it and are. The record says that it is one of these.
            st64(record, ld64(record) & ~<uint64_t>TRACK_STATE | TRACK_COMING)
        self._unlock(gref, pins)
        return status

    cdef void _clear(self, GrantEntry *entry, uint64_t pins) noexcept nogil:
        """Clear the in-use bits that no mapping counted in `pins` needs."""
        cdef uint16_t drop = 0, old = entry.flags
        if not <uint32_t>pins >> 16:
            drop |= GTF_writing
        if not <uint32_t>pins:
            drop |= GTF_reading
        if drop:
            while not cas16(&entry.flags, &old, old & ~drop):
                pass

    cdef void _unpin(self, uint32_t gref, bint readonly, uint32_t owner, uint64_t *record) noexcept nogil:
        cdef uint64_t pins = self._lock(gref, owner)
        pins -= 1 if readonly else 0x10000
        st64(record, ld64(record) & ~<uint64_t>TRACK_STATE | TRACK_GOING)      # as in _pin
        self._clear(<GrantEntry *>self.at + gref, pins)
        self._unlock(gref, pins)

    def pinned(self, uint32_t gref):
        """(mappings that only read, mappings that write) of a gref."""
        cdef uint64_t pins
        if gref >= self.nr_entries:
            raise IndexError(gref)
        pins = ld64(<uint64_t *>self.pins.at + gref)
        return pins & 0xffff, pins >> 16 & 0xffff

    def holder(self, uint32_t gref):
        """The owner that has a gref's lock; 0 when nobody does."""
        if gref >= self.nr_entries:
            raise IndexError(gref)
        return <uint32_t>(ld64(<uint64_t *>self.pins.at + gref) >> 32)

    def break_lock(self, uint32_t gref, uint32_t owner):
        """Take a gref's lock from an owner that is no process."""
        cdef uint64_t old
        if gref >= self.nr_entries:
            raise IndexError(gref)
        old = ld64(<uint64_t *>self.pins.at + gref)
        if old >> 32 == owner:
            cas64(<uint64_t *>self.pins.at + gref, &old, <uint32_t>old)

    def release(self, uint32_t gref, uint32_t owner, records):
        """The hypervisor's: take back what a dead process held of a gref. False when somebody else has its lock.

        owner: the dead process. records: its map track entries for this gref. Its own lock is broken, and tells which
        of its mappings are counted; those of the living are not touched.
        """
        cdef uint64_t *at = <uint64_t *>self.pins.at + gref
        cdef uint64_t old, record, count
        cdef uint64_t gone[2]
        cdef bint locked
        if gref >= self.nr_entries:
            raise IndexError(gref)
        old = ld64(at)
        while old >> 32 == 0 and not cas64(at, &old, old | <uint64_t>owner << 32):
            pass
        locked = old >> 32 == owner            # by the dead one, when it died
        if old >> 32 and not locked:
            return False
        gone[0] = gone[1] = 0
        for item in records:
            record = item
            if record & TRACK_STATE in (TRACK_HELD, TRACK_GOING if locked else TRACK_COMING):
                gone[0 if record & TRACK_READONLY else 1] += 1
        count = old & MOST_PINS
        old = old >> 16 & MOST_PINS
        count -= min(count, gone[0])
        old -= min(old, gone[1])
        count |= old << 16
        self._clear(<GrantEntry *>self.at + gref, count)
        self._unlock(gref, count)
        return True


cdef class Mapper(Shared):
    """A process's grant mappings, recorded where the hypervisor finds them when the process dies.

    track: an array of u64, one per handle: a TRACK_ state and the read-only bit, granting domid (bits 16-31), gref
    (32-63). It always says whether the mapping is counted in the gref's pins, whenever the process is killed.
    domid: the mapping domain. owner: a number, not 0, that tells this process from all others of the topology.
    """
    cdef uint32_t *spare
    cdef uint32_t nr_spare
    cdef readonly uint32_t handles, owner
    cdef readonly uint16_t domid

    def __init__(self, track, uint16_t domid, uint32_t owner):
        cdef uint32_t i
        self.handles = <uint32_t>(self.size // 8)
        self.domid = domid
        self.owner = owner
        self.spare = <uint32_t *>calloc(self.handles, 4)
        if self.spare == NULL or owner == 0:
            raise MemoryError()
        for i in range(self.handles):
            self.spare[i] = self.handles - 1 - i
        self.nr_spare = self.handles

    def __dealloc__(self):
        free(self.spare)

    @property
    def mapped(self):
        """Mappings held."""
        return self.handles - self.nr_spare

    cdef int32_t _map(self, GrantTable table, uint32_t gref, bint readonly, uint32_t *frame) noexcept nogil:
        """A handle (0 and up), or a GNTST_ error (below 0)."""
        cdef uint32_t handle
        cdef uint64_t record
        cdef int32_t status
        if self.nr_spare == 0:
            return GNTST_no_device_space
        handle = self.spare[self.nr_spare - 1]
        record = <uint64_t>gref << 32 | <uint64_t>table.domid << 16 | (TRACK_READONLY if readonly else 0)
        # Recorded before it is done: the hypervisor looks for locks of the dead only where a record points.
        st64(<uint64_t *>self.at + handle, record | TRACK_INTENT)
        status = table._pin(gref, self.domid, readonly, self.owner, frame, <uint64_t *>self.at + handle)
        if status != GNTST_okay:
            st64(<uint64_t *>self.at + handle, TRACK_FREE)
            return status
        st64(<uint64_t *>self.at + handle, record | TRACK_HELD)
        self.nr_spare -= 1
        return <int32_t>handle

    cdef int32_t _unmap(self, GrantTable table, uint32_t handle) noexcept nogil:
        cdef uint64_t record
        if handle >= self.handles:
            return GNTST_bad_handle
        record = ld64(<uint64_t *>self.at + handle)
        if record & TRACK_STATE != TRACK_HELD or <uint16_t>(record >> 16) != table.domid:
            return GNTST_bad_handle
        table._unpin(<uint32_t>(record >> 32), record & TRACK_READONLY != 0, self.owner, <uint64_t *>self.at + handle)
        st64(<uint64_t *>self.at + handle, TRACK_FREE)
        self.spare[self.nr_spare] = handle
        self.nr_spare += 1
        return GNTST_okay

    def map(self, GrantTable table not None, uint32_t gref, bint readonly=False):
        """GNTTABOP_map_grant_ref: (handle, frame); a handle below 0 is a GNTST_ error."""
        cdef uint32_t frame = 0
        cdef int32_t handle = self._map(table, gref, readonly, &frame)
        return handle, frame

    def unmap(self, GrantTable table not None, uint32_t handle):
        """GNTTABOP_unmap_grant_ref: a GNTST_ status."""
        return self._unmap(table, handle)


cdef enum:
    SECTOR = 512
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
        cdef uint32_t i, frame, mapped = 0
        cdef uint64_t total = 0
        cdef int64_t status = 0
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
            self.vec[i].iov_base = self.memory.at + <uint64_t>frame * PAGE + segments[i].first_sect * SECTOR
            self.vec[i].iov_len = (segments[i].last_sect - segments[i].first_sect + 1) * SECTOR
        if status == 0:
            status = self._move(count, write, fd, offset, total)
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


def grant_copy(GrantTable table not None, memory, uint32_t gref, uint32_t offset, local, bint to_grant, Mapper mapper not None):
    """GNTTABOP_copy between `local` (a writable buffer) and a granted frame from `offset` on; a GNTST_ status."""
    cdef Shared other = Shared(memory), mine = Shared(local)
    cdef uint32_t frame = 0
    cdef int32_t handle
    if offset + mine.size > PAGE:
        return GNTST_bad_copy_arg
    # A mapping like any other, so that the hypervisor finds it should we be killed meanwhile.
    handle = mapper._map(table, gref, not to_grant, &frame)
    if handle < 0:
        return handle
    if (<Py_ssize_t>frame + 1) * PAGE > other.size:
        mapper._unmap(table, handle)
        return GNTST_bad_page
    if to_grant:
        memcpy(other.at + <uint64_t>frame * PAGE + offset, mine.at, mine.size)
    else:
        memcpy(mine.at, other.at + <uint64_t>frame * PAGE + offset, mine.size)
    return mapper._unmap(table, handle)


def end_access(entries not None, uint32_t gref):
    """The granter's: revoke a gref; False when it is still mapped (GTF_reading or GTF_writing set)."""
    cdef Shared shared = Shared(entries)
    cdef GrantEntry *entry = <GrantEntry *>shared.at + gref
    cdef uint16_t old
    if gref >= shared.size // 8:
        raise IndexError(gref)
    old = entry.flags
    while True:
        if old & (GTF_reading | GTF_writing):
            return False
        # Compare-exchange: a plain store could wipe out a mapper's bit that was set since we looked.
        if cas16(&entry.flags, &old, 0):
            return True


def grant_access(entries not None, uint32_t gref, uint16_t domid, uint32_t frame, bint readonly):
    """The granter's: let `domid` map `frame` through `gref` (GTF_permit_access)."""
    cdef Shared shared = Shared(entries)
    cdef GrantEntry *entry = <GrantEntry *>shared.at + gref
    if gref >= shared.size // 8:
        raise IndexError(gref)
    entry.domid = domid
    entry.frame = frame
    # Domid and frame before flags: a mapper that sees permit_access must not see the last use's frame.
    mb()
    cdef uint16_t old = entry.flags
    while not cas16(&entry.flags, &old, GTF_permit_access | (GTF_readonly if readonly else 0)):
        pass
