"""What a Python program would take instead of a ring: requests of 112 bytes, responses of 16, 32 requests on their way."""
import importlib
import multiprocessing
import os
import socket
import time
import weakref
from collections.abc import Callable
from ctypes import Structure, c_uint8
from pathlib import Path
from typing import Any, Final, Protocol

import numpy
import zmq

from miniguest.deploy.bench.pair import Drive, Flag, Serve

REQUEST: Final = bytes(range(112))
ID: Final = slice(8, 24)                # what a server answers: a part of the request that holds its id
RESPONSE: Final = 16
WINDOW: Final = 32
BATCH: Final = 16
LONG: Final = 1e6                       # seconds that a queue is waited for


class Requests(Structure):
    """A sample of iceoryx2's: 16 requests."""

    _fields_ = [("content", c_uint8 * (len(REQUEST) * BATCH))]


class Responses(Structure):
    """And 16 responses."""

    _fields_ = [("content", c_uint8 * (RESPONSE * BATCH))]


SAMPLES: Final[dict[str, Any]] = {"requests": Requests, "responses": Responses}


class Peer(Protocol):
    """A way to pass them. Its ends are made in their own processes."""

    def client(self) -> Drive: ...
    def server(self) -> Serve: ...


def driver(send: Callable[[int], object], receive: Callable[[], int], window: int = WINDOW) -> Drive:
    """Keep `window` requests on their way. send: sends so many; receive: waits for responses, and says how many came."""

    def drive(seconds: float) -> tuple[int, float]:
        start = now = time.perf_counter()
        done = 0
        send(window)
        while now - start < seconds:
            count = receive()
            done += count
            send(count)
            now = time.perf_counter()
        left = window
        while left:
            left -= receive()
        return done, now - start

    return drive


def _each(send: Callable[[bytes], object]) -> Callable[[int], None]:
    def send_all(count: int) -> None:
        for _ in range(count):
            send(REQUEST)

    return send_all


def server(receive: Callable[[], bytes], send: Callable[[bytes], object]) -> Serve:
    """Answers one request at a time, and blocks for the next."""

    def serve(_: Flag) -> None:
        while True:
            send(receive()[ID])

    return serve


def batch_server(receive: Callable[[], bytes], send: Callable[[bytes], object]) -> Serve:
    """Answers what comes in one message in one."""

    def serve(_: Flag) -> None:
        while True:
            send(numpy.frombuffer(receive(), numpy.uint8).reshape(-1, len(REQUEST))[:, ID].tobytes())

    return serve


