"""Hypercalls and xenstore requests of several processes at once, some of them killed: no answer wrong, nothing left."""
import pytest

from miniguest.deploy.stress.calls import call_and_store


@pytest.mark.parametrize("doorbell", ["zmq", "fifo"])
def test_calls_beside_each_other(doorbell: str) -> None:
    call_and_store(10_000, doorbell, seed=1)


def test_clients_that_are_killed() -> None:
    call_and_store(10_000, kills=12, seed=2, hogs=1)
