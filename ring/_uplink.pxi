# What a link leads to besides its vifs: a TAP, a stream socket (QEMU's framing), a pcap file, or nothing.
from libc.errno cimport EAGAIN

cdef extern from *:
    """
    #include <sys/socket.h>
    static inline uint64_t realtime_ns(void)
    { struct timespec t; clock_gettime(CLOCK_REALTIME, &t); return t.tv_sec * 1000000000ull + t.tv_nsec; }
    """
    ssize_t write_vector "writev"(int, const iovec *, int) noexcept nogil
    ssize_t write_bytes "write"(int, const void *, size_t) noexcept nogil
    ssize_t read_bytes "read"(int, void *, size_t) noexcept nogil
    uint64_t realtime_ns() noexcept nogil

cdef enum:
    PCAP_BUFFER = 256 << 10
    PCAP_RECORD = 16
    STREAM_OUT = 1 << 20       # bytes that wait for the peer to read
    STREAM_IN = 256 << 10
    STREAM_HEADER = 4          # big-endian length
    UPLINK_TURN = 64           # frames that come in before the vifs get their turn
    FRAME_OVERHEAD = 18        # Ethernet header and a VLAN tag: what mtu does not count
    STREAM_ENDED = 1           # why an uplink is broken
    STREAM_LIED = 2
    STREAM_FAILED = 3

cpdef enum:                    # kinds of uplink
    UPLINK_TAP = 1
    UPLINK_STREAM = 2
    UPLINK_PCAP = 3
    UPLINK_NULL = 4


