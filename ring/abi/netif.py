"""Network requests, responses and control messages: xen/io/netif.h.

Three rings: transmit, receive and control. An extra info takes the place of the next slot.
"""
from typing import Final

from miniguest.ring.abi.layout import S16, U8, U16, U32, Layout, Union

HEADER: Final = "xen/io/netif.h"

XEN_NETIF_NR_SLOTS_MIN: Final = 18      # slots of one packet that every backend takes
XEN_NETIF_MAX_TX_SIZE: Final = 0xFFFF   # bytes of one packet

NETTXF_csum_blank: Final = 1
NETTXF_data_validated: Final = 2
NETTXF_more_data: Final = 4
NETTXF_extra_info: Final = 8

NETRXF_data_validated: Final = 1
NETRXF_csum_blank: Final = 2
NETRXF_more_data: Final = 4
NETRXF_extra_info: Final = 8
NETRXF_gso_prefix: Final = 16

XEN_NETIF_EXTRA_TYPE_NONE: Final = 0
XEN_NETIF_EXTRA_TYPE_GSO: Final = 1
XEN_NETIF_EXTRA_TYPE_MCAST_ADD: Final = 2
XEN_NETIF_EXTRA_TYPE_MCAST_DEL: Final = 3
XEN_NETIF_EXTRA_TYPE_HASH: Final = 4
XEN_NETIF_EXTRA_TYPE_MAX: Final = 5
XEN_NETIF_EXTRA_FLAG_MORE: Final = 1

XEN_NETIF_GSO_TYPE_NONE: Final = 0
XEN_NETIF_GSO_TYPE_TCPV4: Final = 1
XEN_NETIF_GSO_TYPE_TCPV6: Final = 2

NETIF_RSP_DROPPED: Final = -2
NETIF_RSP_ERROR: Final = -1
NETIF_RSP_OKAY: Final = 0
NETIF_RSP_NULL: Final = 1               # the response to a slot that held an extra info

XEN_NETIF_CTRL_TYPE_INVALID: Final = 0
XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS: Final = 1
XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS: Final = 2
XEN_NETIF_CTRL_TYPE_SET_HASH_KEY: Final = 3
XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE: Final = 4
XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE: Final = 5
XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING: Final = 6
XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM: Final = 7
XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE: Final = 8
XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING: Final = 9
XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING: Final = 10

XEN_NETIF_CTRL_STATUS_SUCCESS: Final = 0
XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED: Final = 1
XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER: Final = 2
XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW: Final = 3

XEN_NETIF_CTRL_HASH_TYPE_IPV4: Final = 1
XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP: Final = 2
XEN_NETIF_CTRL_HASH_TYPE_IPV6: Final = 4
XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP: Final = 8
XEN_NETIF_CTRL_HASH_ALGORITHM_NONE: Final = 0
XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ: Final = 1
XEN_NETIF_CTRLF_GREF_readonly: Final = 1

TX_REQUEST: Final = Layout("struct netif_tx_request", gref=U32, offset=U16, flags=U16, id=U16, size=U16)
TX_RESPONSE: Final = Layout("struct netif_tx_response", id=U16, status=S16)
RX_REQUEST: Final = Layout("struct netif_rx_request", id=U16, pad=U16, gref=U32)
RX_RESPONSE: Final = Layout("struct netif_rx_response", id=U16, offset=U16, flags=U16, status=S16)

EXTRA_INFO: Final = Layout(
    "struct netif_extra_info",
    type=U8,
    flags=U8,
    u=Union(
        "union",
        gso=Layout("struct", size=U16, type=U8, pad=U8, features=U16),
        mcast=Layout("struct", addr=U8 * 6),
        hash=Layout("struct", type=U8, algorithm=U8, value=U8 * 4),
        pad=U16 * 3,
    ),
)

CTRL_REQUEST: Final = Layout("struct xen_netif_ctrl_request", id=U16, type=U16, data=U32 * 3)
CTRL_RESPONSE: Final = Layout("struct xen_netif_ctrl_response", id=U16, type=U16, status=U32, data=U32)
GREF: Final = Layout("struct xen_netif_gref", ref=U32, flags=U16, status=U16)

# Bytes of a slot of each ring.
TX_SLOT_SIZE: Final = max(TX_REQUEST.size, TX_RESPONSE.size)
RX_SLOT_SIZE: Final = max(RX_REQUEST.size, RX_RESPONSE.size)
CTRL_SLOT_SIZE: Final = max(CTRL_REQUEST.size, CTRL_RESPONSE.size)
