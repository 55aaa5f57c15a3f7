"""A backend's devices as xenstore lists them: opened when the toolstack adds one, closed when it is removed."""
import logging
import re
from collections.abc import Callable
from typing import Final, Protocol

from miniguest.ring.abi.xenbus import XenbusState
from miniguest.ring.errors import MiniguestError, XenstoreError
from miniguest.ring.xenbus import forget_error, read_state, step_state, write_error
from miniguest.ring.xenstore import Transaction, Xenstore

_DEVICE: Final = re.compile(r"^(\d+)/(\d+)(?:/|$)")
log = logging.getLogger(__name__)


class Opened(Protocol):
    """One device of a backend."""

    def await_frontend(self, nodes: Transaction) -> None:
        """It is open: tell its frontend, as a part of the transaction that ends the opening."""

    def close(self) -> None: ...


class BackendDirectory:
    """The devices under /local/domain/0/backend/KIND/DOMID/DEVICE.

    opened(domid, device, path): makes the device; what it raises is left in the device's `error` node.

    A device whose own state is Initialising was made (again) by the toolstack, for its backend never goes back there.
    """

    def __init__(self, store: Xenstore, kind: str, opened: Callable[[int, int, str], Opened]) -> None:
        self._store = store
        self._directory = f"/local/domain/0/backend/{kind}"
        self._opened = opened
        self._devices: dict[tuple[int, int], Opened | None] = {}
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
        if key in self._devices and (self._is_anew(path) or not self._store.exists(path)):
            self._close(path, self._devices.pop(key))
        if key not in self._devices and self._store.exists(f"{path}/frontend"):
            self._store.retry(lambda nodes: self._open(nodes, domid, device, path))

    def _is_anew(self, path: str) -> bool:
        return read_state(self._store, path) == XenbusState.Initialising

    def _open(self, nodes: Transaction, domid: int, device: int, path: str) -> None:
        """Open it, and end its Initialising in a transaction that began before: when it is made again meanwhile, that fails
        and all of this is done again, with the new one."""
        key = domid, device
        self._close(path, self._devices.pop(key, None))         # the transaction before failed
        if not nodes.exists(f"{path}/frontend"):
            return
        self._devices[key] = None
        try:
            forget_error(self._store, path)     # not in `nodes`: to look for what is not there is to depend on all its siblings
            self._devices[key] = opened = self._opened(domid, device, path)
        except (MiniguestError, OSError) as error:
            log.error("%s: %s", path, error)
            write_error(nodes, path, str(error))
            step_state(nodes, path, XenbusState.Closing)
        else:
            opened.await_frontend(nodes)

    def _close(self, path: str, device: Opened | None) -> None:
        try:
            if device:
                device.close()
        except (MiniguestError, OSError) as error:
            log.error("%s: %s", path, error)    # no reason for the others to go as well

    def close(self) -> None:
        """Close every device."""
        for (domid, device), opened in self._devices.items():
            self._close(f"{self._directory}/{domid}/{device}", opened)
