"""A blkfront that does as it is told, lies included: a domain, its vbds, and their rings as bare bytes."""
import itertools
import mmap
import struct
import time
from pathlib import Path

import peer
from peer import Device, Key, Ring

from miniguest.backend.blkback import process as blkback
from miniguest.deploy.supervisor import Supervisor
from miniguest.deploy.toolstack import VDEVS
from miniguest.deploy.topology import Disk
from miniguest.ring.abi.xenbus import XenbusState
from miniguest.ring.events import Port
from miniguest.ring.process import Process
from miniguest.ring.statistics import read_statistics, statistics_path

SECTOR = 512
READ, WRITE, BARRIER, FLUSH, RESERVED, DISCARD, INDIRECT = range(7)
OKAY, ERROR, EOPNOTSUPP = 0, -1, -2
REQUEST_SIZE = 112


class Domain(peer.Domain):
    """A domain that may have disks."""

    def add_disk(self, image: Path, vdev: str = "hda", access: str = "rw") -> "Vbd":
        """A vbd of this domain; its backend has it before long."""
        disk = Disk(image=image, vdev=vdev, access=access)     # type: ignore[arg-type]
        self.supervisor.toolstack.add_disk(self.store, self.domid, disk)
        return Vbd(self, VDEVS[vdev], image)


