"""The rules a path has to follow (xenstore.txt, "Paths are /-separated"; lengths from io/xs_wire.h)."""
import re

from miniguest.ring.abi.xs_wire import XENSTORE_ABS_PATH_MAX, XENSTORE_REL_PATH_MAX
from miniguest.ring.errors import XenstoreError

_ALLOWED = re.compile(rb"[A-Za-z0-9\-/_@]+")


def domain_path(domid: int) -> str:
    """Where a domain keeps its nodes, and what its relative paths are relative to."""
    return f"/local/domain/{domid}"


def is_relative(given: bytes) -> bool:
    """Whether the path is to be read from the sender's domain path."""
    return not given.startswith((b"/", b"@"))


def absolute(given: bytes, domid: int, special: bool = False) -> str:
    """The full path of what a client of domain `domid` sent; EINVAL when it breaks a rule.

    `special` admits the watch paths that start with an @ instead of a slash.
    """
    relative = is_relative(given)
    if not _ALLOWED.fullmatch(given) or (given.startswith(b"@") and not special):
        raise XenstoreError("EINVAL", f"not a path: {given[:64]!r}")
    path = given.decode("ascii")
    if relative:
        path = f"{domain_path(domid)}/{path}"
    if len(given) > (XENSTORE_REL_PATH_MAX if relative else XENSTORE_ABS_PATH_MAX) or len(path) > XENSTORE_ABS_PATH_MAX:
        raise XenstoreError("EINVAL", f"path of {len(given)} bytes")
    if "//" in path or (path.endswith("/") and path != "/"):
        raise XenstoreError("EINVAL", f"empty name in path {path[:64]}")
    return path


def names(path: str) -> list[str]:
    """The names to follow from above the root: [""] for "/", ["", "a"] for "/a", ["@x"] for "@x"."""
    return [""] if path == "/" else path.split("/")


def parent(path: str) -> str:
    """The path one level up; the root is its own parent."""
    return path.rpartition("/")[0] or "/"


def child(path: str, name: str) -> str:
    """The path of the node called `name` below `path`."""
    return f"/{name}" if path == "/" else f"{path}/{name}"


def upwards(path: str) -> list[str]:
    """The path itself and everything it lies in, nearest first: "/a/b", "/a", "/"."""
    found = [path]
    while (end := path.rfind("/")) > 0:
        path = path[:end]
        found.append(path)
    if end == 0 and path != "/":
        found.append("/")
    return found
