"""What one domain may use up (the defaults of Xen's xenstored). Dom0 is exempt from all but the output limit."""
import sys
from dataclasses import dataclass

from miniguest.backend.xenstored.store import Node
from miniguest.ring.errors import XenstoreError

_NONE = sys.maxsize


@dataclass(frozen=True, slots=True)
class Quota:
    """The limits of one client."""

    nodes: int = 1000  # owned by the domain
    node_size: int = 2048  # bytes: value, names of children, permissions (store.Node.size)
    watches: int = 128
    transactions: int = 10  # open at the same time
    transaction_nodes: int = 1024  # looked at in one transaction
    permissions: int = 5  # entries of one node
    outstanding: int = 20  # replies not fetched; then no further request is taken
    output: int = 256 << 10  # bytes of replies and events not fetched; then events are dropped

    def check_size(self, node: Node | None) -> None:
        """ENOSPC when a node has become too large to be written."""
        if node is not None and node.size() > self.node_size:
            raise XenstoreError("ENOSPC", f"node of {node.size()} bytes")


DOMAIN = Quota()
DOM0 = Quota(_NONE, _NONE, _NONE, _NONE, _NONE, _NONE, _NONE, output=1 << 20)


def quota_for(domid: int) -> Quota:
    """The limits a client of this domain lives under."""
    return DOM0 if domid == 0 else DOMAIN
