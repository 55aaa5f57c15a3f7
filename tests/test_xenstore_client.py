"""The client of xenstored, and the xenbus handshake, over a daemon in the same thread."""
from collections.abc import Callable

import pytest
from directstore import DirectTransport, World

from miniguest.ring import xenbus
from miniguest.ring.abi.xenbus import XenbusState
from miniguest.ring.errors import PeerError, XenstoreError
from miniguest.ring.xenstore import Transaction, Xenstore
from miniguest.ring.xenstore.client import PIPELINED


@pytest.fixture
def world() -> World:
    return World()


def between(store: Xenstore, act: Callable[[], None]) -> None:
    """Have somebody else act just before the next request of `store`."""
    assert isinstance(store.transport, DirectTransport)
    store.transport.between = act


def test_nodes(world: World) -> None:
    store = world.open()
    store.write("/a/text", "grüß")
    store.write("/a/number", -5)
    store.write("/a/bytes", b"\0\xff")
    assert store.read_text("/a/text") == "grüß"
    assert store.read_int("/a/number") == -5
    assert store.read("/a/bytes") == b"\0\xff"
    assert store.directory("/a") == ["text", "number", "bytes"]
    assert store.directory("/a/text") == []
    with pytest.raises(PeerError, match="not a number"):
        store.read_int("/a/text")
    store.set_perms("/a", ["n1", "r2"])
    assert store.get_perms("/a") == ["n1", "r2"]
    store.rm("/a")
    assert not store.exists("/a")
    store.mkdir("/a")
    assert store.exists("/a")
    with pytest.raises(XenstoreError) as caught:
        store.read("/nothing")
    assert caught.value.code == "ENOENT"
    assert "/nothing" in str(caught.value)


def test_what_would_cut_us_off_is_not_sent(world: World) -> None:
    store = world.open()
    with pytest.raises(XenstoreError, match="E2BIG"):
        store.write("/a", b"x" * 4094)
    store.write("/a", b"x" * 4093)


def test_long_directory_that_changes_while_it_is_read(world: World) -> None:
    store, other = world.open(), world.open()
    names = [f"{number:05}{'x' * 40}" for number in range(200)]
    for name in names:
        store.mkdir(f"/many/{name}")
    assert store.directory("/many") == names
    calls = 0
    request = store.request

    def counted(kind: int, payload: bytes, tx_id: int = 0) -> bytes:
        nonlocal calls
        calls += 1
        if calls == 3:  # DIRECTORY, the first part, and now the second
            other.rm(f"/many/{names[0]}")
        return request(kind, payload, tx_id)

    store.request = counted  # type: ignore[method-assign]
    assert store.directory("/many") == names[1:]


def test_domains(world: World) -> None:
    store = world.open()
    store.introduce(3, 10, 20)
    store.introduce(4, 10, 20)
    assert store.is_introduced(3)
    assert store.get_domain_path(3) == "/local/domain/3"
    store.write("/local/domain/3/x", 1)
    stub = world.open(4)
    assert not stub.exists("/local/domain/3/x")
    store.set_perms("/local/domain/3/x", ["n3"])
    store.set_target(4, 3)
    assert stub.read_int("/local/domain/3/x") == 1
    store.resume(3)
    store.release(3)
    assert not store.is_introduced(3)


# --- watches


def test_watch_and_cancel(world: World) -> None:
    store = world.open()
    seen: list[str] = []
    watch = store.watch("/a", seen.append)
    store.dispatch()
    store.write("/a/b", 1)
    store.dispatch()
    assert seen == ["/a", "/a/b"]
    store.write("/a/b", 2)
    watch.cancel()
    watch.cancel()
    store.dispatch()  # an event from before is dropped
    assert seen == ["/a", "/a/b"]
    with pytest.raises(XenstoreError, match="EINVAL"):
        store.watch("/a//b", seen.append)


def test_events_are_scheduled_after_requests(world: World) -> None:
    store, other = world.open(), world.open()
    seen: list[str] = []
    store.watch("/a", seen.append)
    store.dispatch()
    between(store, lambda: other.write("/a/1", 1))
    store.read("/tool")
    assert store.pending
    assert len(world.soon) == 1
    store.read("/tool")
    assert len(world.soon) == 1
    world.run()
    assert seen == ["/a", "/a/1"]
    assert not store.pending


