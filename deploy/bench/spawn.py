"""Spawning: from asking for a guest in a running topology to its first instruction. Not measured yet."""
from collections.abc import Callable

from miniguest.deploy.bench.rows import Measured


def measure(windows: int, peers: bool, progress: Callable[[str], None]) -> Measured:
    """Nothing yet, and it says so."""
    return Measured(left_out={"spawn guest": "guests cannot be added to a running topology yet"})
