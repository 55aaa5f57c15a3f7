"""The requests about nodes (xenstore.txt, "Database read, write and permissions operations")."""
from miniguest.backend.xenstored import paths, permissions
from miniguest.backend.xenstored.permissions import Access, granted
from miniguest.backend.xenstored.request import OK, Request, decimal
from miniguest.backend.xenstored.store import Node
from miniguest.backend.xenstored.transactions import Change
from miniguest.ring.abi.xs_wire import XENSTORE_PAYLOAD_MAX
from miniguest.ring.errors import XenstoreError
from miniguest.ring.xenstore.message import join_strings

_OFFSET_MAX = 0xFFFFFFFF


def directory(request: Request) -> bytes:
    """DIRECTORY: the names of the children. The caller answers E2BIG when they are too many for one message."""
    node = _node(request.change, _path(request, request.only_string()), Access.READ)
    return _names(node)


def directory_part(request: Request) -> bytes:
    """DIRECTORY_PART: the generation, then as many names from an offset on as fit, then "" after the last name."""
    given, offset_given = request.strings(2)
    node = _node(request.change, _path(request, given), Access.READ)
    listing = _names(node)
    offset = decimal(offset_given, _OFFSET_MAX)
    generation = join_strings(str(node.generation).encode())
    room = XENSTORE_PAYLOAD_MAX - len(generation) - 1
    part = listing[offset : offset + room]
    part = part[: part.rfind(b"\0") + 1]  # whole names only
    end = b"\0" if offset + len(part) >= len(listing) else b""
    return generation + part + end


def read(request: Request) -> bytes:
    """READ: the value."""
    return _node(request.change, _path(request, request.only_string()), Access.READ).value


def write(request: Request) -> bytes:
    """WRITE: set the value, creating the node and its missing parents."""
    given, separator, value = request.payload.partition(b"\0")
    if not separator:
        raise XenstoreError("EINVAL", "no value")
    path = _path(request, given)
    node = _find(request.change, path, Access.WRITE)
    if node is None:
        _create(request.change, path, value)
    else:
        request.change.put(path, value, node.permissions)
    request.change.event(path, True, None)
    return OK


def mkdir(request: Request) -> bytes:
    """MKDIR: create the node, without a value, if it is not there."""
    path = _path(request, request.only_string())
    if _find(request.change, path, Access.WRITE) is None:
        _create(request.change, path, b"")
        request.change.event(path, True, None)
    return OK


def rm(request: Request) -> bytes:
    """RM: remove the node and all below it. That it is not there is no error, if its parent is."""
    path = _path(request, request.only_string())
    node = _find(request.change, path, Access.WRITE)
    if path == "/":
        raise XenstoreError("EINVAL", "the root cannot be removed")
    if node is not None:
        request.change.remove(path)
    elif request.change.look(paths.parent(path)) is None:
        raise XenstoreError("ENOENT", f"{paths.parent(path)} does not exist")
    return OK


def get_perms(request: Request) -> bytes:
    """GET_PERMS: the entries, the owner's first."""
    path = _path(request, request.only_string(), special=True)
    return join_strings(*permissions.format_entries(_node(request.change, path, Access.READ).permissions))


def set_perms(request: Request) -> bytes:
    """SET_PERMS: replace the entries. For the owner and dom0 only, and only dom0 may give a node away."""
    change = request.change
    given, *strings = request.strings(2, XENSTORE_PAYLOAD_MAX)
    if len(strings) > change.quota.permissions:
        raise XenstoreError("ENOSPC", f"{len(strings)} permission entries")
    wanted = permissions.parse(strings)
    path = _path(request, given, special=True)
    node = _node(change, path, Access.WRITE | Access.OWNER)
    if not change.who.privileged and wanted[0].domid != node.owner:
        raise XenstoreError("EPERM", f"only dom0 may give {path} to domain {wanted[0].domid}")
    change.put(path, node.value, wanted)
    change.event(path, True, node.permissions)
    return OK


def _path(request: Request, given: bytes, special: bool = False) -> str:
    return paths.absolute(given, request.client.domid, special)


def _names(node: Node) -> bytes:
    return join_strings(*(name.encode() for name in node.children))


def _node(change: Change, path: str, needed: Access) -> Node:
    """The node, if it is there and allows all that is needed."""
    node = _find(change, path, needed)
    if node is None:
        raise XenstoreError("ENOENT", f"{path} does not exist")
    return node


def _find(change: Change, path: str, needed: Access) -> Node | None:
    """The node, or None if it is not there and the client may know that; EACCES otherwise.

    One who has no right to the nearest ancestor must not learn which names exist below it.
    """
    node = change.look(path)
    if node is None:
        if not granted(_ancestor(change, path)[1].permissions, change.who) & needed:
            raise XenstoreError("EACCES", path)
    elif granted(node.permissions, change.who) & needed != needed:
        raise XenstoreError("EACCES", path)
    return node


def _ancestor(change: Change, path: str) -> tuple[str, Node]:
    """The nearest existing node above `path`. Each missing one on the way is looked at: what follows depends on it."""
    for above in paths.upwards(path)[1:]:
        node = change.look(above)
        if node is not None:
            return above, node
    return "/", change.root()


def _create(change: Change, path: str, value: bytes) -> None:
    """Create a node and its missing parents, all of them or none."""
    above, ancestor = _ancestor(change, path)
    inherited = permissions.inherited(ancestor.permissions, change.who)
    missing = [place for place in paths.upwards(path) if len(place) > len(above)]
    change.create(missing[::-1], value, inherited)