def test_handlers_may_make_requests_and_watch_more(world: World) -> None:
    store, other = world.open(), world.open()
    seen: list[tuple[str, bytes]] = []

    def inner(path: str) -> None:
        seen.append((path, store.read(path)))

    def outer(path: str) -> None:
        seen.append((path, b""))
        if path != "/a":
            return
        between(store, lambda: other.write("/a/new", "2"))
        store.write("/b/by-handler", "1")

    other.write("/b", "0")
    store.watch("/b", inner)
    store.dispatch()
    store.watch("/a", outer)
    store.dispatch()
    world.run()
    assert seen == [("/b", b"0"), ("/a", b""), ("/a/new", b""), ("/b/by-handler", b"1")]


def test_a_handler_that_raises_does_not_lose_the_others(world: World) -> None:
    store = world.open()
    seen: list[str] = []

    def bad(path: str) -> None:
        raise PeerError(path)

    store.watch("/a", bad)
    store.watch("/b", seen.append)
    with pytest.raises(PeerError):
        store.dispatch()
    world.run()
    assert seen == ["/b"]


def test_fileno_is_for_sockets(world: World) -> None:
    with pytest.raises(ValueError, match="port"):
        world.open().fileno()


def test_close(world: World) -> None:
    store = world.open()
    store.close()
    assert isinstance(store.transport, DirectTransport)
    assert store.transport.closed


# --- transactions


def test_transaction(world: World) -> None:
    store, other = world.open(), world.open()
    with store.transaction() as tx:
        tx.write("/a/b", 1)
        assert tx.read_int("/a/b") == 1
        assert not other.exists("/a")
    assert other.read_int("/a/b") == 1
    with pytest.raises(PeerError), store.transaction() as tx:
        tx.write("/a/b", 2)
        raise PeerError("discard it")
    assert other.read_int("/a/b") == 1


def test_conflict_and_retry(world: World) -> None:
    store, other = world.open(), world.open()
    store.write("/counter", 0)
    attempts = 0

    def increment(tx: Transaction) -> int:
        nonlocal attempts
        attempts += 1
        value = tx.read_int("/counter")
        if attempts < 3:
            other.write("/counter", value + 10)
        tx.write("/counter", value + 1)
        return value + 1

    assert store.retry(increment) == 21
    assert (attempts, store.read_int("/counter")) == (3, 21)
    with pytest.raises(XenstoreError, match="EAGAIN"), store.transaction() as tx:
        tx.read("/counter")
        other.write("/counter", 0)
    with pytest.raises(XenstoreError, match="ENOENT"):
        store.retry(lambda tx: tx.read("/nothing"))


# --- xenbus


def test_switch_state(world: World) -> None:
    store = world.open()
    seen: list[XenbusState] = []
    store.mkdir("/dev")
    world.open().watch("/dev/state", lambda _: None)
    watch = xenbus.watch_state(store, "/dev", seen.append)
    store.dispatch()
    for state in (XenbusState.Initialising, XenbusState.InitWait, XenbusState.InitWait, XenbusState.Connected):
        xenbus.switch_state(store, "/dev", state)
        store.dispatch()
    assert seen == [XenbusState.Unknown, XenbusState.Initialising, XenbusState.InitWait, XenbusState.Connected]
    assert not xenbus.switch_state(store, "/dev", XenbusState.InitWait)
    assert xenbus.read_state(store, "/dev") == XenbusState.Connected
    assert xenbus.switch_state(store, "/dev", XenbusState.InitWait, anew=True)
    store.write("/dev/state", "nonsense")
    store.dispatch()
    assert seen[-1] == XenbusState.Unknown
    watch.cancel()
    store.rm("/dev")
    assert not xenbus.switch_state(store, "/dev", XenbusState.Closed)
    assert not store.exists("/dev")


@pytest.mark.parametrize("text", ["", "9", "-1", "4\0", "9" * 5000, "x"])
def test_nonsense_is_no_state(world: World, text: str) -> None:
    store = world.open()
    store.write("/dev/state", text[:4000])
    assert xenbus.read_state(store, "/dev") == XenbusState.Unknown


