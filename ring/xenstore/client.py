"""The client of xenstored.

A request waits for its reply, or several that do not depend on each other for all of theirs: xenstored answers in order, and
each trip costs both sides a switch. Watch events that come meanwhile are queued; `dispatch` calls their handlers, which may make
requests themselves.
"""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Final, TypeVar

from miniguest.ring.abi import xs_wire
from miniguest.ring.errors import PeerError, XenstoreError
from miniguest.ring.xenstore.message import Message, MessageReader, join_strings, split_strings
from miniguest.ring.xenstore.transport import Transport

T = TypeVar("T")
Value = str | int | bytes
_U32 = 0xFFFFFFFF
# On their way at the same time. xenstored takes no more from a domain that leaves 20 replies unread (its quota of outstanding
# requests): who then waited for room to ask for more, without reading, would wait for ever.
PIPELINED: Final = 16


class Nodes(ABC):
    """What can be done with nodes, in a transaction or outside.

    Paths are absolute, or relative to the domain's own. Each method raises XenstoreError with the errno's name.
    """

    @abstractmethod
    def _request(self, kind: int, payload: bytes) -> bytes: ...

    @abstractmethod
    def _requests(self, requests: Sequence[tuple[int, bytes]]) -> list[bytes | XenstoreError]: ...

    def read(self, path: str) -> bytes:
        """The value of a node."""
        return self._request(xs_wire.XS_READ, join_strings(path.encode()))

    def read_text(self, path: str) -> str:
        """The value as text (bytes that are no UTF-8 are replaced)."""
        return self.read(path).decode(errors="replace")

    def read_int(self, path: str) -> int:
        """The value as a decimal number; PeerError if it is none."""
        text = self.read(path)
        if len(text) > 20 or not text.removeprefix(b"-").isdigit():
            raise PeerError(f"{path} is not a number: {text[:32]!r}")
        return int(text)

    def exists(self, path: str) -> bool:
        """Whether there is such a node (and we may read it)."""
        try:
            self.read(path)
        except XenstoreError as error:
            if error.code in ("ENOENT", "EACCES"):
                return False
            raise
        return True

    def read_all(self, paths: Sequence[str]) -> list[bytes | XenstoreError]:
        """The values of several nodes, asked for together, each as it was at some moment of its own; or why not."""
        return self._requests([(xs_wire.XS_READ, join_strings(path.encode())) for path in paths])

    def write(self, path: str, value: Value) -> None:
        """Set the value, creating the node and its parents if need be."""
        self._request(*_write(path, value))

    def write_all(self, values: Mapping[str, Value], perms: Mapping[str, Sequence[str]] | None = None) -> None:
        """Set several nodes, in order, each followed by its permissions if `perms` has some: what is created below it later
        inherits them. Raises the first error, when all has been tried."""
        requests = []
        for path, value in values.items():
            requests.append(_write(path, value))
            if perms and path in perms:
                requests.append((xs_wire.XS_SET_PERMS, _strings(path, *perms[path])))
        for reply in self._requests(requests):
            if isinstance(reply, XenstoreError):
                raise reply

    def mkdir(self, path: str) -> None:
        """Create the node, and its parents, unless it is there."""
        self._request(xs_wire.XS_MKDIR, join_strings(path.encode()))

    def rm(self, path: str) -> None:
        """Remove the node and all below it; ENOENT only if its parent is not there either."""
        self._request(xs_wire.XS_RM, join_strings(path.encode()))

    def directory(self, path: str) -> list[str]:
        """The names of the children, however many."""
        try:
            listing = self._request(xs_wire.XS_DIRECTORY, join_strings(path.encode()))
        except XenstoreError as error:
            if error.code != "E2BIG":
                raise
            listing = self._long_directory(path)
        return [name.decode() for name in split_strings(listing)]

    def _long_directory(self, path: str) -> bytes:
        generation, listing = b"", b""
        while True:
            request = join_strings(path.encode(), str(len(listing)).encode())
            now, _, part = self._request(xs_wire.XS_DIRECTORY_PART, request).partition(b"\0")
            if listing and now != generation:
                listing = b""  # the node changed between two parts
                continue
            generation = now
            if part.endswith(b"\0\0") or part == b"\0":
                return listing + part[:-1]
            listing += part

    def get_perms(self, path: str) -> list[str]:
        """The permission entries, such as ["n0", "r3"], the owner's first."""
        return [entry.decode() for entry in split_strings(self._request(xs_wire.XS_GET_PERMS, _strings(path)))]

    def set_perms(self, path: str, perms: Sequence[str]) -> None:
        """Replace the permission entries; the first names the owner and what all others may do."""
        self._request(xs_wire.XS_SET_PERMS, _strings(path, *perms))


