"""The keyboard controller, keyboard and mouse, as drivers use them."""

import pytest

from miniguest.frontend.devices.i8042 import DELAY, I8042
from miniguest.frontend.devices.port92 import Port92
from miniguest.frontend.devices.scancodes import TO_SET1


class Desk:
    def __init__(self, with_mouse: bool = True) -> None:
        self.now = 0
        self.resets = 0
        self.gates: list[bool] = []
        self.told = 0
        self.device = I8042(lambda: self.now, self.reset, self.gates.append, with_mouse)
        self.device.changed = self.tell

    def reset(self) -> None:
        self.resets += 1

    def tell(self) -> None:
        self.told += 1

    def command(self, *values: int) -> None:
        self.device.write(1, 1, values[0])
        for value in values[1:]:
            self.device.write(0, 1, value)

    def data(self, *values: int) -> None:
        for value in values:
            self.device.write(0, 1, value)

    def status(self) -> int:
        return self.device.read(1, 1)

    def answer(self) -> bytes:
        """Everything there is to read."""
        got = bytearray()
        while self.status() & 1:
            got.append(self.device.read(0, 1))
        return bytes(got)


def test_controller_self_test_and_command_byte() -> None:
    desk = Desk()
    assert not desk.status() & 1
    desk.command(0xAA)
    assert desk.answer() == b"\x55"
    assert desk.status() & 0x04
    desk.command(0x60, 0x47)
    desk.command(0x20)
    assert desk.answer() == b"\x47"
    desk.command(0xAB)
    desk.command(0xA9)
    assert desk.answer() == b"\x00\x00"
    for command, bit in ((0xAD, 0x10), (0xA7, 0x20)):
        desk.command(command)
        desk.command(0x20)
        assert desk.answer()[0] & bit
        desk.command(command + 1)
        desk.command(0x20)
        assert not desk.answer()[0] & bit
    assert desk.status() & 0x08
    desk.command(0x7F, 0x99)
    desk.command(0x3F)
    assert desk.answer() == b"\x99"


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"\xff", b"\xfa\xaa"), (b"\xf2", b"\xfa\xab\x83"), (b"\xee", b"\xee"), (b"\xed\x07", b"\xfa\xfa"),
        (b"\xf3\x20", b"\xfa\xfa"), (b"\xf0\x00", b"\xfa\xfa\x02"), (b"\xf0\x02", b"\xfa\xfa"),
        (b"\xf0\x01", b"\xfa\xfe"), (b"\xf4", b"\xfa"), (b"\xf5", b"\xfa"), (b"\xf6", b"\xfa"), (b"\x01", b"\xfe"),
        (b"\xed\xf4", b"\xfa\xfa"),
    ],
)  # fmt: skip
def test_keyboard_commands(sent: bytes, answer: bytes) -> None:
    desk = Desk()
    desk.command(0x60, 0x00)  # no translation
    got = b""
    for value in sent:
        desk.data(value)
        got += desk.answer()
    assert got == answer


def test_resend_gives_the_last_byte_again() -> None:
    desk = Desk()
    desk.command(0x60, 0x00)
    desk.data(0xEE)
    assert desk.answer() == b"\xee"
    desk.data(0xFE)
    assert desk.answer() == b"\xee"


def test_translation_to_set_1() -> None:
    desk = Desk()
    desk.command(0x60, 0x41)
    desk.device.key(b"\x1c")  # A
    desk.device.key(b"\xf0\x1c")
    desk.device.key(b"\xe0\x75")  # up
    desk.device.key(b"\xe0\xf0\x75")
    assert desk.answer() == b"\x1e\x9e\xe0\x48\xe0\xc8"
    assert (TO_SET1[0x76], TO_SET1[0x5A], TO_SET1[0x83], TO_SET1[0x84]) == (0x01, 0x1C, 0x41, 0x54)
    assert sorted(TO_SET1[code] for code in range(1, 0x7F) if code != 2) == sorted(set(range(1, 0x80)) - {0x41, 0x54})


