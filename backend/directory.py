"""A backend's devices as xenstore lists them: opened when the toolstack adds one, closed when it is removed."""
import logging
import re
from collections.abc import Callable
from typing import Final, Protocol

from miniguest.ring.errors import MiniguestError, XenstoreError
from miniguest.ring.xenbus import write_error
from miniguest.ring.xenstore import Xenstore

_DEVICE: Final = re.compile(r"^(\d+)/(\d+)(?:/|$)")
log = logging.getLogger(__name__)


class BackendDevice(Protocol):
    """One device of a backend."""

    def close(self) -> None: ...


class BackendDirectory:
    """The devices under /local/domain/0/backend/KIND/DOMID/DEVICE.

    opened(domid, device, path): makes the device; what it raises is left in the device's `error` node.
    """

    def __init__(self, store: Xenstore, kind: str, opened: Callable[[int, int, str], BackendDevice]) -> None:
        self._store = store
        self._directory = f"/local/domain/0/backend/{kind}"
        self._opened = opened
        self._devices: dict[tuple[int, int], BackendDevice | None] = {}
        store.watch(self._directory, self._changed)

    def _changed(self, path: str) -> None:
        """Something below the directory changed; an event for the directory itself means: look at all of it."""
        named = _DEVICE.match(path.removeprefix(self._directory).lstrip("/"))
        if named:
            self._look(int(named[1]), int(named[2]))
            return
        found = {
            (int(domid), int(device))
            for domid in self._list(self._directory)
            for device in self._list(f"{self._directory}/{domid}")
            if domid.isdigit() and device.isdigit()
        }
        for key in found | set(self._devices):
            self._look(*key)

    def _list(self, path: str) -> list[str]:
        try:
            return self._store.directory(path)
        except XenstoreError:
            return []

    def _look(self, domid: int, device: int) -> None:
        key, path = (domid, device), f"{self._directory}/{domid}/{device}"
        if key not in self._devices:
            if self._store.exists(f"{path}/frontend"):
                self._devices[key] = self._open(domid, device, path)
        elif not self._store.exists(path):
            gone = self._devices.pop(key)
            if gone:
                gone.close()

    def _open(self, domid: int, device: int, path: str) -> BackendDevice | None:
        try:
            return self._opened(domid, device, path)
        except (MiniguestError, OSError) as error:
            log.error("%s: %s", path, error)
            write_error(self._store, path, str(error))
            return None

    def close(self) -> None:
        """Close every device."""
        for device in self._devices.values():
            if device:
                device.close()
