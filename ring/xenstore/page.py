"""The page a domain talks to xenstored through (struct xenstore_domain_interface, docs/misc/xenstore-ring.txt)."""
from miniguest.ring._core import ByteRing
from miniguest.ring.abi.xs_wire import DOMAIN_INTERFACE, XENSTORE_RING_SIZE

_OFFSET = DOMAIN_INTERFACE.offset


def _ring(page: memoryview, name: str) -> ByteRing:
    return ByteRing(page, _OFFSET[name], XENSTORE_RING_SIZE, _OFFSET[f"{name}_cons"], _OFFSET[f"{name}_prod"])


class StorePage:
    """Both rings of the page and its words. `page` is a writable frame of 4096 bytes.

    The words are single aligned stores. Whoever waits for one is told through the event channel afterwards, and
    raising an event is a full barrier: it sees the word, and all that was written before.
    """

    def __init__(self, page: memoryview) -> None:
        self.requests = _ring(page, "req")
        self.responses = _ring(page, "rsp")
        self._words = page[: DOMAIN_INTERFACE.size].cast("B").cast("I")

    def _get(self, name: str) -> int:
        return self._words[_OFFSET[name] // 4]

    def _set(self, name: str, value: int) -> None:
        self._words[_OFFSET[name] // 4] = value

    @property
    def features(self) -> int:
        """XENSTORE_SERVER_FEATURE_* bits; only xenstored sets them."""
        return self._get("server_features")

    @features.setter
    def features(self, bits: int) -> None:
        self._set("server_features", bits)

    @property
    def connection(self) -> int:
        """XENSTORE_CONNECTED, or XENSTORE_RECONNECT from the domain's asking for it until xenstored has done it."""
        return self._get("connection")

    @connection.setter
    def connection(self, state: int) -> None:
        self._set("connection", state)

    @property
    def error(self) -> int:
        """XENSTORE_ERROR_*: why xenstored no longer serves this domain."""
        return self._get("error")

    @error.setter
    def error(self, reason: int) -> None:
        self._set("error", reason)

    def empty(self) -> None:
        """Empty both rings. For xenstored, while the domain keeps off them."""
        for name in ("req_cons", "req_prod", "rsp_cons", "rsp_prod"):
            self._set(name, 0)

    def close(self) -> None:
        """Let go of the page."""
        self._words.release()
