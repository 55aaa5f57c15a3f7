"""A domain's connection: the client over its xenstore page, and domains that lie."""
from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniguest.backend.xenstored.client import Client
from miniguest.backend.xenstored.daemon import Xenstored
from miniguest.backend.xenstored.pages import PageConnection
from miniguest.ring.abi import xs_wire as xs
from miniguest.ring.errors import HypercallError, MiniguestError, PeerError, XenstoreError
from miniguest.ring.xenstore import PageTransport, Xenstore
from miniguest.ring.xenstore.message import Message, MessageReader, join_strings
from miniguest.ring.xenstore.page import StorePage


class Machine:
    """xenstored and its domains, run one step at a time. Waiting for something that nobody will do is a failure."""

    def __init__(self) -> None:
        self.soon: deque[Callable[[], None]] = deque()
        self.connections: dict[int, PageConnection] = {}
        self.pages: dict[int, bytearray] = {}
        self.pending: dict[int, bool] = {}  # the domain's end of its event channel
        self.clients: dict[int, Client] = {}
        self.released: list[int] = []
        self.broken_port: MiniguestError | None = None
        self.daemon = Xenstored(self.connect)
        self.dom0 = self.daemon.new_client()

    def connect(self, client: Client, gfn: int, evtchn: int) -> PageConnection:
        domid = client.domid
        self.clients[domid] = client
        self.connections[domid] = PageConnection(
            self.daemon,
            client,
            StorePage(memoryview(self.pages[domid])),
            notify=lambda: self.raise_port(domid),
            call_soon=self.soon.append,
            release=lambda: self.released.append(domid),
        )
        return self.connections[domid]

    def raise_port(self, domid: int) -> None:
        if self.broken_port:
            raise self.broken_port
        self.pending[domid] = True

    def introduce(self, domid: int) -> None:
        self.pages.setdefault(domid, bytearray(4096))
        self.request(xs.XS_INTRODUCE, domid, 1, 1)
        self.request(xs.XS_WRITE, f"/local/domain/{domid}", "")
        self.request(xs.XS_SET_PERMS, f"/local/domain/{domid}", f"n{domid}")

    def request(self, kind: int, *strings: str | int) -> None:
        """As dom0."""
        payload = join_strings(*(str(string).encode() for string in strings))
        self.daemon.handle(self.dom0, Message(kind, 0, 0, payload))
        replies: list[Message] = []
        while head := self.dom0.outbox.head():
            replies += MessageReader().feed(head)
            self.dom0.outbox.sent(len(head))
        assert [reply.type for reply in replies] == [kind], replies

    def wait(self, domid: int) -> None:
        """Block as domain `domid` until its event channel is raised."""
        while not self.pending.get(domid):
            assert self.soon, "everybody waits"
            self.soon.popleft()()
        self.pending[domid] = False

    def run(self) -> None:
        while self.soon:
            self.soon.popleft()()

    def transport(self, domid: int) -> PageTransport:
        return PageTransport(
            memoryview(self.pages[domid]),
            lambda: self.soon.append(self.connections[domid].serve),
            lambda: self.wait(domid),
        )

    def store(self, domid: int) -> Xenstore:
        return Xenstore(self.transport(domid))

    def words(self, domid: int) -> StorePage:
        return StorePage(memoryview(self.pages[domid]))

    def poke(self, domid: int, name: str, value: int) -> None:
        offset = xs.DOMAIN_INTERFACE.offset[name]
        self.pages[domid][offset : offset + 4] = value.to_bytes(4, "little")


@pytest.fixture
def machine() -> Machine:
    machine = Machine()
    machine.introduce(1)
    return machine


def test_requests(machine: Machine) -> None:
    store = machine.store(1)
    store.write("device/vbd", "hello")
    assert store.read("/local/domain/1/device/vbd") == b"hello"
    assert store.directory("device") == ["vbd"]
    with pytest.raises(XenstoreError, match="EACCES"):
        store.read("/tool/xenstored")


def test_features_are_offered(machine: Machine) -> None:
    both = xs.XENSTORE_SERVER_FEATURE_RECONNECTION | xs.XENSTORE_SERVER_FEATURE_ERROR
    assert machine.words(1).features == both


def test_messages_longer_than_the_ring(machine: Machine) -> None:
    store = machine.store(1)
    for number in range(60):
        store.mkdir(f"long/{number:02}{'x' * 20}")
    assert len(store.directory("long")) == 60  # 1380 bytes of reply
    with pytest.raises(XenstoreError, match="ENOSPC"):
        store.write("large", b"v" * 4000)
    store.write("large", b"v" * 2000)
    assert store.read("large") == b"v" * 2000


