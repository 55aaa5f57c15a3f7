"""netfront's rings in this process, and a backend on their other ends that does as it is told, lies included."""
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from miniguest.frontend.netfront import INFO, Netfront, Queue
from miniguest.frontend.netfront_batch import Batch
from miniguest.frontend.pages import Pages
from miniguest.ring import _core
from miniguest.ring.grants import Grants
from miniguest.ring.memory import Memory

PAGE = 4096
OKAY, ERROR, DROPPED, NULL = 0, -1, -2, 1
CSUM_BLANK, VALIDATED, MORE, EXTRA = 1, 2, 4, 8         # NETTXF_*
RX_VALIDATED, RX_BLANK, RX_MORE, RX_EXTRA = 1, 2, 4, 8  # NETRXF_*
GSO, MCAST_ADD, MCAST_DEL, HASH = 1, 2, 3, 4            # XEN_NETIF_EXTRA_TYPE_*
PERMIT, READONLY, READING, WRITING = 1, 4, 8, 16        # GTF_*
MAC = bytes.fromhex("00163e000001")


@cache
def frame(size: int, fill: int = 0) -> bytes:
    """A frame whose bytes depend on where they are and on `fill`."""
    return (MAC + b"\x00\x16\x3e\x00\x00\x02\x88\xb5" + bytes((7 * i + 31 * fill + (i >> 8)) & 0xFF for i in range(size)))[:size]


def nothing() -> None:
    """What a backend does that does not listen."""


@dataclass
class Port:
    """An event channel that counts; `other` is what its other end does."""

    number: int = 0
    notified: int = 0
    other: Callable[[], None] = nothing

    def notify(self) -> None:
        self.notified += 1
        self.other()


@dataclass(frozen=True)
class Sent:
    """A frame as the backend read it out of the transmit ring; ids: of its slots, None for an extra info's."""

    data: bytes
    flags: int
    gso: tuple[int, int] | None
    ids: tuple[int | None, ...]


