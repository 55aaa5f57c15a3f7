"""Frames between two netfronts, in both directions at once: none lost, doubled, out of order in its flow, or changed.

One copies its frames into the transmit pages and looks at those it receives in place; the other one puts its frames by
reference and takes copies. Each process is a domain. It says hello when its vif is connected, and sends once it has heard
of the other: until then the switch would flood its frames, and what is flooded may be dropped where there is no room.
Both sleep as the waiting rule lets them: a wake that is missed leaves everybody asleep, and the watchdog says so.
"""
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import numpy

from miniguest.deploy.stress.frames import BATCH, Bytes, Numbers, Sink, Source, hello
from miniguest.deploy.stress.lan import Lan, lan, mac_of
from miniguest.deploy.stress.stirring import Stirring
from miniguest.deploy.stress.workers import StressError
from miniguest.frontend.netfront import INFO, Netfront, Queue
from miniguest.ring.process import Process

FLOWS: Final = 8                        # in each direction
HELLOS: Final = 2                       # of a station: to all, and to its peer once that was heard
BUFFERS: Final = 256                    # of a receive ring
NO_LIMIT: Final = 1 << 30
NO_BYTES: Final = numpy.zeros(0, numpy.uint8)
NO_NUMBERS: Final = numpy.zeros(0, numpy.uint32)


class Sending:
    """One queue's transmit half: sends `total` frames of some flows. by_reference: they lie in granted pages when put."""

    def __init__(self, queue: Queue, source: Source, total: int, stirring: Stirring, by_reference: bool = False) -> None:
        self.transmit = queue.transmit
        self._batch = queue.batch(BUFFERS) if by_reference else None
        self._firsts: Numbers = NO_NUMBERS      # pages of frames that were filled, but not put
        self._filled: Numbers = NO_NUMBERS      # their lengths
        self.port = queue.transmit_port
        self.left = total
        self._source = source
        self._stirring = stirring
        self._data: Bytes = NO_BYTES
        self._lengths: Numbers = NO_NUMBERS
        self._first = self._offset = 0

    @property
    def done(self) -> bool:
        """Whether everything was sent and answered."""
        return not self.left and self._first == len(self._lengths) and not self.transmit.outstanding

    def take(self) -> int:
        """Take up answers; how many."""
        answers = self.transmit.take()
        if self._batch:
            self._batch.take()
        if self.transmit.refused:
            raise StressError(f"{self.transmit.refused} frames were answered with an error")
        return answers

    def put(self, most: int = NO_LIMIT) -> int:
        """Put what there is room for, and no more than `most`; how many frames."""
        put = 0
        while put < most and (self._first < len(self._lengths) or self._more()):
            until = self._first + self._stirring.part(min(len(self._lengths) - self._first, most - put))
            count = self._put(self._lengths[:until])
            self._offset += int(self._lengths[self._first : self._first + count].sum())
            self._first += count
            put += count
            if count and self.transmit.push():
                self.port.notify()
            if self._first < until:             # no more room
                break
        return put

    def _put(self, lengths: Numbers) -> int:
        if not self._batch:
            return self.transmit.put(self._data.data, lengths.data, self._first, self._offset)
        at, lengths = self._offset, lengths[self._first :]
        new = lengths[len(self._filled) :]
        firsts = self._batch.place(new) if len(new) else NO_NUMBERS
        at += int(self._filled.sum())
        for first, length in zip(firsts.tolist(), new.tolist(), strict=False):
            self._batch.frame(first, length)[:] = self._data[at : at + length]
            at += length
        self._firsts = numpy.concatenate((self._firsts, firsts))
        self._filled = numpy.concatenate((self._filled, new[: len(firsts)]))
        count = self._batch.put(self._firsts[: len(lengths)], self._filled[: len(lengths)])
        self._firsts, self._filled = self._firsts[count:], self._filled[count:]
        return count

    def _more(self) -> bool:
        count = min(self.left, BATCH)
        if count:
            self._data, self._lengths = self._source.batch(count)
            self._first = self._offset = 0
            self.left -= count
        return count > 0


class Receiving:
    """One queue's receive half. Buffers are posted again as they come, in parts when stirred, unless it `holds` them.

    in_place: frames are looked at where they came, and put together from there to be checked.
    """

    def __init__(self, queue: Queue, sink: Sink, stirring: Stirring, in_place: bool = False) -> None:
        self.receive = queue.receive
        self.port = queue.receive_port
        self.heard = False
        self.holds = False
        self._sink = sink
        self._stirring = stirring
        self._looking = queue.looking() if in_place else None
        self._data = numpy.frombuffer(self.receive.data, numpy.uint8)
        self._info = numpy.frombuffer(self.receive.info, INFO)

    def move(self) -> int:
        """Take up and check what came; how many frames."""
        count = self._looking.look() if self._looking else self.receive.take()
        if self.receive.dropped:
            raise StressError(f"{self.receive.dropped} frames came with an error")
        if count:
            data = self._looking.copy() if self._looking else self._data
            self.heard |= self._sink.check(data, self._info["length"][:count])
            if self._looking:
                self._looking.give_back()
            if not self.holds:
                self.post(self._stirring.part(BUFFERS))
        return count

    def post(self, limit: int = BUFFERS) -> None:
        """Post spare buffers, and tell of them."""
        if self.receive.post(limit) and self.receive.push():
            self.port.notify()


