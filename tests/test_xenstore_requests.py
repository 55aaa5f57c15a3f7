"""xenstored's answers, request by request."""
import logging
from collections.abc import Callable

import pytest

from miniguest.backend.xenstored.client import Client
from miniguest.backend.xenstored.daemon import Xenstored
from miniguest.ring.abi import xs_wire as xs
from miniguest.ring.errors import XenstoreError
from miniguest.ring.xenstore.message import Message, MessageReader, join_strings


class Channel:
    """Stands for an introduced domain's page."""

    def __init__(self, client: Client, gfn: int, evtchn: int) -> None:
        self.client, self.gfn, self.evtchn = client, gfn, evtchn
        self.closed = self.restarted = 0

    def close(self) -> None:
        self.closed += 1

    def restart(self) -> None:
        self.restarted += 1


class Peer:
    """One client: requests, and the events that came with the replies."""

    def __init__(self, daemon: Xenstored, client: Client) -> None:
        self.daemon, self.client = daemon, client
        self.events: list[tuple[str, str]] = []

    def send(self, kind: int, *strings: bytes | str | int, data: bytes = b"", tx_id: int = 0) -> bytes:
        payload = join_strings(*(s if isinstance(s, bytes) else str(s).encode() for s in strings)) + data
        self.daemon.handle(self.client, Message(kind, 5, tx_id, payload))
        reply = None
        for message in self.drain():
            if message.type == xs.XS_WATCH_EVENT:
                continue
            assert reply is None
            reply = message
        assert reply is not None
        assert (reply.req_id, reply.tx_id) == (5, tx_id)
        if reply.type == xs.XS_ERROR:
            assert reply.payload[-1:] == b"\0"
            raise XenstoreError(reply.payload[:-1].decode())
        assert reply.type == kind
        return reply.payload

    def drain(self) -> list[Message]:
        data = b""
        while head := self.client.outbox.head():
            data += head
            self.client.outbox.sent(len(head))
        messages = list(MessageReader().feed(data))
        for message in messages:
            if message.type == xs.XS_WATCH_EVENT:
                path, token, rest = message.payload.decode().split("\0")
                assert (message.req_id, message.tx_id, rest) == (0, 0, "")
                self.events.append((path, token))
        return messages

    def take_events(self) -> list[tuple[str, str]]:
        self.drain()
        events, self.events = self.events, []
        return events

    def start(self) -> int:
        return int(self.send(xs.XS_TRANSACTION_START, b"")[:-1])

    def error(self, kind: int, *strings: bytes | str | int, data: bytes = b"", tx_id: int = 0) -> str:
        with pytest.raises(XenstoreError) as caught:
            self.send(kind, *strings, data=data, tx_id=tx_id)
        return caught.value.code


class Fixture:
    """A daemon with a dom0 client; domains come when they are asked for."""

    def __init__(self) -> None:
        self.channels: dict[int, Channel] = {}
        self.refuse: str | None = None
        self.daemon = Xenstored(self.connect)
        self.dom0 = Peer(self.daemon, self.daemon.new_client())

    def connect(self, client: Client, gfn: int, evtchn: int) -> Channel:
        if self.refuse:
            raise XenstoreError(self.refuse)
        self.channels[client.domid] = Channel(client, gfn, evtchn)
        return self.channels[client.domid]

    def domain(self, domid: int) -> Peer:
        assert self.dom0.send(xs.XS_INTRODUCE, domid, 1, 2) == b"OK\0"
        home = f"/local/domain/{domid}"
        self.dom0.send(xs.XS_MKDIR, home)
        self.dom0.send(xs.XS_SET_PERMS, home, f"n{domid}")
        return Peer(self.daemon, self.channels[domid].client)


@pytest.fixture
def store() -> Fixture:
    return Fixture()


def test_initial_tree(store: Fixture) -> None:
    assert store.dom0.send(xs.XS_DIRECTORY, "/") == b"tool\0"
    assert store.dom0.send(xs.XS_DIRECTORY, "/tool") == b"xenstored\0"
    assert store.dom0.send(xs.XS_GET_PERMS, "/") == b"n0\0"
    assert store.dom0.send(xs.XS_GET_PERMS, "@introduceDomain") == b"n0\0"


