# The byte streams of io/xs_wire.h and io/console.h.
cdef class ByteRing(Shared):
    """One direction of a byte stream ring (io/xs_wire.h, io/console.h).

    page: the shared page. data, size: where the bytes are; size is a power of two. cons, prod: byte offsets of the
    two u32 indices. RingError when the peer's index makes the stream hold more than `size` bytes.
    """
    cdef uint8_t *data
    cdef uint32_t *cons
    cdef uint32_t *prod
    cdef readonly uint32_t length

    def __init__(self, page, uint32_t data, uint32_t size, uint32_t cons, uint32_t prod):
        if size & (size - 1) or data + size > self.size or cons + 4 > self.size or prod + 4 > self.size:
            raise ValueError("the stream does not fit the page")
        self.data = self.at + data
        self.cons = <uint32_t *>(self.at + cons)
        self.prod = <uint32_t *>(self.at + prod)
        self.length = size

    cdef uint32_t _held(self) except? 0xffffffff:
        cdef uint32_t held = ld32(self.prod) - ld32(self.cons)
        if held > self.length:
            raise RingError(f"stream indices hold {held} bytes in a ring of {self.length}")
        return held

    @property
    def readable(self):
        """Bytes that `read` would return."""
        return self._held()

    @property
    def writable(self):
        """Bytes that `write` would take."""
        return self.length - self._held()

    def read(self, int64_t limit=-1):
        """Take up to `limit` bytes (all there are by default) out of the stream."""
        cdef uint32_t cons = ld32(self.cons), held = ld32(self.prod) - cons, first, run
        if held > self.length:
            raise RingError(f"stream indices hold {held} bytes in a ring of {self.length}")
        if 0 <= limit < held:
            held = <uint32_t>limit
        out = PyBytes_FromStringAndSize(NULL, held)
        first = cons & (self.length - 1)
        run = min(held, self.length - first)
        memcpy(PyBytes_AS_STRING(out), self.data + first, run)
        memcpy(PyBytes_AS_STRING(out) + run, self.data, held - run)
        # Full barrier (a release would do for the data): the caller tests whether to notify after this store.
        st32(self.cons, cons + held)
        mb()
        return out

    def write(self, const uint8_t[::1] data not None):
        """Put as many bytes of `data` as fit into the stream; their number."""
        cdef uint32_t prod = ld32(self.prod), held = prod - ld32(self.cons), count, first, run
        if held > self.length:
            raise RingError(f"stream indices hold {held} bytes in a ring of {self.length}")
        count = <uint32_t>min(data.shape[0], self.length - held)
        if count == 0:
            return 0
        first = prod & (self.length - 1)
        run = min(count, self.length - first)
        memcpy(self.data + first, &data[0], run)
        if count > run:
            memcpy(self.data, &data[run], count - run)
        st32(self.prod, prod + count)          # release: without it the reader could see the index before the bytes
        mb()                                   # and our next look at its index must not pass this store
        return count
