"""The dom0 that a module's tests of a backend share: its `World` is blkpeer's or netpeer's."""
from collections.abc import Iterator

import pytest
from dom0 import dom0
from peer import World


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest) -> Iterator[World]:
    """A World of the class that the module knows by this name."""
    with dom0("fifo") as (supervisor, runtime):
        world = request.module.World(supervisor, runtime)
        yield world
        world.close()


@pytest.fixture
def world(running: World) -> Iterator[World]:
    """The same, whose backend must have survived the test."""
    yield running
    running.end_of_test()
