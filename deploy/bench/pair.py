"""Two processes that pass things to each other for as long as a window lasts, each on a core of its own."""
import mmap
import os
import select
import struct
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from miniguest.deploy.bench.machine import cores, pin
from miniguest.deploy.children import Child, Children
from miniguest.ring.errors import MiniguestError
from miniguest.ring.process import die_with

NUMBERS: Final = struct.Struct("<qq")
WATCHDOG: Final = 60.0                  # seconds for a window


class PairError(MiniguestError):
    """A process of a bench died or hangs; says the last line of its log."""


class Flag:
    """A bit that both processes see."""

    def __init__(self) -> None:
        self._byte = memoryview(mmap.mmap(-1, mmap.PAGESIZE))

    def __bool__(self) -> bool:
        return bool(self._byte[0])

    def set(self, up: bool) -> None:
        """Raise or lower it."""
        self._byte[0] = up


class Pipe:
    """Pairs of numbers on their way from one process to another."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        for end in (self.reader, self.writer):
            weakref.finalize(self, os.close, end)

    def say(self, first: int = 0, second: int = 0) -> None:
        """Send two numbers."""
        os.write(self.writer, NUMBERS.pack(first, second))

    def hear(self) -> tuple[int, int]:
        """Wait for two numbers."""
        first, second = NUMBERS.unpack(os.read(self.reader, NUMBERS.size))
        return first, second

    def answer(self, some: Sequence[Child] = (), logs: Path | None = None) -> tuple[int, int]:
        """The same from processes that may die: PairError when one has, or when nothing comes for a minute."""
        ready, _, _ = select.select([self.reader, *(child.pidfd for child in some)], [], [], WATCHDOG)
        if self.reader in ready:
            return self.hear()
        dead = next((child for child in some if child.pidfd in ready), None)
        if dead is None:
            raise PairError(f"no answer in {WATCHDOG:g} s")
        words = (logs / f"{dead.name}.log").read_text(errors="replace").split("\n") if logs else []
        raise PairError(next((line.strip() for line in reversed(words) if line.strip()), f"{dead.name} died"))


Serve = Callable[[Flag], None]          # answers what comes; returns once the flag is up and nothing does
Drive = Callable[[float], tuple[int, float]]    # for so many seconds: how much was done, and in how many seconds


class Pair:
    """A client that drives and a server that answers. Each is made in its own process: PairError when that fails."""

    def __init__(
        self, children: Children, logs: Path, name: str, client: Callable[[], Drive], server: Callable[[], Serve]
    ) -> None:
        self._logs = logs
        self._over = Flag()
        self._to_client, self._to_server, self._answers = Pipe(), Pipe(), Pipe()
        parent, (first, second) = os.getpid(), cores()

        def drive() -> None:
            self._live(parent, first)
            run = client()
            self._answers.say()
            while True:
                done, seconds = run(self._to_client.hear()[0] / 1e9)
                self._over.set(True)
                self._answers.say(done, int(seconds * 1e9))

        def serve() -> None:
            self._live(parent, second)
            answer = server()
            self._answers.say()
            while True:
                self._to_server.hear()
                answer(self._over)

        self._some: list[Child] = []
        for main, role in ((serve, "server"), (drive, "client")):
            self._some.append(children.spawn(f"{name}-{role}", main))
            self._answers.answer(self._some, logs)

    def _live(self, parent: int, core: int) -> None:
        die_with(parent)
        pin(core)

    def window(self, seconds: float) -> float:
        """What was done in a window, by the second."""
        self._over.set(False)
        self._to_server.say()
        self._to_client.say(int(seconds * 1e9))
        done, taken = self._answers.answer(self._some, self._logs)
        return done / (taken / 1e9)
