"""Block requests and responses: xen/io/blkif.h.

A slot holds any of the three requests; which one, its first byte tells. Sectors are 512 bytes whatever the disk's own
sector size is.
"""
from typing import Final

from miniguest.ring.abi.layout import S16, U8, U16, U32, U64, Layout

HEADER: Final = "xen/io/blkif.h"

BLKIF_OP_READ: Final = 0
BLKIF_OP_WRITE: Final = 1
BLKIF_OP_WRITE_BARRIER: Final = 2
BLKIF_OP_FLUSH_DISKCACHE: Final = 3
BLKIF_OP_RESERVED_1: Final = 4
BLKIF_OP_DISCARD: Final = 5
BLKIF_OP_INDIRECT: Final = 6

BLKIF_DISCARD_SECURE: Final = 1

BLKIF_MAX_SEGMENTS_PER_REQUEST: Final = 11
BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST: Final = 8

BLKIF_RSP_EOPNOTSUPP: Final = -2
BLKIF_RSP_ERROR: Final = -1
BLKIF_RSP_OKAY: Final = 0

# Bits of the backend's `info` node.
VDISK_CDROM: Final = 0x1
VDISK_REMOVABLE: Final = 0x2
VDISK_READONLY: Final = 0x4

REQUEST_SEGMENT: Final = Layout("struct blkif_request_segment", gref=U32, first_sect=U8, last_sect=U8)

REQUEST: Final = Layout(
    "struct blkif_request",
    operation=U8,
    nr_segments=U8,
    handle=U16,
    id=U64,
    sector_number=U64,
    seg=REQUEST_SEGMENT * BLKIF_MAX_SEGMENTS_PER_REQUEST,
)

REQUEST_DISCARD: Final = Layout(
    "struct blkif_request_discard",
    operation=U8,
    flag=U8,
    handle=U16,
    id=U64,
    sector_number=U64,
    nr_sectors=U64,
)

REQUEST_INDIRECT: Final = Layout(
    "struct blkif_request_indirect",
    operation=U8,
    indirect_op=U8,
    nr_segments=U16,
    id=U64,
    sector_number=U64,
    handle=U16,
    indirect_grefs=U32 * BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST,
)

RESPONSE: Final = Layout("struct blkif_response", id=U64, operation=U8, status=S16)

SLOT_SIZE: Final = max(REQUEST.size, RESPONSE.size)     # bytes of a ring slot
