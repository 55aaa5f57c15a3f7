"""A domain's connection, through its xenstore page (docs/misc/xenstore-ring.txt)."""
import logging
from collections.abc import Callable

from miniguest.backend.xenstored.client import Client
from miniguest.backend.xenstored.daemon import Xenstored
from miniguest.ring.abi import xs_wire
from miniguest.ring.errors import MiniguestError, PeerError, RingError
from miniguest.ring.xenstore.message import MessageReader
from miniguest.ring.xenstore.page import StorePage

_log = logging.getLogger("miniguest.xenstored")
_FEATURES = xs_wire.XENSTORE_SERVER_FEATURE_RECONNECTION | xs_wire.XENSTORE_SERVER_FEATURE_ERROR
_TURN = 64  # requests of one domain before others get their turn


class PageConnection:
    """Serves one domain.

    `notify` raises its event channel, `call_soon` is the event loop's, `release` gives page and port back. The owner
    calls `serve` for each event on the port.
    """

    def __init__(
        self,
        daemon: Xenstored,
        client: Client,
        page: StorePage,
        notify: Callable[[], None],
        call_soon: Callable[[Callable[[], None]], object],
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self._daemon = daemon
        self._client = client
        self._page = page
        self._notify = notify
        self._call_soon = call_soon
        self._release = release
        self._reader = MessageReader()
        self._broken = self._closed = False
        self._awake = False  # serve is running, or will soon
        client.outbox.ready = self._wake
        # Before anything is read from or written to the rings, as promised in xenstore-ring.txt.
        page.features = _FEATURES
        page.error = xs_wire.XENSTORE_ERROR_NONE
        self._wake()  # the domain may have asked something, or to reconnect, before we were there to hear it

    def serve(self) -> None:
        """Do what the domain asked for, and send what it is to be sent."""
        if self._closed:
            return
        if self._page.connection == xs_wire.XENSTORE_RECONNECT:
            self.restart()
        if self._broken:
            return
        self._awake = True
        try:
            moved = self._flush()
            moved |= self._take()
            moved |= self._flush()
            more = self._page.requests.readable > 0 and not self._client.outbox.stalled
        except RingError as error:
            self._fail(xs_wire.XENSTORE_ERROR_RINGIDX, error)
            return
        except PeerError as error:
            self._fail(xs_wire.XENSTORE_ERROR_PROTO, error)
            return
        finally:
            self._awake = False
        if moved:
            self._signal()
        if more:
            self._wake()

    def restart(self) -> None:
        """Empty the rings and forget everything about the connection (RECONNECT, or a second INTRODUCE)."""
        self._client.reset()
        self._reader.reset()
        self._broken = False
        self._page.empty()
        self._page.error = xs_wire.XENSTORE_ERROR_NONE
        # Last: the domain may use the rings as soon as it sees it.
        self._page.connection = xs_wire.XENSTORE_CONNECTED
        self._signal()

    def close(self) -> None:
        """Give the page and the port back."""
        if not self._closed:
            self._closed = True
            self._client.outbox.ready = lambda: None
            self._page.close()
            self._release()

    def _wake(self) -> None:
        if not self._awake:
            self._awake = True
            self._call_soon(self._woken)

    def _woken(self) -> None:
        self._awake = False
        self.serve()

    def _take(self) -> bool:
        """Serve requests; whether any bytes were read. Never more than a message ahead of what is served."""
        moved = False
        for _ in range(2 * _TURN):  # a header and a payload each
            if self._client.outbox.stalled:
                break
            data = self._page.requests.read(self._reader.wanted)
            if not data:
                break
            moved = True
            for message in self._reader.feed(data):
                self._daemon.handle(self._client, message)
        return moved

    def _flush(self) -> bool:
        """Send what there is room for; whether anything was sent."""
        moved = False
        while data := self._client.outbox.head():
            count = self._page.responses.write(data)
            if not count:
                break
            self._client.outbox.sent(count)
            moved = True
        return moved

    def _fail(self, reason: int, error: Exception) -> None:
        self._give_up(reason, error)
        self._signal()

    def _signal(self) -> None:
        try:
            self._notify()
        except (MiniguestError, OSError) as error:
            self._give_up(xs_wire.XENSTORE_ERROR_COMM, error)

    def _give_up(self, reason: int, error: Exception) -> None:
        _log.warning("domain %d is no longer served: %s", self._client.domid, error)
        self._broken = True
        self._client.reset()
        self._reader.reset()
        self._page.error = reason