cdef class PcapWriter:
    """Appends frames to a pcap file with nanoseconds. fd: open for writing; `create`: begin with the file's header.

    `error` is the errno of a write that failed; nothing is written from then on.
    """
    cdef int fd
    cdef uint8_t *buffer
    cdef uint32_t used
    cdef readonly int error
    cdef readonly uint64_t frames

    def __cinit__(self, int fd, bint create=True):
        cdef uint32_t header[6]
        self.fd = fd
        self.buffer = <uint8_t *>malloc(PCAP_BUFFER)
        if self.buffer == NULL:
            raise MemoryError()
        header[:] = [0xa1b23c4d, 4 << 16 | 2, 0, 0, 262144, 1]         # ns; 2.4; UTC; accuracy; snaplen; LINKTYPE_ETHERNET
        if create:
            memcpy(self.buffer, header, sizeof(header))
            self.used = sizeof(header)
        self._flush()

    def __dealloc__(self):
        free(self.buffer)

    cdef void _add(self, NetPacket *p) noexcept nogil:
        cdef uint64_t now = realtime_ns()
        cdef uint32_t part = 0
        cdef size_t skip = 0
        cdef uint32_t *record
        if self.used + PCAP_RECORD + p.size > PCAP_BUFFER:
            self._flush()
        record = <uint32_t *>(self.buffer + self.used)
        record[0] = <uint32_t>(now // 1000000000)
        record[1] = <uint32_t>(now % 1000000000)
        record[2] = record[3] = p.size
        copy_parts(p, &part, &skip, self.buffer + self.used + PCAP_RECORD, p.size)
        self.used += PCAP_RECORD + p.size
        self.frames += 1

    cdef void _flush(self) noexcept nogil:
        cdef uint32_t done = 0
        cdef ssize_t count
        while done < self.used and not self.error:
            count = write_bytes(self.fd, self.buffer + done, self.used - done)
            if count >= 0:
                done += <uint32_t>count
            elif errno != EINTR:
                self.error = errno
        self.used = 0


cdef class Uplink:
    """A link's way out, port 0 of its switch.

    kind: UPLINK_*. fd: of the TAP or the connected socket, not blocking; -1: none (yet). mtu: larger frames are dropped.
    pcap: for UPLINK_PCAP. Frames that come in: read from `fd`, or given one by one (`give`).
    """
    cdef readonly int kind, fd
    cdef readonly uint32_t mtu
    cdef PcapWriter pcap
    cdef uint8_t *out                  # of a stream: bytes from out_start to out_end wait
    cdef uint32_t out_start, out_end
    cdef uint8_t *into                 # bytes that were read: a stream's from in_start to in_end, or one frame
    cdef uint32_t in_start, in_end
    cdef int state                     # as a sender: IDLE, RUNNABLE, WAITING
    cdef void *blocker
    cdef uint64_t progress             # when the peer last read something
    cdef readonly int broken, error    # 0 or STREAM_*; the errno of STREAM_FAILED
    cdef readonly uint64_t sent_frames, sent_bytes, received_frames, received_bytes, dropped

    def __cinit__(self, int kind, int fd=-1, uint32_t mtu=1500, PcapWriter pcap=None):
        self.kind = kind
        self.mtu = mtu
        self.pcap = pcap
        self.fd = -1
        self.into = <uint8_t *>malloc(STREAM_IN)
        self.out = <uint8_t *>malloc(STREAM_OUT)
        if self.into == NULL or self.out == NULL or (kind == UPLINK_PCAP and pcap is None):
            raise MemoryError()
        self.attach(fd)

    def __dealloc__(self):
        free(self.into)
        free(self.out)

    def attach(self, int fd):
        """From now on frames go to `fd` and come from there; -1: nowhere. What an old peer left half is forgotten."""
        self.fd = fd
        self.out_start = self.out_end = self.in_start = self.in_end = 0
        self.broken = self.error = 0
        self.state = RUNNABLE
        self.progress = monotonic_ns()

    @property
    def unsent(self):
        """Bytes that wait for the peer to read: look whether `fd` is writable."""
        return self.out_end - self.out_start

    @property
    def blocked(self):
        """Whether a frame that came in waits for a vif: do not look whether `fd` is readable."""
        return self.state == WAITING

    def give(self, const uint8_t[::1] frame not None):
        """A frame comes in; False when the one before still waits for its receiver."""
        if self.in_end or not NET_LEAST <= frame.shape[0] <= NET_MOST:
            return False
        memcpy(self.into, &frame[0], frame.shape[0])
        self.in_end = <uint32_t>frame.shape[0]
        if self.state == IDLE:
            self.state = RUNNABLE
        return True

    # -- out
    cdef int _send(self, NetPacket *p, bint may_wait, uint64_t now) noexcept nogil:
        """Send an ordinary frame: TAKEN, DROPPED, or WAIT when `may_wait`."""
        cdef ssize_t count
        if self.kind == UPLINK_NULL:
            pass
        elif p.size > self.mtu + FRAME_OVERHEAD:
            return self._drop()
        elif self.kind == UPLINK_PCAP:
            self.pcap._add(p)
        elif self.fd < 0:
            return self._drop()
        elif self.kind == UPLINK_TAP:
            count = write_vector(self.fd, p.part, p.nr_parts)
            if count < 0:
                return self._drop()
        elif self.out_end - self.out_start + STREAM_HEADER + p.size > STREAM_OUT:
            return WAIT if may_wait and not self.broken and now - self.progress < PATIENCE_NS else self._drop()
        elif not self._stream_unpadded(p, now):
            return self._drop()
        self.sent_frames += 1
        self.sent_bytes += p.size
        return TAKEN

    cdef int _drop(self) noexcept nogil:
        self.dropped += 1
        return DROPPED

    cdef bint _stream_unpadded(self, NetPacket *p, uint64_t now) noexcept nogil:
        """Send a frame without what pads it to Ethernet's least size: a socket has none, and passt (2023) takes an IP
        packet to be as long as its frame, so that it loses count of padded acknowledgements."""
        cdef uint32_t size = p.size, end = ip_end(p)
        cdef size_t first = p.part[0].iov_len
        cdef bint sent
        if size <= LEAST_ON_WIRE and end < size and first == size:
            p.size = end
            p.part[0].iov_len = end
        sent = self._stream(p, now)
        p.size = size                          # the frame may go to others, too
        p.part[0].iov_len = first
        return sent

    cdef bint _stream(self, NetPacket *p, uint64_t now) noexcept nogil:
        """Length and frame straight into the socket; what it does not take is kept, all of the frame or the rest."""
        cdef uint8_t header[STREAM_HEADER]
        cdef iovec vec[PARTS + 1]
        cdef ssize_t count = 0
        cdef uint32_t part = 0, whole = STREAM_HEADER + p.size
        cdef size_t skip = 0
        put_be16(header, p.size >> 16)
        put_be16(header + 2, p.size)
        if self.out_start == self.out_end:
            vec[0].iov_base = header
            vec[0].iov_len = STREAM_HEADER
            memcpy(vec + 1, p.part, p.nr_parts * sizeof(iovec))
            count = write_vector(self.fd, vec, p.nr_parts + 1)
            if count < 0:
                if errno != EAGAIN and errno != EINTR:
                    self._break(STREAM_FAILED, errno)
                    return False
                count = 0
            else:
                self.progress = now
        if count == whole:
            return True
        if self.out_start:                     # room for it is known to be there, at the end once moved to the front
            memmove(self.out, self.out + self.out_start, self.out_end - self.out_start)
            self.out_end -= self.out_start
            self.out_start = 0
        if count < STREAM_HEADER:
            memcpy(self.out + self.out_end, header + count, STREAM_HEADER - count)
            self.out_end += STREAM_HEADER - <uint32_t>count
        else:
            copy_parts(p, &part, &skip, NULL, <uint32_t>count - STREAM_HEADER)
        count = max(count, STREAM_HEADER)
        copy_parts(p, &part, &skip, self.out + self.out_end, whole - <uint32_t>count)
        self.out_end += whole - <uint32_t>count
        return True

    cdef bint _flush(self, uint64_t now) noexcept nogil:
        """Send what waits; whether any of it went."""
        cdef ssize_t count
        if self.pcap is not None:
            self.pcap._flush()
        if self.out_start == self.out_end or self.fd < 0 or self.broken:
            return False
        count = write_bytes(self.fd, self.out + self.out_start, self.out_end - self.out_start)
        if count < 0:
            if errno != EAGAIN and errno != EINTR:
                self._break(STREAM_FAILED, errno)
            return False
        self.out_start += <uint32_t>count
        self.progress = now
        return True

    cdef void _break(self, int why, int error) noexcept nogil:
        if not self.broken:
            self.broken = why
            self.error = error

    # -- in
    cdef uint32_t _next(self, uint8_t **frame) noexcept nogil:
        """The frame that comes next, which stays until `_taken`; 0: none is there."""
        cdef ssize_t count
        if self.kind == UPLINK_STREAM:
            return self._next_of_stream(frame)
        if self.in_end == 0 and self.kind == UPLINK_TAP and self.fd >= 0:
            count = read_bytes(self.fd, self.into, STREAM_IN)
            if count > 0:
                self.in_end = <uint32_t>count
            elif errno != EAGAIN and errno != EINTR:
                self._break(STREAM_FAILED, errno)      # somebody deleted the interface
        frame[0] = self.into
        return self.in_end

    cdef uint32_t _next_of_stream(self, uint8_t **frame) noexcept nogil:
        cdef uint32_t length, held
        cdef ssize_t count
        while self.fd >= 0 and not self.broken:
            held = self.in_end - self.in_start
            if held >= STREAM_HEADER:
                frame[0] = self.into + self.in_start
                length = be16(frame[0]) << 16 | be16(frame[0] + 2)
                if length == 0 or length > NET_MOST:
                    self._break(STREAM_LIED, 0)
                    return 0
                if held >= STREAM_HEADER + length:
                    frame[0] += STREAM_HEADER
                    return length
            if self.in_start:
                memmove(self.into, self.into + self.in_start, held)
                self.in_start = 0
                self.in_end = held
            count = read_bytes(self.fd, self.into + held, STREAM_IN - held)
            if count > 0:
                self.in_end += <uint32_t>count
                continue
            if count == 0:
                self._break(STREAM_ENDED, 0)
            elif errno != EAGAIN and errno != EINTR:
                self._break(STREAM_FAILED, errno)
            return 0
        return 0

    cdef void _taken(self, uint32_t length) noexcept nogil:
        self.received_frames += 1
        self.received_bytes += length
        if self.kind == UPLINK_STREAM:
            self.in_start += STREAM_HEADER + length
        else:
            self.in_end = 0