def test_write_creates_parents_and_keeps_any_bytes(store: Fixture) -> None:
    value = bytes(range(256))
    assert store.dom0.send(xs.XS_WRITE, "/a/b", data=value) == b"OK\0"
    assert store.dom0.send(xs.XS_READ, "/a/b") == value
    assert store.dom0.send(xs.XS_READ, "/a") == b""


def test_created_nodes_inherit_permissions_and_belong_to_their_writer(store: Fixture) -> None:
    guest = store.domain(1)
    store.dom0.send(xs.XS_SET_PERMS, "/local/domain/1", "r1", "b2")
    guest.send(xs.XS_WRITE, "x/y", data=b"1")
    assert store.dom0.send(xs.XS_GET_PERMS, "/local/domain/1/x/y") == b"r1\0b2\0"
    store.dom0.send(xs.XS_WRITE, "/local/domain/1/z", data=b"1")
    assert store.dom0.send(xs.XS_GET_PERMS, "/local/domain/1/z") == b"r1\0b2\0"


def test_rm(store: Fixture) -> None:
    dom0 = store.dom0
    dom0.send(xs.XS_WRITE, "/a/b/c", data=b"1")
    assert dom0.error(xs.XS_RM, "/") == "EINVAL"
    assert dom0.send(xs.XS_RM, "/a/nothing") == b"OK\0"
    assert dom0.error(xs.XS_RM, "/nothing/at/all") == "ENOENT"
    assert dom0.send(xs.XS_RM, "/a") == b"OK\0"
    assert dom0.error(xs.XS_READ, "/a/b/c") == "ENOENT"


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (xs.XS_READ, b"/tool"),  # no NUL
        (xs.XS_READ, b"/tool\0rest"),
        (xs.XS_READ, b"/tool\0/tool\0"),
        (xs.XS_READ, b""),
        (xs.XS_WRITE, b"/tool"),
        (xs.XS_WRITE, b"@releaseDomain\0"),
        (xs.XS_RM, b"@releaseDomain\0"),
        (xs.XS_SET_PERMS, b"/tool\0"),
        (xs.XS_SET_PERMS, b"/tool\0q7\0"),
        (xs.XS_WATCH, b"/tool\0"),
        (xs.XS_WATCH, b"/to ol\0token\0"),
        (xs.XS_UNWATCH, b"/tool\0"),
        (xs.XS_DIRECTORY_PART, b"/tool\0"),
        (xs.XS_DIRECTORY_PART, b"/tool\0x\0"),
        (xs.XS_TRANSACTION_END, b"X\0"),
        (xs.XS_INTRODUCE, b"1\x002\0"),
        (xs.XS_INTRODUCE, b"0\x001\x002\0"),
        (xs.XS_INTRODUCE, b"32752\x001\x002\0"),  # DOMID_SELF
        (xs.XS_INTRODUCE, b"one\x001\x002\0"),
        (xs.XS_INTRODUCE, b"1\x00-1\x002\0"),
        (xs.XS_INTRODUCE, b"1\x001\x0099999999999\0"),
        (xs.XS_RELEASE, b"0\0"),
        (xs.XS_GET_DOMAIN_PATH, b"x\0"),
        (xs.XS_GET_DOMAIN_PATH, b"65536\0"),
        (xs.XS_CONTROL, b"no-such-command\0"),
        (xs.XS_CONTROL, b""),
    ],
)
def test_malformed_requests(store: Fixture, kind: int, payload: bytes) -> None:
    assert store.dom0.error(kind, data=payload) == "EINVAL"


@pytest.mark.parametrize("kind", [20, 23, xs.XS_WATCH_EVENT, xs.XS_ERROR, xs.XS_INVALID, 0xFFFFFFFF])
def test_unknown_types(store: Fixture, kind: int) -> None:
    assert store.dom0.error(kind, "/") == "ENOSYS"


