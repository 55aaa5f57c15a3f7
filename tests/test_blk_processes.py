"""Blocks between processes, as `make soak` moves them for longer: every byte is compared, every wake counts."""
import pytest

from miniguest.deploy.stress.blk import pass_blocks


@pytest.mark.parametrize("doorbell", ["zmq", "fifo"])
def test_many_blocks_at_a_time(doorbell: str) -> None:
    pass_blocks(60_000, doorbell, depth=32, seed=1)


def test_one_block_at_a_time() -> None:
    pass_blocks(20_000, "fifo", depth=1, seed=2, stir=True)


def test_stirred_on_busy_cores() -> None:
    pass_blocks(10_000, "fifo", depth=200, seed=3, stir=True, hogs=2)


def test_blkback_killed_meanwhile() -> None:
    pass_blocks(60_000, "fifo", depth=32, seed=4, kills=6)
