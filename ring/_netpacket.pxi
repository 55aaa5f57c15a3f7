# A frame under way (io/netif.h, RFC 791, 793, 768, 8200): where its bytes are, its headers, checksum and hash.
cdef enum:
    HEAD = 128                 # bytes of a frame that are copied before anything is decided: its headers
    PARTS = 32                 # the head, the sender's slots, and one to spare
    LEAST_ON_WIRE = 60         # bytes of a frame without its FCS (IEEE 802.3, 3.2.8)
    MAC_SIZE = 6
    VLAN_TAG = 4
    NET_CSUM_BLANK = 1         # NETTXF_csum_blank
    NET_DATA_VALIDATED = 2     # NETTXF_data_validated
    RX_DATA_VALIDATED = 1      # NETRXF_data_validated
    RX_CSUM_BLANK = 2          # NETRXF_csum_blank
    ETHERTYPE_IPV4 = 0x0800
    ETHERTYPE_IPV6 = 0x86dd
    ETHERTYPE_VLAN = 0x8100
    ETHERTYPE_SERVICE_VLAN = 0x88a8
    IPPROTO_TCP = 6
    IPPROTO_UDP = 17
    HASH_IPV4 = 0              # bit numbers: _XEN_NETIF_CTRL_HASH_TYPE_*
    HASH_IPV4_TCP = 1
    HASH_IPV6 = 2
    HASH_IPV6_TCP = 3
    HASH_KEY_MAX = 40          # bytes: the longest input is 36, and 4 of key go with each bit

cdef struct NetPacket:
    uint32_t size              # bytes, in all parts together
    uint32_t nr_parts
    uint32_t head_size         # of the private copy, which is the first part
    uint32_t l3                # offset of the IP header; 0: none
    uint32_t l4                # offset of what follows it, in the head; 0: none, or a fragment of a datagram
    uint32_t l4_size           # bytes, as the IP header has it
    uint32_t hash
    uint32_t source            # the switch's port it came in by
    uint16_t flags             # NETRXF_data_validated and _csum_blank
    uint16_t gso_size
    uint8_t gso_type           # XEN_NETIF_GSO_TYPE_*, 0: an ordinary frame
    uint8_t protocol
    uint8_t hash_type          # bit number + 1; 0: no hash goes with it
    bint v6
    bint complete              # `full` is the head with its checksum filled in
    iovec part[PARTS]
    uint8_t head[HEAD]
    uint8_t full[HEAD]


cdef inline uint32_t be16(const uint8_t *at) noexcept nogil:
    return <uint32_t>at[0] << 8 | at[1]


cdef inline void put_be16(uint8_t *at, uint32_t value) noexcept nogil:
    at[0] = <uint8_t>(value >> 8)
    at[1] = <uint8_t>value


cdef inline bint is_multicast(const uint8_t *mac) noexcept nogil:
    return mac[0] & 1


cdef inline bint is_broadcast(const uint8_t *mac) noexcept nogil:
    return mac[0] & mac[1] & mac[2] & mac[3] & mac[4] & mac[5] == 0xff


cdef inline uint64_t mac_number(const uint8_t *mac) noexcept nogil:
    cdef uint64_t number = 0
    memcpy(&number, mac, MAC_SIZE)
    return number


cdef void gather(NetPacket *p) noexcept nogil:
    """Copy the beginning of the fragments in part[1..] to the head, which takes their place, and look at the headers.

    `size` and the parts are set. The head is read once from the sender's pages: what was decided by it stays true.
    """
    cdef uint32_t i, take
    p.head_size = 0
    for i in range(1, p.nr_parts):
        take = HEAD - p.head_size
        if take > p.part[i].iov_len:
            take = <uint32_t>p.part[i].iov_len
        memcpy(p.head + p.head_size, p.part[i].iov_base, take)
        p.part[i].iov_base = <uint8_t *>p.part[i].iov_base + take
        p.part[i].iov_len -= take
        p.head_size += take
        if p.head_size == HEAD:
            break
    p.part[0].iov_base = p.head
    p.part[0].iov_len = p.head_size
    p.complete = False
    look_at_headers(p)


cdef void look_at_headers(NetPacket *p) noexcept nogil:
    """Find the IP header and what follows it. Nothing outside of the head is believed or read."""
    cdef uint32_t at = 14, type = be16(p.head + 12), tags = 0
    p.l3 = p.l4 = p.l4_size = p.protocol = 0
    p.v6 = False
    while (type == ETHERTYPE_VLAN or type == ETHERTYPE_SERVICE_VLAN) and tags < 2 and at + VLAN_TAG <= p.head_size:
        type = be16(p.head + at + 2)
        at += VLAN_TAG
        tags += 1
    if type == ETHERTYPE_IPV4 and at + 20 <= p.head_size and p.head[at] >> 4 == 4:
        look_at_ipv4(p, at)
    elif type == ETHERTYPE_IPV6 and at + 40 <= p.head_size and p.head[at] >> 4 == 6:
        look_at_ipv6(p, at)


cdef uint32_t ip_end(NetPacket *p) noexcept nogil:
    """Where the IP packet in a frame ends by its own word; the frame's end when there is none."""
    if not p.l3:
        return p.size
    if p.v6:
        return p.l3 + 40 + be16(p.head + p.l3 + 4)
    return p.l3 + be16(p.head + p.l3 + 2)


