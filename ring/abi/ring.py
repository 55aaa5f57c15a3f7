"""The shared ring of xen/io/ring.h: four indices, then slots that hold a request or its response.

The indices are free-running 32-bit counters; a slot is its counter modulo the number of slots.
"""
from typing import Final

HEADER: Final = "xen/io/ring.h"

PAGE_SIZE: Final = 4096

# struct NAME_sring: byte offsets from the start of the first page.
REQ_PROD: Final = 0         # written by the front: requests it has put
REQ_EVENT: Final = 4        # written by the back: wake me when req_prod passes this
RSP_PROD: Final = 8         # written by the back: responses it has put
RSP_EVENT: Final = 12       # written by the front: wake me when rsp_prod passes this
SLOTS_OFFSET: Final = 64    # the first slot; what is between is private or padding


def ring_slots(pages: int, slot_size: int) -> int:
    """The slots of `slot_size` bytes that a ring over `pages` pages has: the largest power of two that fits."""
    return 1 << ((pages * PAGE_SIZE - SLOTS_OFFSET) // slot_size).bit_length() - 1
