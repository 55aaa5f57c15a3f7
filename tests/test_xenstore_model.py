"""xenstored against a plain model of the store: any sequence of requests of several domains, inside and outside of
transactions, gets the replies and the watch events that the model says."""
import copy
import itertools
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from miniguest.backend.xenstored.client import Client
from miniguest.backend.xenstored.daemon import Xenstored
from miniguest.backend.xenstored.quotas import Quota
from miniguest.ring.abi import xs_wire as xs
from miniguest.ring.xenstore.message import Message, MessageReader

SMALL = Quota(nodes=4, node_size=90, watches=2, transactions=2, permissions=2)
TARGETS = {3: 1}  # domain 3 is the device model of domain 1
DOMIDS = [0, 1, 2, 3]

Perms = list[tuple[str, int]]


class Refused(Exception):
    """What the model answers with an error."""


@dataclass
class ModelNode:
    value: bytes
    perms: Perms
    stamp: int
    children: list[str] = field(default_factory=list)

    def size(self) -> int:
        return 16 + 8 * len(self.perms) + len(self.value) + sum(len(name) + 1 for name in self.children)


def parent_of(path: str) -> str:
    return path[: path.rindex("/")] or "/"


def rights(perms: Perms, domid: int) -> str:
    mine = {domid, TARGETS.get(domid)}
    if domid == 0 or perms[0][1] in mine:
        return "rwo"
    letter = next((letter for letter, who in perms[1:] if who in mine), perms[0][0])
    return {"n": "", "r": "r", "w": "w", "b": "rw"}[letter]


class View:
    """A dictionary of nodes by path, and what was looked at, done and to be told of."""

    stamps = itertools.count(1)

    def __init__(self, nodes: dict[str, ModelNode]) -> None:
        self.before = nodes
        self.nodes = copy.deepcopy(nodes)
        self.looked: dict[str, int | None] = {}
        self.effects: list[tuple[str, bytes | None, Perms]] = []
        self.events: dict[str, tuple[bool, Perms | None]] = {}

    def look(self, path: str) -> ModelNode | None:
        self.looked.setdefault(path, self.before[path].stamp if path in self.before else None)
        return self.nodes.get(path)

    def nearest(self, path: str) -> str:
        while True:
            path = parent_of(path)
            if self.look(path) is not None:
                return path

    def find(self, path: str, domid: int, needed: str) -> ModelNode | None:
        node = self.look(path)
        if node is None:
            allowed = rights(self.nodes[self.nearest(path)].perms, domid)
            if not set(needed) & set(allowed):
                raise Refused("EACCES")
        elif not set(needed) <= set(rights(node.perms, domid)):
            raise Refused("EACCES")
        return node

    def get(self, path: str, domid: int, needed: str) -> ModelNode:
        node = self.find(path, domid, needed)
        if node is None:
            raise Refused("ENOENT")
        return node

    def tell(self, path: str, below: bool, perms: Perms | None) -> None:
        old = self.events.get(path)
        self.events[path] = (below or old[0], old[1]) if old else (below, perms)

    def put(self, path: str, value: bytes, perms: Perms) -> None:
        self.effects.append((path, value, perms))
        stamp = next(self.stamps)
        if path not in self.nodes:
            above = self.nodes[parent_of(path)]
            above.children.append(path.rsplit("/", 1)[1])
            above.stamp = stamp
            self.nodes[path] = ModelNode(value, perms, stamp)
        else:
            node = self.nodes[path]
            node.value, node.perms, node.stamp = value, perms, stamp

    def remove(self, path: str) -> None:
        self.effects.append((path, None, []))
        for doomed in [other for other in self.nodes if other == path or other.startswith(f"{path}/")]:
            del self.nodes[doomed]
        above = self.nodes[parent_of(path)]
        above.children.remove(path.rsplit("/", 1)[1])
        above.stamp = next(self.stamps)

    def owned(self, domid: int) -> int:
        return sum(node.perms[0][1] == domid for node in self.nodes.values())

    def check(self, domid: int, paths: list[str], created: bool) -> None:
        """The quotas, after a trial."""
        if domid == 0:
            return
        if (created and self.owned(domid) > SMALL.nodes) or any(
            self.nodes[path].size() > SMALL.node_size for path in paths
        ):
            raise Refused("ENOSPC")


