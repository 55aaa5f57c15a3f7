"""The event loop: order, starvation, waiting for one port among others, and signals that come at any moment."""
import os
import signal
import socket
from collections.abc import Callable, Iterator

import pytest

from miniguest.deploy.stress.workers import workers
from miniguest.ring import loop as loop_module
from miniguest.ring._core import Upcall, raise_port
from miniguest.ring.loop import PATIENCE, Loop
from miniguest.ring.process import Process


class Events:
    """A vCPU's events without a hypervisor: its pages and a doorbell that nobody rings."""

    class Doorbell:
        drained = 0

        def drain(self) -> None:
            self.drained += 1

    def __init__(self) -> None:
        self.pages = memoryview(bytearray(8192))
        self.doorbell = self.Doorbell()

    def upcall(self, descriptor: int) -> Upcall:
        upcall = Upcall(self.pages[:4096], 0, -1, descriptor)
        upcall.spin_ns = 0
        for number in range(1, 10):
            upcall.bind(number)
        return upcall


class Port:
    def __init__(self, number: int) -> None:
        self.number = number


class Clock:
    """time.monotonic by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Ground:
    def __init__(self) -> None:
        self.events = Events()
        self.loop = Loop(self.events)       # type: ignore[arg-type]
        self.calls: list[str] = []

    def on(self, number: int, then: Callable[[], None] = lambda: None) -> Port:
        port = Port(number)

        def handler() -> None:
            self.calls.append(f"port{number}")
            then()

        self.loop.on_port(port, handler)    # type: ignore[arg-type]
        return port

    def send(self, number: int) -> None:
        raise_port(self.events.pages, 0, number)

    def say(self, what: str) -> Callable[[], None]:
        return lambda: self.calls.append(what)


@pytest.fixture
def ground() -> Iterator[Ground]:
    made = Ground()
    yield made
    made.loop.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(loop_module, "time", made)
    return made


def test_ports_come_once_and_in_order(ground: Ground) -> None:
    for number in (3, 1, 2):
        ground.on(number)
        ground.send(number)
        ground.send(number)
    ground.loop.turn(0)
    assert ground.calls == ["port1", "port2", "port3"]
    ground.loop.turn(0)
    assert len(ground.calls) == 3


def test_a_port_nobody_handles_is_forgotten(ground: Ground) -> None:
    port = ground.on(1)
    ground.loop.off_port(port)              # type: ignore[arg-type]
    ground.send(1)
    ground.loop.turn(0)
    assert ground.calls == []


def test_an_event_during_its_handler_is_handled_again(ground: Ground) -> None:
    ground.on(1, lambda: ground.send(1) if len(ground.calls) < 3 else None)
    ground.send(1)
    for _ in range(4):
        ground.loop.turn(0)
    assert ground.calls == ["port1"] * 3


def test_wait_port_takes_one_and_keeps_the_others(ground: Ground) -> None:
    ground.on(1)
    wanted = ground.on(5)
    for number in (1, 5):
        ground.send(number)
    ground.loop.wait_port(wanted)           # type: ignore[arg-type]
    assert ground.calls == []
    ground.loop.turn()
    assert ground.calls == ["port1"], "5 was waited for, and is not handled as well"


def test_a_handler_may_wait_for_a_port_of_its_own_batch(ground: Ground) -> None:
    wanted = ground.on(5)
    ground.on(1, lambda: ground.loop.wait_port(wanted))     # type: ignore[arg-type]
    ground.on(7)
    for number in (1, 5, 7):
        ground.send(number)
    ground.loop.turn(0)
    assert ground.calls == ["port1", "port7"]


def test_ports_that_ring_on_while_one_is_waited_for_do_not_pile_up(ground: Ground) -> None:
    wanted = ground.on(5)
    ground.on(1)
    rings = iter(range(100))

    class Storm:
        """Between two looks port 1 is raised again, and port 5 in the end."""

        def __init__(self, upcall: Upcall) -> None:
            self.upcall, self.take = upcall, upcall.take

        def wait(self, timeout_ns: int, watch: None) -> int:
            ground.send(1 if next(rings, None) is not None else 5)
            return self.upcall.wait(timeout_ns, watch)

    calm = ground.loop.upcall
    ground.loop.upcall = Storm(calm)        # type: ignore[assignment]
    ground.loop.wait_port(wanted)           # type: ignore[arg-type]
    ground.loop.upcall = calm
    ground.loop.turn(0)
    assert ground.calls == ["port1"]


def test_waiting_for_a_port_ends_with_the_loop(ground: Ground) -> None:
    ground.loop.stop()
    ground.send(1)
    with pytest.raises(InterruptedError):
        ground.loop.wait_port(ground.on(5))     # type: ignore[arg-type]


def test_timers_by_time_then_by_order(ground: Ground, clock: Clock) -> None:
    loop = ground.loop
    loop.call_later(2, ground.say("c"))
    loop.call_later(1, ground.say("a"))
    gone = loop.call_later(1, ground.say("cancelled"))
    loop.call_later(1, ground.say("b"))
    loop.call_later(3, ground.say("d"))
    gone.cancel()
    clock.now += 2
    loop.turn(0)
    assert ground.calls == ["a", "b", "c"]
    clock.now += 2
    loop.turn()
    assert ground.calls == ["a", "b", "c", "d"]


def test_the_next_timer_bounds_the_wait(ground: Ground, clock: Clock) -> None:
    waits: list[int] = []

    class Recorded:
        take = ground.loop.upcall.take

        def wait(self, timeout_ns: int, watch: None) -> int:
            waits.append(timeout_ns)
            return 0

    ground.loop.upcall = Recorded()         # type: ignore[assignment]
    ground.loop.turn()
    ground.loop.turn(0.5)
    ground.loop.call_later(0.25, ground.say("x"))
    ground.loop.turn()
    ground.loop.turn(0.125)
    ground.loop.call_soon(ground.say("soon"))
    ground.loop.turn()
    clock.now += 1
    ground.loop.turn()
    assert waits == [-1, 500_000_000, 250_000_000, 125_000_000, 0, 0]


def test_soon_is_the_next_turn_and_no_earlier(ground: Ground) -> None:
    def again() -> None:
        ground.calls.append("soon")
        ground.loop.call_soon(again)

    ground.loop.call_soon(again)
    for _ in range(3):
        ground.loop.turn()
    assert ground.calls == ["soon"] * 3


def test_descriptors_are_level_triggered_both_ways(ground: Ground) -> None:
    ours, theirs = socket.socketpair()
    loop = ground.loop
    loop.on_fd(ours.fileno(), ground.say("read"))
    theirs.send(b"x")
    loop.turn()
    loop.turn()
    assert ground.calls == ["read", "read"]
    loop.on_fd(ours.fileno(), lambda: ours.recv(1), ground.say("write"))
    loop.turn()
    loop.turn()
    assert ground.calls == ["read", "read", "write", "write"]
    loop.on_fd(ours.fileno(), ground.say("hangup"))
    theirs.close()
    loop.turn()
    assert ground.calls[4:] == ["hangup"]
    loop.off_fd(ours.fileno())
    loop.off_fd(ours.fileno())
    loop.turn(0)
    assert ground.calls[5:] == []
    ours.close()


def test_a_read_handler_may_take_its_own_descriptor_off(ground: Ground) -> None:
    ours, theirs = socket.socketpair()
    ground.loop.on_fd(ours.fileno(), lambda: ground.loop.off_fd(ours.fileno()), ground.say("write"))
    theirs.send(b"x")
    ground.loop.turn()
    assert ground.calls == []
    ours.close()
    theirs.close()


def test_descriptors_are_served_though_a_port_is_always_pending(ground: Ground) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"x")
    ground.loop.on_fd(reader, ground.say("descriptor"))
    ground.on(1, lambda: ground.send(1))
    ground.send(1)
    for _ in range(PATIENCE * 3):
        ground.loop.turn()
    assert ground.calls.count("descriptor") == 3
    assert ground.calls.count("port1") == PATIENCE * 3
    os.close(reader)
    os.close(writer)


def test_stop_ends_run_after_its_turn(ground: Ground) -> None:
    ground.loop.call_soon(ground.loop.stop)
    ground.loop.call_soon(ground.say("the rest of the turn"))
    ground.loop.run()
    assert ground.calls == ["the rest of the turn"]


@pytest.mark.parametrize("spin_ns", [0, 300_000, 50_000_000])
def test_a_signal_at_any_moment_ends_the_loop(spin_ns: int) -> None:
    """Before the wait, while it spins or while it sleeps: SIGTERM is never swallowed (the watchdog would tell)."""
    with workers() as ground:
        children = []
        for turn in range(12):
            reader, writer = os.pipe()

            def main(process: Process, writer: int = writer, turn: int = turn) -> None:
                process.loop.upcall.spin_ns = spin_ns
                process.loop.call_soon(lambda: os.close(writer))
                process.loop.run()

            child = ground.start(f"sleeper{turn}", 1, turn, main)
            os.close(writer)
            assert os.read(reader, 1) == b""
            os.close(reader)
            child.kill(signal.SIGTERM)
            children.append(child)
        ground.finish(20)
        assert [child.exit_code for child in children] == [0] * 12
