"""What is done for each request type: the table, and the requests that are not about nodes."""
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from miniguest.backend.xenstored import node_operations as nodes
from miniguest.backend.xenstored import paths
from miniguest.backend.xenstored.request import OK, Request, decimal, domid
from miniguest.ring.abi import xs_wire
from miniguest.ring.errors import XenstoreError
from miniguest.ring.xenstore.message import join_strings

if TYPE_CHECKING:
    from miniguest.backend.xenstored.daemon import Xenstored

_log = logging.getLogger("miniguest.xenstored")
_GFN_MAX = (1 << 52) - 1
_PORT_MAX = (1 << 32) - 1
_DOMID_SELF = 0x7FF0
_DOMID_FIRST_RESERVED = 0x7FF0


def watch(daemon: "Xenstored", request: Request) -> bytes:
    """WATCH: the first event follows the reply at once, so that the client need not look on its own."""
    path, token = request.strings(2)
    added = request.client.watch(path, token)
    request.after = lambda: added.fire(added.path)
    return OK


def unwatch(daemon: "Xenstored", request: Request) -> bytes:
    """UNWATCH: the same path and token as the watch has."""
    path, token = request.strings(2)
    request.client.unwatch(path, token)
    return OK


def reset_watches(daemon: "Xenstored", request: Request) -> bytes:
    """RESET_WATCHES: all watches and transactions of the client are gone."""
    request.client.forget()
    return OK


def transaction_start(daemon: "Xenstored", request: Request) -> bytes:
    """TRANSACTION_START: the id is for the tx_id of the requests to follow. They do not nest: EBUSY."""
    if request.tx_id:
        raise XenstoreError("EBUSY", "a transaction in a transaction")
    return join_strings(str(request.client.start_transaction()).encode())


def transaction_end(daemon: "Xenstored", request: Request) -> bytes:
    """TRANSACTION_END: "T" to commit (EAGAIN on a conflict), "F" to discard. The id is free either way."""
    verdict = request.only_string()
    if verdict not in (b"T", b"F"):
        raise XenstoreError("EINVAL", f"neither T nor F: {verdict[:16]!r}")
    change = request.client.end_transaction(request.tx_id)
    if verdict == b"T":
        daemon.commit(change)
    return OK


def introduce(daemon: "Xenstored", request: Request) -> bytes:
    """INTRODUCE: domid, gfn of its xenstore page, its unbound event channel."""
    domain, gfn, evtchn = request.strings(3, 4)[:3]
    number = _real_domid(domain)
    daemon.domains.introduce(number, decimal(gfn, _GFN_MAX), decimal(evtchn, _PORT_MAX))
    return OK


def release(daemon: "Xenstored", request: Request) -> bytes:
    """RELEASE: the domain is gone, or is to be treated as if it were."""
    daemon.domains.release(_real_domid(request.only_string()))
    return OK


def resume(daemon: "Xenstored", request: Request) -> bytes:
    """RESUME: a domain that shut down (to be suspended) runs again."""
    daemon.domains.resume(_real_domid(request.only_string()))
    return OK


def set_target(daemon: "Xenstored", request: Request) -> bytes:
    """SET_TARGET: a device model's domain, and the domain whose device model it is."""
    domain, target = request.strings(2)
    daemon.domains.set_target(domid(domain), domid(target))
    return OK


def get_domain_path(daemon: "Xenstored", request: Request) -> bytes:
    """GET_DOMAIN_PATH: where relative paths of a domain start, known or not."""
    return join_strings(paths.domain_path(domid(request.only_string())).encode())


def is_domain_introduced(daemon: "Xenstored", request: Request) -> bytes:
    """IS_DOMAIN_INTRODUCED: "T" or "F"."""
    number = domid(request.only_string())
    return b"T\0" if number == _DOMID_SELF or number in daemon.domains else b"F\0"


def control(daemon: "Xenstored", request: Request) -> bytes:
    """CONTROL: one of the few commands that make sense here; EINVAL for the others."""
    command, *arguments = request.strings(1, xs_wire.XENSTORE_PAYLOAD_MAX)
    match command:
        case b"help":
            return join_strings(b"commands: check, help, print <string>")
        case b"print":
            _log.info("print: %s", b" ".join(arguments).decode(errors="replace"))
            return OK
        case b"check":
            return OK
        case _:
            raise XenstoreError("EINVAL", f"no such command: {command[:32]!r}")


def _real_domid(string: bytes) -> int:
    """The id of a domain that can come and go: not dom0, none of Xen's DOMID_ constants."""
    number = domid(string)
    if not 0 < number < _DOMID_FIRST_RESERVED:
        raise XenstoreError("EINVAL", f"domain {number} neither comes nor goes")
    return number


class Operation(NamedTuple):
    """How a request type is served. One that is not `transactional` takes no notice of tx_id."""

    handler: Callable[["Xenstored", Request], bytes]
    privileged: bool = False
    transactional: bool = True


def _on_nodes(handler: Callable[[Request], bytes]) -> Operation:
    return Operation(lambda _, request: handler(request))


OPERATIONS: dict[int, Operation] = {
    xs_wire.XS_CONTROL: Operation(control, privileged=True),
    xs_wire.XS_DIRECTORY: _on_nodes(nodes.directory),
    xs_wire.XS_READ: _on_nodes(nodes.read),
    xs_wire.XS_GET_PERMS: _on_nodes(nodes.get_perms),
    xs_wire.XS_WATCH: Operation(watch, transactional=False),
    xs_wire.XS_UNWATCH: Operation(unwatch, transactional=False),
    xs_wire.XS_TRANSACTION_START: Operation(transaction_start),
    xs_wire.XS_TRANSACTION_END: Operation(transaction_end),
    xs_wire.XS_INTRODUCE: Operation(introduce, privileged=True),
    xs_wire.XS_RELEASE: Operation(release, privileged=True),
    xs_wire.XS_GET_DOMAIN_PATH: Operation(get_domain_path),
    xs_wire.XS_WRITE: _on_nodes(nodes.write),
    xs_wire.XS_MKDIR: _on_nodes(nodes.mkdir),
    xs_wire.XS_RM: _on_nodes(nodes.rm),
    xs_wire.XS_SET_PERMS: _on_nodes(nodes.set_perms),
    xs_wire.XS_IS_DOMAIN_INTRODUCED: Operation(is_domain_introduced, privileged=True),
    xs_wire.XS_RESUME: Operation(resume, privileged=True),
    xs_wire.XS_SET_TARGET: Operation(set_target, privileged=True),
    xs_wire.XS_RESET_WATCHES: Operation(reset_watches),
    xs_wire.XS_DIRECTORY_PART: _on_nodes(nodes.directory_part),
}
