"""A xenstored in the same thread: its clients' requests are function calls, and somebody else may act between any two."""
from collections import deque
from collections.abc import Callable

from miniguest.backend.xenstored.client import Client
from miniguest.backend.xenstored.daemon import Xenstored
from miniguest.ring.xenstore import Xenstore
from miniguest.ring.xenstore.message import MessageReader


class DirectTransport:
    """Messages by function call. `between` is called before each request reaches the daemon."""

    def __init__(self, daemon: Xenstored, client: Client) -> None:
        self.daemon, self.client = daemon, client
        self.reader = MessageReader()
        self.between: Callable[[], None] = lambda: None
        self.closed = False

    def send(self, data: bytes) -> None:
        for message in self.reader.feed(data):
            between, self.between = self.between, lambda: None
            between()
            self.daemon.handle(self.client, message)

    def receive(self) -> bytes:
        data = self.poll()
        assert data, "waits for ever"
        return data

    def poll(self) -> bytes:
        head = self.client.outbox.head()[:7]  # small pieces
        if head:
            self.client.outbox.sent(len(head))
        return head

    def close(self) -> None:
        self.closed = True


class Channel:
    def close(self) -> None: ...
    def restart(self) -> None: ...


class World:
    """Connections to one daemon, and the event loop's call_soon."""

    def __init__(self) -> None:
        self.clients: dict[int, Client] = {}
        self.soon: deque[Callable[[], None]] = deque()
        self.daemon = Xenstored(self.connect)

    def connect(self, client: Client, gfn: int, evtchn: int) -> Channel:
        self.clients[client.domid] = client
        return Channel()

    def open(self, domid: int = 0) -> Xenstore:
        client = self.clients[domid] if domid else self.daemon.new_client()
        return Xenstore(DirectTransport(self.daemon, client), self.soon.append)

    def run(self) -> None:
        while self.soon:
            self.soon.popleft()()
