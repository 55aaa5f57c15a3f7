"""How a stepped clock goes on: with the host's time, or with the guest's work."""
import pytest

from miniguest.frontend.pace import BLOCK_NS, EXIT_NS, RealPace, VirtualPace


class Host:
    """A clock and a sleep, by hand."""

    def __init__(self) -> None:
        self.now = 1_000_000
        self.waits: list[float] = []

    def clock(self) -> int:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)


def test_real_time_begins_with_the_guest() -> None:
    host = Host()
    pace = RealPace(host.clock)
    assert pace.at_exit() == 0
    host.now += 700
    assert (pace.at_exit(), pace.at_stop()) == (700, 700)
    assert (pace.deadline(900), pace.deadline(0)) == (1_000_900, 0)
    for due in (2_000_000_700, 100, 0):
        pace.idle(due, host.wait)
    assert host.waits == [2.0, 0, -1.0]


def test_virtual_time_is_what_the_vcpu_does() -> None:
    blocks = 7
    pace = VirtualPace(lambda: blocks)
    assert (pace.at_stop(), pace.at_exit(), pace.at_stop()) == (0, EXIT_NS, EXIT_NS)
    blocks += 5
    assert pace.at_stop() == EXIT_NS + 5 * BLOCK_NS
    assert pace.at_exit() == 2 * EXIT_NS + 5 * BLOCK_NS


def test_the_count_of_blocks_wraps() -> None:
    blocks = 0xFFFFFFFF
    pace = VirtualPace(lambda: blocks)
    blocks = 1
    assert pace.at_stop() == 2 * BLOCK_NS


@pytest.mark.parametrize(("due", "blocks"), [(0, 0), (1, 1), (BLOCK_NS, 1), (BLOCK_NS + 1, 2), (10 * BLOCK_NS, 10)])
def test_a_virtual_deadline_is_a_number_of_blocks(due: int, blocks: int) -> None:
    assert VirtualPace(lambda: 0).deadline(due) == blocks


def test_a_deadline_that_has_passed_lets_the_guest_do_something() -> None:
    pace = VirtualPace(lambda: 0)
    pace.at_exit()
    assert pace.deadline(1) == 1


def test_virtual_sleep_takes_no_time() -> None:
    host, pace = Host(), VirtualPace(lambda: 0)
    pace.idle(5_000_000, host.wait)
    pace.idle(4_000_000, host.wait)
    assert (pace.at_stop(), host.waits) == (5_000_000, [])
    pace.idle(0, host.wait)             # nothing but something from outside can end this sleep
    assert (pace.at_stop(), host.waits) == (5_000_000, [-1.0])