def test_replies_too_long_are_e2big_and_come_in_parts(store: Fixture) -> None:
    names = [f"node-{number:04}-{'x' * 30}" for number in range(300)]
    for name in names:
        store.dom0.send(xs.XS_MKDIR, f"/many/{name}")
    assert store.dom0.error(xs.XS_DIRECTORY, "/many") == "E2BIG"
    listing, generations, parts = b"", set(), 0
    while not listing.endswith(b"\0\0"):
        reply = store.dom0.send(xs.XS_DIRECTORY_PART, "/many", len(listing))
        generation, _, part = reply.partition(b"\0")
        assert len(reply) <= xs.XENSTORE_PAYLOAD_MAX
        generations.add(generation)
        listing += part
        parts += 1
    assert listing == join_strings(*(name.encode() for name in names)) + b"\0"
    assert len(generations) == 1
    assert parts > 2
    store.dom0.send(xs.XS_WRITE, "/many", data=b"changed")
    assert store.dom0.send(xs.XS_DIRECTORY_PART, "/many", 0).partition(b"\0")[0] not in generations
    assert store.dom0.send(xs.XS_DIRECTORY_PART, "/many", 99999).endswith(b"\0\0")


def test_others_nodes_are_hidden(store: Fixture) -> None:
    one, two = store.domain(1), store.domain(2)
    one.send(xs.XS_WRITE, "secret", data=b"1")
    for kind in (xs.XS_READ, xs.XS_DIRECTORY, xs.XS_GET_PERMS, xs.XS_WRITE, xs.XS_RM, xs.XS_MKDIR):
        assert two.error(kind, "/local/domain/1/secret") == "EACCES"
        assert two.error(kind, "/local/domain/1/no-such-node") == "EACCES"
    assert two.error(xs.XS_SET_PERMS, "/local/domain/1/secret", "b2") == "EACCES"
    one.send(xs.XS_SET_PERMS, "secret", "n1", "r2")
    assert two.send(xs.XS_READ, "/local/domain/1/secret") == b"1"
    assert two.error(xs.XS_WRITE, "/local/domain/1/secret", data=b"2") == "EACCES"


def test_only_dom0_gives_nodes_away(store: Fixture) -> None:
    one = store.domain(1)
    one.send(xs.XS_WRITE, "x", data=b"1")
    assert one.error(xs.XS_SET_PERMS, "x", "b2") == "EPERM"
    store.dom0.send(xs.XS_SET_PERMS, "/local/domain/1/x", "b2")
    assert one.error(xs.XS_SET_PERMS, "x", "b1") == "EACCES"


@pytest.mark.parametrize(
    ("kind", "strings"),
    [
        (xs.XS_INTRODUCE, ["3", "1", "1"]),
        (xs.XS_RELEASE, ["1"]),
        (xs.XS_RESUME, ["1"]),
        (xs.XS_SET_TARGET, ["1", "1"]),
        (xs.XS_IS_DOMAIN_INTRODUCED, ["1"]),
        (xs.XS_CONTROL, ["help"]),
    ],
)
def test_dom0_only(store: Fixture, kind: int, strings: list[str]) -> None:
    assert store.domain(1).error(kind, *strings) == "EACCES"


def test_control(store: Fixture, caplog: pytest.LogCaptureFixture) -> None:
    assert b"print" in store.dom0.send(xs.XS_CONTROL, "help")
    assert store.dom0.send(xs.XS_CONTROL, "check") == b"OK\0"
    with caplog.at_level(logging.INFO, "miniguest.xenstored"):
        assert store.dom0.send(xs.XS_CONTROL, "print", "hello there") == b"OK\0"
    assert "hello there" in caplog.text


# --- domains


