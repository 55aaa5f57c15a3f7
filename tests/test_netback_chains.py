"""What netback makes of a transmit ring's slots, against a plain reading of netif.h and of the rules for bad peers."""
import struct
from dataclasses import dataclass

from dom0 import runtime_directory
from hypothesis import given, settings
from hypothesis import strategies as st
from netpeer import ERROR, NULL, OKAY, PAGE, tx_slot
from netrig import Rig

MORE, EXTRA = 4, 8
BAD_GREF = 30000


@dataclass
class Slot:
    """A slot as a frontend wrote it, both as a request and as what it is when an extra info is expected."""

    raw: bytes

    @property
    def request(self) -> tuple[int, int, int, int, int]:
        found: tuple[int, int, int, int, int] = struct.unpack("<IHHHH", self.raw)
        return found


def model(slots: list[bytes], good: set[int]) -> tuple[list[int], bool]:
    """(statuses of the responses, whether the vif is disabled); what is incomplete at the end is not answered."""
    answers: list[int] = []
    at = 0
    while at < len(slots):
        chain = read_chain([Slot(raw) for raw in slots[at : at + 40]], good)
        if chain is None:
            return answers, True
        if not chain:
            return answers, False
        answers += chain
        at += len(chain)
    return answers, False


def read_chain(slots: list[Slot], good: set[int]) -> list[int] | None:
    """The answers to the first packet; none while it is not complete; None for what disables the vif."""
    gref, offset, flags, _, size = slots[0].request
    used, extras, change = 1, 0, False
    more = bool(flags & EXTRA)
    while more:
        if extras == 4:
            return None
        if used == len(slots):
            return []
        kind, extra_flags, gso_size, gso_type = struct.unpack_from("<BBHB", slots[used].raw)
        if not 1 <= kind <= 4 or (kind == 1 and (gso_size == 0 or gso_type not in (1, 2))):
            return None
        change |= kind in (2, 3)
        more = bool(extra_flags & 1)
        extras, used = extras + 1, used + 1
    left, grefs, drop = size, [gref], False
    more = bool(flags & MORE)
    while more:
        if used == len(slots):
            return []
        if len(grefs) == 20:
            return None
        gref, off, next_flags, _, count = slots[used].request
        if off + count > PAGE:
            return None
        drop |= count > left
        left -= min(count, left) if count > left else count
        grefs.append(gref)
        more = bool(next_flags & MORE)
        used += 1
    drop |= len(grefs) > 18

    def answer(status: int) -> list[int]:
        return [status] + [NULL] * extras + [status] * (used - 1 - extras)

    if drop or (size < 14 and not change):
        return answer(ERROR)
    if change:
        return answer(OKAY)
    if offset + left > PAGE:
        return None
    # What is in the pages is zeros: neither TCP nor UDP, so nothing whose checksum could be left to others.
    if not set(grefs) <= good or flags & 1 or any(slots[1 + n].raw[0] == 1 for n in range(extras)):
        return answer(ERROR)
    return answer(OKAY)


requests = st.builds(
    tx_slot, st.sampled_from([0, 0, 0, 0, 0, 0, 1]), st.sampled_from([0, 0, 0, 1, 4000, 4095, 4096, 65535]),
    st.sampled_from([0, 0, 0, MORE, MORE, MORE, EXTRA, MORE | EXTRA, 1, 2, 0xFFF0]), st.integers(0, 65535),
    st.sampled_from([0, 13, 14, 60, 60, 100, 1000, 4096, 4097, 9000, 65535]),
)
extras = st.builds(
    lambda kind, more, size, gso: struct.pack("<BBHBBHI", kind, more, size, gso, 0, 0, 0),
    st.sampled_from([0, 1, 2, 3, 4, 4, 4, 5, 255]), st.sampled_from([0, 0, 1]), st.sampled_from([0, 1000, 1448]),
    st.integers(0, 3),
)
long_chain = st.integers(0, 24).map(lambda n: [tx_slot(0, 0, MORE, 0, 65535)] + [tx_slot(0, 0, MORE, 1, 100)] * n)
packets = st.one_of(
    requests.map(lambda one: [one]), extras.map(lambda one: [one]), long_chain,
    st.tuples(st.integers(1, 18), st.integers(14, 60)).map(
        lambda both: [
            tx_slot(0, 0, MORE if n < both[0] - 1 else 0, n, both[0] * both[1] if n == 0 else both[1]) for n in range(both[0])
        ]
    ),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(packets, max_size=8), st.lists(st.integers(1, 40), max_size=10))
def test_slots_mean_what_a_plain_reading_says(made: list[list[bytes]], pushes: list[int]) -> None:
    """However they are pushed: all at once or one by one."""
    with runtime_directory() as directory:
        rig = Rig(directory)
        vif = rig.vif()
        gref = vif.domain.grants.give(0, vif.domain.pages.alloc(), readonly=True)
        slots = [
            struct.pack("<I", {0: gref, 1: BAD_GREF}.get(int.from_bytes(raw[:4], "little"), 0)) + raw[4:]
            if raw[:4] in (b"\0\0\0\0", b"\1\0\0\0") else raw
            for packet in made for raw in packet
        ][:240]
        wanted, fatal = model(slots, {gref})
        at = 0
        for count in [*pushes, 240]:
            if slots[at : at + count]:
                vif.q.put(*slots[at : at + count])
                rig.settle()
            at += count
        found = [struct.unpack("<Hh", vif.q.tx.take(4)) for _ in range(vif.q.tx.ready)]
        assert [status for _, status in found] == wanted
        assert [number for number, status in found if status != NULL] == [
            struct.unpack_from("<H", slots[index], 8)[0] for index, status in enumerate(wanted) if status != NULL
        ]
        assert (vif.vif.failure is not None) == fatal
        assert vif.domain.in_use == []
        rig.check_idle()