def test_each_byte_is_an_edge_of_its_own() -> None:
    desk = Desk()
    desk.command(0x60, 0x01)
    desk.device.key(b"\x1c")
    desk.device.key(b"\x1b")
    assert desk.told == 2
    assert desk.device.irq_keyboard()
    assert not desk.device.irq_aux()
    assert desk.device.read(0, 1) == 0x1C
    assert not desk.device.irq_keyboard()
    assert desk.device.deadline() == desk.now + DELAY
    desk.now += DELAY
    desk.device.tick()
    assert desk.device.irq_keyboard()
    assert desk.device.read(0, 1) == 0x1B
    assert desk.device.deadline() is None
    assert desk.device.read(0, 1) == 0x1B  # empty: the last byte again


def test_a_disabled_keyboard_keeps_its_codes_and_a_full_one_overruns() -> None:
    desk = Desk()
    desk.command(0x60, 0x10)
    for _ in range(40):
        desk.device.key(b"\x1c")
    assert desk.answer() == b""
    desk.command(0xAE)
    assert desk.answer() == b"\x1c" * 16 + b"\x00"
    desk.data(0xF5)
    desk.answer()
    desk.device.key(b"\x1c")
    assert desk.answer() == b""


def test_mouse() -> None:
    desk = Desk()
    desk.command(0x60, 0x02)
    for sent, answer in (
        (b"\xff", b"\xfa\xaa\x00"), (b"\xf2", b"\xfa\x00"), (b"\xf3\x28", b"\xfa\xfa"), (b"\xe8\x03", b"\xfa\xfa"),
        (b"\xe7", b"\xfa"), (b"\xe9", b"\xfa\x10\x03\x28"), (b"\xf4", b"\xfa"), (b"\xe1", b"\xfe"),
        (b"\xee", b"\xfa"), (b"\x55", b"\x55"), (b"\xec", b"\xfa"),
    ):  # fmt: skip
        got = b""
        for value in sent:
            desk.command(0xD4, value)
            if desk.status() & 1:
                assert desk.status() & 0x20
                assert desk.device.irq_aux()
            got += desk.answer()
        assert got == answer
    desk.device.move(5, -3, 1)
    assert desk.answer() == bytes((0x29, 5, 0xFD))
    desk.command(0xD4, 0xF0)
    desk.answer()
    desk.device.move(1000, 0, 0)
    assert desk.answer() == b""
    desk.command(0xD4, 0xEB)
    assert desk.answer() == bytes((0xFA, 0x08, 0xFF, 0x00))


def test_without_a_mouse_the_aux_port_times_out() -> None:
    desk = Desk(with_mouse=False)
    desk.command(0xA9)
    assert desk.answer() == b"\x02"
    desk.command(0xD4, 0xFF)
    assert desk.status() & 0x61 == 0x61
    assert desk.answer() == b"\xfe"


def test_output_port_a20_and_reset() -> None:
    desk = Desk()
    desk.command(0xD1, 0xDD)
    desk.command(0xD1, 0xDF)
    assert desk.gates == [False, True]
    desk.command(0xD0)
    assert desk.answer()[0] & 3 == 3
    assert desk.resets == 0
    desk.command(0xFE)
    desk.command(0xD1, 0xDE)
    assert desk.resets == 2
    desk.command(0xFF)  # pulses nothing
    assert desk.resets == 2
    desk.command(0xD2, 0x41)
    desk.command(0xD3, 0x42)
    assert desk.status() & 0x21 == 1
    assert desk.answer() == b"AB"


def test_port_92() -> None:
    gates: list[bool] = []
    resets: list[int] = []
    port = Port92(lambda: resets.append(1), gates.append)
    assert port.read(0, 1) == 2
    port.write(0, 1, 0)
    port.write(0, 1, 3)
    port.write(0, 1, 3)
    assert gates == [False, True, True]
    assert resets == [1]
