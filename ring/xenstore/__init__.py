"""Talking to xenstored: the framing both ends share (`message`), how it travels (`transport`), and the client."""
from miniguest.ring.xenstore.client import Nodes, Transaction, Watch, Xenstore
from miniguest.ring.xenstore.transport import PageTransport, SocketTransport, Transport

__all__ = ["Xenstore", "Transaction", "Nodes", "Watch", "Transport", "SocketTransport", "PageTransport"]
