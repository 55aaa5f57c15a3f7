"""`make soak`: the long stresses, one after the other. Exit status 0 when nothing was lost, 1 when something was."""
import sys
import time
from collections.abc import Callable
from typing import Final

from miniguest.deploy.stress.blk import pass_blocks
from miniguest.deploy.stress.boots import boot
from miniguest.deploy.stress.calls import call_and_store
from miniguest.deploy.stress.events import ask_and_answer
from miniguest.deploy.stress.exits import ask_and_halt
from miniguest.deploy.stress.grants import map_and_unmap
from miniguest.deploy.stress.net import pass_frames
from miniguest.deploy.stress.rings import BLKIF, BLKIF_16, NETIF_RX, NETIF_TX, pass_requests
from miniguest.deploy.stress.workers import StressError

WATCHDOG: Final = 240.0                 # seconds, for each of these
PLAN: Final[tuple[tuple[str, Callable[[], object]], ...]] = (
    ("a million events, zmq", lambda: ask_and_answer(500_000, "zmq", seed=11, seconds=WATCHDOG)),
    ("a million events, fifo", lambda: ask_and_answer(500_000, "fifo", seed=12, seconds=WATCHDOG)),
    ("a million events in salvos on three ports", lambda: ask_and_answer(500_000, "fifo", ports=3, seed=13, seconds=WATCHDOG)),
    ("a million exits, stirred, zmq", lambda: ask_and_halt(1_000_000, "zmq", seed=15, seconds=WATCHDOG)),
    ("a million exits, stirred, busy cores, fifo", lambda: ask_and_halt(1_000_000, "fifo", 16, WATCHDOG, hogs=2)),
    ("half a million requests one at a time", lambda: pass_requests(500_000, NETIF_RX, "fifo", 14, True, 1, WATCHDOG)),
    ("50 million requests, netif tx", lambda: pass_requests(50_000_000, NETIF_TX, seconds=WATCHDOG)),
    ("40 million requests, netif rx", lambda: pass_requests(40_000_000, NETIF_RX, "fifo", seconds=WATCHDOG)),
    ("10 million requests, blkif of 16 pages", lambda: pass_requests(10_000_000, BLKIF_16, seconds=WATCHDOG)),
    ("a million requests, blkif, stirred, zmq", lambda: pass_requests(1_000_000, BLKIF, stir=True, seconds=WATCHDOG)),
    ("a million requests, blkif, stirred, fifo", lambda: pass_requests(1_000_000, BLKIF, "fifo", stir=True, seconds=WATCHDOG)),
    ("a million frames, stirred, busy cores, zmq", lambda: pass_frames(500_000, "zmq", 1, 21, True, seconds=WATCHDOG, hogs=2)),
    ("a million frames, stirred, 3 queues, fifo", lambda: pass_frames(500_000, "fifo", 3, 22, True, seconds=WATCHDOG, hogs=2)),
    ("100,000 frames one at a time", lambda: pass_frames(50_000, "fifo", 1, 23, True, 1, WATCHDOG)),
    ("a million blocks, stirred, busy cores, zmq", lambda: pass_blocks(1_000_000, "zmq", 32, 31, True, seconds=WATCHDOG, hogs=2)),
    ("200,000 blocks one at a time", lambda: pass_blocks(200_000, "fifo", 1, 32, True, seconds=WATCHDOG)),
    ("a million blocks, blkback killed 50 times", lambda: pass_blocks(1_000_000, "fifo", 128, 33, kills=50, seconds=WATCHDOG)),
    ("20 boots", lambda: boot(20, 60.0)),
    ("grants of six between three mappers, 200 killed", lambda: map_and_unmap(3, 2_000_000, 200, seed=13, seconds=WATCHDOG)),
    ("200,000 hypercalls and xenstore requests, busy cores, 60 killed",
     lambda: call_and_store(200_000, "zmq", 6, 60, 41, WATCHDOG, hogs=2)),
)


def main(plan: tuple[tuple[str, Callable[[], object]], ...] = PLAN) -> int:
    """Run the plan; the exit status."""
    failed = 0
    for index, (name, run) in enumerate(plan, 1):
        print(f"[{index}/{len(plan)}] {name} ...", end=" ", flush=True)
        start = time.monotonic()
        try:
            run()
        except StressError as error:
            failed = 1
            print(f"FAILED\n{error}", flush=True)
        else:
            print(f"ok, {time.monotonic() - start:.1f} s", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
