"""The two byte streams of a console page (xen/io/console.h, struct xencons_interface)."""
from typing import Final

from miniguest.ring._core import ByteRing
from miniguest.ring.abi.console import INTERFACE

IN_SIZE: Final = 1024
OUT_SIZE: Final = 2048
_AT: Final = INTERFACE.offset


def input_ring(page: memoryview) -> ByteRing:
    """From the backend to the frontend."""
    return ByteRing(page, _AT["in"], IN_SIZE, _AT["in_cons"], _AT["in_prod"])


def output_ring(page: memoryview) -> ByteRing:
    """From the frontend to the backend."""
    return ByteRing(page, _AT["out"], OUT_SIZE, _AT["out_cons"], _AT["out_prod"])
