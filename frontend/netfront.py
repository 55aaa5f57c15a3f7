"""netfront's data path: frames over one or more pairs of netif rings (xen/io/netif.h). The handshake is `netfront_xenbus`.

Frames are copied between the caller's buffers and pages that are granted for good (`_core.NetTransmit`, `NetReceive`). Who
has many, and no need for copies, uses those pages themselves (`Queue.batch` and `looking`).
"""
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy

from miniguest.frontend.netfront_batch import Batch, Looking
from miniguest.ring import _core
from miniguest.ring.abi.netif import XEN_NETIF_MAX_TX_SIZE
from miniguest.ring.errors import RingError
from miniguest.ring.events import Port

INFO: Final = numpy.dtype(
    [("length", "<u4"), ("flags", "<u2"), ("gso_size", "<u2"), ("gso_type", "u1"), ("hash_type", "u1"), ("parts", "<u2"),
     ("hash", "<u4")]
)                                       # one entry of _core.NetReceive.info
SLOTS_IN_A_TURN: Final = 256            # of a queue's receive ring, before others on the loop have theirs
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Queue:
    """One pair of rings and its event channels, which may be one. received: the receive ring's pages side by side.

    batch(pages): so many granted pages for frames that are put by reference; one such batch a queue.
    """

    transmit: _core.NetTransmit
    receive: _core.NetReceive
    transmit_port: Port
    receive_port: Port
    received: memoryview
    batch: Callable[[int], Batch]

    def looking(self) -> Looking:
        """For who looks at received frames in place instead of taking them."""
        return Looking(self.receive, self.received)


class Netfront:
    """A connected vif, as a Wire (miniguest.frontend.devices.nic), and its receiving end.

    received(frame): called for every frame; when it answers False the frame is kept, with those behind it, until
    `resume`. ready(): called when there is room again after there was none. failed(reason): the backend broke the
    protocol; frames are then dropped. later(fn): calls `fn` when others have had their turn.

    Users with many frames at a time use the rings of `queues` themselves, and do not `start`: they set attend(index),
    which is called when the backend has notified of that queue, and answers whether there was anything to do.
    """

    def __init__(
        self, mac: bytes, mtu: int, queues: list[Queue], failed: Callable[[str], None],
        later: Callable[[Callable[[], None]], None],
    ) -> None:
        self.mac = mac
        self.mtu = mtu
        self.queues = queues
        self.received: Callable[[bytes], bool] = lambda frame: True
        self.ready: Callable[[], None] = lambda: None
        self.attend: Callable[[int], bool] | None = None
        self._failed = failed
        self._later = later
        self._started = self._unfinished = False
        self._dead = False
        self._warned = False                    # of frames that the backend does not take
        self._full = False                      # somebody waits for room
        self._kept: deque[bytes] = deque()

    def on_event(self, index: int, transmit: bool, receive: bool) -> bool:
        """The backend notified of a queue's rings, or one of them; whether there was anything to do."""
        if self._dead:
            return False
        if self.attend is None:
            return (transmit and self.on_transmit()) | (receive and self.on_receive(self.queues[index]))
        try:
            return self.attend(index)
        except RingError as error:
            self._fail(str(error))
            return True

    # -- transmit
    def room(self) -> bool:
        """Whether a frame of any size can be sent now; `ready` is called later when not."""
        transmit = self.queues[0].transmit
        if self._dead or transmit.fits(XEN_NETIF_MAX_TX_SIZE):
            return True
        self._full = True
        try:
            while True:
                transmit.take()
                if transmit.fits(XEN_NETIF_MAX_TX_SIZE):
                    self._full = False
                    return True
                if not transmit.final_check():
                    return False
        except RingError as error:
            self._full = False                  # whoever asks is told now, and not called back in the middle of it
            self._fail(str(error))
            return True

    def send(self, frame: bytes) -> None:
        """Transmit a frame; dropped when the backend does not take such. Only while there is `room`."""
        if self._dead:
            return
        queue = self.queues[0]
        try:
            queue.transmit.put_frame(frame)
        except ValueError as error:
            if not self._warned:                # once: a guest may send such for ever
                self._warned = True
                log.warning("dropped, as is every other such one: %s", error)
            return
        if queue.transmit.push():
            queue.transmit_port.notify()

    def on_transmit(self) -> bool:
        """The backend notified: it has answered requests. Whether somebody waited for that."""
        waited = self._full
        if waited and self.room():
            self.ready()
        return waited

    # -- receive
    def start(self) -> None:
        """Post every buffer there is, and take frames from now on."""
        self._started = True
        for queue in self.queues:
            self._post(queue)
            self.on_receive(queue)

    def _post(self, queue: Queue) -> None:
        if queue.receive.post() and queue.receive.push():
            queue.receive_port.notify()

    def on_receive(self, queue: Queue) -> bool:
        """The backend notified: take its frames; whether there were any."""
        receive = queue.receive
        before = receive.frames + receive.dropped
        if self._started:                       # else nobody is there to receive them: they wait in the backend
            self._take(queue)
        return receive.frames + receive.dropped != before

    def _take(self, queue: Queue) -> None:
        receive = queue.receive
        left = SLOTS_IN_A_TURN
        try:
            while not self._dead and not self._kept:
                if left <= 0:
                    self._finish_later()
                    return
                left -= receive.posted_buffers
                count = receive.take()
                left += receive.posted_buffers
                if count:
                    self._hand_over(receive, count)
                if not self._kept:              # else the backend is to wait, too
                    self._post(queue)
                    if not count and not receive.final_check():
                        return
        except RingError as error:
            self._fail(str(error))

    def _finish_later(self) -> None:
        """A backend that has the next frames as soon as it gets pages must not keep everybody else waiting."""
        if not self._unfinished:
            self._unfinished = True
            self._later(self._finish)

    def _finish(self) -> None:
        self._unfinished = False
        for queue in self.queues:
            self._take(queue)

    def _hand_over(self, receive: _core.NetReceive, count: int) -> None:
        at = 0
        for length in numpy.frombuffer(receive.info, INFO, count)["length"].tolist():
            frame = bytes(memoryview(receive.data)[at : at + length])
            at += length
            if self._dead:                      # since the frame before
                return
            if self._kept or not self.received(frame):
                self._kept.append(frame)

    @property
    def keeps(self) -> bool:
        """Whether frames wait for `resume`."""
        return bool(self._kept)

    def resume(self) -> None:
        """Offer the frames that were kept again."""
        while self._kept:
            if not self.received(self._kept[0]):
                return
            if self._kept:                      # else whoever received it has abandoned the device
                self._kept.popleft()
        for queue in self.queues:
            self.on_receive(queue)

    # -- the end
    def _fail(self, reason: str) -> None:
        if not self._dead:
            log.error("network device: %s", reason)
            self.abandon()
            self._failed(reason)

    def abandon(self) -> None:
        """The backend is gone for good: nothing is received any more, and what is sent is dropped."""
        self._dead = True
        self._kept.clear()
        if self._full:
            self._full = False
            self.ready()
