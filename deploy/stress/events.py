"""Events that each count: on every port one is under way at a time, so that a lost event stops that port for good.

Two processes. With one port nothing else wakes them, and a single lost wake stops everything. Several ports are asked
in a salvo, so that the next event comes while the other end takes the one before, and only when all have answered
comes the next salvo: a lost bit stops everything as well. The asker adds one to a port's question and notifies; the
answerer copies it to the answer and notifies back. Both pause and change how long they spin at random, so that events
come while the other one spins, unmasks, looks, sleeps, wakes and masks.
"""
import json
import os
import random
from abc import ABC, abstractmethod
from functools import partial
from typing import Final

from miniguest.deploy.stress.workers import StressError, workers
from miniguest.ring import _core
from miniguest.ring.events import Port
from miniguest.ring.process import Process

ASKER: Final = 1
ANSWERER: Final = 2
SPINS: Final = (0, 500, 5_000, 50_000, 300_000)
MOST_PAUSE: Final = 30_000              # nanoseconds, about what the other end takes from an event to its sleep
MOST_GAP: Final = 5_000                 # and from being woken to taking what is pending


class _End(ABC):
    """A process of the two. Words of a frame of the asker's: question of port i at 16 i, its answer at 16 i + 8."""

    def __init__(self, process: Process, seed: int, ports: list[Port]) -> None:
        self.upcall = process.loop.upcall
        self.random = random.Random(seed)
        self.words = process.memory(ASKER).frame(1)
        self.ports = ports
        for index, port in enumerate(ports):
            process.loop.on_port(port, partial(self.on_event, index))
        self.done = 0

    @abstractmethod
    def on_event(self, index: int) -> None:
        """Port `index` was notified."""

    def pause(self, most: int) -> None:
        """Take a random while of at most so many nanoseconds, and wait otherwise next time."""
        until = _core.now_ns() + int(most * self.random.random())
        self.upcall.spin_ns = self.random.choice(SPINS)
        while _core.now_ns() < until:
            pass


class Asker(_End):
    """Asks `total` times in all."""

    def __init__(self, process: Process, seed: int, ports: list[Port], total: int) -> None:
        super().__init__(process, seed, ports)
        self.left = total
        self.stop = process.loop.stop
        self.asked = [0] * len(ports)
        self.salvo()

    def salvo(self) -> None:
        """The next question of every port, as long as any is left."""
        for index, port in enumerate(self.ports[: self.left]):
            self.left -= 1
            self.asked[index] += 1
            _core.store64(self.words, 16 * index, self.asked[index])
            port.notify()
            self.pause(MOST_GAP)

    def on_event(self, index: int) -> None:
        """An answer, or nothing new."""
        answer = _core.load64(self.words, 16 * index + 8)
        if answer > self.asked[index]:
            raise StressError(f"port {index} answers {answer}, asked was {self.asked[index]}")
        if any(_core.load64(self.words, 16 * i + 8) != asked for i, asked in enumerate(self.asked)):
            return
        if not self.left:
            self.stop()
        self.pause(MOST_PAUSE)
        self.salvo()


class Answerer(_End):
    """Answers until `total` were answered."""

    def __init__(self, process: Process, seed: int, ports: list[Port], total: int) -> None:
        super().__init__(process, seed, ports)
        self.total = total
        self.stop = process.loop.stop
        self.answered = [0] * len(ports)

    def on_event(self, index: int) -> None:
        """A question, or nothing new."""
        question = _core.load64(self.words, 16 * index)
        if question not in (self.answered[index], self.answered[index] + 1):
            raise StressError(f"port {index} asks {question} after {self.answered[index]}")
        if question == self.answered[index]:
            return
        self.pause(MOST_PAUSE)
        self.answered[index] = question
        _core.store64(self.words, 16 * index + 8, question)
        self.ports[index].notify()
        self.done += 1
        if self.done == self.total:
            self.stop()


def _in_a_word_of_its_own(process: Process, port: Port) -> Port:
    """Take the rest of the port's word of pending bits, which is looked at as a whole."""
    while process.alloc_unbound(ASKER).number % 64 != 63:
        pass
    return port


def ask_and_answer(total: int, doorbell: str = "zmq", ports: int = 1, seed: int = 1, seconds: float = 120.0) -> None:
    """Ask and answer `total` times, two events each. StressError when one is lost (after `seconds`) or made up."""
    with workers(doorbell) as ground:
        reader, writer = os.pipe()

        def asker(process: Process) -> None:
            ends = [_in_a_word_of_its_own(process, process.alloc_unbound(ANSWERER)) for _ in range(ports)]
            os.write(writer, json.dumps([port.number for port in ends]).encode())
            Asker(process, seed, ends, total)
            process.loop.run()

        def answerer(process: Process) -> None:
            numbers = json.loads(os.read(reader, 4096))
            ends = [_in_a_word_of_its_own(process, process.bind_interdomain(ASKER, number)) for number in numbers]
            Answerer(process, seed + 1, ends, total)
            process.loop.run()

        ground.start("asker", ASKER, 0, asker)
        ground.start("answerer", ANSWERER, 0, answerer)
        os.close(reader)
        os.close(writer)
        ground.finish(seconds)
