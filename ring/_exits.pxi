# The exit counters that a reader may sample while the guest runs, and the fast way of an exit to its device model.
cdef enum:
    EXIT_HEADER = 64
    EXIT_ROW = 64

cdef struct ExitRow:
    uint64_t exits
    uint64_t elements
    uint64_t total_ns
    uint64_t min_ns
    uint64_t max_ns
    uint64_t address
    uint8_t kind
    uint8_t size
    char device[14]


cdef class ExitTable(Shared):
    """Exit counters in shared memory: a header (u64: rows in use) and rows of 64 bytes. One writer, any number of readers.

    A row: exits, elements, total, min and max nanoseconds, address (u64 each), kind u8, size u8, device char[14].
    """
    cdef readonly uint32_t capacity

    def __init__(self, buffer):
        self.capacity = <uint32_t>((self.size - EXIT_HEADER) // EXIT_ROW)

    @property
    def rows(self):
        """Rows in use."""
        return ld64(<uint64_t *>self.at)

    def add_row(self, uint8_t kind, uint8_t size, uint64_t address, bytes device not None):
        """A new row's index, or the last one's when the table is full (that row then counts everything else)."""
        cdef uint64_t index = ld64(<uint64_t *>self.at)
        cdef ExitRow *row
        if index >= self.capacity:
            return self.capacity - 1
        row = <ExitRow *>(self.at + EXIT_HEADER) + index
        memset(row, 0, sizeof(ExitRow))
        row.kind = kind
        row.size = size
        row.address = address
        memcpy(row.device, PyBytes_AS_STRING(device), min(len(device), 13))
        st64(<uint64_t *>self.at, index + 1)   # release: a reader sees the row's name before its index
        return index

    def count(self, uint32_t index, uint64_t elements, uint64_t ns):
        """One exit of `elements` elements that took `ns` nanoseconds, on row `index`."""
        self._count(index, elements, ns)

    cdef inline void _count(self, uint32_t index, uint64_t elements, uint64_t ns) noexcept nogil:
        cdef ExitRow *row = <ExitRow *>(self.at + EXIT_HEADER) + index
        row.elements += elements
        row.total_ns += ns
        if ns < row.min_ns or row.exits == 0:
            row.min_ns = ns
        if ns > row.max_ns:
            row.max_ns = ns
        st64(&row.exits, row.exits + 1)


def now_ns():
    """CLOCK_MONOTONIC in nanoseconds."""
    return monotonic_ns()


cdef enum:
    ROUTES = 8192              # of the table, a power of two; half of them are used at most
    NEWS = 17                  # u64 of the frame of interrupt lines that change: 16 lines and the count of messages
    SHUTDOWN_OFFSET = 3584     # miniguest.ring.memory

cpdef enum:                    # what ExitPath.run answers
    EXIT_DONE = 0
    EXIT_NEWS = 1
    EXIT_STARTED = 2
    EXIT_UNKNOWN = 3

cdef struct Route:
    uint64_t key               # 0: free
    uint32_t row
    bint claimed
    bint buffered


cdef class ExitPath:
    """The way of a frequent exit to its device model and back, without the interpreter.

    slot: the vCPU's. upcall: its hypervisor's side. table: its counters. lines, modified, ranges, info, buffered: the frames
    irq_lines, modified, ranges, hypervisor_info and bufioreq (miniguest.ring.memory). `run` knows the exits that `add` named,
    until the ranges change; any other is the interpreter's, as is whatever took place besides.
    """
    cdef IoreqSlot slot
    cdef Upcall upcall
    cdef ExitTable table
    cdef Shared lines, modified, ranges, info
    cdef BufferedPage buffered
    cdef public Channel channel                # to the device model; None while there is none
    cdef uint64_t news[NEWS]
    cdef uint64_t written
    cdef int64_t version
    cdef Route routes[ROUTES]
    cdef uint32_t used
    cdef uint32_t row
    cdef uint64_t started_ns
    cdef readonly int woken                    # after EXIT_STARTED: what Channel.send said
    cdef public int unrung                     # after EXIT_NEWS: what it said of a buffered write, and nobody has rung yet

    def __init__(self, IoreqSlot slot not None, Upcall upcall not None, ExitTable table not None,
                 lines, modified, ranges, info, buffered):
        self.buffered = BufferedPage(buffered)
        self.slot, self.upcall, self.table = slot, upcall, table
        self.lines, self.modified, self.ranges, self.info = Shared(lines), Shared(modified), Shared(ranges), Shared(info)
        if min(self.lines.size, self.modified.size, self.ranges.size, self.info.size) < PAGE:
            raise ValueError("less than a frame")
        self.version = -1
        self._has_news()

    @property
    def function(self):
        """Address of the compiled function `int run(void *path, int kind, uint64_t address, int size, uint64_t *value)`."""
        return <uintptr_t><void *>&run_exit

    @property
    def address(self):
        """Its first argument; valid while this object lives."""
        return <uintptr_t><void *>self

    def clear(self, int64_t version):
        """Forget every exit. version: of the ranges that `add` will go by."""
        memset(self.routes, 0, sizeof(self.routes))
        self.used = 0
        self.version = version

    def add(self, uint8_t kind, uint64_t address, uint8_t size, uint32_t row, bint claimed, bint buffered=False):
        """Exits of this kind, address and size (bytes) are counted on `row`; the device model answers those that are
        claimed, and nobody the others. Writes that are buffered are not waited for. Nothing happens when there is no room."""
        cdef Route *route
        if row >= self.table.capacity:
            raise ValueError(f"no row {row}")
        if self.used < ROUTES // 2 and address >> 48 == 0:
            route = self._find(route_key(kind, address, size))
            if route.key == 0:
                self.used += 1
            route.key = route_key(kind, address, size)
            route.row = row
            route.claimed = claimed
            route.buffered = buffered and kind & 1

    cdef inline Route *_find(self, uint64_t key) noexcept nogil:
        """A key's route, or the free one where it would be: half of them are free, so there is one."""
        cdef uint32_t at = <uint32_t>((key * <uint64_t>0x9e3779b97f4a7c15) >> 51)
        while self.routes[at].key != key and self.routes[at].key != 0:
            at = (at + 1) & (ROUTES - 1)
        return &self.routes[at]

    cdef int _run(self, int kind, uint64_t address, int size, uint64_t *value) noexcept nogil:
        cdef uint64_t start = monotonic_ns(), ones = ~<uint64_t>0 >> (64 - 8 * size)
        cdef Route *route = self._find(route_key(kind, address, size))
        cdef bint reads = (kind & 1) == 0
        if route.key == 0 or <int64_t>ld64(<uint64_t *>self.ranges.at) != self.version:
            return EXIT_UNKNOWN
        if not route.claimed:
            value[0] = ones
            self.table._count(route.row, 1, monotonic_ns() - start)
            return EXIT_DONE
        if self.channel is None:
            return EXIT_UNKNOWN
        if route.buffered and self.buffered._put(TYPE_PIO if kind < 2 else TYPE_COPY, address, size, <uint32_t>value[0]):
            self.table._count(route.row, 1, monotonic_ns() - start)
            self.unrung = self.channel._send()
            return EXIT_NEWS if self.unrung else EXIT_DONE
        self.slot._start(TYPE_PIO if kind < 2 else TYPE_COPY, address, 0 if reads else value[0] & ones, 1, size,
                         reads << 5)
        self.woken = self.channel._send()
        self.row, self.started_ns = route.row, start
        # Only the answer counts here: nothing else that is told can be taken up before it.
        if (self.woken or start < self.upcall.quiet_until or self.upcall.spin_ns == 0
                or not self.upcall._spin(self.slot, self.upcall.spin_ns, False)):
            return EXIT_STARTED
        value[0] = self.slot._finish() & ones
        self.table._count(route.row, 1, monotonic_ns() - start)
        return EXIT_NEWS if self._has_news() else EXIT_DONE

    cdef bint _has_news(self) noexcept nogil:
        """Whether a line, a message, a written frame or a shutdown is to be taken up."""
        cdef uint64_t *now = <uint64_t *>self.lines.at
        cdef uint64_t written = ld64(<uint64_t *>self.modified.at)
        cdef bint news = written != self.written or ld8(self.info.at + SHUTDOWN_OFFSET) != 0
        cdef int i
        self.written = written
        for i in range(NEWS):
            if ld64(now + i) != self.news[i]:
                self.news[i] = ld64(now + i)
                news = True
        return news

    def run(self, int kind, uint64_t address, int size, uint64_t value=0):
        """One exit: (EXIT_DONE, EXIT_NEWS, EXIT_STARTED or EXIT_UNKNOWN; the value read).

        EXIT_NEWS: answered, and lines, messages, frames, a shutdown or `unrung` are to be looked at. EXIT_STARTED: the device model
        has been asked, `woken` says whether it is yet to be rung for, and `finish` is to be called once it has answered.
        """
        if size not in (1, 2, 4, 8):
            raise ValueError(f"an access of {size} bytes")
        cdef int how
        with nogil:
            how = self._run(kind, address, size, &value)
        return how, value

    def finish(self):
        """The answer after EXIT_STARTED; the exit is counted."""
        value = self.slot._finish()
        self.table._count(self.row, 1, monotonic_ns() - self.started_ns)
        return value


cdef inline uint64_t route_key(int kind, uint64_t address, int size) noexcept nogil:
    return address << 16 | <uint64_t>size << 8 | <uint64_t>(kind + 1)


cdef int run_exit(void *path, int kind, uint64_t address, int size, uint64_t *value) noexcept nogil:
    return (<ExitPath>path)._run(kind, address, size, value)
