"""A hundred thousand events between two processes that pause and spin at random: not one may be lost."""
import pytest

from miniguest.deploy.stress.events import ask_and_answer


@pytest.mark.parametrize(("doorbell", "ports", "total"), [("zmq", 1, 20_000), ("fifo", 1, 40_000), ("fifo", 3, 60_000)])
def test_no_event_is_lost(doorbell: str, ports: int, total: int) -> None:
    ask_and_answer(total, doorbell, ports, seed=21, seconds=90)
