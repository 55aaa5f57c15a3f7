"""netback's handshake."""
from collections.abc import Iterator

import pytest
from dom0 import dom0
from netpeer import OKAY, World


@pytest.fixture(scope="module")
def running() -> Iterator[World]:
    with dom0("fifo") as (supervisor, runtime):
        world = World(supervisor, runtime)
        yield world
        world.close()


@pytest.fixture
def world(running: World) -> Iterator[World]:
    yield running
    running.end_of_test()


def test_two_vifs(world: World) -> None:
    one, two = world.vif().connect(), world.vif().connect()
    one.reaches(two)
    for size in (60, 1500, 4096, 4097, 9000, 65535):
        frame = one.frame(two, bytes(range(256)) * 255, 14)[:size]
        two.q.post(17)
        assert one.q.send(frame) == OKAY
        assert two.q.receive() == frame
    assert one.domain.in_use
