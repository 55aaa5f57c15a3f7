"""The mini-guest's own split devices: what it finds in its part of the store, connected before its guest starts."""
import logging
from collections.abc import Callable
from typing import Final, TypeVar

from miniguest.frontend.blkfront import Blkfront
from miniguest.frontend.blkfront_xenbus import BlkfrontDevice
from miniguest.frontend.frontend_device import FrontendDevice
from miniguest.frontend.netfront import Netfront
from miniguest.frontend.netfront_xenbus import NetfrontDevice
from miniguest.frontend.pages import Pages
from miniguest.ring.errors import XenstoreError
from miniguest.ring.grants import Grants
from miniguest.ring.process import Process
from miniguest.ring.xenstore import Xenstore

VDEVS: Final = {768: "hda", 832: "hdb", 5632: "hdc", 5696: "hdd"}      # Linux device numbers, as xl writes them
_T = TypeVar("_T")
Make = Callable[[str, Callable[[_T], None], Callable[[str], None]], FrontendDevice]
log = logging.getLogger(__name__)


class OwnDevices:
    """The vbds and vifs of the process's domain. vif_handles: of every vif, connected or not."""

    def __init__(self, process: Process, store: Xenstore, pages: Pages, grants: Grants) -> None:
        self._process = process
        self._store = store
        self._pages = pages
        self._grants = grants
        self._waiting: set[str] = set()
        self.vif_handles = self._numbers("vif")

    def connect(self) -> tuple[dict[str, Blkfront], dict[int, Netfront]]:
        """Connect all of them at the same time; wait until each is there, or cannot be. Disks by vdev, vifs by handle."""
        process, store, pages, grants = self._process, self._store, self._pages, self._grants

        def vbd(path: str, ready: Callable[[Blkfront], None], lost: Callable[[str], None]) -> FrontendDevice:
            return BlkfrontDevice(process, store, path, pages, grants, ready, lost)

        def vif(path: str, ready: Callable[[Netfront], None], lost: Callable[[str], None]) -> FrontendDevice:
            return NetfrontDevice(process, store, path, pages, grants, ready, lost)

        disks = self._start("vbd", self._numbers("vbd"), vbd)
        vifs = self._start("vif", self.vif_handles, vif)
        while self._waiting and not process.loop.stopping:
            process.loop.turn()
        return {VDEVS[number]: disk for number, disk in disks.items()}, vifs

    def _numbers(self, kind: str) -> list[int]:
        try:
            return sorted(int(name) for name in self._store.directory(f"device/{kind}"))
        except XenstoreError as error:
            if error.code != "ENOENT":
                raise
            return []

    def _start(self, kind: str, numbers: list[int], make: Make[_T]) -> dict[int, _T]:
        """Begin to connect these; in what is returned each is found once it is there."""
        found: dict[int, _T] = {}
        for number in numbers:
            path = f"device/{kind}/{number}"
            self._waiting.add(path)

            def ready(device: _T, number: int = number, path: str = path) -> None:
                found[number] = device
                self._waiting.discard(path)

            def lost(reason: str, path: str = path) -> None:
                log.error("%s: %s", path, reason)
                self._waiting.discard(path)

            self._process.undo.callback(make(path, ready, lost).close)
        return found