def create(view: View, path: str, value: bytes, domid: int) -> None:
    above = view.nearest(path)
    perms = list(view.nodes[above].perms)
    if domid:
        perms[0] = (perms[0][0], domid)
    missing = [path]
    while parent_of(missing[0]) != above:
        missing.insert(0, parent_of(missing[0]))
    trial = copy.deepcopy(view)
    for target in (trial, view):
        for place in missing:
            target.put(place, value if place == path else b"", perms)
        target.check(domid, [above, *missing], True)


class Model:
    """The store as xenstore.txt describes it."""

    def __init__(self) -> None:
        perms = [("n", 0)]
        self.nodes = {
            "/": ModelNode(b"", perms, 0, ["tool"]),
            "/tool": ModelNode(b"", perms, 0, ["xenstored"]),
            "/tool/xenstored": ModelNode(b"", perms, 0),
        }

    def request(self, view: View, domid: int, kind: int, path: str, value: bytes, perms: Perms) -> bytes:
        """The reply's payload; `view` has the effects."""
        match kind:
            case xs.XS_READ:
                return view.get(path, domid, "r").value
            case xs.XS_DIRECTORY:
                return b"".join(name.encode() + b"\0" for name in view.get(path, domid, "r").children)
            case xs.XS_GET_PERMS:
                return b"".join(f"{letter}{who}\0".encode() for letter, who in view.get(path, domid, "r").perms)
            case xs.XS_WRITE:
                node = view.find(path, domid, "w")
                if node is None:
                    create(view, path, value, domid)
                else:
                    trial = copy.deepcopy(view)
                    trial.put(path, value, node.perms)
                    trial.check(domid, [path], False)
                    view.put(path, value, node.perms)
                view.tell(path, True, None)
            case xs.XS_MKDIR:
                if view.find(path, domid, "w") is None:
                    create(view, path, b"", domid)
                    view.tell(path, True, None)
            case xs.XS_RM:
                self.rm(view, domid, path)
            case xs.XS_SET_PERMS:
                if len(perms) > SMALL.permissions and domid:
                    raise Refused("ENOSPC")
                node = view.get(path, domid, "wo")
                if domid and perms[0][1] != node.perms[0][1]:
                    raise Refused("EPERM")
                old = node.perms
                trial = copy.deepcopy(view)
                trial.put(path, node.value, perms)
                trial.check(domid, [path], False)
                view.put(path, node.value, perms)
                view.tell(path, True, old)
        return b"OK\0"

    def rm(self, view: View, domid: int, path: str) -> None:
        node = view.find(path, domid, "w")
        if path == "/":
            raise Refused("EINVAL")
        if view.look(parent_of(path)) is None:
            raise Refused("ENOENT")
        if node is not None:
            for below in [other for other in view.nodes if other == path or other.startswith(f"{path}/")]:
                view.look(below)
                view.tell(below, below == path, view.nodes[below].perms)
            view.remove(path)

    def commit(self, view: View, domid: int) -> dict[str, tuple[bool, Perms | None]]:
        """Do again what the view did, if nothing it looked at was changed."""
        for path, stamp in view.looked.items():
            if (self.nodes[path].stamp if path in self.nodes else None) != stamp:
                raise Refused("EAGAIN")
        now = View(self.nodes)
        had = now.owned(domid)
        for path, value, perms in view.effects:
            if value is None:
                now.remove(path)
            else:
                now.put(path, value, perms)
        if domid and now.owned(domid) > max(SMALL.nodes, had):
            raise Refused("ENOSPC")
        self.nodes = now.nodes
        return view.events


