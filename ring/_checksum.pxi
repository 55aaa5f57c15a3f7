# The Internet checksum (RFC 1071).
cdef uint32_t ones_sum(const uint8_t *at, size_t count, uint32_t initial) noexcept nogil:
    """The folded ones' complement sum of big-endian words, the last one padded with zero; not complemented."""
    cdef uint64_t total = 0
    cdef uint64_t eight
    cdef size_t left = count
    # The sum is the same in any byte order (RFC 1071, 2B), so words are added as they lie and swapped at the end.
    while left >= 8:
        memcpy(&eight, at, 8)
        total += <uint32_t>eight
        total += eight >> 32
        at += 8
        left -= 8
    if left:
        eight = 0
        memcpy(&eight, at, left)
        total += <uint32_t>eight
        total += eight >> 32
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    total = (total >> 8 | total << 8) & 0xffff
    total += initial
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return <uint32_t>total


def checksum_sum(const uint8_t[::1] data not None, uint32_t initial=0):
    """The ones' complement sum of `data` as big-endian words (an odd last byte padded with zero), added to `initial`.

    16 bits, not complemented: the checksum field holds 0xffff minus this (RFC 1071, section 1).
    """
    return ones_sum(&data[0] if data.shape[0] else NULL, data.shape[0], initial)
