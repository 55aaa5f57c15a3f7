"""What a control ring's requests are answered with (xen/io/netif.h, control messages)."""
from typing import Final, Protocol

from miniguest.ring.abi.netif import (
    XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW,
    XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER,
    XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED,
    XEN_NETIF_CTRL_STATUS_SUCCESS,
)

Answer = tuple[int, int]                # status, data
OKAY: Final[Answer] = (XEN_NETIF_CTRL_STATUS_SUCCESS, 0)
INVALID: Final[Answer] = (XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER, 0)
OVERFLOW: Final[Answer] = (XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW, 0)
NOT_SUPPORTED: Final[Answer] = (XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED, 0)


class CopyGrant(Protocol):
    """Copies between a buffer and the beginning of a granted page; a GNTST_ status."""

    def __call__(self, gref: int, buffer: bytearray, to_grant: bool = False) -> int: ...
