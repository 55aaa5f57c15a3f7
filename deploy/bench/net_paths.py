"""How many frames a second go from one vif to another through the switch, and through what else a process could take.

    vif     netfront -> netback's switch -> netfront: three processes, and whatever each hop has to look at. One copy, the
            switch's from page to page: the sender's frames lie in granted pages, the receiver looks at them where they are
    unix    AF_UNIX datagrams from one process to another: two copies, by the kernel
    tap     write(2) to a TAP in a network namespace of our own, where the kernel's stack drops them: one copy
    memcpy  a copy of the frame from one buffer to another, by one core

Each path is set up once; a window is a number of frames of one size, timed from the word to go until the last one is
there (tap: written).
"""
import ctypes
import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path as FilePath
from typing import Final, Protocol

import numpy

from miniguest.backend.netback.tap import Tap
from miniguest.deploy.bench.pair import PairError, Pipe
from miniguest.deploy.children import Children
from miniguest.deploy.stress.frames import hello
from miniguest.deploy.stress.lan import Lan, lan, mac_of
from miniguest.frontend.netfront import Netfront
from miniguest.ring.memory import FRAME_SIZE
from miniguest.ring.process import Process

WINDOWS: Final = {60: 100_000, 1500: 60_000, 9000: 20_000, 65535: 16_000}       # frames, by their size in bytes
RINGS: Final = 1 << 20                 # bytes of a ring's pages
SENDER: Final = 1
RECEIVER: Final = 2
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWNET: Final = 0x40000000
TAP_NAME: Final = "mgbench"
TAP_MTU: Final = 65521
WATCHDOG: Final = 60.0                  # seconds for a window
GRACE: Final = 1.0


class Path(Protocol):
    """A way for frames to go."""

    def run(self, size: int, count: int) -> float:
        """Seconds that `count` frames of `size` bytes took."""
        ...


def frame_of(size: int, source: bytes, target: bytes) -> bytes:
    """A frame of an ethertype that nobody knows."""
    return (target + source + b"\x88\xb5").ljust(size, b"\x5a")