def test_introduce_and_release(store: Fixture) -> None:
    dom0 = store.dom0
    assert dom0.send(xs.XS_IS_DOMAIN_INTRODUCED, 1) == b"F\0"
    guest = store.domain(1)
    assert (store.channels[1].gfn, store.channels[1].evtchn) == (1, 2)
    assert dom0.send(xs.XS_IS_DOMAIN_INTRODUCED, 1) == b"T\0"
    assert dom0.send(xs.XS_IS_DOMAIN_INTRODUCED, 0) == b"T\0"
    assert dom0.send(xs.XS_IS_DOMAIN_INTRODUCED, 0x7FF0) == b"T\0"
    assert dom0.send(xs.XS_GET_DOMAIN_PATH, 1) == b"/local/domain/1\0"
    guest.send(xs.XS_WRITE, "mine", data=b"1")
    dom0.send(xs.XS_WRITE, "/shared", data=b"1")
    dom0.send(xs.XS_SET_PERMS, "/shared", "n0", "r1", "r2")
    assert dom0.send(xs.XS_RELEASE, 1) == b"OK\0"
    assert store.channels[1].closed == 1
    assert dom0.error(xs.XS_READ, "/local/domain/1/mine") == "ENOENT"
    assert dom0.send(xs.XS_DIRECTORY, "/local/domain") == b""
    assert dom0.send(xs.XS_GET_PERMS, "/shared") == b"n0\0r2\0"
    assert dom0.error(xs.XS_RELEASE, 1) == "ENOENT"
    assert dom0.error(xs.XS_RESUME, 1) == "ENOENT"


def test_introducing_again_starts_the_connection_over(store: Fixture) -> None:
    guest = store.domain(1)
    guest.send(xs.XS_WATCH, "x", "t")
    tx_id = guest.start()
    first = store.channels[1]
    assert store.dom0.send(xs.XS_INTRODUCE, 1, 8, 9) == b"OK\0"
    assert first.closed == 1
    assert (store.channels[1].gfn, store.channels[1].evtchn, store.channels[1].restarted) == (8, 9, 1)
    assert guest.error(xs.XS_READ, "x", tx_id=tx_id) == "ENOENT"
    assert guest.error(xs.XS_UNWATCH, "x", "t") == "ENOENT"


@pytest.mark.parametrize("again", [False, True])
def test_introducing_fails(store: Fixture, again: bool) -> None:
    if again:
        store.domain(1)
    store.refuse = "ENOTTY"  # a name that does not travel
    assert store.dom0.error(xs.XS_INTRODUCE, 1, 1, 1) == "EINVAL"
    assert store.dom0.send(xs.XS_IS_DOMAIN_INTRODUCED, 1) == b"F\0"


def test_special_watches(store: Fixture) -> None:
    store.dom0.send(xs.XS_WATCH, "@introduceDomain", "in")
    store.dom0.send(xs.XS_WATCH, "@releaseDomain", "out")
    store.dom0.take_events()
    guest = store.domain(1)
    guest.send(xs.XS_WATCH, "@releaseDomain", "no")  # not permitted: the first event is all it gets
    assert guest.take_events() == [("@releaseDomain", "no")]
    assert store.dom0.take_events() == [("@introduceDomain", "in")]
    store.domain(2)
    store.dom0.send(xs.XS_RELEASE, 2)
    assert store.dom0.take_events() == [("@introduceDomain", "in"), ("@releaseDomain", "out")]
    assert guest.take_events() == []
    store.dom0.send(xs.XS_SET_PERMS, "@releaseDomain", "n0", "r1")
    store.domain(2)
    guest.take_events()
    store.dom0.send(xs.XS_RELEASE, 2)
    assert guest.take_events() == [("@releaseDomain", "no")]


def test_shutdown_is_told_once_until_resume(store: Fixture) -> None:
    store.domain(1)
    store.dom0.send(xs.XS_WATCH, "@releaseDomain", "t")
    store.dom0.take_events()
    for told in (1, 0):
        store.daemon.domains.shutdown(1)
        assert len(store.dom0.take_events()) == told
    store.dom0.send(xs.XS_RESUME, 1)
    store.daemon.domains.shutdown(1)
    assert len(store.dom0.take_events()) == 1
    store.daemon.domains.shutdown(9)
    assert store.dom0.take_events() == []