class Vbd(Device):
    """One vbd: its nodes, and once offered its ring and port."""

    def __init__(self, domain: Domain, device: int, image: Path) -> None:
        super().__init__(domain, "vbd", device)
        self.image, self.device = image, device
        self.port: Port | None = None
        self.persistent = False

    # -- xenbus
    def make_ring(self, order: int = 0) -> dict[str, Key]:
        """Allocate and initialise a ring and a port; the keys that offer them."""
        self.ring = Ring(self.domain, REQUEST_SIZE, order)
        self.port = self.domain.events.alloc_unbound(0)
        refs: dict[str, Key] = {"ring-ref": self.ring.gref}
        if order:
            refs = {f"ring-ref{index}": gref for index, gref in enumerate(self.ring.grefs)}
        return refs | {"ring-page-order": order, "event-channel": self.port.number, "protocol": "x86_64-abi"}

    def offer(self, order: int = 0, **keys: Key) -> None:
        """Offer a ring, with `keys` as Device.write_front has them. Then Initialised."""
        self.write_front(self.make_ring(order), **keys)
        self.switch(XenbusState.Initialised)

    def connect(self, order: int = 0, **keys: Key) -> "Vbd":
        """The whole handshake."""
        self.wait_state(XenbusState.InitWait)
        self.persistent = keys.get("feature_persistent") == 1
        self.offer(order, **keys)
        self.wait_connected()
        self.switch(XenbusState.Connected)
        return self

    def drop_ring(self) -> None:
        """Take the ring back; fails when the backend has a page of it mapped."""
        assert self.port is not None
        self.ring.drop()
        self.port.close()

    # -- the ring
    def push(self) -> None:
        """Show what was put, and notify whether asked to or not."""
        self.ring.push()
        self.notify()

    def notify(self) -> None:
        assert self.port is not None
        self.port.notify()

    def responses(self, count: int) -> list[tuple[int, int, int]]:
        """The next `count` responses: (id, operation, status)."""
        self.ring.wait(count)
        return [struct.unpack("<QBxh", self.ring.take(12)) for _ in range(count)]

    def ask(self, *slots: bytes) -> list[int]:
        """Put requests, push and wait for as many responses; their statuses."""
        for slot in slots:
            self.ring.put(slot)
        self.push()
        return [status for _, _, status in self.responses(len(slots))]

    # -- honest requests
    def page(self, data: bytes = b"", readonly: bool = False) -> tuple[int, int]:
        """A granted frame with `data` in it: (gref, frame)."""
        frame = self.domain.pages.alloc()
        self.domain.memory.frame(frame)[: len(data)] = data
        return self.domain.grants.give(0, frame, readonly), frame

    def read(self, sector: int, count: int) -> bytes:
        """Read up to 8 sectors."""
        gref, frame = self.page()
        assert self.ask(request(READ, sector, [(gref, 0, count - 1)])) == [OKAY]
        self._take_back(gref, frame)
        return bytes(self.domain.memory.frame(frame)[: count * SECTOR])

    def write(self, sector: int, data: bytes) -> None:
        """Write up to 8 sectors."""
        gref, frame = self.page(data, readonly=True)
        assert self.ask(request(WRITE, sector, [(gref, 0, len(data) // SECTOR - 1)])) == [OKAY]
        self._take_back(gref, frame)

    def _take_back(self, gref: int, frame: int) -> None:
        if not self.persistent:
            assert self.domain.grants.end(gref), "still mapped"
            self.domain.pages.free(frame)

    def works(self) -> None:
        """Do some I/O and look whether it was done, in the image as well."""
        data = struct.pack("<Q", time.monotonic_ns()) * 128
        self.write(3, data)
        assert self.read(3, 2) == data
        with open(self.image, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            assert view[3 * SECTOR : 5 * SECTOR] == data

    @property
    def statistics(self) -> dict[str, int]:
        return read_statistics(statistics_path(self.domain.runtime, "vbd", self.domain.domid, self.device))


def request(
    operation: int, sector: int, segments: list[tuple[int, int, int]], nr_segments: int | None = None, id: int = 7
) -> bytes:
    """A blkif_request; a segment is (gref, first_sect, last_sect)."""
    count = len(segments) if nr_segments is None else nr_segments
    body = b"".join(struct.pack("<IBBH", *segment, 0) for segment in segments)
    return (struct.pack("<BBHIQQ", operation, count, 0, 0, id, sector) + body).ljust(REQUEST_SIZE, b"\0")


def discard_request(sector: int, count: int, flag: int = 0) -> bytes:
    """A blkif_request_discard."""
    return struct.pack("<BBHIQQQ", DISCARD, flag, 0, 0, 7, sector, count).ljust(REQUEST_SIZE, b"\0")


def indirect_request(operation: int, sector: int, nr_segments: int, grefs: list[int]) -> bytes:
    """A blkif_request_indirect."""
    head = struct.pack("<BBHIQQHH", INDIRECT, operation, nr_segments, 0, 7, sector, 0, 0)
    return (head + struct.pack(f"<{len(grefs)}I", *grefs)).ljust(REQUEST_SIZE, b"\0")


def packed_segments(segments: list[tuple[int, int, int]]) -> bytes:
    """What an indirect page holds."""
    return b"".join(struct.pack("<IBBH", *segment, 0) for segment in segments)


class World(peer.World):
    """A running dom0 with blkback, and a vbd that works all the time."""

    BACKEND, VCPU = "blkback", 1

    def __init__(self, supervisor: Supervisor, runtime: Path) -> None:
        super().__init__(supervisor, runtime)
        self._images = itertools.count()
        self.neighbour = self.domain().add_disk(self.image()).connect()
        self._canary = self.domain().add_disk(self.image())
        self._lasting = len(self._domains)

    def main(self, process: Process) -> None:
        blkback.main(process)

    def others_work(self) -> None:
        self.neighbour.works()

    def image(self, size: int = 1 << 20) -> Path:
        """A new image whose sectors begin with their number."""
        path = self.runtime / f"disk{next(self._images)}.img"
        path.write_bytes(b"".join(sector.to_bytes(8, "little").ljust(SECTOR, b"\x5a") for sector in range(size // SECTOR)))
        return path

    def domain(self, memory: int = 4 << 20, domid: int = 0) -> Domain:
        """A new domain, which lasts until the end of the test."""
        made = Domain(self.supervisor, self.runtime, memory, domid)
        self._domains.append(made)
        return made

    def vbd(self, access: str = "rw", size: int = 1 << 20) -> Vbd:
        """A new domain's only vbd, not connected."""
        return self.domain().add_disk(self.image(size), access=access)
