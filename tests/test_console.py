"""A console page between its two ends, consfront and the backend, driven step by step."""
import itertools
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniguest.backend.console.process import Console
from miniguest.backend.console.sinks import FileSink, StdioSink
from miniguest.frontend import consfront
from miniguest.frontend.consfront import Consfront
from miniguest.ring.abi.console import INTERFACE
from miniguest.ring.console import IN_SIZE, OUT_SIZE
from miniguest.ring.errors import PeerError, XenstoreError

PATH, FRONT = "/local/domain/0/backend/console/2/0", "/local/domain/2/console"


class Store:
    """xenstore as a dictionary."""

    def __init__(self, **keys: str) -> None:
        self.nodes = {f"{PATH}/{name}": value.encode() for name, value in keys.items()}
        self.nodes |= {f"{PATH}/frontend": FRONT.encode(), f"{FRONT}/ring-ref": b"5", f"{FRONT}/port": b"3"}

    def exists(self, path: str) -> bool:
        return any(node == path or node.startswith(f"{path}/") for node in self.nodes)

    def read(self, path: str) -> bytes:
        if path not in self.nodes:
            raise XenstoreError("ENOENT")
        return self.nodes[path]

    def read_all(self, paths: Sequence[str]) -> list[bytes | XenstoreError]:
        return [self.nodes.get(path, XenstoreError("ENOENT")) for path in paths]

    def write(self, path: str, value: str) -> None:
        self.nodes[path] = value.encode()


class Port:
    number = 3
    notified = 0
    closed = False

    def notify(self) -> None:
        self.notified += 1

    def close(self) -> None:
        self.closed = True


@dataclass
class Process:
    """The backend's process and its loop."""

    page: memoryview
    port: Port = field(default_factory=Port)
    fds: dict[int, Callable[[], None]] = field(default_factory=dict)
    ports: dict[int, Callable[[], None]] = field(default_factory=dict)

    @property
    def loop(self) -> "Process":
        return self

    def memory(self, domid: int) -> "Process":
        return self

    def frame(self, number: int) -> memoryview:
        if number != 5:
            raise IndexError(f"frame {number}")
        return self.page

    def bind_interdomain(self, domid: int, port: int) -> Port:
        return self.port

    def on_port(self, port: Port, handler: Callable[[], None]) -> None:
        self.ports[port.number] = handler

    def off_port(self, port: Port) -> None:
        self.ports.pop(port.number, None)

    def on_fd(self, fd: int, handler: Callable[[], None]) -> None:
        self.fds[fd] = handler

    def off_fd(self, fd: int) -> None:
        self.fds.pop(fd, None)


class World:
    """A console of a guest. `typed`: what the guest's serial line took, `room` bytes at a time at most."""

    def __init__(self, tmp_path: Path, **keys: str) -> None:
        self.page = memoryview(bytearray(4096))
        self.process = Process(self.page)
        self.store = Store(**{"output": str(tmp_path / "out"), **keys})
        self.out = tmp_path / "out"
        self.typed = b""
        self.room = 1 << 20
        self.events = 0
        self.front = Consfront(self.page, self.notify, self.receive)

    def notify(self) -> None:
        self.events += 1

    def receive(self, data: bytes) -> int:
        taken = min(len(data), self.room)
        self.typed += data[:taken]
        self.room -= taken
        return taken

    def open(self, stdout: int = 1) -> Console:
        self.back = Console(self.process, self.store, 2, PATH, stdout)      # type: ignore[arg-type]
        return self.back

    def settle(self) -> None:
        """Let both ends handle events until there are none."""
        while self.events or self.process.port.notified:
            if self.events:
                self.events = 0
                self.back.serve()
            if self.process.port.notified:
                self.process.port.notified = 0
                self.front.on_event()

    def lie(self, name: str, value: int) -> None:
        struct.pack_into("<I", self.page, INTERFACE.offset[name], value)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.open()
    yield made
    made.back.close()


@pytest.fixture
def stdin() -> Iterator[int]:
    """A pipe as standard input; its writing end."""
    reader, writer = os.pipe()
    saved = os.dup(0)
    os.dup2(reader, 0)
    os.close(reader)
    yield writer
    os.dup2(saved, 0)
    os.close(saved)


# -- output
def test_more_than_the_ring_holds_arrives_in_order(world: World) -> None:
    data = bytes(index * 11 & 0xFF for index in range(5 * OUT_SIZE + 7))
    world.front.send(data)
    assert world.front.pending == len(data) - OUT_SIZE
    world.settle()
    assert world.front.pending == 0
    assert world.out.read_bytes() == data