cdef void look_at_ipv4(NetPacket *p, uint32_t at) noexcept nogil:
    cdef uint32_t length = (p.head[at] & 15) * 4, total = be16(p.head + at + 2)
    if length < 20 or total < length or at + total > p.size:
        return
    p.l3 = at
    p.protocol = p.head[at + 9]
    if be16(p.head + at + 6) & 0x3fff == 0 and at + length + 8 <= p.head_size:      # neither an offset nor more fragments
        p.l4 = at + length
        p.l4_size = total - length


cdef void look_at_ipv6(NetPacket *p, uint32_t at) noexcept nogil:
    cdef uint32_t end = at + 40 + be16(p.head + at + 4), next = p.head[at + 6]
    if end > p.size:
        return
    p.l3 = at
    p.v6 = True
    at += 40
    while (next == 0 or next == 43 or next == 60) and at + 8 <= p.head_size:        # hop-by-hop, routing, destination
        next = p.head[at]
        at += (p.head[at + 1] + 1) * 8
    p.protocol = <uint8_t>next
    if at + 8 <= p.head_size and at <= end:
        p.l4 = at
        p.l4_size = end - at


cdef uint32_t sum_parts(NetPacket *p, uint32_t start, uint32_t count) noexcept nogil:
    """The ones' complement sum of `count` bytes of the frame from `start` on, wherever they lie."""
    cdef uint32_t i, skip = start, length, one, total = 0, done = 0
    for i in range(p.nr_parts):
        if skip >= p.part[i].iov_len:
            skip -= <uint32_t>p.part[i].iov_len
            continue
        length = <uint32_t>p.part[i].iov_len - skip
        if length > count - done:
            length = count - done
        one = ones_sum(<uint8_t *>p.part[i].iov_base + skip, length, 0)
        total += ((one >> 8 | one << 8) & 0xffff) if done & 1 else one
        done += length
        skip = 0
        if done == count:
            break
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return total


cdef inline uint32_t checksum_field(NetPacket *p) noexcept nogil:
    """Where in the head TCP or UDP keeps its checksum; 0 for a frame whose checksum nobody could complete."""
    cdef uint32_t at = 0
    if p.l4 and p.protocol == IPPROTO_TCP and p.l4_size >= 20:
        at = p.l4 + 16
    elif p.l4 and p.protocol == IPPROTO_UDP and p.l4_size >= 8:
        at = p.l4 + 6
    return at if at + 2 <= p.head_size else 0


cdef uint32_t pseudo_header(NetPacket *p, uint32_t length) noexcept nogil:
    """The sum of TCP's and UDP's pseudo header (RFC 9293, 3.1; RFC 8200, 8.1) for `length` bytes."""
    cdef uint32_t total = ones_sum(p.head + p.l3 + (8 if p.v6 else 12), 32 if p.v6 else 8, p.protocol)
    total += length
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return total


cdef void fill_checksum(NetPacket *p) noexcept nogil:
    """Make `full`: the head with the transport checksum in it. Only for frames that have a `checksum_field`."""
    cdef uint32_t field = checksum_field(p), total
    if p.complete:
        return
    memcpy(p.full, p.head, HEAD)
    p.full[field] = p.full[field + 1] = 0
    p.part[0].iov_base = p.full
    total = sum_parts(p, p.l4, p.l4_size) + pseudo_header(p, p.l4_size)
    total = (total & 0xffff) + (total >> 16)
    total = ~total & 0xffff
    put_be16(p.full + field, 0xffff if total == 0 and p.protocol == IPPROTO_UDP else total)
    p.part[0].iov_base = p.head
    p.complete = True


cdef uint32_t toeplitz(const uint8_t *key, const uint8_t *data, uint32_t count) noexcept nogil:
    """The Toeplitz hash (io/netif.h, hash algorithms). key: HASH_KEY_MAX bytes, zeros behind what was set."""
    cdef uint64_t window = 0
    cdef uint32_t i, bit, value = 0
    for i in range(4):
        window = window << 8 | key[i]
    for i in range(count):
        window = window << 8 | (key[i + 4] if i + 4 < HASH_KEY_MAX else 0)
        for bit in range(8):
            if data[i] >> (7 - bit) & 1:
                value ^= <uint32_t>(window >> (8 - bit))
    return value


cdef uint32_t flow(NetPacket *p) noexcept nogil:
    """A number that all frames of a flow have: of addresses and ports, or of the MAC addresses. FNV-1a."""
    cdef uint32_t i, value = 2166136261, at = 0, count = 12
    if p.l3:
        at = p.l3 + (8 if p.v6 else 12)
        count = 32 if p.v6 else 8
    for i in range(count):
        value = (value ^ p.head[at + i]) * 16777619
    # Fragments of a datagram have ports only in the first: none of them goes by its ports.
    if p.l4 and (p.protocol == IPPROTO_TCP or p.protocol == IPPROTO_UDP):
        for i in range(4):
            value = (value ^ p.head[p.l4 + i]) * 16777619
    return value ^ value >> 16