class SeqPacket:
    """AF_UNIX messages with 16 requests each."""

    def __init__(self) -> None:
        self._ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in self._ends:
            weakref.finalize(self, end.close)

    def client(self) -> Drive:
        end, batch = self._ends[0], REQUEST * BATCH
        return driver(lambda count: [end.send(batch) for _ in range(count // BATCH)], lambda: len(end.recv(4096)) // RESPONSE)

    def server(self) -> Serve:
        end = self._ends[1]
        return batch_server(lambda: end.recv(4096), end.send)


class Pair:
    """zmq's PAIR sockets over ipc, 16 requests a message."""

    def __init__(self, directory: Path) -> None:
        self._address = f"ipc://{directory}/pair"

    def client(self) -> Drive:
        end, batch = zmq.Context().socket(zmq.PAIR), REQUEST * BATCH
        end.connect(self._address)
        return driver(lambda count: [end.send(batch) for _ in range(count // BATCH)], lambda: len(end.recv()) // RESPONSE)

    def server(self) -> Serve:
        end = zmq.Context().socket(zmq.PAIR)
        end.bind(self._address)
        return batch_server(end.recv, end.send)


class OsPipes:
    """Two pipes; whatever is there is read at once."""

    def __init__(self) -> None:
        self._requests, self._responses = os.pipe(), os.pipe()
        for end in (*self._requests, *self._responses):
            weakref.finalize(self, os.close, end)

    def client(self) -> Drive:
        reader, writer = self._responses[0], self._requests[1]
        return driver(lambda count: os.write(writer, REQUEST * count), lambda: len(os.read(reader, 4096)) // RESPONSE)

    def server(self) -> Serve:
        reader, writer = self._requests[0], self._responses[1]
        return batch_server(lambda: os.read(reader, WINDOW * len(REQUEST)), lambda data: os.write(writer, data))


class Pipes:
    """multiprocessing.Pipe, a request a message."""

    def __init__(self) -> None:
        self._ends = multiprocessing.Pipe()

    def client(self) -> Drive:
        end = self._ends[0]
        return driver(_each(end.send_bytes), lambda: len(end.recv_bytes()) // RESPONSE)

    def server(self) -> Serve:
        return server(self._ends[1].recv_bytes, self._ends[1].send_bytes)


class Queues:
    """multiprocessing.Queue, a request at a time."""

    def __init__(self) -> None:
        self._requests: multiprocessing.Queue[bytes] = multiprocessing.Queue()
        self._responses: multiprocessing.Queue[bytes] = multiprocessing.Queue()

    def client(self) -> Drive:
        put, get = self._requests.put, self._responses.get
        return driver(_each(put), lambda: len(get()) // RESPONSE)

    def server(self) -> Serve:
        return server(self._requests.get, self._responses.put)


class PosixIpc:
    """POSIX message queues, which hold ten messages unless root says otherwise."""

    def __init__(self) -> None:
        module = importlib.import_module("posix_ipc")
        self._queues = []
        for number in range(2):
            name = f"/miniguest-bench-{os.getpid()}-{number}"
            queue = module.MessageQueue(name, module.O_CREX, max_messages=10, max_message_size=128)
            queue.unlink()                      # what is open goes on, also in the processes that are forked from us
            weakref.finalize(self, queue.close)
            self._queues.append(queue)

    def client(self) -> Drive:
        requests, responses = self._queues
        return driver(_each(requests.send), lambda: len(responses.receive()[0]) // RESPONSE, 10)

    def server(self) -> Serve:
        requests, responses = self._queues
        return server(lambda: requests.receive()[0], responses.send)


class FasterFifo:
    """Its queues, many messages a call, without pickling."""

    def __init__(self) -> None:
        module = importlib.import_module("faster_fifo")
        raw = {"loads": lambda data, *_, **__: bytes(data), "dumps": lambda data: data}
        self._requests, self._responses = module.Queue(1 << 20, **raw), module.Queue(1 << 20, **raw)

    def client(self) -> Drive:
        put, get = self._requests.put_many, self._responses.get_many
        return driver(lambda count: put([REQUEST] * count), lambda: len(get(timeout=LONG, max_messages_to_get=WINDOW)))

    def server(self) -> Serve:
        put, get = self._responses.put_many, self._requests.get_many

        def serve(_: Flag) -> None:
            while True:
                put([request[ID] for request in get(timeout=LONG, max_messages_to_get=WINDOW)])

        return serve


class Iceoryx:
    """iceoryx2's publish and subscribe, 16 requests a sample; both ends look for samples all the time."""

    def __init__(self) -> None:
        importlib.import_module("iceoryx2")     # in this process only to see whether it is there
        self._name = f"miniguest-bench-{os.getpid()}"

    def _ends(self, sending: str, received: str) -> tuple[Any, Any, Any]:
        """A publisher and a subscriber, and the node that keeps them."""
        module = importlib.import_module("iceoryx2")
        module.set_log_level(module.LogLevel.Error)
        node = module.NodeBuilder.new().create(module.ServiceType.Ipc)
        made = []
        for way in (sending, received):
            service = node.service_builder(module.ServiceName.new(f"{self._name}-{way}")).publish_subscribe(SAMPLES[way])
            made.append(service.subscriber_max_buffer_size(64).enable_safe_overflow(False).open_or_create())
        return made[0].publisher_builder().create(), made[1].subscriber_builder().create(), (node, made)

    def client(self) -> Drive:
        publisher, subscriber, kept = self._ends("requests", "responses")
        sample = SAMPLES["requests"]()

        def receive() -> int:
            assert kept
            while (got := subscriber.receive()) is None:
                pass
            got.payload()
            got.delete()
            return BATCH

        return driver(lambda count: [publisher.send_copy(sample) for _ in range(count // BATCH)], receive)

    def server(self) -> Serve:
        publisher, subscriber, kept = self._ends("responses", "requests")
        sample = SAMPLES["responses"]()

        def serve(over: Flag) -> None:
            assert kept
            while True:
                got = subscriber.receive()
                if got is not None:
                    got.payload()
                    got.delete()
                    publisher.send_copy(sample)
                elif over:
                    return

        return serve


def peers(directory: Path) -> dict[str, Callable[[], Peer]]:
    """All of them by name. An ImportError on making one says that it is not installed. directory: for sockets."""
    return {
        "iceoryx2, 16 a sample": Iceoryx, "SOCK_SEQPACKET, 16 a message": SeqPacket, "os.pipe": OsPipes,
        "posix_ipc": PosixIpc, "faster-fifo": FasterFifo, "multiprocessing.Pipe": Pipes, "multiprocessing.Queue": Queues,
        "zmq PAIR, 16 a message": lambda: Pair(directory),
    }
