"""Device requests from a vCPU to a device model: xen/hvm/ioreq.h."""
from typing import Final

from miniguest.ring.abi.layout import U8, U16, U32, U64, Bits, Layout

HEADER: Final = "xen/hvm/ioreq.h"

IOREQ_READ: Final = 1
IOREQ_WRITE: Final = 0

# A request goes round: NONE -> READY (vCPU) -> INPROCESS (device model) -> IORESP_READY -> NONE (vCPU).
STATE_IOREQ_NONE: Final = 0
STATE_IOREQ_READY: Final = 1
STATE_IOREQ_INPROCESS: Final = 2
STATE_IORESP_READY: Final = 3

IOREQ_TYPE_PIO: Final = 0
IOREQ_TYPE_COPY: Final = 1              # memory-mapped
IOREQ_TYPE_PCI_CONFIG: Final = 2
IOREQ_TYPE_TIMEOFFSET: Final = 7
IOREQ_TYPE_INVALIDATE: Final = 8

IOREQ_BUFFER_SLOT_NUM: Final = 511

# `control` is the byte that C spells as bit-fields: IOREQ.bits["state"] and so on.
IOREQ: Final = Layout(
    "struct ioreq",
    addr=U64,
    data=U64,
    count=U32,
    size=U32,
    vp_eport=U32,
    _pad0=U16,
    control=Bits(U8, state=4, data_is_ptr=1, dir=1, df=1, _pad1=1),
    type=U8,
)

SHARED_IOPAGE: Final = Layout("struct shared_iopage", vcpu_ioreq=IOREQ * 1)     # as many as there are vCPUs

# `control` is one word: C packs `addr` into the last 20 bits of the bytes that `type` begins.
BUF_IOREQ: Final = Layout("struct buf_ioreq", control=Bits(U32, type=8, pad=1, dir=1, size=2, addr=20), data=U32)

BUFFERED_IOPAGE: Final = Layout(
    "struct buffered_iopage",
    read_pointer=U32,
    write_pointer=U32,
    buf_ioreq=BUF_IOREQ * IOREQ_BUFFER_SLOT_NUM,
)
