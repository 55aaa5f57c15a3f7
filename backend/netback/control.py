"""The control ring of a vif: how frames to it are hashed and spread over its queues, and what is kept mapped of it
(xen/io/netif.h, control messages)."""
import struct
from collections.abc import Callable
from typing import Final

from miniguest.backend.netback.answers import INVALID, NOT_SUPPORTED, OKAY, OVERFLOW, Answer, CopyGrant
from miniguest.backend.netback.static_grants import StaticGrantRequests
from miniguest.ring import _core
from miniguest.ring.abi.netif import (
    CTRL_REQUEST,
    CTRL_RESPONSE,
    XEN_NETIF_CTRL_HASH_ALGORITHM_NONE,
    XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ,
    XEN_NETIF_CTRL_HASH_TYPE_IPV4,
    XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP,
    XEN_NETIF_CTRL_HASH_TYPE_IPV6,
    XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP,
    XEN_NETIF_CTRL_STATUS_SUCCESS,
    XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING,
    XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING,
    XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE,
    XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS,
    XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE,
    XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM,
    XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS,
    XEN_NETIF_CTRL_TYPE_SET_HASH_KEY,
    XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING,
    XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE,
)

HASH_TYPES: Final = (
    XEN_NETIF_CTRL_HASH_TYPE_IPV4 | XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP
    | XEN_NETIF_CTRL_HASH_TYPE_IPV6 | XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP
)
KEY_MAX: Final = 40                     # bytes
MAPPING_MAX: Final = 128                # entries
TURN: Final = 32                        # requests before others get their turn


class Control:
    """Serves a vif's control ring."""

    def __init__(self, vif: _core.Vif, ring: _core.BackRing, notify: Callable[[], None], copy_grant: CopyGrant) -> None:
        self._vif = vif
        self._ring = ring
        self._notify = notify
        self._copy_grant = copy_grant
        static_grants = StaticGrantRequests(vif, copy_grant)
        self._requests: dict[int, Callable[[int, int, int], Answer]] = {
            XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS: self._get_flags,
            XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS: self._set_flags,
            XEN_NETIF_CTRL_TYPE_SET_HASH_KEY: self._set_key,
            XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE: lambda *_: (XEN_NETIF_CTRL_STATUS_SUCCESS, MAPPING_MAX),
            XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE: self._set_mapping_size,
            XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING: self._set_mapping,
            XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM: self._set_algorithm,
            XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE: static_grants.size,
            XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING: static_grants.add,
            XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING: static_grants.remove,
        }

    def serve(self) -> bool:
        """Answer what is in the ring; whether more may be there. RingError when the ring lies."""
        count = self._ring.take(TURN)
        for index in range(count):
            number, kind, *data = CTRL_REQUEST.struct.unpack_from(self._ring.requests, index * CTRL_REQUEST.size)
            request = self._requests.get(kind)
            status, value = request(*data) if request else NOT_SUPPORTED
            CTRL_RESPONSE.struct.pack_into(self._ring.responses, index * CTRL_RESPONSE.size, number, kind, status, value)
        self._ring.put(count)
        if count and self._ring.push():
            self._notify()
        return self._ring.final_check()

    def _get_flags(self, *_: int) -> Answer:
        if self._vif.hash_algorithm == XEN_NETIF_CTRL_HASH_ALGORITHM_NONE:
            return NOT_SUPPORTED
        return XEN_NETIF_CTRL_STATUS_SUCCESS, HASH_TYPES

    def _set_flags(self, flags: int, *_: int) -> Answer:
        if self._vif.hash_algorithm == XEN_NETIF_CTRL_HASH_ALGORITHM_NONE or flags & ~HASH_TYPES:
            return INVALID
        self._vif.hash_flags = flags
        return OKAY

    def _set_algorithm(self, algorithm: int, *_: int) -> Answer:
        if algorithm not in (XEN_NETIF_CTRL_HASH_ALGORITHM_NONE, XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ):
            return INVALID
        self._vif.hash_algorithm = algorithm
        return OKAY

    def _set_key(self, gref: int, size: int, _: int) -> Answer:
        if size > KEY_MAX:
            return OVERFLOW
        key = bytearray(size)
        if size and self._copy_grant(gref, key):
            return INVALID
        self._vif.set_hash_key(key)
        return OKAY

    def _set_mapping_size(self, size: int, *_: int) -> Answer:
        if size > MAPPING_MAX:
            return INVALID
        self._vif.set_mapping_size(size)
        return OKAY

    def _set_mapping(self, gref: int, size: int, offset: int) -> Answer:
        if size > MAPPING_MAX:
            return OVERFLOW
        table = bytearray(size * 4)
        if size and self._copy_grant(gref, table):
            return INVALID
        try:
            self._vif.set_mapping(offset, struct.unpack(f"<{size}I", table))
        except ValueError:
            return INVALID
        return OKAY
