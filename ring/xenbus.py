"""The handshake of a split device's two ends, which both do the same way (xen/io/xenbus.h).

Each end has a directory in the store with a `state` node that only it writes and the other end watches.
"""
from collections.abc import Callable, Mapping

from miniguest.ring.abi.xenbus import XenbusState
from miniguest.ring.errors import PeerError, XenstoreError
from miniguest.ring.xenstore import Nodes, Watch, Xenstore
from miniguest.ring.xenstore.client import Transaction, Value

_RUNNING = (XenbusState.Connected, XenbusState.Reconfiguring, XenbusState.Reconfigured)
_U32 = 0xFFFFFFFF


def read_state(store: Nodes, path: str) -> XenbusState:
    """The state of the end whose directory is `path`; Unknown when there is none, or what is there is no state."""
    return find_state(store, path) or XenbusState.Unknown


def find_state(store: Nodes, path: str) -> XenbusState | None:
    """The same, but None for what is there and no state."""
    try:
        return XenbusState(int(store.read(f"{path}/state"))) or None
    except ValueError:
        return None
    except XenstoreError as error:
        if error.code in ("ENOENT", "EACCES"):
            return XenbusState.Unknown
        raise


def is_gone(store: Nodes, path: str, state: XenbusState) -> bool:
    """Whether the end whose directory is `path` and whose state was just read is not there."""
    return state == XenbusState.Unknown and not store.exists(path)


def may_follow(old: XenbusState, new: XenbusState) -> bool:
    """Whether an end that is in `old` may go to `new`: onwards, or from the end of one life to the start of another."""
    if old in (XenbusState.Unknown, XenbusState.Closed):
        return new != XenbusState.Unknown
    if old in _RUNNING:
        return new in (*_RUNNING, XenbusState.Closing, XenbusState.Closed)
    return old < new <= XenbusState.Closed


def switch_state(store: Xenstore, path: str, state: XenbusState, anew: bool = False) -> bool:
    """Go to `state`; whether it was written.

    It is not when it is there already (the other end would be woken for nothing), when it would be a step back, or when
    the toolstack has removed the directory (writing would bring it back). `anew` is for a driver that was restarted
    and finds what its predecessor left.
    """
    return store.retry(lambda nodes: step_state(nodes, path, state, anew))


def step_state(nodes: Transaction, path: str, state: XenbusState, anew: bool = False) -> bool:
    """`switch_state` as the last part of a transaction."""
    old = read_state(nodes, path)
    if is_gone(nodes, path, old):
        return False
    if old == state or not (anew or may_follow(old, state)):
        return False
    nodes.finish(f"{path}/state", int(state))
    return True


def watch_state(store: Xenstore, path: str, changed: Callable[[XenbusState], None]) -> Watch:
    """Call `changed` with the other end's state: at first, and whenever it is another one."""
    known: XenbusState | None = None

    def look(_: str) -> None:
        nonlocal known
        state = read_state(store, path)
        if state != known:
            known = state
            changed(state)

    return store.watch(f"{path}/state", look)


def write_error(store: Nodes, path: str, reason: str) -> None:
    """Leave the reason a device was disabled in its `error` node, for the other end and the toolstack to read.

    Not when the toolstack has removed the directory: writing would bring it back.
    """
    if store.exists(path):
        store.write(f"{path}/error", reason[:1024])


def forget_error(store: Nodes, path: str) -> None:
    """What `write_error` left is over."""
    if store.exists(f"{path}/error"):
        store.rm(f"{path}/error")


def write_keys(store: Nodes, path: str, keys: Mapping[str, Value]) -> None:
    """Write several nodes of one directory."""
    store.write_all({f"{path}/{name}": value for name, value in keys.items()})


class Keys:
    """What the other end has written in its directory. Every value is hostile: PeerError, which says what is wrong."""

    def __init__(self, store: Nodes, path: str) -> None:
        self._store = store
        self._path = path
        self._fetched: dict[str, bytes | XenstoreError] = {}

    def fetch(self, *names: str) -> "Keys":
        """Read these together, now and for good; the others are read when they are asked for. Returns itself."""
        self._fetched |= zip(names, self._store.read_all([f"{self._path}/{name}" for name in names]), strict=True)
        return self

    def text(self, name: str, default: str | None = None) -> str:
        """A value as text; PeerError when it is missing and there is no default."""
        value = self._read(name)
        if value is None:
            if default is None:
                raise PeerError(f"{self._path}/{name} is missing")
            return default
        return value.decode(errors="replace")

    def number(self, name: str, default: int | None = None, least: int = 0, most: int = _U32) -> int:
        """A decimal number from `least` to `most`; PeerError when it is missing without a default, or another thing."""
        value = self._read(name)
        if value is None and default is not None:
            return default
        text = self.text(name) if value is None else value.decode(errors="replace")
        if len(text) > 20 or not text.isascii() or not text.removeprefix("-").isdigit():
            raise PeerError(f"{self._path}/{name} is not a number: {text[:32]!r}")
        if not least <= int(text) <= most:
            raise PeerError(f"{self._path}/{name} is {text}, not {least} to {most}")
        return int(text)

    def flag(self, name: str) -> bool:
        """A feature: "1" is on; anything else, or nothing, is off."""
        return self._read(name) == b"1"

    def _read(self, name: str) -> bytes | None:
        (value,) = [self._fetched[name]] if name in self._fetched else self._store.read_all([f"{self._path}/{name}"])
        if not isinstance(value, XenstoreError):
            return value
        if value.code == "ENOENT":
            return None
        raise PeerError(f"{self._path}/{name} cannot be read: {value.code}") from value
