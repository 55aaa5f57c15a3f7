"""A hundred thousand events between two processes that pause and spin at random: not one may be lost."""
import pytest

from miniguest.deploy.stress.events import ask_and_answer


@pytest.mark.parametrize(("doorbell", "seed"), [("zmq", 21), ("fifo", 22)])
def test_no_event_is_lost(doorbell: str, seed: int) -> None:
    ask_and_answer(50_000, doorbell, seed=seed, seconds=90)