class Backend:
    """The other ends of one pair of rings, in domain `domid`."""

    def __init__(self, memory: Memory, tx_frame: int, rx_frame: int, index: int = 0, domid: int = 0) -> None:
        self.memory, self.domid = memory, domid
        self.tx_page, self.rx_page = memory.frame(tx_frame), memory.frame(rx_frame)
        self.tx = _core.BackRing(self.tx_page, 12, 4, index)
        self.rx = _core.BackRing(self.rx_page, 8, 8, index)
        self.posted: list[tuple[int, int]] = []             # (id, gref), in the ring's order, not yet answered

    # -- grants
    def flags(self, gref: int) -> int:
        return struct.unpack_from("<H", self.memory.grant_entries, gref * 8)[0]     # type: ignore[no-any-return]

    def granted(self, gref: int, writing: bool) -> memoryview:
        """The frame behind a gref, which has to allow that."""
        flags, domid, number = struct.unpack_from("<HHI", self.memory.grant_entries, gref * 8)
        assert flags & 3 == PERMIT and domid == self.domid and not (writing and flags & READONLY), (gref, flags, domid)
        return self.memory.frame(number)

    def keep_mapped(self, gref: int, how: int = READING | WRITING) -> None:
        self.memory.grant_entries[gref * 8] |= how

    # -- transmit
    def take(self) -> list[bytes]:
        """The transmit slots that are there, 12 bytes each."""
        found: list[bytes] = []
        while True:
            count = self.tx.take()
            found += [bytes(self.tx.requests[i * 12 : i * 12 + 12]) for i in range(count)]
            if not self.tx.final_check():
                return found

    def sent(self) -> list[Sent]:
        """The frames that are there, read as netif.h says."""
        slots, found = self.take(), []
        while slots:
            found.append(self._frame(slots))
        return found

    def _frame(self, slots: list[bytes]) -> Sent:
        gref, offset, flags, id_, total = struct.unpack("<IHHHH", slots.pop(0))
        ids: list[int | None] = [id_]
        gso, more = None, flags & EXTRA
        while more:
            kind, more, size, gso_type, pad, features = struct.unpack("<BBHBBH4x", slots.pop(0))
            assert (kind, pad, features) == (GSO, 0, 0)
            gso = (size, gso_type)
            ids.append(None)
        pieces = [(gref, offset, total)]
        more = flags & MORE
        while more:
            gref, offset, more, id_, size = struct.unpack("<IHHHH", slots.pop(0))
            assert more & ~MORE == 0, "flags of a frame are its first slot's"
            pieces.append((gref, offset, size))
            ids.append(id_)
        pieces[0] = (*pieces[0][:2], total - sum(size for _, _, size in pieces[1:]))
        assert all(0 < size <= PAGE - offset for _, offset, size in pieces)
        data = b"".join(bytes(self.granted(gref, False)[offset : offset + size]) for gref, offset, size in pieces)
        return Sent(data, flags & ~(MORE | EXTRA), gso, tuple(ids))

    def answer(self, *responses: tuple[int, int]) -> bool:
        """Put transmit responses (id, status); whether the frontend is to be notified."""
        for index, response in enumerate(responses):
            struct.pack_into("<Hh", self.tx.responses, index * 4, *response)
        self.tx.put(len(responses))
        return self.tx.push()

    def answer_sent(self, *frames: Sent, status: int = OKAY) -> bool:
        """Answer frames honestly: an extra info's slot gets NULL and an id that means nothing."""
        return self.answer(*[(0xDEAD, NULL) if id_ is None else (id_, status) for sent in frames for id_ in sent.ids])

    # -- receive
    def take_posted(self) -> int:
        """Take up what the frontend has posted; how much that is, with what there was."""
        while True:
            for at in range(self.rx.take()):
                id_, pad, gref = struct.unpack_from("<HHI", self.rx.requests, at * 8)
                assert pad == 0
                self.posted.append((id_, gref))
            if not self.rx.final_check():
                return len(self.posted)

    def put(self, *responses: bytes) -> None:
        """Put receive responses, 8 bytes each, without pushing them."""
        for at in range(0, len(responses), self.rx.slots):
            part = responses[at : at + self.rx.slots]
            self.rx.responses[: len(part) * 8] = b"".join(part)
            self.rx.put(len(part))

    def respond(self, *responses: bytes) -> bool:
        """Put receive responses and push; whether the frontend is to be notified."""
        self.put(*responses)
        return self.rx.push()

    def fill(self, data: bytes, flags: int = 0, offset: int = 0, status: int | None = None) -> bytes:
        """Put data into the next posted page; the response that says so, or something else."""
        id_, gref = self.posted.pop(0)
        self.granted(gref, True)[offset : offset + len(data)] = data
        return response(id_, offset, flags, len(data) if status is None else status)

    def extra(self, kind: int, body: bytes = b"", more: bool = False) -> bytes:
        """An extra info, which stands in the place of the next posted page."""
        self.posted.pop(0)
        return (struct.pack("<BB", kind, more) + body).ljust(8, b"\0")

    def slots(self, data: bytes, cuts: list[int] | None = None, flags: int = 0, extras: tuple[bytes, ...] = ()) -> list[bytes]:
        """The responses of a frame cut into pieces of these sizes. extras: type and body of each extra info."""
        sizes = cuts or [min(PAGE, len(data) - at) for at in range(0, len(data), PAGE)]
        made, at = [], 0
        for index, size in enumerate(sizes):
            head = flags | (RX_EXTRA if extras else 0) if index == 0 else 0
            more = RX_MORE if index < len(sizes) - 1 else 0
            made.append(self.fill(data[at : at + size], head | more, (at * 13) % (PAGE - size + 1)))
            if index == 0:
                made += [self.extra(one[0], one[1:], number < len(extras) - 1) for number, one in enumerate(extras)]
            at += size
        return made

    def deliver(self, *frames: bytes) -> bool:
        """Deliver frames; whether the frontend is to be notified."""
        self.take_posted()
        return self.respond(*[slot for data in frames for slot in self.slots(data)])


