"""xenstored without its file descriptors: messages in, replies and events in the clients' outboxes."""
import logging

from miniguest.backend.xenstored.client import Client
from miniguest.backend.xenstored.domains import Connect, Domains
from miniguest.backend.xenstored.operations import OPERATIONS
from miniguest.backend.xenstored.request import Request
from miniguest.backend.xenstored.store import Store
from miniguest.backend.xenstored.transactions import Change
from miniguest.backend.xenstored.watches import Watches
from miniguest.ring.abi.xs_wire import XENSTORE_PAYLOAD_MAX, XS_ERROR, XSD_ERRORS
from miniguest.ring.errors import XenstoreError
from miniguest.ring.xenstore.message import Message, join_strings

_log = logging.getLogger("miniguest.xenstored")


class Xenstored:
    """The store, its watches and its domains.

    `connect` is called for INTRODUCE, with the new domain's client, the gfn and the event channel.
    """

    def __init__(self, connect: Connect) -> None:
        self.store = Store()
        self.watches = Watches()
        self.domains = Domains(self.store, self.watches, connect)

    def new_client(self) -> Client:
        """A client of dom0, which comes through the socket."""
        return Client(0, self.store, self.watches)

    def handle(self, client: Client, message: Message) -> None:
        """Serve one request: its reply, or XS_ERROR with the name of the errno, is in the client's outbox then."""
        request = Request(client, message.tx_id, Change(self.store, client.who, client.quota), message.payload)
        kind = message.type
        try:
            reply = self._answer(kind, request)
        except XenstoreError as error:
            _log.debug("domain %d, request type %d: %s", client.domid, kind, error)
            code = error.code if error.code in XSD_ERRORS else "EINVAL"  # the names a client can know
            kind, reply = XS_ERROR, join_strings(code.encode())
        client.outbox.reply(Message(kind, message.req_id, message.tx_id, reply))
        if kind != XS_ERROR:
            request.after()

    def _answer(self, kind: int, request: Request) -> bytes:
        operation = OPERATIONS.get(kind)
        if operation is None:
            raise XenstoreError("ENOSYS", f"request type {kind}")
        if operation.privileged and not request.client.who.privileged:
            raise XenstoreError("EACCES", "for dom0 only")
        alone = not (operation.transactional and request.tx_id)
        if not alone:
            request.change = request.client.transaction(request.tx_id)
        reply = operation.handler(self, request)
        if len(reply) > XENSTORE_PAYLOAD_MAX:
            raise XenstoreError("E2BIG", f"reply of {len(reply)} bytes")
        if alone:
            self.commit(request.change)
        return reply

    def commit(self, change: Change) -> None:
        """Make a change visible and fire the watches it concerns."""
        self.watches.fire(change.commit(), self.store.tree)
