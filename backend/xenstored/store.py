"""The nodes, as a tree that is never changed in place: a snapshot is a reference to its root.

A change copies the nodes on the way down to it and shares the rest. Above the root "/" stands a nameless node whose
other children are the special nodes (@introduceDomain, @releaseDomain), which have permissions and nothing else.
"""
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from miniguest.backend.xenstored import paths
from miniguest.backend.xenstored.permissions import Access, Entry, Permissions

# What xenstored keeps for a node beside its names and bytes: a 16 byte header and 8 bytes for each permission entry.
_HEADER_SIZE = 16
_ENTRY_SIZE = 8


@dataclass(frozen=True, slots=True)
class Node:
    """One node. `generation` is new after every change to its value, its permissions or the list of its children."""

    value: bytes
    permissions: Permissions
    generation: int
    children: Mapping[str, "Node"] = field(default_factory=dict)

    @property
    def owner(self) -> int:
        """The domid this node is charged to."""
        return self.permissions[0].domid

    def size(self) -> int:
        """Bytes this node counts for in the node size quota."""
        names = sum(len(name) + 1 for name in self.children)
        return _HEADER_SIZE + _ENTRY_SIZE * len(self.permissions) + len(self.value) + names


@dataclass(frozen=True, slots=True)
class Tree:
    """All nodes at one moment, and how many of them each domain owns."""

    top: Node
    owned: Mapping[int, int]

    def get(self, path: str) -> Node | None:
        """The node at a path, or None."""
        node: Node | None = self.top
        for name in paths.names(path):
            if node is None:
                return None
            node = node.children.get(name)
        return node

    def put(self, path: str, value: bytes, permissions: Permissions, generation: int) -> "Tree":
        """Rewrite an existing node."""
        old = self.get(path)
        assert old is not None, path
        node = Node(value, permissions, generation, old.children)
        return Tree(self._linked(path, node, None), _counted(self.owned, [old], [node]))

    def grow(self, missing: list[str], value: bytes, permissions: Permissions, generation: int) -> "Tree":
        """Create a node and its missing parents, in one go however deep: a change to the parent of the topmost.

        `missing` are their paths, the topmost first. Only the last gets the value.
        """
        node = Node(value, permissions, generation)
        grown = [node]
        for path in reversed(missing[1:]):
            node = Node(b"", permissions, generation, {paths.names(path)[-1]: node})
            grown.append(node)
        return Tree(self._linked(missing[0], node, generation), _counted(self.owned, [], grown))

    def without(self, path: str, generation: int) -> "Tree":
        """Take out an existing node and everything below it; a change to its parent."""
        gone = [node for _, node in self.walk(path)]
        return Tree(self._linked(path, None, generation), _counted(self.owned, gone, []))

    def graft(self, other: "Tree", modified: list[str]) -> "Tree":
        """Bring over what `other` changed in `modified` (parents come with their children's creation and removal).

        Both trees descend from one. Nodes that are not in `modified` stay as they are here.
        """
        tree = self
        old = [node for path in modified if (node := self.get(path)) is not None]
        new = [node for path in modified if (node := other.get(path)) is not None]
        for path in sorted(modified, key=lambda path: len(paths.names(path))):
            node = other.get(path)
            if node is not None:  # else its parent, done before, no longer lists it
                here = tree.get(path)
                if here is node:  # came with its parent, which is new here
                    continue
                if here is not None:
                    ours = here.children
                    children = {name: ours.get(name, theirs) for name, theirs in node.children.items()}
                    node = replace(node, children=children)
                tree = Tree(tree._linked(path, node, None), tree.owned)
        return Tree(tree.top, _counted(self.owned, old, new))

    def walk(self, path: str) -> Iterator[tuple[str, Node]]:
        """The node at `path` and all below it, each with its path, children before their parents."""
        found = []
        waiting = [(path, self.get(path))]
        while waiting:
            here, node = waiting.pop()
            if node is not None:
                found.append((here, node))
                waiting.extend((paths.child(here, name), below) for name, below in node.children.items())
        return reversed(found)

    def _linked(self, path: str, node: Node | None, generation: int | None) -> Node:
        """The top of a tree that has `node` (None: nothing) at `path`; `generation` is for its parent."""
        names = paths.names(path)
        chain = [self.top]
        for name in names[:-1]:
            chain.append(chain[-1].children[name])
        for depth, (above, name) in enumerate(zip(reversed(chain), reversed(names), strict=True)):
            children = dict(above.children)
            if node is None:
                del children[name]
            else:
                children[name] = node
            changed = generation if depth == 0 and generation is not None else above.generation
            node = Node(above.value, above.permissions, changed, children)
        assert node is not None
        return node


def _counted(owned: Mapping[int, int], gone: list[Node], new: list[Node]) -> Mapping[int, int]:
    if [node.owner for node in gone] == [node.owner for node in new]:
        return owned
    counts = dict(owned)
    for step, nodes in ((-1, gone), (1, new)):
        for node in nodes:
            counts[node.owner] = counts.get(node.owner, 0) + step
    for node in gone:
        if counts.get(node.owner) == 0:
            del counts[node.owner]
    return counts


class Store:
    """The tree everyone sees, and the counter that tells its changes apart."""

    def __init__(self) -> None:
        self._generation = 0
        dom0_only = (Entry(0, Access.NONE),)
        tree = Tree(Node(b"", dom0_only, 0), {})
        for path in ("/", "/tool", "/tool/xenstored", "@introduceDomain", "@releaseDomain"):
            tree = tree.grow([path], b"", dom0_only, self.next_generation())
        self.tree = tree

    def next_generation(self) -> int:
        """A number no node has had before."""
        self._generation += 1
        return self._generation
