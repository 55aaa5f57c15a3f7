"""The 93C46, and what Ethernet cards compute, each against a model of its own."""

import zlib

from cards import ether_crc
from hypothesis import given
from hypothesis import strategies as st

from miniguest.frontend.devices.eeprom93c46 import Eeprom93c46, EepromState
from miniguest.frontend.devices.ethernet import fcs, in_filter, multicast_hash

READ, WRITE, ERASE, EXTENDED = 2, 1, 3, 0
EWEN, ERAL, WRAL, EWDS = 0x30, 0x20, 0x10, 0x00


class Programmer:
    """Clocks commands into the part."""

    def __init__(self) -> None:
        self.part = Eeprom93c46(EepromState(words=list(range(0x100, 0x140))))

    def clock(self, bit: int) -> int:
        self.part.wires(True, False, bool(bit))
        self.part.wires(True, True, bool(bit))
        return int(self.part.output)

    def bits(self, value: int, count: int) -> list[int]:
        return [self.clock(value >> i & 1) for i in reversed(range(count))]

    def command(self, opcode: int, address: int, data: int | None = None, padding: int = 0) -> list[int]:
        self.part.wires(True, False, False)
        self.bits(0, padding)
        seen = self.bits(1 << 8 | opcode << 6 | address, 9)
        if data is not None:
            self.bits(data, 16)
        return seen

    def deselect(self) -> bool:
        """End the command; gives whether the part is ready when it is selected again."""
        self.part.wires(False, False, False)
        self.part.wires(True, False, False)
        ready = self.part.output
        self.part.wires(False, False, False)
        return ready

    def read(self, address: int, count: int = 1) -> list[int]:
        self.command(READ, address)
        words = [int("".join(map(str, self.bits(0, 16))), 2) for _ in range(count)]
        self.deselect()
        return words

    def write(self, address: int, data: int) -> None:
        self.command(WRITE, address, data)
        assert self.deselect()


def test_read_gives_a_zero_and_then_the_word_and_goes_on() -> None:
    eeprom = Programmer()
    assert eeprom.command(READ, 5, padding=3) == [1] * 8 + [0]  # pulled up until the address is complete
    assert eeprom.bits(0, 16) == [int(bit) for bit in f"{0x105:016b}"]
    eeprom.deselect()
    assert eeprom.read(63, 3) == [0x13F, 0x100, 0x101]


def test_nothing_is_written_before_the_write_enable() -> None:
    eeprom = Programmer()
    eeprom.write(3, 0xBEEF)
    assert eeprom.read(3) == [0x103]
    eeprom.command(EXTENDED, EWEN)
    eeprom.deselect()
    eeprom.write(3, 0xBEEF)
    assert eeprom.read(3) == [0xBEEF]
    eeprom.command(EXTENDED, EWDS)
    eeprom.deselect()
    eeprom.write(3, 0)
    eeprom.command(ERASE, 3)
    eeprom.deselect()
    assert eeprom.read(3) == [0xBEEF]


def test_erase_and_the_commands_for_all_words() -> None:
    eeprom = Programmer()
    eeprom.command(EXTENDED, EWEN | 0xF)
    eeprom.deselect()
    eeprom.command(ERASE, 9)
    assert eeprom.deselect()
    assert eeprom.read(8, 3) == [0x108, 0xFFFF, 0x10A]
    eeprom.command(EXTENDED, WRAL, 0x1234)
    eeprom.deselect()
    assert set(eeprom.read(0, 64)) == {0x1234}
    eeprom.command(EXTENDED, ERAL)
    eeprom.deselect()
    assert set(eeprom.read(0, 64)) == {0xFFFF}


def test_a_write_that_is_cut_short_writes_nothing() -> None:
    eeprom = Programmer()
    eeprom.command(EXTENDED, EWEN)
    eeprom.deselect()
    eeprom.command(WRITE, 1)
    eeprom.bits(0xFFF, 15)
    eeprom.deselect()
    assert eeprom.read(1) == [0x101]


@given(st.lists(st.tuples(st.sampled_from(("read", "write", "erase", "on", "off")), st.integers(0, 63), st.integers(0, 0xFFFF))))
def test_commands_against_an_array(steps: list[tuple[str, int, int]]) -> None:
    eeprom, words, enabled = Programmer(), list(range(0x100, 0x140)), False
    for what, address, data in steps:
        if what == "read":
            assert eeprom.read(address) == [words[address]]
        elif what == "write":
            eeprom.write(address, data)
            words[address] = data if enabled else words[address]
        elif what == "erase":
            eeprom.command(ERASE, address)
            eeprom.deselect()
            words[address] = 0xFFFF if enabled else words[address]
        else:
            eeprom.command(EXTENDED, EWEN if what == "on" else EWDS)
            eeprom.deselect()
            enabled = what == "on"
    assert eeprom.read(0, 64) == words


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), max_size=200))
def test_any_wires_leave_a_part_that_works(wires: list[tuple[bool, bool, bool]]) -> None:
    eeprom = Programmer()
    for levels in wires:
        eeprom.part.wires(*levels)
    eeprom.deselect()
    assert eeprom.read(7) == [eeprom.part.state.words[7]]
    assert all(0 <= word <= 0xFFFF for word in eeprom.part.state.words)


@given(st.binary(min_size=6, max_size=6))
def test_the_multicast_hash_is_the_crc_registers_top_six_bits(address: bytes) -> None:
    place = ether_crc(address) >> 26
    assert multicast_hash(address) == place
    table = bytearray(8)
    assert not in_filter(table, address)
    table[place // 8] |= 1 << place % 8
    assert in_filter(table, address)
    assert not in_filter(bytes(byte ^ 0xFF for byte in table), address)


def test_a_frame_with_its_fcs_leaves_the_well_known_residue() -> None:
    data = bytes(range(60))
    assert zlib.crc32(data + fcs(data)) == 0x2144DF1C