@settings(max_examples=30, deadline=None)
@given(start=st.integers(0, 0xFFFFFFFF), values=st.lists(st.binary(max_size=900), min_size=1, max_size=12))
def test_indices_start_anywhere_and_wrap(start: int, values: list[bytes]) -> None:
    machine = Machine()
    machine.pages[1] = bytearray(4096)
    for name in ("req_cons", "req_prod", "rsp_cons", "rsp_prod"):
        machine.poke(1, name, start)
    machine.introduce(1)
    store = machine.store(1)
    for number, value in enumerate([*values, b"x" * 1000]):
        store.write(f"n{number}", value)
        assert store.read(f"n{number}") == value


def test_what_was_asked_before_the_introduction_is_served() -> None:
    machine = Machine()
    machine.pages[1] = bytearray(4096)
    page = machine.words(1)
    page.requests.write(Message(xs.XS_GET_DOMAIN_PATH, 9, 0, b"1\0").pack())
    machine.introduce(1)
    machine.run()
    (reply,) = MessageReader().feed(page.responses.read())
    assert reply == Message(xs.XS_GET_DOMAIN_PATH, 9, 0, b"/local/domain/1\0")


def test_watch_events_of_a_slow_reader_keep_their_order_behind_replies(machine: Machine) -> None:
    store = machine.store(1)
    seen: list[str] = []
    store.watch("x", seen.append)
    for number in range(100):
        machine.request(xs.XS_WRITE, f"/local/domain/1/x/{number:03}", "")
    machine.run()
    store.write("y", 1)
    while machine.soon or store.pending:
        store.dispatch()
        machine.run()
    store.dispatch()
    assert seen == ["x", *(f"x/{number:03}" for number in range(100))]


# --- lies


def pack(length: int) -> bytes:
    return xs.SOCKMSG.struct.pack(xs.XS_READ, 1, 0, length)


def write_requests(machine: Machine, data: bytes) -> None:
    machine.words(1).requests.write(data)
    machine.connections[1].serve()


@pytest.mark.parametrize(
    ("lie", "error"),
    [
        (lambda m: write_requests(m, pack(xs.XENSTORE_PAYLOAD_MAX + 1)), xs.XENSTORE_ERROR_PROTO),
        (lambda m: write_requests(m, pack(0xFFFFFFFF)), xs.XENSTORE_ERROR_PROTO),
        (lambda m: m.poke(1, "req_prod", 1025), xs.XENSTORE_ERROR_RINGIDX),
        (lambda m: m.poke(1, "req_prod", 0xFFFFFFFF), xs.XENSTORE_ERROR_RINGIDX),
        (lambda m: m.poke(1, "rsp_cons", 5), xs.XENSTORE_ERROR_RINGIDX),
    ],
)
def test_a_liar_is_not_served_any_more_until_it_reconnects(
    machine: Machine, lie: Callable[[Machine], None], error: int
) -> None:
    machine.introduce(2)
    store, other = machine.store(1), machine.store(2)
    store.watch("x", lambda _: None)
    machine.run()
    store.dispatch()
    for name in ("req_cons", "req_prod", "rsp_cons", "rsp_prod"):
        machine.poke(1, name, 0)
    machine.pending.clear()
    lie(machine)
    machine.request(xs.XS_WRITE, "/local/domain/1/x", "an event to be sent")
    machine.connections[1].serve()
    machine.run()
    assert machine.words(1).error == error
    assert machine.pending[1]  # it is told
    with pytest.raises(PeerError, match="gave up"):
        store.read("x")
    other.write("still", "served")
    before = bytes(machine.pages[1])
    machine.connections[1].serve()
    machine.request(xs.XS_WRITE, "/local/domain/1/x", "the watch is gone")
    machine.run()
    assert bytes(machine.pages[1]) == before
    transport = machine.transport(1)
    transport.reconnect()
    assert machine.words(1).error == xs.XENSTORE_ERROR_NONE
    assert Xenstore(transport).read("x") == b"the watch is gone\0"


def test_reconnecting_forgets_everything_on_the_way(machine: Machine) -> None:
    store = machine.store(1)
    seen: list[str] = []
    store.watch("x", seen.append)
    page = machine.words(1)
    page.requests.write(Message(xs.XS_TRANSACTION_START, 1, 0, b"\0").pack() + b"half a mess")
    machine.connections[1].serve()
    transport = machine.transport(1)
    transport.reconnect()
    again = Xenstore(transport)
    with pytest.raises(XenstoreError, match="ENOENT"):
        again.request(xs.XS_READ, b"x\0", tx_id=1)
    again.write("x", 1)
    machine.run()
    again.dispatch()
    assert not again.pending
    assert page.responses.read() == b""


