# Grants that a frontend has mapped for good (io/netif.h, static grants): a slot that names one costs no mapping.
cdef enum:
    STATIC_MOST = 1024         # of a queue
    NOT_MAPPED = -1            # instead of a handle: there is nothing to unmap

cdef struct StaticGrant:
    uint32_t frame
    int32_t handle             # of its mapping, plus 1; 0: it is none
    bint readonly


@cython.final
cdef class StaticGrants:
    """The static grants of one queue. They stay mapped until they are removed.

    Their frames were checked when they were mapped, and are not read from the grant table again: what the frontend writes
    there meanwhile changes nothing.
    """
    cdef Mapper mapper
    cdef GrantTable table
    cdef StaticGrant *entry            # by gref; NULL before the first is added
    cdef readonly uint32_t count

    def __init__(self, Mapper mapper not None, GrantTable table not None):
        self.mapper = mapper
        self.table = table

    def __dealloc__(self):
        free(self.entry)

    @property
    def room(self):
        """How many more there can be. Half of what the process may map is left for what is mapped slot by slot."""
        return max(0, min(STATIC_MOST - self.count, self.mapper.handles // 2 - self.mapper.mapped))

    def add(self, wanted):
        """Map (gref, readonly) pairs: all of them or, when one cannot be mapped or is there already, none and False."""
        cdef uint32_t gref
        if len(wanted) > self.room:
            return False
        if self.entry == NULL:                 # pages of zeros, which cost nothing before they are used
            self.entry = <StaticGrant *>calloc(self.table.nr_entries, sizeof(StaticGrant))
            if self.entry == NULL:
                raise MemoryError()
        for index, (gref, readonly) in enumerate(wanted):
            if not self._add(gref, readonly):
                for gref, _ in wanted[:index]:
                    self.remove(gref)
                return False
        return True

    cdef bint _add(self, uint32_t gref, bint readonly) noexcept:
        cdef StaticGrant *entry = self.entry + gref
        cdef int32_t handle
        if gref >= self.table.nr_entries or entry.handle:
            return False
        handle = self.mapper._map(self.table, gref, readonly, &entry.frame)
        if handle < 0:
            return False
        entry.handle = handle + 1
        entry.readonly = readonly
        self.count += 1
        return True

    cpdef bint remove(self, uint32_t gref) noexcept:
        """Unmap one; False when it is none."""
        if self.entry == NULL or gref >= self.table.nr_entries or not self.entry[gref].handle:
            return False
        self.mapper._unmap(self.table, <uint32_t>(self.entry[gref].handle - 1))
        self.entry[gref].handle = 0
        self.count -= 1
        return True

    cpdef clear(self):
        """Unmap all of them."""
        cdef uint32_t gref = 0
        while self.count:
            self.remove(gref)
            gref += 1

    cdef inline int32_t _reach(self, uint32_t gref, bint readonly, uint32_t *frame) noexcept nogil:
        """A gref's frame: a handle to be unmapped, NOT_MAPPED when it is mapped for good, or a GNTST_ error below that."""
        cdef StaticGrant *entry
        cdef int32_t handle
        if self.entry != NULL and gref < self.table.nr_entries:
            entry = self.entry + gref
            if entry.handle and (readonly or not entry.readonly):
                frame[0] = entry.frame
                return NOT_MAPPED
        handle = self.mapper._map(self.table, gref, readonly, frame)
        return handle if handle >= 0 else handle + NOT_MAPPED
