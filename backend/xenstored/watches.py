"""Who wants to hear of changes to which part of the tree (xenstore.txt, "Watches")."""
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count

from miniguest.backend.xenstored import paths
from miniguest.backend.xenstored.permissions import Access, Identity, granted
from miniguest.backend.xenstored.store import Tree
from miniguest.backend.xenstored.transactions import Event


@dataclass(frozen=True, slots=True, eq=False)
class Watch:
    """One registered watch; `tell` is given the path, in the form the watch was registered in, and the token."""

    path: str
    token: bytes
    prefix: str  # what to leave off the paths of events: the domain path, for a watch on a relative path
    who: Callable[[], Identity]
    tell: Callable[[str, bytes], None]
    number: int

    def fire(self, path: str) -> None:
        """Report an event at `path`."""
        self.tell(path.removeprefix(self.prefix), self.token)


class Watches:
    """Every watch of every client, found by the path it is on: an event asks only for its own path and those above."""

    def __init__(self) -> None:
        self._by_path: dict[str, list[Watch]] = {}
        self._numbers = count()

    def add(
        self, path: str, token: bytes, prefix: str, who: Callable[[], Identity], tell: Callable[[str, bytes], None]
    ) -> Watch:
        """Register a watch. It is not fired here."""
        watch = Watch(path, token, prefix, who, tell, next(self._numbers))
        self._by_path.setdefault(path, []).append(watch)
        return watch

    @property
    def paths(self) -> list[str]:
        """Those that are watched."""
        return list(self._by_path)

    def remove(self, watch: Watch) -> None:
        """Forget a watch that `add` returned."""
        here = self._by_path[watch.path]
        here.remove(watch)
        if not here:
            del self._by_path[watch.path]

    def fire(self, events: Iterable[Event], tree: Tree) -> None:
        """Report events that have become visible in `tree` to all watches that match and may know."""
        for event in events:
            for watch in self._matching(event):
                if _permitted(event, tree, watch.who()):
                    watch.fire(event.path)

    def _matching(self, event: Event) -> list[Watch]:
        places = paths.upwards(event.path) if event.below else [event.path]
        return sorted(self._at(places), key=lambda watch: watch.number)

    def _at(self, places: Iterable[str]) -> Iterator[Watch]:
        for place in places:
            yield from self._by_path.get(place, ())


def _permitted(event: Event, tree: Tree, who: Identity) -> bool:
    """Whether `who` may know: the node or its parent is readable, or the node was before."""
    nodes = (tree.get(place) for place in paths.upwards(event.path)[:2])
    known = [node.permissions for node in nodes if node is not None]
    if event.permissions is not None:
        known.append(event.permissions)
    return any(granted(permissions, who) & Access.READ for permissions in known)