def test_connection_state_found_set_at_introduction() -> None:
    machine = Machine()
    machine.pages[1] = bytearray(4096)
    machine.words(1).connection = xs.XENSTORE_RECONNECT
    machine.introduce(1)
    machine.store(1).write("x", 1)  # waits for the connection first
    assert machine.words(1).connection == xs.XENSTORE_CONNECTED


def test_who_asks_and_never_reads_is_made_to_wait(machine: Machine) -> None:
    page = machine.words(1)
    ask = Message(xs.XS_GET_PERMS, 3, 0, b"/local/domain/1\0").pack()
    for _ in range(3000):
        page.requests.write(ask[: page.requests.writable])
        ask = ask[page.requests.writable :] if page.requests.writable < len(ask) else ask
        machine.connections[1].serve()
        machine.run()
        if page.requests.writable == 0:
            break
    outbox = machine.clients[1].outbox
    assert outbox.stalled
    assert page.requests.writable < 40
    assert outbox._replies == machine.clients[1].quota.outstanding


def test_who_reads_again_is_served_again(machine: Machine) -> None:
    page = machine.words(1)
    ask = Message(xs.XS_GET_DOMAIN_PATH, 3, 0, b"1\0").pack()
    stream, reader, replies, asked = b"", MessageReader(), 0, 0
    while replies < 500:
        while asked < 500 and len(stream) < 2048:
            stream += ask
            asked += 1
        stream = stream[page.requests.write(stream) :]
        machine.connections[1].serve()
        if page.requests.writable < 200:  # only when the ring is nearly full
            while data := page.responses.read():
                replies += len(list(reader.feed(data)))
                machine.connections[1].serve()
        elif asked == 500 and not stream:
            replies += len(list(reader.feed(page.responses.read())))
        machine.run()
    assert replies == 500


def test_events_nobody_reads_are_bounded(machine: Machine) -> None:
    store = machine.store(1)
    store.watch("x", lambda _: None)
    for number in range(9000):
        machine.request(xs.XS_WRITE, f"/local/domain/1/x/{number % 900}{'y' * (number // 900 * 40)}", "")
        if number % 900 == 0:
            machine.run()
    outbox = machine.clients[1].outbox
    assert outbox.overflowed
    assert outbox._size <= machine.clients[1].quota.output
    assert len(store.directory("x")) == 9000  # replies still come


SCRIBBLE = st.tuples(st.integers(0, xs.DOMAIN_INTERFACE.size - 1), st.binary(min_size=1, max_size=64))


@settings(max_examples=60, deadline=None)
@given(st.lists(SCRIBBLE, max_size=20))
def test_whatever_is_in_the_page_xenstored_lives(scribbles: list[tuple[int, bytes]]) -> None:
    machine = Machine()
    machine.introduce(1)
    machine.introduce(2)
    for offset, data in scribbles:
        machine.pages[1][offset : offset + len(data)] = data
        machine.connections[1].serve()
        for _ in range(5):
            if machine.soon:
                machine.soon.popleft()()
    machine.store(2).write("alive", 1)


def test_a_port_that_is_gone(machine: Machine) -> None:
    machine.introduce(2)
    machine.broken_port = HypercallError("ENOENT", "no such port")
    machine.words(1).requests.write(Message(xs.XS_GET_DOMAIN_PATH, 3, 0, b"1\0").pack())
    machine.connections[1].serve()
    assert machine.words(1).error == xs.XENSTORE_ERROR_COMM
    machine.broken_port = None
    machine.store(2).write("alive", 1)


def test_release_gives_page_and_port_back(machine: Machine) -> None:
    connection = machine.connections[1]
    machine.request(xs.XS_RELEASE, 1)
    assert machine.released == [1]
    before = bytes(machine.pages[1])
    connection.serve()
    machine.run()
    assert bytes(machine.pages[1]) == before
    machine.introduce(1)
    machine.store(1).write("x", 1)
    machine.daemon.domains.close()
    assert machine.released == [1, 1]


def test_introduced_again_the_rings_are_empty(machine: Machine) -> None:
    page = machine.words(1)
    page.requests.write(b"half")
    machine.connections[1].serve()
    page.requests.write(b"a mess")
    machine.introduce(1)
    assert (page.requests.readable, page.responses.readable) == (0, 0)
    machine.store(1).write("x", 1)
