# Grant table v1 (grant_table.h): granting frames, mapping grants, and what was mapped.
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
