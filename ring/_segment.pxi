# Cutting a large TCP packet into frames for whoever does not take GSO packets (RFC 9293, RFC 791, RFC 8200).
cdef enum:
    GSO_TCPV4 = 1              # XEN_NETIF_GSO_TYPE_*
    GSO_TCPV6 = 2
    MOST_SEGMENTS = 256        # of one packet: a segment size of a few bytes would only keep us busy
    TCP_FIN = 1
    TCP_PSH = 8
    TCP_CWR = 0x80

cdef struct Segments:          # a packet being cut
    uint32_t header            # bytes that every frame begins with
    uint32_t payload           # bytes to share out
    uint32_t count
    uint32_t done              # bytes of the payload that are in frames already
    uint32_t index
    uint32_t part              # where the next byte is
    size_t skip


cdef bint begin_segments(NetPacket *p, Segments *s) noexcept nogil:
    """Look at a GSO packet's headers; False when it cannot be cut, for it is not what its GSO type says."""
    cdef uint32_t tcp
    memset(s, 0, sizeof(Segments))
    if p.protocol != IPPROTO_TCP or not p.l4 or p.v6 != (p.gso_type == GSO_TCPV6) or p.l4_size < 20 \
            or p.l4 + 20 > p.head_size:
        return False
    tcp = (p.head[p.l4 + 12] >> 4) * 4
    s.header = p.l4 + tcp
    # The packet ends with its IP datagram: bytes behind it would be payload to some and padding to others.
    if tcp < 20 or tcp > p.l4_size or s.header > p.head_size or p.l4 + p.l4_size != p.size:
        return False
    s.payload = p.l4_size - tcp
    s.count = (s.payload + p.gso_size - 1) // p.gso_size
    s.skip = s.header
    while s.part < p.nr_parts and s.skip >= p.part[s.part].iov_len:
        s.skip -= p.part[s.part].iov_len
        s.part += 1
    return 0 < s.count <= MOST_SEGMENTS


cdef bint next_segment(NetPacket *p, Segments *s, NetPacket *frame) noexcept nogil:
    """Make the next frame, whose payload stays where it is; False when there is none."""
    cdef uint32_t count = min(s.payload - s.done, <uint32_t>p.gso_size), left
    cdef size_t length
    if s.done == s.payload:
        return False
    memcpy(frame.head, p.head, s.header)
    frame.head_size = s.header
    frame.size = s.header + count
    frame.part[0].iov_base = frame.head
    frame.part[0].iov_len = s.header
    frame.nr_parts = 1
    left = count
    while left:
        length = p.part[s.part].iov_len - s.skip
        if length > left:
            length = left
        if length:
            frame.part[frame.nr_parts].iov_base = <uint8_t *>p.part[s.part].iov_base + s.skip
            frame.part[frame.nr_parts].iov_len = length
            frame.nr_parts += 1
        left -= <uint32_t>length
        s.skip += length
        if s.skip == p.part[s.part].iov_len:
            s.part += 1
            s.skip = 0
    frame.source = p.source
    frame.gso_type = 0
    frame.hash_type = p.hash_type
    frame.hash = p.hash
    frame.flags = RX_DATA_VALIDATED
    frame.complete = False
    segment_headers(p, s, frame, count)
    look_at_headers(frame)
    fill_checksum(frame)
    frame.part[0].iov_base = frame.full
    s.done += count
    s.index += 1
    return True


cdef void segment_headers(NetPacket *p, Segments *s, NetPacket *frame, uint32_t count) noexcept nogil:
    """What differs from frame to frame: lengths, IPv4's identification, the sequence number, the flags at the ends."""
    cdef uint8_t *ip = frame.head + p.l3
    cdef uint8_t *tcp = frame.head + p.l4
    cdef uint32_t sequence = be16(tcp + 4) << 16 | be16(tcp + 6)
    sequence += s.done
    put_be16(tcp + 4, sequence >> 16)
    put_be16(tcp + 6, sequence)
    if s.done + count < s.payload:
        tcp[13] &= ~<uint8_t>(TCP_FIN | TCP_PSH)
    if s.done:
        tcp[13] &= ~<uint8_t>TCP_CWR
    if p.v6:
        put_be16(ip + 4, s.header - p.l3 - 40 + count)
        return
    put_be16(ip + 2, s.header - p.l3 + count)
    put_be16(ip + 4, be16(ip + 4) + s.index)
    put_be16(ip + 10, 0)
    put_be16(ip + 10, ~ones_sum(ip, p.l4 - p.l3, 0))


cdef void copy_parts(NetPacket *p, uint32_t *part, size_t *skip, uint8_t *to, uint32_t count) noexcept nogil:
    """Copy the next `count` bytes of a frame from (part, skip) on, which move; to NULL: pass over them."""
    cdef size_t length
    while count:
        length = p.part[part[0]].iov_len - skip[0]
        if length > count:
            length = count
        if to != NULL:
            memcpy(to, <uint8_t *>p.part[part[0]].iov_base + skip[0], length)
            to += length
        count -= <uint32_t>length
        skip[0] += length
        if skip[0] == p.part[part[0]].iov_len:
            part[0] += 1
            skip[0] = 0
