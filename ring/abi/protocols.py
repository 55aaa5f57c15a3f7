"""The words a frontend's `protocol` node may hold: xen/io/protocols.h."""
from typing import Final

HEADER: Final = "xen/io/protocols.h"

XEN_IO_PROTO_ABI_X86_32: Final = "x86_32-abi"
XEN_IO_PROTO_ABI_X86_64: Final = "x86_64-abi"
XEN_IO_PROTO_ABI_NATIVE: Final = XEN_IO_PROTO_ABI_X86_64
