"""The xenstored process: one of dom0's vCPUs, which serves the socket and the xenstore pages."""
import logging
from functools import partial

from miniguest.backend.xenstored.client import Client
from miniguest.backend.xenstored.daemon import Xenstored
from miniguest.backend.xenstored.pages import PageConnection
from miniguest.backend.xenstored.sockets import Listener
from miniguest.ring.errors import HypercallError, MiniguestError, XenstoreError
from miniguest.ring.events import Port
from miniguest.ring.process import XENSTORED_SOCKET, Process
from miniguest.ring.xenstore.page import StorePage

_log = logging.getLogger("miniguest.xenstored")


def main(process: Process) -> None:
    """Serve until the loop is stopped."""
    serve(process)
    process.loop.run()


def serve(process: Process) -> Xenstored:
    """Open the socket and let the loop serve it; `process.undo` closes it again."""

    def connect(client: Client, gfn: int, evtchn: int) -> PageConnection:
        return _connect(process, daemon, client, gfn, evtchn)

    daemon = Xenstored(connect)
    process.undo.callback(daemon.domains.close)
    process.undo.callback(Listener(daemon, process.runtime / XENSTORED_SOCKET, process.loop).close)
    return daemon


def _connect(process: Process, daemon: Xenstored, client: Client, gfn: int, evtchn: int) -> PageConnection:
    """Map a domain's xenstore page and bind to its port. XenstoreError when there is no such domain, frame or port."""
    try:
        frame = process.memory(client.domid).frame(gfn)
    except OSError as error:
        raise XenstoreError("ENOENT", f"domain {client.domid} has no memory: {error.strerror}") from error
    except IndexError as error:
        raise XenstoreError("EINVAL", f"domain {client.domid}: {error}") from error
    try:
        port = process.bind_interdomain(client.domid, evtchn)
    except HypercallError as error:
        raise XenstoreError(error.code, f"domain {client.domid}, port {evtchn}: {error.message}") from error
    release = partial(_release, process, client.domid, port)
    connection = PageConnection(daemon, client, StorePage(frame), port.notify, process.loop.call_soon, release)
    process.loop.on_port(port, connection.serve)
    return connection


def _release(process: Process, domid: int, port: Port) -> None:
    process.loop.off_port(port)
    try:
        port.close()
    except MiniguestError as error:  # it may be the hypervisor that is gone
        _log.warning("domain %d, port %d: %s", domid, port.number, error)
    process.part(domid)
