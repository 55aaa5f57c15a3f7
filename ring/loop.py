"""The event loop of every process: event channels, descriptors and timers, with one blocking point."""
import heapq
import itertools
import logging
import select
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from miniguest.ring._core import IoreqWatch
from miniguest.ring.events import Events, Port

DESCRIPTOR: Final = 2                   # bits of Upcall.wait's answer
PENDING: Final = 4
WATCHED: Final = 8
PATIENCE: Final = 64                    # turns full of events before descriptors are looked at anyway

Handler = Callable[[], None]
log = logging.getLogger(__name__)


class Timer:
    """A call to come. `cancel` before it is due."""

    __slots__ = ("due", "fn")

    def __init__(self, due: float, fn: Handler) -> None:
        self.due = due
        self.fn: Handler | None = fn

    def cancel(self) -> None:
        """It will not be called."""
        self.fn = None


class Loop:
    """Calls handlers, one at a time, until `stop`. Not for threads."""

    def __init__(self, events: Events) -> None:
        self.events = events
        self._epoll = select.epoll()
        self.upcall = events.upcall(self._epoll.fileno())
        self._fds: dict[int, tuple[Handler, Handler | None]] = {}
        self._ports: dict[int, Handler] = {}
        self._pending: dict[int, None] = {}     # in order of arrival, each port once however often it was taken
        self._soon: deque[Handler] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._turns = 0
        self._watch: IoreqWatch | None = None
        self._watched: Handler = lambda: None
        self.stopping = False

    def on_port(self, port: Port, handler: Handler) -> None:
        """Call `handler` whenever `port` was notified."""
        self._ports[port.number] = handler

    def off_port(self, port: Port) -> None:
        """Forget a port's handler."""
        self._ports.pop(port.number, None)

    def on_fd(self, fd: int, handler: Handler, write_handler: Handler | None = None) -> None:
        """Call `handler` while `fd` is readable, and `write_handler`, if any, while it is writable (level triggered)."""
        mask = select.EPOLLIN | (select.EPOLLOUT if write_handler else 0)
        if fd in self._fds:
            self._epoll.modify(fd, mask)
        else:
            self._epoll.register(fd, mask)
        self._fds[fd] = (handler, write_handler)

    def off_fd(self, fd: int) -> None:
        """Forget a descriptor; to be called before it is closed."""
        if self._fds.pop(fd, None):
            self._epoll.unregister(fd)

    def on_watch(self, watch: IoreqWatch, handler: Handler) -> None:
        """Call `handler` whenever what `watch` looks at has something to do."""
        self._watch, self._watched = watch, handler

    def call_soon(self, fn: Handler) -> None:
        """Call `fn` in the next turn."""
        self._soon.append(fn)

    def call_later(self, seconds: float, fn: Handler) -> Timer:
        """Call `fn` once `seconds` have passed."""
        timer = Timer(time.monotonic() + seconds, fn)
        heapq.heappush(self._timers, (timer.due, next(self._order), timer))
        return timer

    def stop(self) -> None:
        """`run` returns after this turn."""
        self.stopping = True

    def run(self) -> None:
        """Take turns until `stop`."""
        while not self.stopping:
            self.turn()

    def turn(self, timeout: float = -1.0) -> None:
        """Wait for something to happen (at most `timeout` seconds, -1: for ever), then handle all that did."""
        woke = self.upcall.wait(self._wait_ns(timeout), self._watch)
        if woke & WATCHED:
            self._watched()
        self.collect()
        self._turns += 1
        if woke & DESCRIPTOR or (self._turns % PATIENCE == 0 and self._fds):
            self._descriptors()
        if self._pending:
            self._dispatch()
        if self._soon:
            for _ in range(len(self._soon)):
                self._soon.popleft()()
        if self._timers:
            self._expire()

    def collect(self) -> None:
        """Take the pending ports; their handlers are called in the next turn."""
        for number in self.upcall.take():
            self._pending[number] = None

    def wait_port(self, port: Port) -> None:
        """Block until `port` is notified; whatever else comes meanwhile is handled in the next turn."""
        while port.number not in self._pending:
            self.upcall.wait(-1, None)
            self.collect()
            if self.stopping:
                raise InterruptedError("stopped while waiting for an event channel")
        del self._pending[port.number]

    def _wait_ns(self, timeout: float) -> int:
        if self._pending or self._soon:
            return 0
        if self._timers:
            until = max(0.0, self._timers[0][0] - time.monotonic())
            timeout = until if timeout < 0 else min(timeout, until)
        return -1 if timeout < 0 else int(timeout * 1e9)

    def _descriptors(self) -> None:
        for fd, mask in self._epoll.poll(0):
            handlers = self._fds.get(fd)
            if handlers and mask & ~select.EPOLLOUT:
                handlers[0]()
            handlers = self._fds.get(fd)
            if handlers and handlers[1] and mask & select.EPOLLOUT:
                handlers[1]()

    def _dispatch(self) -> None:
        for number in list(self._pending):
            if number not in self._pending:     # a handler before waited for this one (`wait_port`)
                continue
            del self._pending[number]
            if handler := self._ports.get(number):
                handler()

    def _expire(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            fn = heapq.heappop(self._timers)[2].fn
            if fn:
                fn()

    def close(self) -> None:
        """Release the loop's own descriptor."""
        self._epoll.close()
