"""One request on its way to being answered."""
from collections.abc import Callable
from dataclasses import dataclass

from miniguest.backend.xenstored.client import Client
from miniguest.backend.xenstored.permissions import DOMID_MAX
from miniguest.backend.xenstored.transactions import Change
from miniguest.ring.errors import XenstoreError
from miniguest.ring.xenstore.message import split_strings

OK = b"OK\0"


@dataclass(slots=True)
class Request:
    """What a handler is given: who asks, in which transaction, on which view of the store, and with what payload."""

    client: Client
    tx_id: int
    change: Change
    payload: bytes
    after: Callable[[], None] = lambda: None  # done when the reply has been queued

    def only_string(self) -> bytes:
        """The payload as exactly one string; EINVAL if it is not."""
        (string,) = self.strings(1)
        if len(string) + 1 != len(self.payload):
            raise XenstoreError("EINVAL", "bytes after the last string")
        return string

    def strings(self, least: int, most: int | None = None) -> list[bytes]:
        """The strings of the payload; EINVAL unless there are `least` to `most` (default: as many as `least`)."""
        strings = split_strings(self.payload)
        if not least <= len(strings) <= (least if most is None else most):
            raise XenstoreError("EINVAL", f"{len(strings)} strings")
        return strings


def decimal(string: bytes, most: int) -> int:
    """A decimal number from 0 to `most`; EINVAL for anything else."""
    if not string.isdigit() or len(string) > 20 or int(string) > most:
        raise XenstoreError("EINVAL", f"not a number up to {most}: {string[:24]!r}")
    return int(string)


def domid(string: bytes) -> int:
    """A domain id; EINVAL for anything else."""
    return decimal(string, DOMID_MAX)
