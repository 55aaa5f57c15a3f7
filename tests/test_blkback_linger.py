"""blkback's compiled server between requests: it tells the frontend by itself, and serves what comes soon without an event."""
import contextlib
import threading
import time
from collections.abc import Iterator

import pytest
from test_blkback_server import FIRST, READ, Ground, plain, shared

from miniguest.backend.blkback.formats import FORMATS
from miniguest.ring import _core
from miniguest.ring.hypervisor.event_channels import pack

PORTS, PORT, PAGE = 4096, 5, 4096
INTERDOMAIN = 2
LONG: int = 60 * 10**9                  # nanoseconds: a spin that only an event ends


class Lingering(Ground):
    """The server, an upcall that it waits with, and a channel to the frontend, whose upcall is `frontend`."""

    def __init__(self) -> None:
        super().__init__(FORMATS["x86_64-abi"], False)
        local, remote, self.pages = shared(PORTS * 8), shared(PORTS * 8), shared(2 * PAGE)
        for table, other in ((local, 2), (remote, 1)):
            _core.store64(table, PORT, pack(INTERDOMAIN, 0, other, PORT))
        self.channel = _core.Channel(local, PORT, 1, remote, PORT, 2, self.pages)
        self.frontend = _core.Upcall(self.pages[:PAGE], 0)
        self.frontend.bind(PORT)
        self.own = shared(2 * PAGE)
        self.upcall = _core.Upcall(self.own[:PAGE], 0)
        self.upcall.bind(PORT)
        self.server.left = 1 << 30

    def ask(self, id_: int) -> None:
        self.put(plain(self.format, READ, id_, id_, [(FIRST, 0, 0)]))

    def asks_for_an_event(self) -> bool:
        """Whether it would be told of the next request."""
        req_prod, req_event, _, _ = self.front.indices
        return req_event == req_prod + 1


@pytest.fixture
def ground() -> Iterator[Lingering]:
    with contextlib.closing(Lingering()) as made:
        yield made


def test_a_frontend_that_is_awake_is_told_without_the_caller(ground: Lingering) -> None:
    ground.server.channel = ground.channel
    ground.ask(1)
    assert ground.server.serve() == _core.BLK_IDLE
    assert ground.frontend.take() == [PORT] and ground.responses() == [(1, READ, 0)]


def test_the_caller_rings_for_one_that_sleeps(ground: Lingering) -> None:
    ground.server.channel = ground.channel
    ground.frontend.leave()
    ground.ask(1)
    assert ground.server.serve() == _core.BLK_NOTIFY
    assert ground.server.woken == 1, "vCPU 0's doorbell"
    assert ground.server.serve() == _core.BLK_IDLE


def test_the_caller_tells_where_there_is_no_channel(ground: Lingering) -> None:
    ground.ask(1)
    assert ground.server.serve() == _core.BLK_NOTIFY
    assert ground.server.woken == -1


def test_what_comes_soon_is_served_without_an_event(ground: Lingering) -> None:
    ground.server.channel = ground.channel
    ground.upcall.spin_ns = ground.upcall.late_yield_ns = LONG      # however late a yield is
    ground.ask(1)
    asked: list[bool] = []

    def guest() -> None:
        for number in (1, 2, 3):
            while ground.front.indices[2] < number:         # rsp_prod
                time.sleep(0)
            asked.append(ground.asks_for_an_event())
            if number < 3:
                ground.ask(number + 1)
        _core.raise_port(ground.own, 0, PORT)

    thread = threading.Thread(target=guest, daemon=True)
    thread.start()
    assert ground.server.serve(ground.upcall) == _core.BLK_IDLE
    thread.join(10)
    assert asked == [False] * 3 and ground.asks_for_an_event()
    assert ground.responses() == [(id_, READ, 0) for id_ in (1, 2, 3)]


@pytest.mark.parametrize("why", ["pending", "no spin", "quiet"])
def test_it_does_not_linger(ground: Lingering, why: str) -> None:
    """While there is something else to do, where waits do not spin, and after a yield that came back late."""
    ground.upcall.spin_ns = LONG
    if why == "pending":
        _core.raise_port(ground.own, 0, PORT)
    elif why == "no spin":
        ground.upcall.spin_ns = 0
    else:
        ground.upcall.pause_ns, ground.upcall.late_yield_ns = 0, -1
        ground.upcall.quiet_ns = ground.upcall.longest_quiet_ns = LONG
        assert ground.upcall.wait(1_000_000) == 0           # any yield is late: so this one was
    ground.ask(1)
    while (reason := ground.server.serve(ground.upcall)) == _core.BLK_NOTIFY:
        pass
    assert reason == _core.BLK_IDLE and ground.asks_for_an_event()
