"""blkfront's handshake: finds the backend through xenbus and connects a ring to it (the front half of blkif.h's diagrams)."""
import logging
from collections.abc import Callable
from typing import Final

from miniguest.frontend.blkfront import SECTOR, Blkfront
from miniguest.frontend.blkfront_pieces import Features
from miniguest.frontend.frontend_device import FrontendDevice
from miniguest.frontend.pages import Pages
from miniguest.ring import _core
from miniguest.ring.abi.blkif import REQUEST, RESPONSE, VDISK_READONLY
from miniguest.ring.abi.protocols import XEN_IO_PROTO_ABI_X86_64
from miniguest.ring.abi.xenbus import XenbusState
from miniguest.ring.grants import Grants
from miniguest.ring.process import Process
from miniguest.ring.xenbus import Keys, switch_state
from miniguest.ring.xenstore import Xenstore

RING_PAGE_ORDER: Final = 2              # four pages, 128 slots, where the backend takes them
SEGMENTS: Final = 256                   # of one request, where the backend takes so many
MAX_INDIRECT: Final = 512               # what one indirect page holds
PROPERTIES: Final = (
    "sector-size", "sectors", "info", "feature-persistent", "feature-flush-cache", "feature-discard",
    "feature-max-indirect-segments",
)
log = logging.getLogger(__name__)


class BlkfrontDevice(FrontendDevice):
    """One virtual block device of the process's domain; `path` is its directory, such as "device/vbd/768".

    ready(disk): called when it is connected. lost(reason): when it cannot be, or is no longer.
    """

    def __init__(
        self, process: Process, store: Xenstore, path: str, pages: Pages, grants: Grants,
        ready: Callable[[Blkfront], None], lost: Callable[[str], None],
    ) -> None:
        super().__init__(process, store, path, pages, grants)
        self._ready = ready
        self._lost = lost
        self.disk: Blkfront | None = None
        self.start()

    def offer(self) -> None:
        """Allocate and grant the ring and an event channel, and tell the backend of them."""
        keys = Keys(self.store, self.backend)
        order = min(RING_PAGE_ORDER, keys.number("max-ring-page-order", 0))
        pages = [self.give_page() for _ in range(1 << order)]
        buffer = self.pages.memory.side_by_side([frame for _, frame in pages])
        self._ring = _core.FrontRing(buffer, REQUEST.size, RESPONSE.size)
        self._port = self.make_port()
        refs: dict[str, int | str | bytes]
        if order:
            refs = {f"ring-ref{index}": gref for index, (gref, _) in enumerate(pages)}
            refs |= {"ring-page-order": order, "num-ring-pages": 1 << order}
        else:
            refs = {"ring-ref": pages[0][0]}
        self.tell(refs | {
            "event-channel": self._port.number,
            "protocol": XEN_IO_PROTO_ABI_X86_64,
            "feature-persistent": 1,
        })

    def connected(self) -> None:
        """Read the disk's properties; it is there from now on."""
        keys = Keys(self.store, self.backend).fetch(*PROPERTIES)
        # blkif.h: 512 for a frontend that does not ask for more (feature-large-sector-size).
        keys.number("sector-size", SECTOR, least=SECTOR, most=SECTOR)
        features = Features(
            sectors=keys.number("sectors", least=1, most=1 << 55),
            read_only=bool(keys.number("info", 0) & VDISK_READONLY),
            persistent=keys.flag("feature-persistent"),
            flush=keys.flag("feature-flush-cache"),
            discard=keys.flag("feature-discard"),
            indirect_segments=min(keys.number("feature-max-indirect-segments", 0), SEGMENTS, MAX_INDIRECT),
        )
        self.disk = Blkfront(
            self._ring, self.pages, self.grants, self.backend_domid, features, self._port.notify, self.broken
        )
        self.listen(self._port, self.disk.on_event)
        switch_state(self.store, self.path, XenbusState.Connected)
        log.info("%s: %d sectors over %d slots", self.path, features.sectors, self._ring.slots)
        self._ready(self.disk)

    def abandon(self) -> None:
        """Everything asked for fails."""
        if self.disk:
            self.disk.abandon()

    def lost(self, reason: str) -> None:
        """Tell the disk's user."""
        self._lost(reason)

    def release(self) -> None:
        """Take back the pages of requests."""
        if self.disk:
            self.disk.release()
