"""xenstored's UNIX socket: clients that lie, and Debian's tools and pyxs as they are."""
import os
import selectors
import shutil
import socket
import stat
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from miniguest.backend.xenstored.client import Client
from miniguest.backend.xenstored.daemon import Xenstored
from miniguest.backend.xenstored.sockets import Listener
from miniguest.ring.abi import xs_wire as xs
from miniguest.ring.errors import PeerError, XenstoreError
from miniguest.ring.xenstore import SocketTransport, Xenstore
from miniguest.ring.xenstore.message import Message, MessageReader

TIMEOUT = 20.0  # seconds, for a peer that hangs; none of the tests waits for it


class SmallLoop:
    """An event loop of descriptors alone."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._soon: deque[Callable[[], None]] = deque()
        self._ours, self._theirs = socket.socketpair()
        self._stopping = False
        self.on_fd(self._ours.fileno(), self._woken)

    def on_fd(
        self, fd: int, handler: Callable[[], None], write_handler: Callable[[], None] | None = None
    ) -> None:
        self.off_fd(fd)
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if write_handler else 0)
        self._selector.register(fd, events, (handler, write_handler))

    def off_fd(self, fd: int) -> None:
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def call_soon(self, fn: Callable[[], None]) -> None:
        self._soon.append(fn)

    def turn(self, timeout: float | None = 0.0) -> bool:
        """One turn; whether anything happened."""
        ready = self._selector.select(0.0 if self._soon else timeout)
        for key, events in ready:
            handler, write_handler = key.data
            if events & selectors.EVENT_READ:
                handler()
            if events & selectors.EVENT_WRITE and key.fd in self._selector.get_map():
                write_handler()
        soon, self._soon = self._soon, deque()
        for fn in soon:
            fn()
        return bool(ready or soon)

    def run(self) -> None:
        """Until `stop` is called, from any thread."""
        while not self._stopping:
            self.turn(None)

    def _woken(self) -> None:
        self._ours.recv(1)
        self._stopping = True

    def stop(self) -> None:
        self._theirs.send(b"x")

    def close(self) -> None:
        self._selector.close()
        self._ours.close()
        self._theirs.close()


class Channel:
    def close(self) -> None: ...
    def restart(self) -> None: ...


def connect(client: Client, gfn: int, evtchn: int) -> Channel:
    return Channel()


class Server:
    """xenstored with a socket, run turn by turn."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.loop = SmallLoop()
        self.daemon = Xenstored(connect)
        self.listener = Listener(self.daemon, path, self.loop)

    def settle(self) -> None:
        while self.loop.turn():
            pass

    def client(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(TIMEOUT)
        sock.connect(str(self.path))
        self.settle()
        return sock

    def close(self) -> None:
        self.listener.close()
        self.loop.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "runtime" / "xenstored.sock")
    yield server
    server.close()


def ask(server: Server, sock: socket.socket, *messages: Message) -> list[Message]:
    sock.sendall(b"".join(message.pack() for message in messages))
    server.settle()
    return list(MessageReader().feed(sock.recv(1 << 20, socket.MSG_DONTWAIT)))


def is_cut_off(server: Server, sock: socket.socket) -> bool:
    server.settle()
    try:
        while sock.recv(1 << 20):
            server.settle()
    except ConnectionError:
        pass
    return True


ROOT = Message(xs.XS_DIRECTORY, 1, 0, b"/\0")


