"""Which domains are connected through their xenstore page, and what happens when one comes or goes."""
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from miniguest.backend.xenstored import permissions
from miniguest.backend.xenstored.client import Client
from miniguest.backend.xenstored.permissions import Identity
from miniguest.backend.xenstored.quotas import DOM0
from miniguest.backend.xenstored.store import Store
from miniguest.backend.xenstored.transactions import Change, Event
from miniguest.backend.xenstored.watches import Watches
from miniguest.ring.errors import XenstoreError


class Channel(Protocol):
    """The way messages of an introduced domain travel: its page and event channel."""

    def close(self) -> None:
        """Unmap the page and close the event channel; called once."""

    def restart(self) -> None:
        """Empty the rings."""


Connect = Callable[[Client, int, int], Channel]
"""Map frame `gfn` of the client's domain, bind to its port `evtchn` and serve it; XenstoreError when that fails."""


@dataclass(slots=True)
class Domain:
    """One introduced domain."""

    client: Client
    channel: Channel
    shut_down: bool = False


class Domains:
    """The introduced domains. Dom0 always counts as one; its clients come through the socket."""

    def __init__(self, store: Store, watches: Watches, connect: Connect) -> None:
        self._store = store
        self._watches = watches
        self._connect = connect
        self._known: dict[int, Domain] = {}

    def __contains__(self, domid: int) -> bool:
        return domid == 0 or domid in self._known

    def introduce(self, domid: int, gfn: int, evtchn: int) -> None:
        """Start to serve a domain; for one that is known already, bind its event channel and rings anew."""
        known = self._known.get(domid)
        if known is None:
            client = Client(domid, self._store, self._watches)
            self._known[domid] = Domain(client, self._connect(client, gfn, evtchn))
            self._fire_special("@introduceDomain")
            return
        known.client.reset()
        known.channel.close()
        del self._known[domid]  # should connecting fail, it is not connected
        channel = self._connect(known.client, gfn, evtchn)
        channel.restart()
        self._known[domid] = replace(known, channel=channel)

    def release(self, domid: int) -> None:
        """Stop serving a domain and remove what it owned; ENOENT if it is not known."""
        domain = self._get(domid)
        domain.client.reset()
        domain.channel.close()
        del self._known[domid]
        for other in self._known.values():
            if other.client.who.target == domid:
                other.client.who = Identity(other.client.domid)
        self._remove_traces(domid)
        self._fire_special("@releaseDomain")

    def shutdown(self, domid: int) -> None:
        """A domain has shut down or crashed (Xen's VIRQ_DOM_EXC): said once, until it is resumed."""
        domain = self._known.get(domid)
        if domain is not None and not domain.shut_down:
            domain.shut_down = True
            self._fire_special("@releaseDomain")

    def resume(self, domid: int) -> None:
        """A domain that had shut down runs again; ENOENT if it is not known."""
        self._get(domid).shut_down = False

    def set_target(self, domid: int, target: int) -> None:
        """Let `domid` act with the rights of `target`; ENOENT if either is not known."""
        self._get(target)
        self._get(domid).client.who = Identity(domid, target)

    def close(self) -> None:
        """Stop serving all of them."""
        for domain in self._known.values():
            domain.client.reset()
            domain.channel.close()
        self._known.clear()

    def _get(self, domid: int) -> Domain:
        try:
            return self._known[domid]
        except KeyError:
            raise XenstoreError("ENOENT", f"domain {domid} is not introduced") from None

    def _fire_special(self, name: str) -> None:
        self._watches.fire([Event(name, False, None)], self._store.tree)

    def _remove_traces(self, domid: int) -> None:
        """Remove the nodes a domain owned, and its entries in others' permissions: the domid may be used again."""
        change = Change(self._store, Identity(0), DOM0)
        for path, node in reversed(list(change.tree.walk("/"))):  # parents first
            if path != "/" and node.owner == domid and change.tree.get(path) is not None:
                change.remove(path)
        for top in ("/", "@introduceDomain", "@releaseDomain"):
            for path, node in list(change.tree.walk(top)):
                _strip_entries(change, path, node.permissions, domid)
        self._watches.fire(change.commit(), self._store.tree)


def _strip_entries(change: Change, path: str, entries: permissions.Permissions, domid: int) -> None:
    kept = permissions.without(entries, domid)
    node = change.tree.get(path)
    if kept != entries and node is not None:
        change.put(path, node.value, kept)


