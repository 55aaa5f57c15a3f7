"""The supervisor's children: how they end, how they are ended, and what they inherit."""
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from miniguest.deploy.children import Child, Children

GRACE = 30.0                # a watchdog: what is stopped here ends at once


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    made = Children(tmp_path)
    yield made
    made.stop(made.living, 0)


def sleep() -> None:
    signal.pause()


def end(children: Children, child: Child) -> Child:
    while child.exit_code is None:
        children.wait(GRACE)
    return child


class Told:
    """A pipe on which a child says that it is where the test wants it."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def say(self) -> None:
        os.write(self.writer, b"!")

    def hear(self) -> None:
        assert os.read(self.reader, 1) == b"!"
        os.close(self.reader)
        os.close(self.writer)


def raising(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(("main", "code", "how"), [
    (lambda: None, 0, "ended with status 0"),
    (lambda: 7, 7, "ended with status 7"),
    (lambda: sys.exit(), 0, "ended with status 0"),
    (lambda: sys.exit(5), 5, "ended with status 5"),
    (lambda: sys.exit("words"), 1, "ended with status 1"),
    (lambda: raising(ValueError("a reason")), 1, "ended with status 1"),
    (lambda: os.kill(os.getpid(), signal.SIGKILL), -9, "was killed by SIGKILL"),
    (lambda: os.kill(os.getpid(), signal.SIGRTMIN + 3), -signal.SIGRTMIN - 3, f"was killed by signal {signal.SIGRTMIN + 3}"),
])
def test_how_a_child_ends(children: Children, main: object, code: int, how: str) -> None:
    child = end(children, children.spawn("c", main))        # type: ignore[arg-type]
    assert (child.exit_code, child.how()) == (code, how)
    assert child.max_rss_bytes > 0


def test_a_traceback_and_a_log_are_in_its_log(children: Children, tmp_path: Path) -> None:
    end(children, children.spawn("c", lambda: raising(ValueError("a reason"))))
    assert "ValueError: a reason" in (tmp_path / "c.log").read_text()
    assert (tmp_path / "c.log").stat().st_mode & 0o777 == 0o600


def test_stop_ends_those_that_listen_and_kills_those_that_do_not(children: Children) -> None:
    told = Told()

    def deaf() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        told.say()
        while True:
            signal.pause()

    listening, stubborn = children.spawn("listening", sleep), children.spawn("deaf", deaf)
    told.hear()
    children.stop([listening], GRACE)
    assert listening.exit_code == -signal.SIGTERM
    assert stubborn.exit_code is None
    children.stop([stubborn], 0.01)
    assert stubborn.exit_code == -signal.SIGKILL
    assert children.living == []
    children.stop([stubborn, listening], GRACE)         # once more is nothing
    stubborn.kill(signal.SIGKILL)


def test_a_handler_of_the_child_decides_its_status(children: Children) -> None:
    told = Told()

    def main() -> int:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(23))
        told.say()
        while True:
            signal.pause()

    child = children.spawn("c", main)
    told.hear()
    children.stop([child], GRACE)
    assert child.exit_code == 23


def test_those_that_end_while_others_are_stopped_are_told_of_once(children: Children) -> None:
    # The one that is stopped ends only after the other one has.
    told = Told()
    other = children.spawn("other", lambda: 3)

    def main() -> None:
        signal.signal(signal.SIGTERM, lambda *_: (select_exit(other.pidfd), sys.exit(0)))
        told.say()
        while True:
            signal.pause()

    stopped = children.spawn("stopped", main)
    told.hear()
    children.stop([stopped], GRACE)
    assert stopped.exit_code == 0
    if other.exit_code is None:                         # it may not have been looked at in that very poll
        assert children.wait(GRACE) == [other]
    else:
        assert children.untold
        assert children.wait(GRACE) == [other]
    assert not children.untold
    assert other.exit_code == 3


def select_exit(pidfd: int) -> None:
    import select

    select.select([pidfd], [], [])


def test_wait_returns_when_something_else_is_readable(children: Children) -> None:
    child = children.spawn("c", sleep)
    reader, writer = os.pipe()
    os.write(writer, b"x")
    assert children.wait(GRACE, reader) == []
    os.close(reader)
    os.close(writer)
    assert children.wait(0) == []
    assert child.exit_code is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_supervisors_handlers_do_not_run_in_children(children: Children, number: int) -> None:
    ran: list[int] = []
    before = signal.signal(number, lambda *_: ran.append(os.getpid()))
    told = Told()
    try:
        def main() -> int:
            os.kill(os.getpid(), number)
            told.say()
            return len(ran)

        child = children.spawn("c", main)
        if number != signal.SIGTERM:
            told.hear()
        end(children, child)
        assert child.exit_code == (-signal.SIGTERM if number == signal.SIGTERM else 0)
        os.kill(os.getpid(), number)
        assert ran == [os.getpid()]                     # and the supervisor's are what they were, and unblocked
    finally:
        signal.signal(number, before)


def test_a_fork_that_fails_leaves_signals_as_they_were(children: Children, monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise BlockingIOError

    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(BlockingIOError):
        children.spawn("c", sleep)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    assert children.all == []


@pytest.mark.parametrize("kept", [False, True])
def test_standard_input_is_for_those_that_keep_it(children: Children, kept: bool) -> None:
    reader, writer = os.pipe()
    saved = os.dup(0)
    os.dup2(reader, 0)
    try:
        os.write(writer, b"typed")
        os.close(writer)
        child = end(children, children.spawn("c", lambda: len(os.read(0, 100)), keep_stdin=kept))
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        os.close(reader)
    assert child.exit_code == (5 if kept else 0)


def test_output_goes_to_the_log_and_not_to_the_supervisors(children: Children, tmp_path: Path) -> None:
    end(children, children.spawn("c", lambda: os.write(1, b"out ") + os.write(2, b"err") and None))
    assert (tmp_path / "c.log").read_bytes() == b"out err"