def test_stub_domain_acts_for_its_target(store: Fixture) -> None:
    guest, stub = store.domain(1), store.domain(2)
    guest.send(xs.XS_WRITE, "x", data=b"1")
    assert stub.error(xs.XS_READ, "/local/domain/1/x") == "EACCES"
    assert store.dom0.error(xs.XS_SET_TARGET, 2, 9) == "ENOENT"
    assert store.dom0.error(xs.XS_SET_TARGET, 9, 1) == "ENOENT"
    store.dom0.send(xs.XS_SET_TARGET, 2, 1)
    assert stub.send(xs.XS_READ, "/local/domain/1/x") == b"1"
    stub.send(xs.XS_WRITE, "/local/domain/1/made/here", data=b"1")
    assert store.dom0.send(xs.XS_GET_PERMS, "/local/domain/1/made") == b"n2\0"
    assert guest.error(xs.XS_READ, "/local/domain/2") == "EACCES"  # not the other way round
    store.dom0.send(xs.XS_RELEASE, 1)
    store.domain(1).send(xs.XS_WRITE, "x", data=b"another domain 1")
    assert stub.error(xs.XS_READ, "/local/domain/1/x") == "EACCES"


# --- watches


def test_watch_fires_at_and_below_its_path(store: Fixture) -> None:
    dom0 = store.dom0
    dom0.send(xs.XS_WATCH, "/a", "t")
    assert dom0.take_events() == [("/a", "t")]
    for kind, path in ((xs.XS_WRITE, "/a"), (xs.XS_WRITE, "/a/b/c"), (xs.XS_MKDIR, "/a/d"), (xs.XS_RM, "/a/d")):
        dom0.send(kind, path)
        assert dom0.take_events() == [(path, "t")]
    for kind, path in ((xs.XS_WRITE, "/ab"), (xs.XS_WRITE, "/"), (xs.XS_MKDIR, "/a/b"), (xs.XS_RM, "/a/nothing")):
        dom0.send(kind, path)
        assert dom0.take_events() == []
    dom0.send(xs.XS_SET_PERMS, "/a/b", "r0")
    assert dom0.take_events() == [("/a/b", "t")]


def test_removing_a_tree_tells_watches_on_every_node_in_it(store: Fixture) -> None:
    dom0 = store.dom0
    dom0.send(xs.XS_WRITE, "/a/b/c", data=b"1")
    for path in ("/", "/a", "/a/b", "/a/b/c", "/a/b/c/d"):
        dom0.send(xs.XS_WATCH, path, "t" + path)
    dom0.take_events()
    dom0.send(xs.XS_RM, "/a")
    assert sorted(dom0.take_events()) == [("/a", "t/"), ("/a", "t/a"), ("/a/b", "t/a/b"), ("/a/b/c", "t/a/b/c")]


def test_relative_watch_gets_relative_paths(store: Fixture) -> None:
    guest = store.domain(1)
    guest.send(xs.XS_WATCH, "x", "rel")
    guest.send(xs.XS_WATCH, "/local/domain/1/x", "abs")  # the same place
    assert guest.error(xs.XS_WATCH, "/local/domain/1/x", "rel") == "EEXIST"
    assert guest.take_events() == [("x", "rel"), ("/local/domain/1/x", "abs")]
    guest.send(xs.XS_WRITE, "x/y", data=b"1")
    assert guest.take_events() == [("x/y", "rel"), ("/local/domain/1/x/y", "abs")]
    guest.send(xs.XS_UNWATCH, "/local/domain/1/x", "rel")
    guest.send(xs.XS_WRITE, "x/y", data=b"2")
    assert guest.take_events() == [("/local/domain/1/x/y", "abs")]


def test_who_may_not_see_a_node_is_not_told(store: Fixture) -> None:
    one, two = store.domain(1), store.domain(2)
    two.send(xs.XS_WATCH, "/local/domain/1", "t")
    two.take_events()
    one.send(xs.XS_WRITE, "x/y", data=b"1")
    assert two.take_events() == []
    one.send(xs.XS_SET_PERMS, "x/y", "n1", "r2")
    assert two.take_events() == [("/local/domain/1/x/y", "t")]
    one.send(xs.XS_SET_PERMS, "x/y", "n1")  # it loses sight of it, and is told so
    assert two.take_events() == [("/local/domain/1/x/y", "t")]
    one.send(xs.XS_WRITE, "x/y", data=b"2")
    assert two.take_events() == []


