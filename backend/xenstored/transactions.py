"""Changes to the store: gathered on a snapshot, then made visible at once or not at all.

A single request is a change that nothing can come between. A transaction is one that is open for longer: when it ends,
each node it looked at or touched must still be as it was, else EAGAIN and the client starts over.
"""
import sys
from typing import NamedTuple

from miniguest.backend.xenstored import paths
from miniguest.backend.xenstored.permissions import Identity, Permissions
from miniguest.backend.xenstored.quotas import Quota
from miniguest.backend.xenstored.store import Node, Store, Tree
from miniguest.ring.errors import XenstoreError


class Event(NamedTuple):
    """Something happened to `path`. `below` says whether watches above it hear of it, or those on it alone.

    `permissions` are those the node had before, for who may no longer see it is told so.
    """

    path: str
    below: bool
    permissions: Permissions | None


class Change:
    """A private copy of the store that remembers what was looked at and what was changed.

    `most` is the number of nodes it may look at.
    """

    def __init__(self, store: Store, who: Identity, quota: Quota, most: int = sys.maxsize) -> None:
        self._store = store
        self._base = store.tree
        self.tree = store.tree
        self.who = who
        self.quota = quota
        self._most = most
        self._seen: dict[str, int | None] = {}
        self._modified: dict[str, None] = {}
        self._events: dict[str, Event] = {}

    def look(self, path: str) -> Node | None:
        """The node at `path`, or None; either way the transaction now depends on it. ENOSPC past the quota."""
        if path not in self._seen:
            if len(self._seen) >= self._most:
                raise XenstoreError("ENOSPC", "too many nodes in one transaction")
            before = self._base.get(path)
            self._seen[path] = before.generation if before else None
        return self.tree.get(path)

    def root(self) -> Node:
        """The node every path starts at."""
        node = self.look("/")
        assert node is not None, "nothing can remove it"
        return node

    def put(self, path: str, value: bytes, permissions: Permissions) -> None:
        """Rewrite an existing node. ENOSPC, and nothing done, when a quota does not allow it."""
        tree = self.tree.put(path, value, permissions, self._store.next_generation())
        self._adopt(tree, [path])

    def create(self, missing: list[str], value: bytes, permissions: Permissions) -> None:
        """Create a node and its missing parents (paths, the topmost first), all of them or, with ENOSPC, none."""
        owned = self.tree.owned.get(self.who.domid, 0)
        if not self.who.privileged and owned + len(missing) > self.quota.nodes:
            raise XenstoreError("ENOSPC", f"domain {self.who.domid} has too many nodes")
        tree = self.tree.grow(missing, value, permissions, self._store.next_generation())
        self._adopt(tree, [paths.parent(missing[0]), *missing])

    def _adopt(self, tree: Tree, touched: list[str]) -> None:
        if not self.who.privileged:
            for path in touched:
                self.quota.check_size(tree.get(path))
        self._modified.update(dict.fromkeys(touched))
        self.tree = tree

    def remove(self, path: str) -> None:
        """Take out a node and all below it, with an event for each."""
        doomed = list(self.tree.walk(path))
        self._look_below(path, [below for below, _ in doomed])
        self.look(paths.parent(path))
        for below, node in doomed:
            self._modified[below] = None
            self.event(below, below == path, node.permissions)
        self._modified[paths.parent(path)] = None
        self.tree = self.tree.without(path, self._store.next_generation())

    def _look_below(self, path: str, now: list[str]) -> None:
        """`look` at all of a subtree; `now` are the paths in it. Walks once: it may be as deep as it is large."""
        before = {below: node.generation for below, node in self._base.walk(path)}
        seen = {below: before.get(below) for below in now} | self._seen
        if len(seen) > self._most:
            raise XenstoreError("ENOSPC", "too many nodes in one transaction")
        self._seen = seen

    def event(self, path: str, below: bool, permissions: Permissions | None) -> None:
        """Have `path`'s watches fire when this becomes visible: once, however often it was changed."""
        known = self._events.get(path)
        if known is None:
            self._events[path] = Event(path, below, permissions)
        elif below and not known.below:
            self._events[path] = known._replace(below=True)

    def commit(self) -> list[Event]:
        """Make it visible, all at once, and return the events to fire.

        EAGAIN when somebody changed what this change depends on; ENOSPC when its owner has too many nodes by now.
        """
        tree = self.tree
        if self._store.tree is not self._base:
            self._check_conflicts()
            tree = self._store.tree.graft(self.tree, list(self._modified))
        domid = self.who.domid
        if tree.owned.get(domid, 0) > max(self.quota.nodes, self._store.tree.owned.get(domid, 0)):
            raise XenstoreError("ENOSPC", f"domain {domid} has too many nodes")
        self._store.tree = tree
        return list(self._events.values())

    def _check_conflicts(self) -> None:
        for path, generation in self._seen.items():
            now = self._store.tree.get(path)
            if (now.generation if now else None) != generation:
                raise XenstoreError("EAGAIN", f"{path} was changed by somebody else")