def test_only_its_owner_may_connect(server: Server) -> None:
    assert stat.S_IMODE(os.stat(server.path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(server.path.parent).st_mode) == 0o700


def test_a_stale_socket_is_replaced_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "xenstored.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    server = Server(path)
    with server.client() as sock:
        assert ask(server, sock, ROOT)[0].payload == b"tool\0"
        server.close()
        assert sock.recv(1) == b""
    assert not path.exists()


def test_requests_in_one_piece_or_byte_by_byte_are_answered_in_order(server: Server) -> None:
    messages = [Message(xs.XS_READ, number, 0, b"/tool\0") for number in range(50)]
    with server.client() as sock:
        assert [reply.req_id for reply in ask(server, sock, *messages)] == list(range(50))
        for byte in ROOT.pack()[:-1]:
            sock.sendall(bytes([byte]))
            server.settle()
        sock.sendall(ROOT.pack()[-1:])
        server.settle()
        assert sock.recv(4096) == Message(xs.XS_DIRECTORY, 1, 0, b"tool\0").pack()


def test_too_long_a_message_cuts_its_sender_off(server: Server) -> None:
    with server.client() as liar, server.client() as other:
        liar.sendall(ROOT.pack() + xs.SOCKMSG.struct.pack(xs.XS_READ, 1, 0, 4097))
        assert is_cut_off(server, liar)
        assert ask(server, other, ROOT)[0].payload == b"tool\0"


def test_a_client_that_leaves_in_the_middle_takes_its_watches_along(server: Server) -> None:
    with server.client() as other:
        with server.client() as sock:
            ask(server, sock, Message(xs.XS_WATCH, 1, 0, b"/a\0t\0"), Message(xs.XS_TRANSACTION_START, 1, 0, b"\0"))
            sock.sendall(ROOT.pack()[:9])
            server.settle()
        server.settle()
        assert ask(server, other, Message(xs.XS_WRITE, 1, 0, b"/a\0"))[0].payload == b"OK\0"
    assert not server.daemon.watches._by_path


def test_who_asks_and_never_reads_is_cut_off(server: Server) -> None:
    with server.client() as greedy, server.client() as other:
        value = b"v" * 4000
        ask(server, other, Message(xs.XS_WRITE, 1, 0, b"/big\0" + value))
        request = Message(xs.XS_READ, 1, 0, b"/big\0").pack() * 100
        greedy.setblocking(False)
        sent = 0
        with pytest.raises(ConnectionError):
            while sent < 64 << 20:
                try:
                    sent += greedy.send(request)
                except BlockingIOError:
                    pass
                server.settle()
        assert ask(server, other, Message(xs.XS_READ, 1, 0, b"/big\0"))[0].payload == value


def test_who_watches_and_never_reads_is_cut_off(server: Server) -> None:
    with server.client() as deaf, server.client() as other:
        ask(server, deaf, Message(xs.XS_WATCH, 1, 0, b"/a\0" + b"t" * 900 + b"\0"))
        for number in range(2500):
            path = f"/a/{number:04}{'x' * 900}".encode()
            ask(server, other, Message(xs.XS_WRITE, 1, 0, path + b"\0"), Message(xs.XS_RM, 1, 0, path + b"\0"))
            if len(server.listener._connections) == 1:
                break
        assert is_cut_off(server, deaf)
        assert ask(server, other, Message(xs.XS_READ, 1, 0, b"/tool\0"))[0].type == xs.XS_READ


def test_who_reads_slowly_gets_everything(server: Server) -> None:
    with server.client() as slow:
        value = b"v" * 4000
        ask(server, slow, Message(xs.XS_WRITE, 1, 0, b"/big\0" + value))
        requests = [Message(xs.XS_READ, number, 0, b"/big\0") for number in range(150)]
        slow.sendall(b"".join(message.pack() for message in requests))
        server.settle()
        reader = MessageReader()
        got = 0
        while got < 150:
            got += sum(reply.payload == value for reply in reader.feed(slow.recv(3000)))
            server.settle()


def test_a_connection_too_many_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("miniguest.backend.xenstored.sockets._CLIENTS_MAX", 2)
    with server.client() as one, server.client(), server.client() as three:
        assert is_cut_off(server, three)
        assert ask(server, one, ROOT)[0].payload == b"tool\0"


def test_our_client_when_there_is_no_server(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="no xenstored"):
        SocketTransport(tmp_path / "nothing")


# --- with a server of its own thread


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Path]:
    """The socket of a xenstored that runs."""
    server = Server(tmp_path / "xenstored.sock")
    thread = threading.Thread(target=server.loop.run)
    thread.start()
    try:
        yield server.path
    finally:
        server.loop.stop()
        thread.join(TIMEOUT)
        server.close()


