"""What a device's model is put between in tests: memory, a clock, and for a network card a wire and frames."""

from collections.abc import Callable
from typing import Any

import msgpack

from miniguest.frontend.devices.saved import load, save

MAC = bytes.fromhex("00163e0a0b0c")
PEER = bytes.fromhex("00163e010203")
BROADCAST = b"\xff" * 6
RAM = 1 << 20


class Clock:
    def __init__(self) -> None:
        self.now = 12_345_678

    def __call__(self) -> int:
        return self.now


class Memory:
    """Guest memory; out of range it reads as ones."""

    def __init__(self) -> None:
        self.data = bytearray(RAM)

    def read(self, gpa: int, size: int) -> bytes:
        return bytes(self.data[gpa : gpa + size]).ljust(size, b"\xff")

    def write(self, gpa: int, data: bytes | memoryview) -> None:
        part = bytes(data)[: max(RAM - gpa, 0)]
        self.data[gpa : gpa + len(part)] = part


class Wire:
    """Takes `limit` frames more; None for any number."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.limit: int | None = None

    def room(self) -> bool:
        return self.limit is None or self.limit > 0

    def send(self, frame: bytes) -> None:
        assert self.room()
        if self.limit is not None:
            self.limit -= 1
        self.sent.append(frame)


class Bench:
    """A card of some model, and how its registers are reached."""

    def __init__(self, model: Callable[..., Any]) -> None:
        self.model = model
        self.memory, self.wire, self.clock = Memory(), Wire(), Clock()
        self.told = 0
        self.card: Any = None
        self.plug(model(MAC, self.memory, self.wire, self.clock))

    def plug(self, card: Any) -> None:
        self.card = card
        card.changed = self._changed

    def _changed(self) -> None:
        self.told += 1

    def get(self, register: int, size: int = 1) -> int:
        value: int = self.card.read(register, size)
        return value

    def put(self, register: int, value: int, size: int = 1) -> None:
        self.card.write(register, size, value)

    def idle_of(self, action: Callable[[], object]) -> int:
        """How many idle accesses an action is."""
        before: int = self.card.idle
        action()
        after: int = self.card.idle
        return after - before

    def move_house(self) -> None:
        """The card's state into a new card on another clock, through msgpack."""
        state = msgpack.unpackb(msgpack.packb(save(self.card)))
        self.clock.now += 77_777_777
        self.plug(self.model(bytes(6), self.memory, self.wire, self.clock))
        load(self.card, state)


def frame(size: int = 60, destination: bytes = MAC, fill: int = 0) -> bytes:
    """A frame of `size` bytes whose contents depend on `fill`."""
    body = bytes((fill + 7 * i) & 0xFF for i in range(max(size - 14, 0)))
    return (destination + PEER + b"\x88\xb5" + body)[:size]


def ether_crc(data: bytes) -> int:
    """The CRC register after `data`, bit by bit: shifts left, each byte's lowest bit first, not complemented."""
    register = 0xFFFFFFFF
    for byte in data:
        for bit in range(8):
            feedback = (register >> 31) ^ (byte >> bit & 1)
            register = register << 1 & 0xFFFFFFFF ^ (0x04C11DB7 if feedback else 0)
    return register


def internet_checksum(data: bytes) -> int:
    """RFC 1071, word by word."""
    total = sum(int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