class Transaction(Nodes):
    """Several requests that take effect together: get one from `Xenstore.transaction` or `Xenstore.retry`."""

    def __init__(self, store: Xenstore) -> None:
        self._store = store
        self._ended = False
        self.id = int(split_strings(store.request(xs_wire.XS_TRANSACTION_START, b"\0"))[0])

    def _request(self, kind: int, payload: bytes) -> bytes:
        return self._store.request(kind, payload, self.id)

    def _requests(self, requests: Sequence[tuple[int, bytes]]) -> list[bytes | XenstoreError]:
        return self._store.requests(requests, self.id)

    def end(self, commit: bool) -> None:
        """Commit or discard, unless `finish` did. XenstoreError EAGAIN when another's change came between: nothing is done."""
        if not self._ended:
            self._ended = True
            self._request(xs_wire.XS_TRANSACTION_END, b"T\0" if commit else b"F\0")

    def finish(self, path: str, value: Value) -> None:
        """Write one more node and commit, in one trip. When the write fails the rest is done."""
        self._ended = True
        for reply in self._requests([_write(path, value), (xs_wire.XS_TRANSACTION_END, b"T\0")]):
            if isinstance(reply, XenstoreError):
                raise reply


class Watch:
    """One watch; `cancel` ends it, and events of it that are queued are dropped."""

    def __init__(self, store: Xenstore, path: str, token: str, handler: Callable[[str], None]) -> None:
        self.path = path
        self.token = token
        self.handler = handler
        self._store = store

    def cancel(self) -> None:
        """End the watch; does nothing when it is ended already."""
        self._store.cancel(self)