def response(id_: int, offset: int, flags: int, status: int) -> bytes:
    """A netif_rx_response."""
    return struct.pack("<HHHh", id_, offset, flags, status)


BATCH = 40                      # pages that a batch may have


class Pair:
    """A pair of rings with their pages, and the backend of it. `frames`: the page of each transmit and receive id."""

    def __init__(self, memory: Memory, pages: Pages, grants: Grants, sg: bool, index: int, split: bool, buffers: int) -> None:
        tx_frame, rx_frame = pages.alloc(), pages.alloc()
        tx = _core.FrontRing(memory.frame(tx_frame), 12, 4, index=index)
        rx = _core.FrontRing(memory.frame(rx_frame), 8, 8, index=index)
        self.tx_grants = [(grants.give(0, number, True), number) for number in (pages.alloc() for _ in range(tx.slots))]
        self.rx_grants = [(grants.give(0, number), number) for number in (pages.alloc() for _ in range(buffers or rx.slots))]
        self.tx_pages = _core.NetPages(memory.map, memory.grant_entries, self.tx_grants)
        self.rx_pages = _core.NetPages(memory.map, memory.grant_entries, self.rx_grants)
        self.transmit = _core.NetTransmit(tx, self.tx_pages, sg)
        self.receive = _core.NetReceive(rx, self.rx_pages)
        self.tx_port = Port()
        self.rx_port = Port() if split else self.tx_port
        self.received = memory.joined([number for _, number in self.rx_grants])
        self.queue = Queue(
            self.transmit, self.receive, self.tx_port, self.rx_port, self.received, self.make_batch,     # type: ignore[arg-type]
        )
        self._more = (memory, pages, grants)
        self.back = Backend(memory, tx_frame, rx_frame, index)

    def make_batch(self, count: int) -> Batch:
        """See Queue."""
        memory, pages, grants = self._more
        frames = [pages.alloc() for _ in range(count)]
        self.batch_grefs = [grants.give(0, number, True) for number in frames]
        return Batch(self.transmit, memory.grant_entries, self.batch_grefs, memory.joined(frames))

    def take(self) -> list[tuple[bytes, dict[str, int]]]:
        """What NetReceive.take finds: frames, and what it says of them."""
        count = self.receive.take()
        found, at = [], 0
        for index in range(count):
            values = struct.unpack_from("<IHHBBHI", self.receive.info, index * INFO.itemsize)
            info = dict(zip(("length", "flags", "gso_size", "gso_type", "hash_type", "parts", "hash"), values, strict=True))
            found.append((bytes(self.receive.data[at : at + info["length"]]), info))
            at += info["length"]
        return found


class Bench:
    """A Netfront of one or more queues, what it reported, and its backends. Nothing is posted before `start`."""

    def __init__(
        self, directory: Path, sg: bool = True, index: int = 0, queues: int = 1, split: bool = True, buffers: int = 0
    ) -> None:
        self.memory = Memory.create(directory / "memory", max(520, 264 + buffers) * queues + 8 + BATCH)
        pages, grants = Pages(self.memory), Grants(self.memory)
        self.pairs = [Pair(self.memory, pages, grants, sg, index, split, buffers) for _ in range(queues)]
        self.failures: list[str] = []
        self.got: list[bytes] = []
        self.readied = 0
        self.taking = 1 << 30           # how many frames more are taken
        self.later: list[Callable[[], None]] = []
        self.front = Netfront(MAC, 1500, [pair.queue for pair in self.pairs], self.failures.append, self.later.append)
        self.front.received, self.front.ready = self.receive, self.ready

    @property
    def pair(self) -> Pair:
        return self.pairs[0]

    @property
    def back(self) -> Backend:
        return self.pairs[0].back

    def receive(self, data: bytes) -> bool:
        if not self.taking:
            return False
        self.taking -= 1
        self.got.append(data)
        return True

    def ready(self) -> None:
        self.readied += 1

    def close(self) -> None:
        self.memory.close()
