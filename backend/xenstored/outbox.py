"""What a client is still to be sent, bounded however slowly it reads."""
from collections import deque
from collections.abc import Callable

from miniguest.backend.xenstored.quotas import Quota
from miniguest.ring.abi.xs_wire import XENSTORE_PAYLOAD_MAX, XS_WATCH_EVENT
from miniguest.ring.xenstore.message import Message, join_strings


class Outbox:
    """A queue of whole messages. `ready` is called when the first one comes in."""

    def __init__(self, quota: Quota, ready: Callable[[], None] = lambda: None) -> None:
        self._quota = quota
        self.ready = ready
        self._queue: deque[tuple[bytes, bytes | None]] = deque()  # a message; its payload too, if it is an event
        self._events: set[bytes] = set()
        self._sent = 0  # bytes of the first message
        self._size = 0
        self._replies = 0
        self.overflowed = False  # something did not fit, or hardly

    @property
    def stalled(self) -> bool:
        """Whether so many replies wait that no more requests should be taken."""
        return self._replies >= self._quota.outstanding

    def reply(self, message: Message) -> None:
        """Queue a reply. Always kept: a client that missed one would wait for ever."""
        self._replies += 1
        self._add(message.pack(), None)
        self.overflowed = self.overflowed or self._size > self._quota.output

    def event(self, path: str, token: bytes) -> None:
        """Queue a watch event, unless the same one is waiting already (it tells as much) or there is no room."""
        payload = join_strings(path.encode(), token)
        if len(payload) > XENSTORE_PAYLOAD_MAX or payload in self._events:
            return
        data = Message(XS_WATCH_EVENT, 0, 0, payload).pack()
        if self._size + len(data) > self._quota.output:
            self.overflowed = True
            return
        # Special events are counted by their receivers: two domains that went away are two events.
        if not payload.startswith(b"@"):
            self._events.add(payload)
        self._add(data, payload)

    def _add(self, data: bytes, event: bytes | None) -> None:
        self._queue.append((data, event))
        self._size += len(data)
        if len(self._queue) == 1:
            self.ready()

    def head(self) -> bytes:
        """What is to be sent next: the first message, or the rest of it; empty when there is nothing."""
        return self._queue[0][0][self._sent :] if self._queue else b""

    def heads(self, most: int) -> bytes:
        """The same with the messages that follow, for who can send several at once: `most` bytes, and what ends a message."""
        found: list[bytes] = []
        for data, _ in self._queue:
            found.append(data)
            most -= len(data)
            if most <= 0:
                break
        return b"".join(found)[self._sent :]

    def sent(self, count: int) -> None:
        """`count` bytes of `head` or `heads` have been sent."""
        self._sent += count
        while self._queue and self._sent >= len(self._queue[0][0]):
            data, event = self._queue.popleft()
            self._sent -= len(data)
            self._size -= len(data)
            if event is None:
                self._replies -= 1
            else:
                self._events.discard(event)

    def clear(self) -> None:
        """Drop everything."""
        self._queue.clear()
        self._events.clear()
        self._sent = self._size = self._replies = 0
        self.overflowed = False
