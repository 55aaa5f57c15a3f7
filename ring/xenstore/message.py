"""Messages between xenstored and its clients: struct xsd_sockmsg of io/xs_wire.h and what follows it."""
import struct
from collections.abc import Iterator
from typing import NamedTuple

from miniguest.ring.abi.xs_wire import XENSTORE_PAYLOAD_MAX
from miniguest.ring.errors import PeerError

_HEADER = struct.Struct("<IIII")


class Message(NamedTuple):
    """One request, reply or event. `tx_id` is 0 outside transactions."""

    type: int
    req_id: int
    tx_id: int
    payload: bytes

    def pack(self) -> bytes:
        """The bytes to send."""
        return _HEADER.pack(self.type, self.req_id, self.tx_id, len(self.payload)) + self.payload


class MessageReader:
    """Cuts a stream of bytes, arriving in pieces of any size, into messages.

    Holds one unfinished message at most, XENSTORE_PAYLOAD_MAX and a header.
    """

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that `data` completes. PeerError at one whose payload is too long; nothing after it counts."""
        self._pending += data
        while len(self._pending) >= _HEADER.size:
            kind, req_id, tx_id, length = _HEADER.unpack_from(self._pending)
            if length > XENSTORE_PAYLOAD_MAX:
                raise PeerError(f"xenstore message of {length} bytes, the most is {XENSTORE_PAYLOAD_MAX}")
            end = _HEADER.size + length
            if len(self._pending) < end:
                return
            payload = bytes(self._pending[_HEADER.size : end])
            del self._pending[:end]
            yield Message(kind, req_id, tx_id, payload)

    @property
    def wanted(self) -> int:
        """How many bytes to feed next so that no second message begins in them: the rest of a header or a payload."""
        if len(self._pending) < _HEADER.size:
            return _HEADER.size - len(self._pending)
        length: int = _HEADER.unpack_from(self._pending)[3]
        return _HEADER.size + length - len(self._pending)

    def reset(self) -> None:
        """Forget a message that has come in part."""
        self._pending.clear()


def split_strings(payload: bytes) -> list[bytes]:
    """The NUL-terminated strings of a payload; bytes after the last NUL are no string."""
    return payload.split(b"\0")[:-1]


def join_strings(*strings: bytes) -> bytes:
    """Strings as a payload, each with its NUL."""
    return b"".join(string + b"\0" for string in strings)
