"""Ten million requests between two processes, and fewer of them in every shape, batch and doorbell."""
import pytest

from miniguest.deploy.soak import main
from miniguest.deploy.stress.rings import (
    BLKIF,
    BLKIF_16,
    NETIF_RX,
    NETIF_TX,
    Shape,
    pass_requests,
    requests_from,
    responses_to,
)
from miniguest.deploy.stress.workers import StressError, workers
from miniguest.ring.process import Process


def test_ten_million_requests() -> None:
    """None lost, doubled, out of order or changed; no wake missed (the watchdog would tell)."""
    pass_requests(10_000_000, NETIF_TX, "zmq", seconds=100)


@pytest.mark.parametrize("doorbell", ["zmq", "fifo"])
@pytest.mark.parametrize("shape", [BLKIF, BLKIF_16, NETIF_TX, NETIF_RX], ids=["blkif", "blkif16", "tx", "rx"])
def test_stirred(shape: Shape, doorbell: str) -> None:
    """Batches of random size, answers in parts, waits that sleep at once or spin for a random time."""
    pass_requests(60_000, shape, doorbell, seed=7, stir=True, seconds=60)


def test_one_at_a_time() -> None:
    """With a single request under way every final check and every wake counts."""
    pass_requests(40_000, NETIF_RX, "fifo", seed=9, stir=True, window=1, seconds=60)


@pytest.mark.parametrize("words", [2, 3, 28])
def test_the_check_sees_any_changed_word(words: int) -> None:
    requests = requests_from(5, 3, words)
    answers = responses_to(requests, 4)
    for row in range(3):
        for word in range(words):
            changed = requests.copy()
            changed[row, word] ^= 1 << 13
            assert (responses_to(changed, 4) != answers).any()
    assert requests_from(6, 2, words).tolist() == requests[1:].tolist()


def test_the_watchdog_bites() -> None:
    """A worker that waits for an event that never comes is a failure, not a hang."""
    with workers() as ground:
        ground.start("waiter", 1, 0, lambda process: process.loop.run())
        with pytest.raises(StressError, match="waiter did not end"):
            ground.finish(0.5)


def test_what_a_worker_raises_is_told() -> None:
    def main(process: Process) -> None:
        raise StressError("request 7: [1], should be [2]")

    with workers() as ground:
        ground.start("liar", 1, 0, main)
        with pytest.raises(StressError, match="request 7"):
            ground.finish(30)


def test_soak_goes_on_and_tells(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise StressError("lost")

    assert main((("good", lambda: None),)) == 0
    assert main((("bad", fail), ("good", lambda: None))) == 1
    out = capsys.readouterr().out
    assert "[1/2] bad ... FAILED\nlost" in out and "[2/2] good ... ok" in out
