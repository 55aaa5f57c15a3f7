"""The xenstored process: how INTRODUCE finds a domain's page and port, with the process's surroundings played."""
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import pytest

from miniguest.backend.xenstored.daemon import Xenstored
from miniguest.backend.xenstored.process import serve
from miniguest.ring.abi import xs_wire as xs
from miniguest.ring.errors import HypercallError
from miniguest.ring.process import XENSTORED_SOCKET, Process
from miniguest.ring.xenstore.message import Message, MessageReader, join_strings
from miniguest.ring.xenstore.page import StorePage


class Port:
    def __init__(self, number: int) -> None:
        self.number = number
        self.notified = 0
        self.closing: HypercallError | None = None

    def notify(self) -> None:
        self.notified += 1

    def close(self) -> None:
        if self.closing:
            raise self.closing


class Memory:
    """Two frames."""

    def __init__(self) -> None:
        self.data = bytearray(8192)

    def frame(self, number: int) -> memoryview:
        if number > 1:
            raise IndexError(f"frame {number} of 2")
        return memoryview(self.data)[number * 4096 : (number + 1) * 4096]


class Loop:
    def __init__(self) -> None:
        self.ports: dict[int, Callable[[], None]] = {}
        self.soon: list[Callable[[], None]] = []

    def on_port(self, port: Port, handler: Callable[[], None]) -> None:
        self.ports[port.number] = handler

    def off_port(self, port: Port) -> None:
        del self.ports[port.number]

    def on_fd(self, fd: int, handler: Callable[[], None], write_handler: Callable[[], None] | None = None) -> None: ...
    def off_fd(self, fd: int) -> None: ...

    def call_soon(self, fn: Callable[[], None]) -> None:
        self.soon.append(fn)


class Surroundings:
    """What `serve` needs of a Process. There is one domain, 7, with an unbound port 3."""

    def __init__(self, runtime: Path) -> None:
        self.runtime = runtime
        self.loop = Loop()
        self.undo = ExitStack()
        self.memories = {7: Memory()}
        self.forgotten: list[int] = []
        self.port = Port(40)

    def memory(self, domid: int) -> Memory:
        if domid not in self.memories:
            raise FileNotFoundError(2, "No such file or directory")
        return self.memories[domid]

    def part(self, domid: int) -> None:
        self.forgotten.append(domid)

    def bind_interdomain(self, remote_domid: int, remote_port: int) -> Port:
        if remote_port != 3:
            raise HypercallError("EINVAL", "not unbound")
        return self.port


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Surroundings]:
    surroundings = Surroundings(tmp_path)
    with surroundings.undo:
        yield surroundings


def ask(daemon: Xenstored, kind: int, *strings: int) -> bytes:
    client = daemon.new_client()
    daemon.handle(client, Message(kind, 1, 0, join_strings(*(str(string).encode() for string in strings))))
    (reply,) = MessageReader().feed(client.outbox.head())
    return reply.payload


@pytest.mark.parametrize(
    ("domid", "gfn", "port", "error"),
    [(8, 1, 3, b"ENOENT\0"), (7, 2, 3, b"EINVAL\0"), (7, 1, 4, b"EINVAL\0")],
)
def test_no_such_domain_frame_or_port(process: Surroundings, domid: int, gfn: int, port: int, error: bytes) -> None:
    daemon = serve(cast(Process, process))
    assert ask(daemon, xs.XS_INTRODUCE, domid, gfn, port) == error
    assert ask(daemon, xs.XS_IS_DOMAIN_INTRODUCED, domid) == b"F\0"
    assert not process.loop.ports


def test_a_domain_is_served_until_it_is_released(process: Surroundings) -> None:
    daemon = serve(cast(Process, process))
    assert ask(daemon, xs.XS_INTRODUCE, 7, 1, 3) == b"OK\0"
    page = StorePage(process.memories[7].frame(1))
    page.requests.write(Message(xs.XS_GET_DOMAIN_PATH, 1, 0, b"7\0").pack())
    process.loop.ports[40]()
    (reply,) = MessageReader().feed(page.responses.read())
    assert reply.payload == b"/local/domain/7\0"
    assert process.port.notified == 1
    process.port.closing = HypercallError("ETIMEDOUT", "the hypervisor is gone")
    assert ask(daemon, xs.XS_RELEASE, 7) == b"OK\0"
    assert not process.loop.ports
    assert process.forgotten == [7]


def test_the_end_of_the_process_undoes_everything(process: Surroundings) -> None:
    daemon = serve(cast(Process, process))
    ask(daemon, xs.XS_INTRODUCE, 7, 1, 3)
    assert (process.runtime / XENSTORED_SOCKET).is_socket()
    process.undo.close()
    assert not (process.runtime / XENSTORED_SOCKET).exists()
    assert not process.loop.ports
