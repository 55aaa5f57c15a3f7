"""The console page, one byte ring each way: xen/io/console.h."""
from typing import Final

from miniguest.ring.abi.layout import CHAR, U32, CType, Layout

HEADER: Final = "xen/io/console.h"

IN_SIZE: Final = 1024       # bytes towards the guest
OUT_SIZE: Final = 2048      # bytes from the guest

# Through a mapping, since `in` is a word of Python.
_MEMBERS: Final[dict[str, CType]] = {
    "in": CHAR * IN_SIZE,
    "out": CHAR * OUT_SIZE,
    "in_cons": U32,
    "in_prod": U32,
    "out_cons": U32,
    "out_prod": U32,
}
INTERFACE: Final = Layout("struct xencons_interface", **_MEMBERS)
