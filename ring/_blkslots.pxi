# What io/blkif.h says of slots, as far as both ends need it compiled. A frontend is always one of x86_64.
cdef enum:
    SECTOR = 512
    BLK_READ = 0               # BLKIF_OP_READ, and the others' likewise
    BLK_WRITE = 1
    BLK_INDIRECT = 6
    BLK_SEGMENTS = 11          # BLKIF_MAX_SEGMENTS_PER_REQUEST
    BLK_OKAY = 0
    BLK_ERROR = -1

cdef struct Segment:           # io/blkif.h, struct blkif_request_segment
    uint32_t gref
    uint8_t first_sect
    uint8_t last_sect
    uint16_t pad

cdef struct BlkRequest:                # struct blkif_request of x86_64
    uint8_t operation
    uint8_t nr_segments                # struct blkif_request_indirect: indirect_op
    uint16_t handle                    # and its nr_segments
    uint32_t pad
    uint64_t id
    uint64_t sector
    Segment seg[11]                    # and at once behind `sector`: handle u16, pad u16, indirect_grefs

cdef struct BlkResponse:
    uint64_t id
    uint8_t operation
    uint8_t pad
    int16_t status
    uint32_t pad2