def test_our_client(running: Path) -> None:
    store, other = Xenstore(SocketTransport(running)), Xenstore(SocketTransport(running))
    seen: list[str] = []
    store.watch("/a", seen.append)
    other.write("/a/b", 1)
    assert store.read_int("/a/b") == 1
    with selectors.DefaultSelector() as selector:
        selector.register(store.fileno(), selectors.EVENT_READ)
        while len(seen) < 2:
            if not store.pending:
                assert selector.select(TIMEOUT)
            store.dispatch()
    assert seen == ["/a", "/a/b"]
    names = [f"n{number}{'x' * 50}" for number in range(200)]
    for name in names:
        store.mkdir(f"/many/{name}")
    assert store.directory("/many") == names
    with pytest.raises(XenstoreError, match="ENOENT"):
        store.read("/nothing")
    store.close()
    other.close()


def test_our_client_is_told_when_xenstored_goes(running: Path) -> None:
    store = Xenstore(SocketTransport(running))
    store.transport.send(xs.SOCKMSG.struct.pack(xs.XS_READ, 1, 0, 5000))
    with pytest.raises(PeerError):
        store.transport.receive()
    with pytest.raises(PeerError):
        store.read("/tool")
    store.close()


def tool(running: Path, name: str, *arguments: str, status: int = 0) -> str:
    program = shutil.which(f"xenstore-{name}")
    assert program, "xenstore-utils is in deploy/packages.txt"
    done = subprocess.run(
        [program, *arguments],
        env={**os.environ, "XENSTORED_PATH": str(running)},
        capture_output=True, text=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return done.stdout


def test_debians_tools(running: Path) -> None:
    tool(running, "write", "/vm/a", "one", "/vm/b", "two words")
    assert tool(running, "read", "/vm/a", "/vm/b") == "one\ntwo words\n"
    assert tool(running, "list", "/vm") == "a\nb\n"
    tool(running, "chmod", "/vm/a", "n0", "r5")
    assert tool(running, "ls", "-f", "-p", "/vm") == '/vm/a = "one"   (n0,r5)\n/vm/b = "two words"   (n0)\n'
    tool(running, "exists", "/vm/a")
    tool(running, "rm", "/vm/a")
    tool(running, "exists", "/vm/a", status=1)
    assert tool(running, "ls") == 'tool = ""\n xenstored = ""\nvm = ""\n b = "two words"\n'
    tool(running, "read", "/nothing", status=1)


def test_debians_ls_of_a_long_directory(running: Path) -> None:
    store = Xenstore(SocketTransport(running))
    names = [f"n{number}{'x' * 50}" for number in range(200)]
    for name in names:
        store.mkdir(f"/many/{name}")
    store.close()
    assert tool(running, "list", "/many").split() == names


def test_debians_watch(running: Path) -> None:
    program = shutil.which("xenstore-watch")
    assert program, "xenstore-utils is in deploy/packages.txt"
    watcher = subprocess.Popen(
        ["stdbuf", "-oL", program, "/vm"],
        env={**os.environ, "XENSTORED_PATH": str(running)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert watcher.stdout
        assert watcher.stdout.readline() == "/vm\n"
        tool(running, "write", "/vm/a", "one")
        assert watcher.stdout.readline() == "/vm/a\n"
        tool(running, "rm", "/vm")
        assert watcher.stdout.readline() == "/vm\n"
    finally:
        watcher.kill()
        watcher.communicate()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pyxs")
def test_pyxs(running: Path) -> None:
    import pyxs

    with pyxs.Client(unix_socket_path=str(running)) as client:
        client.write(b"/vm/a", b"one")
        assert client.read(b"/vm/a") == b"one"
        assert client.list(b"/vm") == [b"a"]
        assert client.exists(b"/vm/a")
        client.set_perms(b"/vm/a", [b"b0", b"r3"])
        assert client.get_perms(b"/vm/a") == [b"b0", b"r3"]
        client.transaction()
        client.write(b"/vm/b", b"two")
        assert client.commit()
        assert client.read(b"/vm/b") == b"two"
        client.delete(b"/vm")
        assert not client.exists(b"/vm/a")
        assert client.get_domain_path(3) == b"/local/domain/3"
        monitor = client.monitor()
        monitor.watch(b"/vm", b"token")
        assert tuple(next(monitor.wait())) == (b"/vm", b"token")
        client.write(b"/vm/c", b"three")
        assert tuple(next(monitor.wait())) == (b"/vm/c", b"token")
