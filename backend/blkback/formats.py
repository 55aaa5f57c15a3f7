"""How blkif requests and responses lie in their slots, which depends on the frontend's machine (xen/io/protocols.h).

On i386 a u64 is aligned to 4 bytes, so a 32-bit guest's slots differ from a 64-bit one's. A segment is the same on both.
"""
import struct
from dataclasses import dataclass
from typing import Final

from miniguest.ring.abi.blkif import (
    BLKIF_MAX_SEGMENTS_PER_REQUEST,
    REQUEST,
    REQUEST_DISCARD,
    REQUEST_INDIRECT,
    REQUEST_SEGMENT,
    RESPONSE,
)
from miniguest.ring.abi.protocols import XEN_IO_PROTO_ABI_X86_32, XEN_IO_PROTO_ABI_X86_64


@dataclass(frozen=True, slots=True)
class Format:
    """The layouts of one machine.

    head: (operation, nr_segments, handle, id, sector); the segments follow it. discard: the same and nr_sectors.
    indirect: (operation, indirect_op, nr_segments, id, sector, handle, eight grefs). response: (id, operation, status).
    """

    head: struct.Struct
    discard: struct.Struct
    indirect: struct.Struct
    response: struct.Struct

    @property
    def request_size(self) -> int:
        """Bytes of the largest request, which is one with all its segments."""
        return self.head.size + BLKIF_MAX_SEGMENTS_PER_REQUEST * REQUEST_SEGMENT.size


FORMATS: Final = {
    XEN_IO_PROTO_ABI_X86_64: Format(
        head=struct.Struct("<BBHxxxxQQ"), discard=struct.Struct("<BBHxxxxQQQ"), indirect=struct.Struct("<BBHxxxxQQHxx8I"),
        response=struct.Struct("<QBxhxxxx"),
    ),
    XEN_IO_PROTO_ABI_X86_32: Format(
        head=struct.Struct("<BBHQQ"), discard=struct.Struct("<BBHQQQ"), indirect=struct.Struct("<BBHQQHxx8I"),
        response=struct.Struct("<QBxh"),
    ),
}
_NATIVE = FORMATS[XEN_IO_PROTO_ABI_X86_64]
assert (_NATIVE.request_size, _NATIVE.head.size) == (REQUEST.size, REQUEST.offset["seg"])
assert (_NATIVE.discard.size, _NATIVE.response.size) == (REQUEST_DISCARD.size, RESPONSE.size)
assert _NATIVE.indirect.size == REQUEST_INDIRECT.offset["indirect_grefs"] + 32
