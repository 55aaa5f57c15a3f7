"""Grants mapped, copied and revoked by several processes at once, some of them killed: nothing may stay behind."""
from miniguest.deploy.stress.grants import map_and_unmap


def test_mappers_beside_each_other() -> None:
    map_and_unmap(mappers=3, steps=60_000, seed=3, seconds=60)


def test_mappers_that_are_killed() -> None:
    map_and_unmap(mappers=2, steps=60_000, kills=25, seed=4, seconds=60)
