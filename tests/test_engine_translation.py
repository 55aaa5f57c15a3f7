"""The TLB hook's walk of the guest's page tables beside Unicorn's: whoever translates, a guest ends with the same memory."""
from pathlib import Path

import pytest
from paging_guest import Guest

KINDS = ["32", "pse", "pae", "nx"]


@pytest.mark.parametrize("kind", KINDS)
def test_guests_made_at_random_end_alike(tmp_path: Path, kind: str) -> None:
    """Registers, error codes and CR2 of all faults are in the memory, and so are the tables' accessed and dirty bits.
    An access that is tried again adds no block to their number, which is the guest's time."""
    for seed in range(10):
        ours, unicorns = (Guest(tmp_path, kind, seed).run(by_unicorn) for by_unicorn in (False, True))
        assert differing(ours, unicorns) == [], f"{kind}, seed {seed}"


def differing(first: bytes, second: bytes) -> list[tuple[str, str, str]]:
    return [
        (hex(at), first[at : at + 4].hex(), second[at : at + 4].hex())
        for at in range(0, len(first), 4) if first[at : at + 4] != second[at : at + 4]
    ][:8]
