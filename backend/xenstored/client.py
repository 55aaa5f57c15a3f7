"""What xenstored knows of one connection, however its messages travel."""
from miniguest.backend.xenstored import paths
from miniguest.backend.xenstored.outbox import Outbox
from miniguest.backend.xenstored.permissions import Identity
from miniguest.backend.xenstored.quotas import quota_for
from miniguest.backend.xenstored.store import Store
from miniguest.backend.xenstored.transactions import Change
from miniguest.backend.xenstored.watches import Watch, Watches
from miniguest.ring.errors import XenstoreError

_TX_IDS = 1 << 32


class Client:
    """One connection: who it is, its watches, its open transactions and what it is to be sent."""

    def __init__(self, domid: int, store: Store, watches: Watches) -> None:
        self.who = Identity(domid)
        self.quota = quota_for(domid)
        self.outbox = Outbox(self.quota)
        self._store = store
        self._all_watches = watches
        self._watches: dict[tuple[str, bytes], Watch] = {}
        self._transactions: dict[int, Change] = {}
        self._next_tx_id = 1

    @property
    def domid(self) -> int:
        """The domain at the other end."""
        return self.who.domid

    def watch(self, given: bytes, token: bytes) -> Watch:
        """Register a watch; EINVAL for a bad path, EEXIST for one it has, ENOSPC for one too many."""
        path = paths.absolute(given, self.domid, special=True)
        if (path, token) in self._watches:
            raise XenstoreError("EEXIST", f"watch on {path}")
        if len(self._watches) >= self.quota.watches:
            raise XenstoreError("ENOSPC", f"domain {self.domid} has too many watches")
        prefix = f"{paths.domain_path(self.domid)}/" if paths.is_relative(given) else ""
        watch = self._all_watches.add(path, token, prefix, lambda: self.who, self.outbox.event)
        self._watches[path, token] = watch
        return watch

    def unwatch(self, given: bytes, token: bytes) -> None:
        """Take a watch back; ENOENT when there is none such."""
        path = paths.absolute(given, self.domid, special=True)
        watch = self._watches.pop((path, token), None)
        if watch is None:
            raise XenstoreError("ENOENT", f"no such watch on {path}")
        self._all_watches.remove(watch)

    def start_transaction(self) -> int:
        """Open a transaction and return its tx_id; ENOSPC for one too many."""
        if len(self._transactions) >= self.quota.transactions:
            raise XenstoreError("ENOSPC", f"domain {self.domid} has too many transactions")
        while self._next_tx_id in self._transactions or self._next_tx_id == 0:
            self._next_tx_id = (self._next_tx_id + 1) % _TX_IDS
        tx_id = self._next_tx_id
        self._next_tx_id = (tx_id + 1) % _TX_IDS
        self._transactions[tx_id] = Change(self._store, self.who, self.quota, self.quota.transaction_nodes)
        return tx_id

    def transaction(self, tx_id: int) -> Change:
        """An open transaction; ENOENT when there is none with this id."""
        try:
            return self._transactions[tx_id]
        except KeyError:
            raise XenstoreError("ENOENT", f"no transaction {tx_id}") from None

    def end_transaction(self, tx_id: int) -> Change:
        """The same, and its id is free again."""
        change = self.transaction(tx_id)
        del self._transactions[tx_id]
        return change

    @property
    def busy(self) -> bool:
        """Whether it has watches, or transactions that are open."""
        return bool(self._watches or self._transactions)

    def forget(self) -> None:
        """Drop its watches and transactions."""
        for watch in self._watches.values():
            self._all_watches.remove(watch)
        self._watches.clear()
        self._transactions.clear()

    def reset(self) -> None:
        """Back to how it was when it connected."""
        self.forget()
        self.outbox.clear()
