"""Messages to and from xenstored, and the page a domain sends them through: xen/io/xs_wire.h."""
from typing import Final

from miniguest.ring.abi.layout import CHAR, U32, Layout

HEADER: Final = "xen/io/xs_wire.h"

XS_CONTROL: Final = 0
XS_DEBUG: Final = 0                     # the old name of XS_CONTROL
XS_DIRECTORY: Final = 1
XS_READ: Final = 2
XS_GET_PERMS: Final = 3
XS_WATCH: Final = 4
XS_UNWATCH: Final = 5
XS_TRANSACTION_START: Final = 6
XS_TRANSACTION_END: Final = 7
XS_INTRODUCE: Final = 8
XS_RELEASE: Final = 9
XS_GET_DOMAIN_PATH: Final = 10
XS_WRITE: Final = 11
XS_MKDIR: Final = 12
XS_RM: Final = 13
XS_SET_PERMS: Final = 14
XS_WATCH_EVENT: Final = 15
XS_ERROR: Final = 16
XS_IS_DOMAIN_INTRODUCED: Final = 17
XS_RESUME: Final = 18
XS_SET_TARGET: Final = 19
XS_RESET_WATCHES: Final = 21            # 20 was XS_RESTRICT
XS_DIRECTORY_PART: Final = 22
XS_TYPE_COUNT: Final = 23
XS_INVALID: Final = 0xFFFF

# Fields of a watch event, each ended by a NUL.
XS_WATCH_PATH: Final = 0
XS_WATCH_TOKEN: Final = 1

XENSTORE_RING_SIZE: Final = 1024        # bytes, each direction
XENSTORE_PAYLOAD_MAX: Final = 4096      # bytes after the header; whoever sends more is cut off
XENSTORE_ABS_PATH_MAX: Final = 3072     # bytes, without the NUL
XENSTORE_REL_PATH_MAX: Final = 2048

XENSTORE_SERVER_FEATURE_RECONNECTION: Final = 1
XENSTORE_SERVER_FEATURE_ERROR: Final = 2
XENSTORE_CONNECTED: Final = 0
XENSTORE_RECONNECT: Final = 1
XENSTORE_ERROR_NONE: Final = 0
XENSTORE_ERROR_COMM: Final = 1
XENSTORE_ERROR_RINGIDX: Final = 2
XENSTORE_ERROR_PROTO: Final = 3

# The errors xenstored may answer with: xsd_errors[], as names, in its order. All else travels as EINVAL.
XSD_ERRORS: Final = (
    "EINVAL", "EACCES", "EEXIST", "EISDIR", "ENOENT", "ENOMEM", "ENOSPC", "EIO", "ENOTEMPTY", "ENOSYS", "EROFS",
    "EBUSY", "EAGAIN", "EISCONN", "E2BIG", "EPERM",
)

SOCKMSG: Final = Layout("struct xsd_sockmsg", type=U32, req_id=U32, tx_id=U32, len=U32)

DOMAIN_INTERFACE: Final = Layout(
    "struct xenstore_domain_interface",
    req=CHAR * XENSTORE_RING_SIZE,
    rsp=CHAR * XENSTORE_RING_SIZE,
    req_cons=U32,
    req_prod=U32,
    rsp_cons=U32,
    rsp_prod=U32,
    server_features=U32,
    connection=U32,
    error=U32,
)