def test_one_ring_full_is_served_at_a_time(world: World) -> None:
    world.front.send(b"x" * (3 * OUT_SIZE))
    world.back.serve()
    assert world.out.stat().st_size == OUT_SIZE
    world.settle()
    assert world.out.stat().st_size == 3 * OUT_SIZE


def test_the_backlog_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consfront, "BACKLOG", 100)
    world.front.send(b"a" * 90)
    world.front.send(b"b" * OUT_SIZE)           # 90 are in the ring: of these 100 are kept
    assert world.front.lost == OUT_SIZE - 100
    world.settle()
    assert world.out.read_bytes() == b"a" * 90 + b"b" * 100


def test_the_last_words_are_printed_at_the_end(world: World) -> None:
    world.front.send(b"good bye")
    world.back.close()
    assert world.out.read_bytes() == b"good bye"
    assert world.process.port.closed


def test_a_copy_gets_everything_even_when_the_output_does_not(tmp_path: Path) -> None:
    world = World(tmp_path, output="/dev/full", copy=str(tmp_path / "copy"))
    with closing(world.open()):
        world.front.send(b"one")
        world.settle()
        world.front.send(b"two")
        world.settle()
    assert (tmp_path / "copy").read_bytes() == b"onetwo"


def test_a_reader_that_went_away_is_no_reason_to_end(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    world = World(tmp_path, output="stdio", copy=str(tmp_path / "copy"))
    with closing(world.open(writer)):
        world.front.send(b"unheard")
        world.settle()
    os.close(writer)
    assert (tmp_path / "copy").read_bytes() == b"unheard"


# -- prefixes
def printed(*chunks: bytes, prefix: str = "g| ") -> bytes:
    reader, writer = os.pipe()
    sink = StdioSink(writer, prefix)
    for chunk in chunks:
        sink.write(chunk)
    sink.close()
    os.close(writer)
    with open(reader, "rb") as file:
        return file.read()


@pytest.mark.parametrize(("chunks", "out"), [
    ((b"one\ntwo\n",), b"g| one\ng| two\n"),
    ((b"one\r\ntwo\r\n",), b"g| one\r\ng| two\r\n"),
    ((b"one\n\rtwo\n\r",), b"g| one\n\rg| two\n\r"),
    ((b"on", b"e\n", b"two"), b"g| one\ng| two"),
    ((b"one\r", b"\ntwo"), b"g| one\r\ng| two"),
    ((b"one\n", b"\rtwo"), b"g| one\n\rg| two"),
    ((b"one\n", b"\r", b"two"), b"g| one\n\rg| two"),
    ((b"\n\n",), b"g| \ng| \n"),
    ((b"progress 1\rprogress 2\n",), b"g| progress 1\rprogress 2\n"),
    ((b"", b"x"), b"g| x"),
])
def test_every_line_begins_with_the_prefix(chunks: tuple[bytes, ...], out: bytes) -> None:
    assert printed(*chunks) == out


@given(data=st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\r"]), max_size=30), cuts=st.lists(st.integers(0, 60), max_size=6))
def test_where_writes_are_split_changes_nothing(data: list[bytes], cuts: list[int]) -> None:
    whole = b"".join(data)
    edges = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    pieces = [whole[start:end] for start, end in itertools.pairwise(edges)]
    assert printed(*pieces) == printed(whole)
    assert printed(*pieces).replace(b"g| ", b"") == whole


def test_several_guests_keep_their_own_lines() -> None:
    reader, writer = os.pipe()
    one, two = StdioSink(writer, "a| "), StdioSink(writer, "b| ")
    one.write(b"first\n")
    two.write(b"second\r\n")
    one.write(b"third\n")
    os.close(writer)
    with open(reader, "rb") as file:
        assert file.read() == b"a| first\nb| second\r\na| third\n"


def test_without_a_prefix_bytes_are_what_they_were() -> None:
    assert printed(b"\r\n\xff\0a\n", prefix="") == b"\r\n\xff\0a\n"


# -- input
def test_input_waits_until_the_guest_has_room(tmp_path: Path, stdin: int) -> None:
    world = World(tmp_path, input="1")
    with closing(world.open()):
        world.room = 10
        world.back.serve()
        data = bytes(index & 0xFF for index in range(3 * IN_SIZE))
        os.write(stdin, data)
        world.process.fds[0]()
        world.settle()
        assert world.typed == data[:10]
        assert 0 not in world.process.fds       # nothing more is read while there is no room
        while len(world.typed) < len(data):
            world.room = 700
            world.front.feed()
            world.settle()
        assert world.typed == data
        assert 0 in world.process.fds
        os.close(stdin)
        world.process.fds[0]()
        assert world.process.fds == {}          # the end of the input


def test_a_file_as_input_is_read_to_its_end(tmp_path: Path) -> None:
    data = os.urandom(200_000)
    (tmp_path / "in").write_bytes(data)
    world = World(tmp_path, input="1")
    saved = os.dup(0)
    file = os.open(tmp_path / "in", os.O_RDONLY)
    os.dup2(file, 0)
    try:
        with closing(world.open()):
            world.back.serve()
            world.settle()
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        os.close(file)
    assert world.typed == data
    assert world.process.fds == {}


def test_a_pty_carries_both_ways(tmp_path: Path) -> None:
    world = World(tmp_path, output="pty")
    with closing(world.open()):
        world.back.serve()
        name = world.store.nodes[f"{FRONT}/tty"].decode()
        terminal = os.open(name, os.O_RDWR | os.O_NOCTTY)
        world.front.send(b"login: ")
        world.settle()
        assert os.read(terminal, 100) == b"login: "
        os.write(terminal, b"root\r")
        (readable,) = world.process.fds.values()
        readable()
        world.settle()
        assert world.typed == b"root\r"
        os.close(terminal)
        world.front.send(b"x" * 100_000)        # nobody reads: lost, not waited for
        world.settle()
        assert world.front.pending == 0
    assert world.process.fds == {}


# -- lies
@pytest.mark.parametrize("name", ["out_prod", "out_cons"])
def test_a_guest_that_lies_about_its_output_loses_its_console(world: World, name: str) -> None:
    world.lie(name, OUT_SIZE + 1)
    world.back.serve()
    assert b"stream indices" in world.store.nodes[f"{PATH}/error"]
    assert world.process.port.closed
    assert world.process.ports == {}
    world.back.close()


def test_a_guest_that_lies_about_its_input_loses_its_console(tmp_path: Path, stdin: int) -> None:
    world = World(tmp_path, input="1")
    with closing(world.open()):
        world.back.serve()
        world.lie("in_cons", 1)
        os.write(stdin, b"typed")
        world.process.fds[0]()
        assert b"stream indices" in world.store.nodes[f"{PATH}/error"]
        assert world.process.fds == {}
    os.close(stdin)


@pytest.mark.parametrize("name", ["out_prod", "out_cons", "in_prod", "in_cons"])
def test_a_backend_that_lies_costs_the_serial_line_only(world: World, name: str) -> None:
    world.lie(name, 0x80000000)
    world.front.send(b"anybody?")
    world.front.on_event()
    assert world.typed == b""
    assert world.front.pending in (0, 8)


@given(indices=st.lists(st.integers(0, 0xFFFFFFFF), min_size=4, max_size=4))
def test_any_indices_are_survived_by_both(tmp_path_factory: pytest.TempPathFactory, indices: list[int]) -> None:
    world = World(tmp_path_factory.mktemp("lies"))
    with closing(world.open()):
        for name, value in zip(("in_cons", "in_prod", "out_cons", "out_prod"), indices, strict=True):
            world.lie(name, value)
        world.back.serve()
        world.front.send(b"text")
        world.front.on_event()


# -- a device that cannot be opened
@pytest.mark.parametrize(("key", "value", "reason"), [
    (f"{FRONT}/ring-ref", b"99", "no console page"),
    (f"{FRONT}/ring-ref", b"soon", "not a number"),
    (f"{FRONT}/port", b"-1", "port"),
])
def test_nonsense_in_the_store(tmp_path: Path, key: str, value: bytes, reason: str) -> None:
    world = World(tmp_path)
    world.store.nodes[key] = value
    with pytest.raises(PeerError, match=reason):
        world.open()


def test_an_output_that_cannot_be_opened_leaves_nothing_behind(tmp_path: Path) -> None:
    world = World(tmp_path, output=str(tmp_path / "no" / "such"))
    with pytest.raises(FileNotFoundError):
        world.open()
    assert world.process.port.closed
    assert world.process.ports == {}


def test_a_file_is_emptied_and_private(tmp_path: Path) -> None:
    path = tmp_path / "serial"
    path.write_bytes(b"of the last run")
    sink = FileSink(path)
    sink.write(b"new")
    sink.close()
    assert path.read_bytes() == b"new"
    other = tmp_path / "other"
    FileSink(other).close()
    assert other.stat().st_mode & 0o777 == 0o600