NAMES = st.sampled_from(["a", "b"])
PATHS = st.one_of(
    st.lists(NAMES, max_size=3).map(lambda names: "/" + "/".join(names)),
    st.builds(
        lambda domid, rest: "/".join([f"/local/domain/{domid}", *rest]),
        st.sampled_from([1, 2]),
        st.lists(NAMES, max_size=2),
    ),
)
WATCHED = st.one_of(PATHS, st.sampled_from(["x", "x/y", "@releaseDomain"]))
VALUES = st.one_of(st.binary(max_size=6), st.just(b"v" * 80))
PERMS = st.lists(st.tuples(st.sampled_from("nrwb"), st.sampled_from(DOMIDS)), min_size=1, max_size=3)
KINDS = st.sampled_from(
    [xs.XS_READ, xs.XS_DIRECTORY, xs.XS_GET_PERMS, xs.XS_WRITE, xs.XS_WRITE, xs.XS_MKDIR, xs.XS_RM, xs.XS_SET_PERMS]
)
Step = tuple[int, str, bytes]
NEAR = st.tuples(
    KINDS,
    st.lists(NAMES, max_size=2).map(lambda names: "/".join(["/local/domain/1", *names])),
    st.sampled_from([b"", b"1", b"v" * 80]),
)


class Channel:
    def close(self) -> None: ...
    def restart(self) -> None: ...


