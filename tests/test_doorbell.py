"""Doorbells: both kinds wake, neither makes its ringer wait, and a successor is found at the same path."""
import os
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from tests.dom0 import runtime_directory

from miniguest.ring.doorbell import VCPU_MASK, Bells, Doorbell, FifoDoorbell, ZmqDoorbell, doorbell_path

MANY = 70_000                               # more than a pipe or a socket holds of unread wakes
WATCHDOG = 20.0                             # seconds


@pytest.fixture
def runtime() -> Iterator[Path]:
    with runtime_directory() as path:
        doorbell_path(path, 1, 7).parent.mkdir(parents=True)
        yield path


class Socket(zmq.Socket[bytes]):
    """A socket whose messages are counted."""

    received = 0                            # by every PULL socket

    def recv(self, *args: Any, **keys: Any) -> Any:
        message = super().recv(*args, **keys)
        Socket.received += self.type == zmq.PULL
        return message


class Context(zmq.Context[Socket]):
    _socket_class = Socket


@pytest.fixture
def context() -> Iterator[Context]:
    with Context() as context:
        yield context


@pytest.fixture
def bells(runtime: Path) -> Iterator[Bells]:
    bells = Bells(runtime)
    yield bells
    bells.close()


def heard(doorbell: Doorbell) -> bool:
    """Whether it rings, be it only now; silent again afterwards."""
    if not select.select([doorbell.fd], [], [], WATCHDOG)[0]:
        return False
    doorbell.drain()
    return True


def messages(doorbell: Doorbell, most: int) -> int:
    """How many come, of `most` that were sent: zmq's own thread brings them one by one."""
    before = Socket.received
    while Socket.received < before + most and heard(doorbell):
        pass
    return Socket.received - before


def nr_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_pipe_that_was_there_is_taken_over(runtime: Path, bells: Bells) -> None:
    """Who rang a predecessor has its pipe open: a successor must hear the same one. And there is none before the first."""
    bells.ring(1, 7)                        # nobody there: nothing to do, and nothing remembered
    path = doorbell_path(runtime, 1, 7 + VCPU_MASK + 1)
    for _ in range(2):
        bell = FifoDoorbell(path)
        bells.ring(1, 7)
        assert os.read(bell.fd, 10) == b"\0"
        bells.ring(1, 7 + 32)
        bell.drain()
        with pytest.raises(BlockingIOError):
            os.read(bell.fd, 10)
        bell.close()
    bell = FifoDoorbell(path)
    for _ in range(MANY):
        bells.ring(1, 7)
    bell.drain()
    bell.close()


def test_zmq_successors_are_found(runtime: Path, bells: Bells) -> None:
    """Whoever rings is connected to a process that is gone, finds that out, and finds its successor."""
    bells.ring(1, 7)
    path = doorbell_path(runtime, 1, 7)
    for turn in range(4):
        with Context() as context:          # whose end is when the connections are closed, as a process's is
            doorbell = ZmqDoorbell(context, path)
            for vcpu in (7, 7 + VCPU_MASK + 1):
                bells.ring(1, vcpu)
                assert messages(doorbell, 1) == 1
            doorbell.close()
        if turn % 2:
            bells.ring(1, 7)                # nobody there
            bells.ring(1, 7)


def test_a_doorbell_whose_process_was_killed_is_nobodys(runtime: Path, bells: Bells) -> None:
    """Its socket's file stays behind, and nobody listens."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(doorbell_path(runtime, 1, 7)))
    bells.ring(1, 7)


def test_a_process_that_was_stopped_delays_nobody(runtime: Path, bells: Bells) -> None:
    """It neither accepts nor reads."""
    with socket.socket(socket.AF_UNIX) as stopped:
        stopped.bind(str(doorbell_path(runtime, 1, 7)))
        stopped.listen()
        for _ in range(MANY):
            bells.ring(1, 7)
        reader, _ = stopped.accept()
        with reader:
            assert len(reader.recv(1 << 20)) > 14                   # greeting and wakes
    bells.ring(1, 7)


def test_each_wake_is_a_message(runtime: Path, bells: Bells, context: Context) -> None:
    """None is lost or stays in the way, wherever it is when the connection is first looked at."""
    doorbell = ZmqDoorbell(context, doorbell_path(runtime, 1, 7))
    for turn in range(200):
        bells.ring(1, 7)
        if turn % 3:
            bells.ring(1, 7)
        assert messages(doorbell, 1 + bool(turn % 3)) == 1 + bool(turn % 3)
    assert not select.select([doorbell.fd], [], [], 0)[0]
    doorbell.close()


def test_any_program_of_zmq_rings(runtime: Path, context: Context) -> None:
    path = doorbell_path(runtime, 1, 7)
    doorbell = ZmqDoorbell(context, path)
    with zmq.Context() as other, other.socket(zmq.PUSH) as push:
        push.linger = 0
        push.connect(f"ipc://{path}")
        for _ in range(10):
            push.send(b"")
            assert messages(doorbell, 1) == 1
    doorbell.close()


def test_any_pull_socket_is_rung(runtime: Path, bells: Bells, context: Context) -> None:
    """What we send is zmq's protocol: a plain PULL socket takes each wake for an empty message."""
    with context.socket(zmq.PULL) as pull:
        pull.linger = 0
        pull.bind(f"ipc://{doorbell_path(runtime, 1, 7)}")
        for _ in range(10):
            bells.ring(1, 7)
            assert pull.poll(WATCHDOG * 1e3)
            assert pull.recv_multipart() == [b""]
        assert not pull.poll(0)


def test_those_who_hang_up_leave_nothing(runtime: Path, context: Context) -> None:
    """Connections that are closed before they were looked at, and such that say nothing or nonsense."""
    path = doorbell_path(runtime, 1, 7)
    doorbell = ZmqDoorbell(context, path)
    descriptors = nr_descriptors()
    for said in (b"", b"\0", b"GET / HTTP/1.0\r\n\r\n", b"\xff" * 100):
        for _ in range(20):
            with socket.socket(socket.AF_UNIX) as caller:
                caller.connect(str(path))
                caller.send(said)
        doorbell.drain()
    bells = Bells(runtime)
    bells.ring(1, 7)
    assert messages(doorbell, 1) == 1
    bells.close()
    end = time.monotonic() + WATCHDOG
    while nr_descriptors() > descriptors:
        assert time.monotonic() < end
    doorbell.close()
