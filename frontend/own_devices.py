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
from miniguest.ring.grants import Grants
from miniguest.ring.process import Process
from miniguest.ring.xenstore import Xenstore

VDEVS: Final = {768: "hda", 832: "hdb", 5632: "hdc", 5696: "hdd"}      # Linux device numbers, as xl writes them
_T = TypeVar("_T")
Make = Callable[[str, Callable[[_T], None], Callable[[str], None]], FrontendDevice]
log = logging.getLogger(__name__)


def connect_disks(process: Process, store: Xenstore, pages: Pages, grants: Grants) -> dict[str, Blkfront]:
    """Connect every vbd of the domain; wait until each is there, or cannot be. By vdev."""

    def make(path: str, ready: Callable[[Blkfront], None], lost: Callable[[str], None]) -> FrontendDevice:
        return BlkfrontDevice(process, store, path, pages, grants, ready, lost)

    return {VDEVS[number]: disk for number, disk in _connect(process, store, "vbd", make).items()}


def connect_vifs(process: Process, store: Xenstore, pages: Pages, grants: Grants) -> dict[int, Netfront]:
    """Connect every vif of the domain; wait until each is there, or cannot be. By handle."""

    def make(path: str, ready: Callable[[Netfront], None], lost: Callable[[str], None]) -> FrontendDevice:
        return NetfrontDevice(process, store, path, pages, grants, ready, lost)

    return _connect(process, store, "vif", make)


def vif_handles(store: Xenstore) -> list[int]:
    """The handles of the domain's vifs, connected or not."""
    return sorted(int(name) for name in store.directory("device/vif")) if store.exists("device/vif") else []


def _connect(process: Process, store: Xenstore, kind: str, make: Make[_T]) -> dict[int, _T]:
    found: dict[int, _T] = {}
    waiting: set[int] = set()
    for name in store.directory(f"device/{kind}") if store.exists(f"device/{kind}") else []:
        number = int(name)
        waiting.add(number)

        def ready(device: _T, number: int = number) -> None:
            found[number] = device
            waiting.discard(number)

        def lost(reason: str, number: int = number) -> None:
            log.error("%s %d: %s", kind, number, reason)
            waiting.discard(number)

        process.undo.callback(make(f"device/{kind}/{name}", ready, lost).close)
    while waiting and not process.loop.stopping:
        process.loop.turn()
    return found