def test_the_same_event_waits_once_but_special_ones_each(store: Fixture) -> None:
    dom0 = store.dom0
    other = Peer(store.daemon, store.daemon.new_client())
    other.send(xs.XS_WATCH, "/a", "t")
    other.send(xs.XS_WATCH, "@introduceDomain", "t")
    other.take_events()
    for _ in range(3):
        dom0.send(xs.XS_WRITE, "/a", data=b"1")
    store.domain(1)
    store.domain(2)
    assert other.take_events() == [("/a", "t"), ("@introduceDomain", "t"), ("@introduceDomain", "t")]
    dom0.send(xs.XS_WRITE, "/a", data=b"1")
    assert other.take_events() == [("/a", "t")]


def test_reset_watches_drops_transactions_too(store: Fixture) -> None:
    dom0 = store.dom0
    dom0.send(xs.XS_WATCH, "/a", "t")
    tx_id = dom0.start()
    dom0.take_events()
    dom0.send(xs.XS_RESET_WATCHES, b"")
    dom0.send(xs.XS_WRITE, "/a", data=b"1")
    assert dom0.take_events() == []
    assert dom0.error(xs.XS_READ, "/a", tx_id=tx_id) == "ENOENT"


# --- transactions


def test_transaction_is_seen_whole_or_not_at_all(store: Fixture) -> None:
    dom0 = store.dom0
    dom0.send(xs.XS_WATCH, "/a", "t")
    dom0.take_events()
    tx_id = dom0.start()
    dom0.send(xs.XS_WRITE, "/a/b", data=b"1", tx_id=tx_id)
    dom0.send(xs.XS_WRITE, "/a/b", data=b"2", tx_id=tx_id)
    dom0.send(xs.XS_WRITE, "/a/c", data=b"3", tx_id=tx_id)
    assert dom0.send(xs.XS_READ, "/a/b", tx_id=tx_id) == b"2"
    assert dom0.error(xs.XS_READ, "/a") == "ENOENT"
    assert dom0.take_events() == []
    dom0.send(xs.XS_TRANSACTION_END, "T", tx_id=tx_id)
    assert dom0.take_events() == [("/a/b", "t"), ("/a/c", "t")]
    assert dom0.send(xs.XS_DIRECTORY, "/a") == b"b\0c\0"
    assert dom0.error(xs.XS_TRANSACTION_END, "T", tx_id=tx_id) == "ENOENT"


def test_discarded_transaction(store: Fixture) -> None:
    dom0 = store.dom0
    tx_id = dom0.start()
    dom0.send(xs.XS_WRITE, "/a", data=b"1", tx_id=tx_id)
    dom0.send(xs.XS_TRANSACTION_END, "F", tx_id=tx_id)
    assert dom0.error(xs.XS_READ, "/a") == "ENOENT"


Act = Callable[[Peer, int], object]