S = XenbusState


@pytest.mark.parametrize(
    ("old", "new", "may"),
    [
        (S.Unknown, S.Initialising, True),
        (S.Initialising, S.Closing, True),
        (S.Connected, S.Initialised, False),
        (S.Connected, S.Reconfiguring, True),
        (S.Reconfigured, S.Connected, True),
        (S.Reconfiguring, S.Closing, True),
        (S.Initialised, S.Reconfiguring, False),
        (S.Closing, S.Connected, False),
        (S.Closed, S.Initialising, True),
        (S.Closed, S.Unknown, False),
    ],
)
def test_may_follow(old: XenbusState, new: XenbusState, may: bool) -> None:
    assert xenbus.may_follow(old, new) is may


def test_keys(world: World) -> None:
    store = world.open()
    xenbus.write_keys(store, "/dev", {"ring-ref": 8, "protocol": "x86_64-abi", "feature-persistent": 1, "text": "x"})
    keys = xenbus.Keys(store, "/dev")
    assert keys.number("ring-ref") == 8
    assert keys.number("none", 5) == 5
    assert keys.text("protocol") == "x86_64-abi"
    assert keys.text("none", "d") == "d"
    assert (keys.flag("feature-persistent"), keys.flag("text"), keys.flag("none")) == (True, False, False)
    for bad, match in (
        (lambda: keys.number("none"), "missing"),
        (lambda: keys.text("none"), "missing"),
        (lambda: keys.number("text"), "not a number"),
        (lambda: keys.number("ring-ref", most=7), "is 8, not 0 to 7"),
    ):
        with pytest.raises(PeerError, match=match):
            bad()


def test_keys_one_may_not_read(world: World) -> None:
    world.open().introduce(1, 1, 1)
    with pytest.raises(PeerError, match="EACCES"):
        xenbus.Keys(world.open(1), "/tool").text("xenstored")


def test_error_node(world: World) -> None:
    store = world.open()
    xenbus.write_error(store, "/dev", "the reason")
    assert not store.exists("/dev")             # what is gone is not brought back
    store.write("/dev/state", 4)
    xenbus.write_error(store, "/dev", "the reason")
    assert store.read_text("/dev/error") == "the reason"


def test_many_requests_in_few_trips(world: World) -> None:
    """In order, each answered; more than may be on their way at a time, too. The first error is raised, the rest is done."""
    store = world.open()
    store.write_all({"/d": "", "/d/x": 1}, {"/d": ["n3", "r4"]})
    assert store.get_perms("/d/x") == ["n3", "r4"], "created after its parent had them"
    values = {f"/d/{number}": number for number in range(2 * PIPELINED + 3)}
    store.write_all(values)
    found = store.read_all([*values, "/d/none", "/d/x"])
    assert found[:-2] == [str(number).encode() for number in values.values()] and found[-1] == b"1"
    assert isinstance(found[-2], XenstoreError) and found[-2].code == "ENOENT"
    with pytest.raises(XenstoreError, match="EINVAL"):
        store.write_all({"/d/a": 1, "/d//b": 2, "/d/c": 3})
    assert (store.read("/d/a"), store.read("/d/c")) == (b"1", b"3")
    with pytest.raises(XenstoreError, match="E2BIG"):
        store.write_all({"/d/before": 1, "/d/long": "x" * 5000})
    assert not store.exists("/d/before"), "nothing was sent"
    assert store.read_all([]) == []


def test_a_transaction_that_is_finished_with_its_last_write(world: World) -> None:
    store, other = world.open(), world.open()
    with store.transaction() as t:
        t.write("/a", 1)
        t.finish("/b", 2)
    assert (store.read("/a"), store.read("/b")) == (b"1", b"2")
    with pytest.raises(XenstoreError, match="EAGAIN"), store.transaction() as t:
        t.read("/a")
        other.write("/a", 5)
        t.finish("/b", 6)
    assert (store.read("/a"), store.read("/b")) == (b"5", b"2")
    store.write("/keys/one", 1)
    keys = xenbus.Keys(store, "/keys").fetch("one", "none")
    store.write("/keys/one", 2)
    assert (keys.number("one"), keys.number("none", 7)) == (1, 7), "read once, and together"
