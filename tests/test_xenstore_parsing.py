"""What xenstored makes of the bytes it is sent: paths, permissions, messages."""
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniguest.backend.xenstored import paths, permissions
from miniguest.backend.xenstored.permissions import Access, Entry, Identity, granted
from miniguest.ring.abi import xs_wire
from miniguest.ring.errors import PeerError, XenstoreError
from miniguest.ring.xenstore.message import Message, MessageReader, join_strings, split_strings


@pytest.mark.parametrize(
    ("given", "domid", "path"),
    [
        (b"/", 0, "/"),
        (b"/a-Z_0/@b", 0, "/a-Z_0/@b"),
        (b"device/vbd", 3, "/local/domain/3/device/vbd"),
        (b"x", 0, "/local/domain/0/x"),
        (b"/" + b"a" * 3071, 7, "/" + "a" * 3071),
        (b"a" * 2048, 7, "/local/domain/7/" + "a" * 2048),
    ],
)
def test_good_path(given: bytes, domid: int, path: str) -> None:
    assert paths.absolute(given, domid) == path


@pytest.mark.parametrize(
    "given",
    [
        b"", b"//", b"/a/", b"a/", b"/a//b", b"/a b", b"/a\n", b"/\xc3\xa4", b"/a.b", b"/a:b", b"@x",
        b"@introduceDomain",
        b"/" + b"a" * 3072, b"a" * 2049,
    ],
)  # fmt: skip
def test_bad_path(given: bytes) -> None:
    with pytest.raises(XenstoreError) as caught:
        paths.absolute(given, 1)
    assert caught.value.code == "EINVAL"


def test_special_path_only_where_admitted() -> None:
    assert paths.absolute(b"@releaseDomain", 1, special=True) == "@releaseDomain"


def test_upwards() -> None:
    assert paths.upwards("/a/b") == ["/a/b", "/a", "/"]
    assert paths.upwards("/") == ["/"]
    assert paths.upwards("@releaseDomain") == ["@releaseDomain"]


@pytest.mark.parametrize("given", [[b"n0"], [b"b1", b"r2", b"w65535", b"n0"]])
def test_permissions_are_sent_as_they_came(given: list[bytes]) -> None:
    assert permissions.format_entries(permissions.parse(given)) == given


@pytest.mark.parametrize(
    "given", [[], [b""], [b"r"], [b"x1"], [b"r-1"], [b"r1 "], [b"r65536"], [b"n0", b"rr"], [b"r" + b"1" * 99]]
)
def test_bad_permissions(given: list[bytes]) -> None:
    with pytest.raises(XenstoreError) as caught:
        permissions.parse(given)
    assert caught.value.code == "EINVAL"


ENTRIES = (Entry(5, Access.READ), Entry(6, Access.WRITE), Entry(7, Access.NONE), Entry(6, Access.READ))


@pytest.mark.parametrize(
    ("who", "access"),
    [
        (Identity(0), Access.ALL),
        (Identity(5), Access.ALL),
        (Identity(6), Access.WRITE),  # the first entry that fits counts
        (Identity(7), Access.NONE),
        (Identity(8), Access.READ),  # the owner's entry says what all others may
        (Identity(8, target=5), Access.ALL),
        (Identity(8, target=6), Access.WRITE),
        (Identity(7, target=6), Access.WRITE),
    ],
)
def test_granted(who: Identity, access: Access) -> None:
    assert granted(ENTRIES, who) == access


MESSAGES = st.lists(
    st.builds(Message, *[st.integers(0, 0xFFFFFFFF)] * 3, st.binary(max_size=40) | st.just(b"x" * 4096)), max_size=6
)


@given(MESSAGES, st.lists(st.integers(1, 50)))
def test_messages_survive_any_cut(messages: list[Message], cuts: list[int]) -> None:
    stream = b"".join(message.pack() for message in messages)
    reader = MessageReader()
    got = []
    for size in cuts:
        got += list(reader.feed(stream[:size]))
        stream = stream[size:]
    got += list(reader.feed(stream))
    assert got == messages


@given(MESSAGES)
def test_wanted_never_reaches_into_the_next_message(messages: list[Message]) -> None:
    stream = b"".join(message.pack() for message in messages)
    reader = MessageReader()
    got = []
    while stream:
        size = reader.wanted
        new = list(reader.feed(stream[:size]))
        stream = stream[size:]
        assert len(new) <= 1
        got += new
    assert got == messages


def test_good_messages_before_one_too_long_are_served() -> None:
    good = Message(1, 2, 3, b"abc")
    bad = Message(1, 2, 3, b"x" * (xs_wire.XENSTORE_PAYLOAD_MAX + 1))
    feed = MessageReader().feed(good.pack() + bad.pack())
    assert next(feed) == good
    with pytest.raises(PeerError, match="4097"):
        next(feed)


def test_header_is_xsd_sockmsg() -> None:
    assert xs_wire.SOCKMSG.struct.unpack(Message(1, 2, 3, b"four").pack()[:16]) == (1, 2, 3, 4)


def test_strings() -> None:
    assert join_strings(b"a", b"", b"b") == b"a\0\0b\0"
    assert split_strings(b"a\0\0b\0rest") == [b"a", b"", b"b"]
    assert split_strings(b"rest") == []