@pytest.mark.parametrize(
    ("inside", "outside", "conflict"),
    [
        (lambda p, t: p.send(xs.XS_READ, "/a", tx_id=t), lambda p, t: p.send(xs.XS_WRITE, "/a", data=b"1"), True),
        (lambda p, t: p.send(xs.XS_WRITE, "/a", tx_id=t), lambda p, t: p.send(xs.XS_WRITE, "/a", data=b"1"), True),
        (lambda p, t: p.send(xs.XS_READ, "/a", tx_id=t), lambda p, t: p.send(xs.XS_SET_PERMS, "/a", "r0"), True),
        (lambda p, t: p.send(xs.XS_READ, "/a/b", tx_id=t), lambda p, t: p.send(xs.XS_RM, "/a"), True),
        (lambda p, t: p.send(xs.XS_DIRECTORY, "/a", tx_id=t), lambda p, t: p.send(xs.XS_MKDIR, "/a/new"), True),
        (lambda p, t: p.error(xs.XS_READ, "/a/new", tx_id=t), lambda p, t: p.send(xs.XS_MKDIR, "/a/new"), True),
        (lambda p, t: p.send(xs.XS_MKDIR, "/a/one", tx_id=t), lambda p, t: p.send(xs.XS_MKDIR, "/a/two"), True),
        (lambda p, t: p.send(xs.XS_RM, "/a", tx_id=t), lambda p, t: p.send(xs.XS_WRITE, "/a/b", data=b"1"), True),
        (lambda p, t: p.send(xs.XS_RM, "/a/b", tx_id=t), lambda p, t: p.send(xs.XS_WRITE, "/a", data=b"1"), True),
        (lambda p, t: p.send(xs.XS_WRITE, "/a", tx_id=t), lambda p, t: p.send(xs.XS_WRITE, "/a/b", data=b"1"), False),
        (lambda p, t: p.send(xs.XS_WRITE, "/a/b", tx_id=t), lambda p, t: p.send(xs.XS_MKDIR, "/other/new"), False),
        (lambda p, t: p.send(xs.XS_MKDIR, "/a/new", tx_id=t), lambda p, t: p.send(xs.XS_WRITE, "/a/b/d"), False),
        (lambda p, t: p.send(xs.XS_READ, "/a", tx_id=t), lambda p, t: p.send(xs.XS_READ, "/a"), False),
    ],
)  # fmt: skip
def test_conflicts(store: Fixture, inside: Act, outside: Act, conflict: bool) -> None:
    dom0 = store.dom0
    dom0.send(xs.XS_WRITE, "/a/b", data=b"0")
    dom0.send(xs.XS_MKDIR, "/other")
    tx_id = dom0.start()
    inside(dom0, tx_id)
    outside(dom0, tx_id)
    if conflict:
        assert dom0.error(xs.XS_TRANSACTION_END, "T", tx_id=tx_id) == "EAGAIN"
    else:
        assert dom0.send(xs.XS_TRANSACTION_END, "T", tx_id=tx_id) == b"OK\0"
    assert dom0.error(xs.XS_TRANSACTION_END, "F", tx_id=tx_id) == "ENOENT"


def test_commit_keeps_what_others_did_elsewhere(store: Fixture) -> None:
    dom0 = store.dom0
    dom0.send(xs.XS_WRITE, "/a/b/c", data=b"old")
    tx_id = dom0.start()
    dom0.send(xs.XS_MKDIR, "/a/new", tx_id=tx_id)
    dom0.send(xs.XS_WRITE, "/a/b/c", data=b"new")
    dom0.send(xs.XS_MKDIR, "/a/b/d")
    dom0.send(xs.XS_TRANSACTION_END, "T", tx_id=tx_id)
    assert dom0.send(xs.XS_READ, "/a/b/c") == b"new"
    assert dom0.send(xs.XS_DIRECTORY, "/a/b") == b"c\0d\0"
    assert dom0.send(xs.XS_DIRECTORY, "/a") == b"b\0new\0"


def test_transactions_belong_to_their_connection_and_do_not_nest(store: Fixture) -> None:
    dom0 = store.dom0
    tx_id = dom0.start()
    other = Peer(store.daemon, store.daemon.new_client())
    assert other.error(xs.XS_READ, "/", tx_id=tx_id) == "ENOENT"
    assert dom0.error(xs.XS_TRANSACTION_START, b"", tx_id=tx_id) == "EBUSY"
    assert dom0.error(xs.XS_TRANSACTION_END, "T") == "ENOENT"


# --- quotas