class Xenstore(Nodes):
    """A connection to xenstored.

    `schedule` is asked to call back soon, when a request has left watch events in the queue: for an event loop that
    would see nothing readable any more (Loop.call_soon). Without it, call `dispatch` while `pending`.
    """

    def __init__(self, transport: Transport, schedule: Callable[[Callable[[], None]], None] | None = None) -> None:
        self.transport = transport
        self._schedule = schedule
        self._scheduled = False
        self._reader = MessageReader()
        self._replies: dict[int, Message] = {}
        self._events: deque[tuple[str, str]] = deque()
        self._watches: dict[str, Watch] = {}
        self._req_ids = count(1)
        self._tokens = count(1)

    def _request(self, kind: int, payload: bytes) -> bytes:
        return self.request(kind, payload)

    def _requests(self, requests: Sequence[tuple[int, bytes]]) -> list[bytes | XenstoreError]:
        return self.requests(requests)

    def request(self, kind: int, payload: bytes, tx_id: int = 0) -> bytes:
        """Send one request of a type XS_* and wait for its reply: the payload, or XenstoreError."""
        (reply,) = self.requests([(kind, payload)], tx_id)
        if isinstance(reply, XenstoreError):
            raise reply
        return reply

    def requests(self, requests: Sequence[tuple[int, bytes]], tx_id: int = 0) -> list[bytes | XenstoreError]:
        """Send several (type, payload) before the first reply is there; what `request` would return or raise for each."""
        for _, payload in requests:
            if len(payload) > xs_wire.XENSTORE_PAYLOAD_MAX:
                raise XenstoreError("E2BIG", f"request of {len(payload)} bytes")  # xenstored would cut us off
        replies: list[bytes | XenstoreError] = []
        for start in range(0, len(requests), PIPELINED):
            replies += self._pipelined(requests[start : start + PIPELINED], tx_id)
        self._schedule_dispatch()
        return replies

    def _pipelined(self, requests: Sequence[tuple[int, bytes]], tx_id: int) -> list[bytes | XenstoreError]:
        messages = [Message(kind, next(self._req_ids) & _U32, tx_id, payload) for kind, payload in requests]
        self.transport.send(b"".join(message.pack() for message in messages))
        replies = []
        for message in messages:
            while message.req_id not in self._replies:
                self._take(self.transport.receive())
            replies.append(_outcome(message, self._replies.pop(message.req_id)))
        return replies

    def _take(self, data: bytes) -> None:
        for message in self._reader.feed(data):
            if message.type == xs_wire.XS_WATCH_EVENT:
                path, token = split_strings(message.payload)[:2]
                self._events.append((path.decode(), token.decode()))
            else:
                self._replies[message.req_id] = message

    def _schedule_dispatch(self) -> None:
        if self._events and self._schedule is not None and not self._scheduled:
            self._scheduled = True
            self._schedule(self._scheduled_dispatch)

    def _scheduled_dispatch(self) -> None:
        self._scheduled = False
        self.dispatch()

    @property
    def pending(self) -> bool:
        """Whether watch events wait for `dispatch`."""
        return bool(self._events)

    def dispatch(self) -> None:
        """Take in what has come, without waiting, and call the handlers of all queued events."""
        while data := self.transport.poll():
            self._take(data)
        try:
            while self._events:
                path, token = self._events.popleft()
                if token in self._watches:
                    self._watches[token].handler(path)
        finally:
            self._schedule_dispatch()  # a handler raised: the others are not to be forgotten

    def fileno(self) -> int:
        """The socket, for an event loop to call `dispatch` when it is readable; ValueError for a page transport."""
        fileno: Callable[[], int] | None = getattr(self.transport, "fileno", None)
        if fileno is None:
            raise ValueError("a xenstore page has no file descriptor, watch its port")
        return fileno()

    def watch(self, path: str, handler: Callable[[str], None]) -> Watch:
        """Call `handler` with the path of each change at or below `path`, and once for a start."""
        watch = Watch(self, path, f"{next(self._tokens):x}", handler)
        self._watches[watch.token] = watch
        try:
            self.request(xs_wire.XS_WATCH, _strings(path, watch.token))
        except XenstoreError:
            del self._watches[watch.token]
            raise
        return watch

    def cancel(self, watch: Watch) -> None:
        """End a watch of ours."""
        if self._watches.pop(watch.token, None) is not None:
            self.request(xs_wire.XS_UNWATCH, _strings(watch.path, watch.token))

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """A transaction that is committed at the end of the block (EAGAIN on a conflict), discarded if it raises."""
        transaction = Transaction(self)
        try:
            yield transaction
        except BaseException:
            transaction.end(commit=False)
            raise
        transaction.end(commit=True)

    def retry(self, fn: Callable[[Transaction], T]) -> T:
        """Run `fn` in a transaction, again for as long as others' changes come between; what it returned."""
        while True:
            try:
                with self.transaction() as transaction:
                    result = fn(transaction)
            except XenstoreError as error:
                if error.code != "EAGAIN":
                    raise
            else:
                return result

    def introduce(self, domid: int, gfn: int, port: int) -> None:
        """Have xenstored serve a domain: frame `gfn` is its xenstore page, `port` its unbound event channel."""
        self.request(xs_wire.XS_INTRODUCE, _strings(domid, gfn, port))

    def release(self, domid: int) -> None:
        """Have xenstored stop serving a domain and remove the nodes it owned."""
        self.request(xs_wire.XS_RELEASE, _strings(domid))

    def resume(self, domid: int) -> None:
        """Tell xenstored that a domain that shut down runs again."""
        self.request(xs_wire.XS_RESUME, _strings(domid))

    def set_target(self, domid: int, target: int) -> None:
        """Give a stub domain the rights of the domain it serves. Both must have been introduced."""
        self.request(xs_wire.XS_SET_TARGET, _strings(domid, target))

    def get_domain_path(self, domid: int) -> str:
        """Where a domain's own nodes are."""
        return split_strings(self.request(xs_wire.XS_GET_DOMAIN_PATH, _strings(domid)))[0].decode()

    def is_introduced(self, domid: int) -> bool:
        """Whether xenstored serves this domain."""
        return self.request(xs_wire.XS_IS_DOMAIN_INTRODUCED, _strings(domid)) == b"T\0"

    def close(self) -> None:
        """Disconnect; watches and open transactions are gone."""
        self._watches.clear()
        self._events.clear()
        self.transport.close()


def _outcome(request: Message, reply: Message) -> bytes | XenstoreError:
    if reply.type != xs_wire.XS_ERROR:
        return reply.payload
    subject = request.payload.partition(b"\0")[0][:64].decode(errors="replace")
    return XenstoreError(reply.payload.rstrip(b"\0").decode(errors="replace"), subject)


def _write(path: str, value: Value) -> tuple[int, bytes]:
    data = value if isinstance(value, bytes) else str(value).encode()
    return xs_wire.XS_WRITE, join_strings(path.encode()) + data


def _strings(*values: str | int) -> bytes:
    return join_strings(*(str(value).encode() for value in values))
