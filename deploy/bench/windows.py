"""Taking turns: a window of each way, again and again."""
from collections.abc import Callable, Mapping
from typing import Final

from miniguest.deploy.bench.machine import STEADINESS

# Called between any two windows. A machine that is too busy for one bench is so for all.
_look: Final = STEADINESS.look


def interleave(
    ways: Mapping[str, Callable[[], float]], windows: int, progress: Callable[[str], None]
) -> dict[str, list[float]]:
    """What each way answers in each of `windows` rounds.

    Every other round goes backwards: nobody always comes after the same neighbour, whose heat and caches it finds.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    for index in range(windows):
        progress(f"window {index + 1} of {windows}")
        _look()
        for name in list(ways) if index % 2 == 0 else reversed(list(ways)):
            found[name].append(ways[name]())
    return found
