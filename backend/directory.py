"""A backend's devices as xenstore lists them: opened when the toolstack adds one, closed when it is removed."""
import logging
import re
from collections.abc import Callable
from typing import Final, Protocol

from miniguest.ring.abi.xenbus import XenbusState
from miniguest.ring.errors import MiniguestError, XenstoreError
from miniguest.ring.xenbus import forget_error, is_gone, read_state, step_state, switch_state, write_error
from miniguest.ring.xenstore import Transaction, Xenstore

# What tells of a device that came or went: its domain's directory or its own, and the nodes that the toolstack writes last. The
# others, most of which its backend writes itself, are not looked into.
_TELLING: Final = re.compile(r"(\d+)(?:/(\d+)(?:/(?:frontend|state))?)?")
log = logging.getLogger(__name__)


class Opened(Protocol):
    """One device of a backend."""

    def await_frontend(self, nodes: Transaction) -> None:
        """It is open: tell its frontend, as a part of the transaction that ends the opening."""

    def close(self) -> None: ...


class BackendDirectory:
    """The devices under /local/domain/0/backend/KIND/DOMID/DEVICE.

    opened(domid, device, path): makes the device; what it raises is left in the device's `error` node. parted(domid): called when
    the last device of a domain was closed.

    A device whose own state is Initialising was made (again) by the toolstack, for its backend never goes back there. One that is
    `online` 0 and Closing is closed for good, and is Closed then, as libxl expects it.
    """

    def __init__(
        self, store: Xenstore, kind: str, opened: Callable[[int, int, str], Opened],
        parted: Callable[[int], None] = lambda domid: None,
    ) -> None:
        self._store = store
        self._directory = f"/local/domain/0/backend/{kind}"
        self._opened = opened
        self._parted = parted
        self._devices: dict[tuple[int, int], Opened | None] = {}
        store.watch(self._directory, self._changed)

    def _changed(self, path: str) -> None:
        """Something below the directory changed; an event for the directory itself means: look at all of it."""
        below = path.removeprefix(self._directory).lstrip("/")
        telling = _TELLING.fullmatch(below)
        if telling and telling[2]:
            self._look(int(telling[1]), int(telling[2]))
        elif telling:
            self._look_at_all(int(telling[1]))
        elif not below:
            for domid in {*self._list(self._directory), *(domid for domid, _ in self._devices)}:
                self._look_at_all(domid)

    def _look_at_all(self, domid: int) -> None:
        """At every device of a domain."""
        known = (device for other, device in self._devices if other == domid)
        for device in {*self._list(f"{self._directory}/{domid}"), *known}:
            self._look(domid, device)

    def _list(self, path: str) -> list[int]:
        try:
            return [int(name) for name in self._store.directory(path) if name.isdigit()]
        except XenstoreError:
            return []

    def _look(self, domid: int, device: int) -> None:
        key, path = (domid, device), f"{self._directory}/{domid}/{device}"
        state = read_state(self._store, path)
        leaving = state in (XenbusState.Closing, XenbusState.Closed) and self._is_offline(path)
        if key in self._devices and (leaving or not self._is_same(path, state)):
            self._close(path, self._devices.pop(key))
            if not any(other == domid for other, _ in self._devices):
                self._parted(domid)
        if leaving:
            switch_state(self._store, path, XenbusState.Closed)
        elif key not in self._devices and self._store.exists(f"{path}/frontend"):
            self._store.retry(lambda nodes: self._open(nodes, domid, device, path))

    def _is_offline(self, path: str) -> bool:
        """Whether the toolstack wants the device away for good, and waits for it to be Closed."""
        return self._store.read_all([f"{path}/online"]) == [b"0"]

    def _is_same(self, path: str, state: XenbusState) -> bool:
        """Whether the device there, in this state, is neither gone nor made anew."""
        return state != XenbusState.Initialising and not is_gone(self._store, path, state)

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