class _Sender:
    """The process that sends, a window at a time."""

    def __init__(self, process: Process, netfront: Netfront, orders: Pipe, connected: Pipe) -> None:
        (self.queue,) = netfront.queues
        self.netfront = netfront
        self.orders = orders
        self.left = 0
        self.order = (0, 0)
        self.batch = self.queue.batch(RINGS // FRAME_SIZE)
        self.firsts = self.lengths = numpy.zeros(0, numpy.uint32)
        self.queue.receive.post()
        self.queue.receive.push()
        self.queue.receive_port.notify()
        netfront.attend = self.on_event
        process.loop.on_fd(orders.reader, self.on_order)
        connected.say()

    def on_order(self) -> None:
        self.order = self.orders.hear()
        self.on_event(0)

    def begin(self) -> None:
        """A frame of the ordered size wherever one has room: they are sent again and again as they are."""
        size, self.left = self.order
        self.order = (0, 0)
        pages = -(-size // FRAME_SIZE)
        frame = numpy.frombuffer(frame_of(size, mac_of(SENDER), mac_of(RECEIVER)), numpy.uint8)
        self.firsts = numpy.arange(0, RINGS // FRAME_SIZE - pages + 1, pages, dtype=numpy.uint32)
        self.lengths = numpy.full(len(self.firsts), size, numpy.uint32)
        for first in self.firsts.tolist():
            self.batch.frame(first, size)[:] = frame

    def on_event(self, _: int) -> bool:
        transmit = self.queue.transmit
        while True:
            transmit.take()
            self.firsts = numpy.concatenate((self.firsts, self.batch.take()[0]))
            if self.order[1] and not self.batch.outstanding:        # the last window's are all answered
                self.begin()
            if self.left and len(self.firsts):
                self.put()
            if not transmit.final_check():
                return True

    def put(self) -> None:
        count = self.batch.put(self.firsts[: self.left], self.lengths)
        self.firsts = self.firsts[count:]
        self.left -= count
        if count and self.queue.transmit.push():
            self.queue.transmit_port.notify()


class _Receiver:
    """The process that receives, and says when all of a window is there."""

    def __init__(self, process: Process, netfront: Netfront, orders: Pipe, done: Pipe) -> None:
        (self.queue,) = netfront.queues
        self.done = done
        self.wanted = 0
        self.orders = orders
        self.looking = self.queue.looking()
        receive, transmit = self.queue.receive, self.queue.transmit
        receive.post()
        receive.push()
        self.queue.receive_port.notify()
        netfront.attend = self.on_event
        process.loop.on_fd(orders.reader, self.on_order)
        transmit.put_frame(hello(netfront.mac))
        transmit.push()
        self.queue.transmit_port.notify()

    def on_order(self) -> None:
        _, count = self.orders.hear()
        self.wanted = self.queue.receive.frames + count
        self.done.say()

    def on_event(self, _: int) -> bool:
        receive, transmit = self.queue.receive, self.queue.transmit
        if transmit.take():                     # the switch has heard our hello, and will not flood what is for us
            self.done.say()
        while True:
            count = self.looking.look()
            self.looking.give_back()
            if receive.post() and receive.push():
                self.queue.receive_port.notify()
            if count and receive.frames == self.wanted:
                self.done.say()
            if not receive.final_check():
                return True


class VifPath:
    """From one domain's vif to another's."""

    def __init__(self, switch: Lan) -> None:
        self._switch = switch
        self._to_sender, self._to_receiver, self._done = Pipe(), Pipe(), Pipe()
        switch.station(SENDER, self._send)
        self._wait()
        switch.station(RECEIVER, self._receive)
        self._wait()

    def _send(self, process: Process, netfront: Netfront) -> Callable[[], bool]:
        _Sender(process, netfront, self._to_sender, self._done)
        return lambda: False

    def _receive(self, process: Process, netfront: Netfront) -> Callable[[], bool]:
        _Receiver(process, netfront, self._to_receiver, self._done)
        return lambda: False

    def run(self, size: int, count: int) -> float:
        """See Path."""
        self._to_receiver.say(size, count)
        self._wait()                            # it counts from here
        start = time.perf_counter()
        self._to_sender.say(size, count)
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        try:
            self._done.answer()
        except PairError:
            self._switch.finish(0)              # says who has died, or that they hang


class UnixPath:
    """Datagrams from this process to another."""

    def __init__(self, children: Children) -> None:
        self._orders, self._answers = Pipe(), Pipe()
        self._mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        children.spawn("bench-unix", lambda: self._receive(other))
        other.close()
        # Not settimeout: that polls before every datagram.
        self._mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(WATCHDOG), 0))

    def _receive(self, end: socket.socket) -> None:
        buffer = bytearray(max(WINDOWS))
        while True:
            _, count = self._orders.hear()
            for _ in range(count):
                end.recv_into(buffer)
            self._answers.say()

    def close(self) -> None:
        """Let go of the socket."""
        self._mine.close()

    def run(self, size: int, count: int) -> float:
        """See Path."""
        frame, send = frame_of(size, mac_of(SENDER), mac_of(RECEIVER)), self._mine.send
        self._orders.say(size, count)
        start = time.perf_counter()
        for _ in range(count):
            send(frame)
        self._answers.answer()
        return time.perf_counter() - start


class TapPath:
    """Writes to a TAP, by a process in a network namespace of its own. OSError when that is not permitted."""

    def __init__(self, children: Children) -> None:
        self._orders, self._answers = Pipe(), Pipe()
        children.spawn("bench-tap", self._write)
        error, _ = self._answers.answer()
        if error:
            raise OSError(error, os.strerror(error))

    def _write(self) -> None:
        try:
            enter_namespace()
            tap = Tap(TAP_NAME, None, TAP_MTU)
        except OSError as error:
            self._answers.say(error.errno or errno.EIO)
            return
        self._answers.say()
        while True:
            size, count = self._orders.hear()
            frame, fd = frame_of(size, mac_of(SENDER), mac_of(RECEIVER)), tap.fd
            start = time.perf_counter_ns()
            for _ in range(count):
                os.write(fd, frame)
            self._answers.say(time.perf_counter_ns() - start)

    def run(self, size: int, count: int) -> float:
        """See Path."""
        self._orders.say(size, count)
        return self._answers.answer()[0] / 1e9


class CopyPath:
    """Copies between as many pages as the two rings of a vif to vif path have."""

    def run(self, size: int, count: int) -> float:
        """See Path."""
        slots = max(1, RINGS // size)
        source, target = numpy.ones((slots, size), numpy.uint8), numpy.zeros((slots, size), numpy.uint8)
        pairs = list(zip(source, target, strict=True))
        start = time.perf_counter()
        for index in range(count):
            one, other = pairs[index % slots]
            other[...] = one
        return time.perf_counter() - start


def enter_namespace() -> None:
    """A network namespace of our own; in a user namespace of our own, too, for whoever is not root. OSError without."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET | (CLONE_NEWUSER if os.geteuid() else 0)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@contextmanager
def paths(logs: FilePath) -> Iterator[tuple[dict[str, Path], dict[str, str]]]:
    """Every path by name, and those that cannot be had, with the reason. logs: where their processes' go."""
    left_out = {}
    children = Children(logs)
    with ExitStack() as undo:
        undo.callback(lambda: children.stop(children.living, GRACE))
        found: dict[str, Path] = {"memcpy": CopyPath(), "unix": undo.enter_context(closing(UnixPath(children)))}
        try:
            found["tap"] = TapPath(children)
        except OSError as error:
            left_out["tap"] = error.strerror or str(error)
        for doorbell in ("zmq", "fifo"):
            found[f"vif, {doorbell}"] = VifPath(undo.enter_context(lan(doorbell)))
        yield found, left_out