def test_node_quota(store: Fixture) -> None:
    guest = store.domain(1)
    for number in range(30):
        for inner in range(30):
            guest.send(xs.XS_WRITE, f"n{number}/{inner}")
    owned = store.daemon.store.tree.owned[1]
    for number in range(1000 - owned):
        guest.send(xs.XS_WRITE, f"m{number}")
    assert store.daemon.store.tree.owned[1] == 1000
    assert guest.error(xs.XS_WRITE, "more") == "ENOSPC"
    assert guest.error(xs.XS_MKDIR, "n0/more") == "ENOSPC"
    guest.send(xs.XS_WRITE, "m0", data=b"still writable")
    guest.send(xs.XS_RM, "m0")
    assert guest.error(xs.XS_WRITE, "two/nodes") == "ENOSPC"
    assert guest.error(xs.XS_READ, "two") == "ENOENT"  # all or nothing
    guest.send(xs.XS_WRITE, "one")
    store.dom0.send(xs.XS_WRITE, "/local/domain/1/by-dom0")
    assert store.daemon.store.tree.owned[1] == 1001


def test_node_quota_holds_when_transactions_end(store: Fixture) -> None:
    guest = store.domain(1)
    guest.client.quota = type(guest.client.quota)(nodes=4)
    for number in range(2):
        guest.send(xs.XS_WRITE, f"dir{number}")
    ids = [guest.start(), guest.start()]
    for number, tx_id in enumerate(ids):
        guest.send(xs.XS_WRITE, f"dir{number}/x", tx_id=tx_id)
    guest.send(xs.XS_TRANSACTION_END, "T", tx_id=ids[0])
    assert guest.error(xs.XS_TRANSACTION_END, "T", tx_id=ids[1]) == "ENOSPC"
    assert store.daemon.store.tree.owned[1] == 4


def test_node_size_quota(store: Fixture) -> None:
    guest = store.domain(1)
    guest.send(xs.XS_WRITE, "x", data=b"v" * (2048 - 24))
    assert guest.error(xs.XS_WRITE, "x", data=b"v" * (2048 - 23)) == "ENOSPC"
    assert guest.error(xs.XS_MKDIR, "x/child") == "ENOSPC"
    assert guest.error(xs.XS_DIRECTORY, "x/child") == "ENOENT"
    store.dom0.send(xs.XS_WRITE, "/local/domain/1/x", data=b"v" * 4000)


def test_watch_transaction_and_permission_quotas(store: Fixture) -> None:
    guest = store.domain(1)
    for number in range(128):
        guest.send(xs.XS_WATCH, "x", f"t{number}")
    assert guest.error(xs.XS_WATCH, "x", "one-more") == "ENOSPC"
    guest.send(xs.XS_UNWATCH, "x", "t0")
    guest.send(xs.XS_WATCH, "x", "one-more")
    ids = [guest.start() for _ in range(10)]
    assert len(set(ids)) == 10
    assert guest.error(xs.XS_TRANSACTION_START, b"") == "ENOSPC"
    guest.send(xs.XS_WRITE, "x")
    assert guest.error(xs.XS_SET_PERMS, "x", "n1", *["r2"] * 5) == "ENOSPC"
    guest.send(xs.XS_SET_PERMS, "x", "n1", *["r2"] * 4)
    for number in range(200):
        store.dom0.send(xs.XS_WATCH, "/x", f"t{number}")
        store.dom0.start()


def test_transaction_nodes_quota(store: Fixture) -> None:
    guest = store.domain(1)
    tx_id = guest.start()
    guest.client.transaction(tx_id)._most = 5
    for name in "ab":
        assert guest.error(xs.XS_READ, name, tx_id=tx_id) == "ENOENT"
    for name in "cd":
        assert guest.error(xs.XS_READ, name, tx_id=tx_id) == "ENOENT"
    assert guest.error(xs.XS_READ, "e", tx_id=tx_id) == "ENOSPC"
    assert guest.send(xs.XS_TRANSACTION_END, "T", tx_id=tx_id) == b"OK\0"


def test_a_deep_path_is_no_trouble(store: Fixture) -> None:
    path = "/a" * 1500
    store.dom0.send(xs.XS_WRITE, path, data=b"deep")
    assert store.dom0.send(xs.XS_READ, path) == b"deep"
    store.dom0.send(xs.XS_RM, "/a")
    assert store.dom0.send(xs.XS_DIRECTORY, "/") == b"tool\0"