class Station:
    """A domain's process: sends `total` frames to `peer`, and takes and checks as many."""

    def __init__(
        self, process: Process, netfront: Netfront, peer: int, total: int, seed: int, stir: bool, window: int = NO_LIMIT,
        by_reference: bool = False, in_place: bool = False,
    ) -> None:
        self._window = window                   # frames that it may be ahead of what it received
        self._put = 0
        self._stirring = stirring = Stirring(process, seed, stir)
        self._netfront = netfront
        self._peer = mac_of(peer)
        self._total = total
        self._call_soon = process.loop.call_soon
        self._next: set[int] = set()            # queues that have a turn coming
        self._heard = False
        self._sink = Sink(self._peer, netfront.mac, FLOWS)
        queues = netfront.queues
        flows = [list(range(FLOWS))[index :: len(queues)] for index in range(len(queues))]
        shares = [(total + index) // len(queues) for index in range(len(queues))]
        self._sending = [
            Sending(queue, Source(netfront.mac, self._peer, flows[index], seed + index), shares[index], stirring, by_reference)
            for index, queue in enumerate(queues)
        ]
        self._receiving = [Receiving(queue, self._sink, stirring, in_place) for queue in queues]
        for receiving in self._receiving:
            receiving.post()
        netfront.attend = self.on_event
        self._say(hello(netfront.mac))
        for index in range(len(queues)):
            self._soon(index)

    def ended(self) -> bool:
        """Whether everything has come, and everything that was sent was answered."""
        return self._sink.taken == self._total and all(each.done for each in self._sending)

    def _soon(self, index: int) -> None:
        """Look at a queue in the next turn: the others have theirs before."""
        if index not in self._next:
            self._next.add(index)
            self._call_soon(partial(self._again, index))

    def _again(self, index: int) -> None:
        self._next.discard(index)
        self._netfront.on_event(index, True, True)

    def _say(self, frame: bytes) -> None:
        queue = self._netfront.queues[0]
        if not queue.transmit.put_frame(frame):
            raise StressError("no room for a first frame")
        if queue.transmit.push():
            queue.transmit_port.notify()

    def on_event(self, index: int) -> bool:
        """Take what is there and put what there is room for."""
        self._stirring.stirred()
        sending, receiving = self._sending[index], self._receiving[index]
        moved = receiving.move() + sending.take()
        if receiving.heard and not self._heard:
            self._heard = True
            self._say(hello(self._netfront.mac, self._peer))
            for each in range(len(self._sending)):
                self._soon(each)
        if self._heard:
            put = sending.put(self._window + self._sink.taken - self._put)
            self._put += put
            moved += put
        if not moved:
            self._stirring.pause()
            receiving.post()
        if moved or sending.transmit.final_check() | receiving.receive.final_check():
            self._soon(index)
        return True


def pass_frames(
    total: int, doorbell: str = "zmq", queues: int = 1, seed: int = 1, stir: bool = False, window: int = NO_LIMIT,
    seconds: float = 120.0, hogs: int = 0,
) -> float:
    """Pass `total` frames in each direction; frames per second. StressError when anything is not as it should be.

    stir: frames in parts, buffers in parts, pauses, waits that spin for a random time or not at all. window: how many
    frames each end may be ahead of what it received; with one, and one queue, every wake counts. seconds: the watchdog's.
    hogs: how many other processes want the cores all the time.
    """
    with lan(doorbell, hogs) as switch:
        start = time.monotonic()
        for domid, peer in ((1, 2), (2, 1)):

            def main(process: Process, netfront: Netfront, domid: int = domid, peer: int = peer) -> Callable[[], bool]:
                return Station(
                    process, netfront, peer, total, seed + 100 * domid, stir, window, by_reference=domid == 2, in_place=domid == 1
                ).ended

            switch.station(domid, main, queues, static_grants=domid == 1)      # what is mapped slot by slot is to hold, too
        try:
            switch.finish(seconds)
        except StressError as error:
            raise StressError("\n".join([str(error), *(f"vif {domid}: {switch.counters(domid)}" for domid in (1, 2))])) from None
        spent = time.monotonic() - start
        for domid in (1, 2):
            look_at_counters(switch, domid, total)
        return 2 * total / spent


def look_at_counters(switch: Lan, domid: int, total: int) -> None:
    """StressError unless netback counted what happened."""
    found = switch.counters(domid)
    if found["tx_packets"] != total + HELLOS or not total < found["rx_packets"] <= total + HELLOS:
        raise StressError(f"vif {domid}: {found}: not {total} frames and {HELLOS} hellos")
    if found["errors"] or found["tx_dropped"] or found["rx_dropped"] or found["tx_requests"] != found["tx_responses"]:
        raise StressError(f"vif {domid}: {found}")
