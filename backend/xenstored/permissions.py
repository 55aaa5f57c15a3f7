"""Who may do what with a node (xenstore.txt, "Each node has one or multiple permission entries")."""
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import NamedTuple

from miniguest.ring.errors import XenstoreError

DOMID_MAX = 0xFFFF


class Access(IntFlag):
    """What an entry grants. OWNER is never written in an entry: it comes with being the first one."""

    NONE = 0
    READ = 1
    WRITE = 2
    OWNER = 4
    ALL = 7


_LETTERS = {"n": Access.NONE, "r": Access.READ, "w": Access.WRITE, "b": Access.READ | Access.WRITE}
_LETTER_OF = {access: letter for letter, access in _LETTERS.items()}


class Entry(NamedTuple):
    """One permission entry. The first of a node names its owner, and what everyone without an entry may do."""

    domid: int
    access: Access


Permissions = tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Identity:
    """In whose name a request is made: a domain, and the domain it is the device model of (XS_SET_TARGET)."""

    domid: int
    target: int | None = None

    @property
    def privileged(self) -> bool:
        """Whether no permission is asked: dom0 only."""
        return self.domid == 0

    def acts_as(self, domid: int) -> bool:
        """Whether an entry for `domid` speaks of this client."""
        return domid in (self.domid, self.target)


def granted(permissions: Permissions, who: Identity) -> Access:
    """What `who` may do with a node that has these permissions."""
    owner, *entries = permissions
    if who.privileged or who.acts_as(owner.domid):
        return Access.ALL
    return next((entry.access for entry in entries if who.acts_as(entry.domid)), owner.access)


def inherited(permissions: Permissions, who: Identity) -> Permissions:
    """The permissions of a new node below one that has `permissions`: a domain owns what it creates."""
    if who.privileged:
        return permissions
    return (Entry(who.domid, permissions[0].access), *permissions[1:])


def without(permissions: Permissions, domid: int) -> Permissions:
    """The permissions with every entry for a domain that is gone taken out, all but the owner's."""
    return (permissions[0], *(entry for entry in permissions[1:] if entry.domid != domid))


def parse(strings: Sequence[bytes]) -> Permissions:
    """Read entries such as b"r3"; EINVAL for anything that is none, or for no entry at all."""
    if not strings:
        raise XenstoreError("EINVAL", "a node needs an owner")
    return tuple(_parse_entry(string) for string in strings)


def _parse_entry(string: bytes) -> Entry:
    letter, digits = string[:1].decode("latin-1"), string[1:]
    if letter not in _LETTERS or not digits.isdigit() or len(digits) > 5 or int(digits) > DOMID_MAX:
        raise XenstoreError("EINVAL", f"not a permission: {string[:16]!r}")
    return Entry(int(digits), _LETTERS[letter])


def format_entries(permissions: Permissions) -> list[bytes]:
    """The entries as they are sent, such as b"n0"."""
    return [f"{_LETTER_OF[entry.access]}{entry.domid}".encode() for entry in permissions]