class StoreMachine(RuleBasedStateMachine):
    """Drives both."""

    transactions = Bundle("transactions")
    watches = Bundle("watches")

    @initialize()
    def begin(self) -> None:
        self.clients: dict[int, Client] = {}
        self.daemon = Xenstored(self.connect)
        self.model = Model()
        self.views: dict[tuple[int, int], View] = {}
        self.watched: dict[tuple[int, str, str], str] = {}
        self.clients[0] = self.daemon.new_client()
        for domid in DOMIDS[1:]:
            self.introduce(domid)
        for domid in (1, 2):
            path = f"/local/domain/{domid}"
            self.compare(0, 0, xs.XS_MKDIR, path, b"", [])
            self.compare(0, 0, xs.XS_SET_PERMS, path, b"", [("n", domid)])

    def connect(self, client: Client, gfn: int, evtchn: int) -> Channel:
        client.quota = SMALL
        self.clients[client.domid] = client
        return Channel()

    def introduce(self, domid: int) -> None:
        assert self.send(0, 0, xs.XS_INTRODUCE, f"{domid}\0{domid}\0{domid}\0".encode()) == b"OK\0"
        if domid in TARGETS:
            assert self.send(0, 0, xs.XS_SET_TARGET, f"{domid}\0{TARGETS[domid]}\0".encode()) == b"OK\0"

    def send(self, domid: int, tx_id: int, kind: int, payload: bytes) -> bytes | str:
        """One request: the reply's payload, or the error's name. Events stay in `self.events`."""
        self.daemon.handle(self.clients[domid], Message(kind, 77, tx_id, payload))
        self.events: dict[int, Counter[tuple[str, str]]] = {}
        replies = []
        for who, client in self.clients.items():
            self.events[who] = Counter()
            for message in self.drain(client):
                if message.type == xs.XS_WATCH_EVENT:
                    path, token = message.payload.decode().split("\0")[:2]
                    self.events[who][path, token] += 1
                else:
                    assert (who, message.req_id, message.tx_id) == (domid, 77, tx_id)
                    replies.append(message)
        (reply,) = replies
        if reply.type == xs.XS_ERROR:
            return reply.payload.decode().removesuffix("\0")
        assert reply.type == kind
        return reply.payload

    @staticmethod
    def drain(client: Client) -> list[Message]:
        data = b""
        while head := client.outbox.head():
            data += head
            client.outbox.sent(len(head))
        return list(MessageReader().feed(data))

    def expected_events(self, events: dict[str, tuple[bool, Perms | None]]) -> dict[int, Counter[tuple[str, str]]]:
        told: dict[int, Counter[tuple[str, str]]] = {domid: Counter() for domid in self.clients}
        for path, (below, old) in events.items():
            seen_by = [old] if old else []
            seen_by += [self.model.nodes[place].perms for place in (path, parent_of(path)) if place in self.model.nodes]
            for (domid, given, token), place in self.watched.items():
                hit = place == path or (below and (place == "/" or path.startswith(f"{place}/")))
                if hit and any("r" in rights(perms, domid) for perms in seen_by):
                    shown = path if given.startswith("/") else path.removeprefix(f"/local/domain/{domid}/")
                    told[domid][shown, token] = 1       # one that waits to be read already says the same
        return told

    def compare(self, domid: int, tx_id: int, kind: int, path: str, value: bytes, perms: Perms) -> None:
        payload = path.encode() + b"\0"
        if kind == xs.XS_WRITE:
            payload += value
        if kind == xs.XS_SET_PERMS:
            payload += b"".join(f"{letter}{who}\0".encode() for letter, who in perms)
        got = self.send(domid, tx_id, kind, payload)
        view = self.views[domid, tx_id] if tx_id else View(self.model.nodes)
        events: dict[str, tuple[bool, Perms | None]] = {}
        wanted: bytes | str
        try:
            wanted = self.model.request(view, domid, kind, path, value, list(perms))
            if not tx_id:
                events = self.model.commit(view, domid)
        except Refused as refused:
            wanted = str(refused)
        assert got == wanted
        assert self.events == self.expected_events(events)

    @rule(domid=st.sampled_from(DOMIDS), kind=KINDS, path=PATHS, value=VALUES, perms=PERMS)
    def direct(self, domid: int, kind: int, path: str, value: bytes, perms: Perms) -> None:
        self.compare(domid, 0, kind, path, value, perms)

    @rule(transaction=transactions, kind=KINDS, path=PATHS, value=VALUES, perms=PERMS)
    def in_transaction(self, transaction: tuple[int, int], kind: int, path: str, value: bytes, perms: Perms) -> None:
        if transaction in self.views:
            self.compare(transaction[0], transaction[1], kind, path, value, perms)

    @rule(target=transactions, domid=st.sampled_from(DOMIDS))
    def start(self, domid: int) -> object:
        got = self.send(domid, 0, xs.XS_TRANSACTION_START, b"\0")
        if domid and sum(who == domid for who, _ in self.views) >= SMALL.transactions:
            assert got == "ENOSPC"
            return multiple()
        assert isinstance(got, bytes)
        tx_id = int(got[:-1])
        assert tx_id
        assert (domid, tx_id) not in self.views
        self.views[domid, tx_id] = View(self.model.nodes)
        return (domid, tx_id)

    @rule(transaction=consumes(transactions), commit=st.booleans())
    def end(self, transaction: tuple[int, int], commit: bool) -> None:
        domid, tx_id = transaction
        view = self.views.pop(transaction, None)
        got = self.send(domid, tx_id, xs.XS_TRANSACTION_END, b"T\0" if commit else b"F\0")
        events: dict[str, tuple[bool, Perms | None]] = {}
        wanted: bytes | str = b"OK\0"
        try:
            if view is None:
                raise Refused("ENOENT")
            if commit:
                events = self.model.commit(view, domid)
        except Refused as refused:
            wanted = str(refused)
        assert got == wanted
        assert self.events == self.expected_events(events)

    @rule(
        domid=st.sampled_from([0, 1]),
        inside=st.lists(NEAR, min_size=1, max_size=4),
        outside=st.lists(NEAR, max_size=2),
    )
    def race(self, domid: int, inside: list[Step], outside: list[Step]) -> None:
        """A transaction, with others' requests before it ends, all in one small corner."""
        started = self.start(domid)
        if isinstance(started, tuple):
            _, tx_id = started
            for kind, path, value in inside:
                self.compare(domid, tx_id, kind, path, value, [("b", 1)])
            for kind, path, value in outside:
                self.compare(0, 0, kind, path, value, [("b", 1)])
            self.end(started, True)

    @rule(target=watches, domid=st.sampled_from(DOMIDS), path=WATCHED, token=st.sampled_from(["t", "u"]))
    def watch(self, domid: int, path: str, token: str) -> object:
        got = self.send(domid, 0, xs.XS_WATCH, f"{path}\0{token}\0".encode())
        place = path if path[0] in "/@" else f"/local/domain/{domid}/{path}"
        if any((who, place, token) == (domid, other, tok) for (who, _, tok), other in self.watched.items()):
            assert got == "EEXIST"
        elif domid and sum(who == domid for who, _, _ in self.watched) >= SMALL.watches:
            assert got == "ENOSPC"
        else:
            assert got == b"OK\0"
            assert self.events.pop(domid) == Counter({(path, token): 1})
            self.watched[domid, path, token] = place
            assert not any(self.events.values())
            return (domid, path, token)
        assert not any(self.events.values())
        return multiple()

    @rule(watch=consumes(watches))
    def unwatch(self, watch: tuple[int, str, str]) -> None:
        domid, path, token = watch
        known = self.watched.pop(watch, None)
        got = self.send(domid, 0, xs.XS_UNWATCH, f"{path}\0{token}\0".encode())
        assert got == ("ENOENT" if known is None else b"OK\0")

    @rule(domid=st.sampled_from([2]))
    def domain_goes_and_comes_back(self, domid: int) -> None:
        self.watched = {key: place for key, place in self.watched.items() if key[0] != domid}
        self.views = {key: view for key, view in self.views.items() if key[0] != domid}
        client = self.clients[domid]
        got = self.send(0, 0, xs.XS_RELEASE, f"{domid}\0".encode())
        assert got == b"OK\0"
        view = View(self.model.nodes)
        for path in list(view.nodes):
            if path == "/":
                continue                # the root stays, whoever owns it
            if path in view.nodes and view.nodes[path].perms[0][1] == domid and not self.lies_below(view, path, domid):
                self.model.rm(view, 0, path)
        for path, node in list(view.nodes.items()):
            if any(who == domid for _, who in node.perms[1:]):
                view.put(path, node.value, [node.perms[0], *(p for p in node.perms[1:] if p[1] != domid)])
        events = self.model.commit(view, 0)
        expected = self.expected_events(events)
        for (who, given, token), place in self.watched.items():
            if place == "@releaseDomain" and who == 0:
                expected[who][given, token] += 1
        assert self.events == expected
        assert not client.outbox.head()
        self.introduce(domid)

    @staticmethod
    def lies_below(view: View, path: str, domid: int) -> bool:
        """Whether removing another of the domain's nodes removes this one too."""
        while path != "/":
            path = parent_of(path)
            if path != "/" and view.nodes[path].perms[0][1] == domid:
                return True
        return False

    @invariant()
    def same_nodes(self) -> None:
        if not hasattr(self, "model"):
            return
        tree = self.daemon.store.tree
        seen = {path: (node.value, list(node.children)) for path, node in tree.walk("/")}
        assert seen == {path: (node.value, node.children) for path, node in self.model.nodes.items()}
        owned = Counter(node.perms[0][1] for node in self.model.nodes.values())
        owned[0] += 2  # @introduceDomain, @releaseDomain
        assert dict(tree.owned) == {domid: count for domid, count in owned.items() if count}


TestStore = pytest.mark.filterwarnings("error")(StoreMachine.TestCase)
TestStore.settings = settings(
    max_examples=100, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
