"""The block path's bench: every way reads its blocks, and one that cannot be had is named."""
from dataclasses import replace

import pytest

from miniguest.deploy.bench import blk


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blk, "LOADS", tuple(replace(load, requests=300) for load in blk.LOADS))
    monkeypatch.setattr(blk, "IMAGE", 4 << 20)
    monkeypatch.setattr(blk, "FIO_SECONDS", 0.05)


def test_every_way() -> None:
    told: list[str] = []
    found = blk.measure(2, False, told.append)
    assert [(row.name, row.unit, row.reference) for row in found.rows] == [
        ("blk rand4k-qd32", "k/s", "blk rand4k-qd32, os.preadv"), ("blk rand4k-qd32, os.preadv", "k/s", ""),
        ("blk seq128k", "GB/s", "blk seq128k, os.preadv"), ("blk seq128k, os.preadv", "GB/s", ""),
    ]
    assert all(row.bench == "blk" and row.value > 0 and row.windows == 2 and row.ratio > 0 for row in found.rows)
    assert not found.left_out and any("window 2 of 2" in line for line in told)


def test_peers_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blk.shutil, "which", lambda program: None)
    found = blk.measure(1, True, lambda what: None)
    assert set(found.left_out) == {"fio", "nbdkit"}
    assert len(found.rows) == 4


def test_peers() -> None:
    """Each is either measured or named."""
    found = blk.measure(1, True, lambda what: None)
    for peer, program in (("fio psync", "fio"), ("fio io_uring", "fio"), ("fio nbd to nbdkit", "nbdkit")):
        rows = [row for row in found.rows if row.name == f"blk seq128k, {peer}"]
        assert len(rows) == (0 if {peer, program, "fio"} & set(found.left_out) else 1)
