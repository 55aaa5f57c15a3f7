"""Realtek RTL8029AS, an NE2000 on PCI, 10 Mb/s (RTL8029AS datasheet 1997, sections 5 and 6; DP8390D datasheet).

32 ports: the DP8390's registers, the data port from 16 on, the reset port from 24 on. Remote DMA finds the station
address at 0, every byte of it twice as on a 16-bit card, and 16 KiB of buffer memory at 0x4000. Page 3 has the
configuration. In full duplex with flow control (CONFIG3's FUDUP, CONFIG2's FCE; both are on until a driver changes
it) the card has its wire pause when the ring is full, and shows it in PF; otherwise the ring overflows.
"""

from __future__ import annotations

from typing import ClassVar

from miniguest.frontend.devices import dp8390_registers as d
from miniguest.frontend.devices import dp8390_ring as ring
from miniguest.frontend.devices.device import Clock, Device, GuestMemory
from miniguest.frontend.devices.dp8390 import PAGE0, PAGE1, PAGE2, PAGE3, PORTS
from miniguest.frontend.devices.dp8390_pages import Dp8390Pages
from miniguest.frontend.devices.eeprom93c46 import Eeprom93c46
from miniguest.frontend.devices.nic import Wire
from miniguest.frontend.devices.pci_function import Bar, Identity

DATA, RESET = 0x10, 0x18
SIGNATURE = 0x57  # twice at the end of the PROM: it is a 16-bit card
PROM = 32
CHIP_ID, SUBSTEP_ID = b"PC", (0x29, 0x80)
EEM, AUTO_LOAD, PROGRAMMING, CONFIG_WRITE = 0xC0, 0x40, 0x80, 0xC0  # 9346CR's modes
EECS, EESK, EEDI, EEDO = 8, 4, 2, 1
CONFIG2_10BASET, FCE, PF, CONFIG2_WRITABLE = 0x40, 0x20, 0x10, 0xE0
FUDUP, CONFIG3_WRITABLE = 0x40, 0x46
EEPROM_CONFIG, EEPROM_MAC = 0, 1  # first words of the configuration and of the PROM's contents


def prom(mac: bytes) -> bytes:
    """The station address ROM: 16 bytes, each twice."""
    once = mac.ljust(14, b"\0") + bytes((SIGNATURE, SIGNATURE))
    return bytes(byte for byte in once for _ in range(2))


class Ne2kPci(Dp8390Pages):
    """The card. mac: 6 bytes. It does no DMA and has no timers: `memory` and `clock` are as for every card."""

    IDENTITY: ClassVar[Identity] = Identity(0x10EC, 0x8029, 0x020000, subsystem=(0x10EC, 0x8029), interrupt_pin=1)
    BARS: ClassVar[tuple[Bar, ...]] = (Bar(0, "io", PORTS),)

    def __init__(self, mac: bytes, memory: GuestMemory, wire: Wire, clock: Clock) -> None:
        super().__init__(wire)
        words = self.state.eeprom.words
        words[EEPROM_CONFIG] = (CONFIG2_10BASET | FCE) | FUDUP << 8
        words[EEPROM_MAC : EEPROM_MAC + 3] = [int.from_bytes(mac[at : at + 2], "little") for at in (0, 2, 4)]
        self.eeprom = Eeprom93c46(self.state.eeprom)
        self._auto_load()

    def _auto_load(self) -> None:
        """Take configuration and station address from the EEPROM, as at power-up."""
        s = self.state
        words = [word & 0xFFFF for word in s.eeprom.words]
        s.config2 = words[EEPROM_CONFIG] & CONFIG2_WRITABLE
        s.config3 = words[EEPROM_CONFIG] >> 8 & CONFIG3_WRITABLE
        self._prom = prom(b"".join(word.to_bytes(2, "little") for word in words[EEPROM_MAC : EEPROM_MAC + 3]))

    def windows(self) -> dict[tuple[int, str], Device]:
        """One BAR."""
        return {(0, "io"): self}

    def restored(self) -> None:
        super().restored()
        self.eeprom.state = self.state.eeprom
        config = self.state.config2, self.state.config3
        self._auto_load()
        self.state.config2, self.state.config3 = config

    def overflow(self) -> None:
        """No room: with flow control the wire waits, and nothing is lost."""
        if not (self.state.config2 & FCE and self.state.config3 & FUDUP):
            super().overflow()

    def peek(self, address: int, size: int) -> bytes:
        if address < PROM:
            known = self._prom[address : address + size]
            return known + ring.load(self.state, address + len(known), size - len(known))
        return ring.load(self.state, address, size)

    # Data port. It is as wide as DCR says: a byte of a wide port moves a word.

    def _narrow(self, size: int) -> bool:
        return size == 1 and bool(self.state.dcr & d.WTS)

    def read_string(self, offset: int, size: int, count: int) -> bytes:
        """`count` reads of `size` bytes at `offset` as one."""
        if DATA <= offset < RESET and not self._narrow(size):
            return self.take(size * count)
        return b"".join(self.read(offset, size).to_bytes(size, "little") for _ in range(count))

    def write_string(self, offset: int, size: int, data: bytes) -> None:
        """Writes of `size` bytes each at `offset` as one."""
        if DATA <= offset < RESET and not self._narrow(size):
            self.give(data)
            return
        for at in range(0, len(data), size):
            self.write(offset, size, int.from_bytes(data[at : at + size], "little"))

    @PAGE0.read(DATA, "DATA", 4, count=2)
    @PAGE1.read(DATA, "DATA", 4, count=2)
    @PAGE2.read(DATA, "DATA", 4, count=2)
    @PAGE3.read(DATA, "DATA", 4, count=2)
    def read_data_dword(self, index: int) -> int:
        return int.from_bytes(self.take(4), "little")

    @PAGE0.read(DATA, "DATA", 2, count=4)
    @PAGE1.read(DATA, "DATA", 2, count=4)
    @PAGE2.read(DATA, "DATA", 2, count=4)
    @PAGE3.read(DATA, "DATA", 2, count=4)
    def read_data_word(self, index: int) -> int:
        """Most accesses of a driver that has no string instructions: the middle of a run goes a short way."""
        s = self.state
        at = s.rsar - d.RAM
        if s.rbcr > 2 and 0 <= at < d.RAM_END - d.RAM - 2 and s.rsar + 2 < s.pstop << 8 and s.command & d.RD == d.RD_READ:
            s.rsar += 2
            s.rbcr -= 2
            return s.ram[at] | s.ram[at + 1] << 8
        return int.from_bytes(self.take(2), "little")

    @PAGE0.read(DATA, "DATA", count=8)
    @PAGE1.read(DATA, "DATA", count=8)
    @PAGE2.read(DATA, "DATA", count=8)
    @PAGE3.read(DATA, "DATA", count=8)
    def read_data_byte(self, index: int) -> int:
        return self.take(2 if self._narrow(1) else 1)[0]

    @PAGE0.write(DATA, "DATA", 4, count=2)
    @PAGE1.write(DATA, "DATA", 4, count=2)
    @PAGE2.write(DATA, "DATA", 4, count=2)
    @PAGE3.write(DATA, "DATA", 4, count=2)
    def write_data_dword(self, index: int, value: int) -> None:
        self.give(value.to_bytes(4, "little"))

    @PAGE0.write(DATA, "DATA", 2, count=4)
    @PAGE1.write(DATA, "DATA", 2, count=4)
    @PAGE2.write(DATA, "DATA", 2, count=4)
    @PAGE3.write(DATA, "DATA", 2, count=4)
    def write_data_word(self, index: int, value: int) -> None:
        self.give(value.to_bytes(2, "little"))

    @PAGE0.write(DATA, "DATA", count=8)
    @PAGE1.write(DATA, "DATA", count=8)
    @PAGE2.write(DATA, "DATA", count=8)
    @PAGE3.write(DATA, "DATA", count=8)
    def write_data_byte(self, index: int, value: int) -> None:
        self.give(bytes((value, value)) if self._narrow(1) else bytes((value,)))

    # Reset port: reading resets. Drivers then write to it, as old cards wanted.

    @PAGE0.read(RESET, "RESET", count=8)
    @PAGE1.read(RESET, "RESET", count=8)
    @PAGE2.read(RESET, "RESET", count=8)
    @PAGE3.read(RESET, "RESET", count=8)
    def read_reset(self, index: int) -> int:
        self.polls.work()
        self.reset()
        return 0xFF

    @PAGE0.write(RESET, "RESET", count=8)
    @PAGE1.write(RESET, "RESET", count=8)
    @PAGE2.write(RESET, "RESET", count=8)
    @PAGE3.write(RESET, "RESET", count=8)
    def write_reset(self, index: int, value: int) -> None:
        self.polls.work()

    # Realtek's registers: identification in page 0, configuration in page 3

    @PAGE0.read(10, "8029ID", count=2)
    def read_chip_id(self, index: int) -> int:
        return CHIP_ID[index]

    @PAGE3.read(1, "9346CR")
    def read_9346cr(self) -> int:
        return self.state.eecr | (EEDO if self.eeprom.output else 0)

    @PAGE3.write(1, "9346CR")
    def write_9346cr(self, value: int) -> None:
        mode = value & EEM
        if mode == AUTO_LOAD:
            self._auto_load()
            mode = 0  # it goes back to normal by itself
        self.state.eecr = mode | value & (EECS | EESK | EEDI)
        if mode == PROGRAMMING:
            self.eeprom.wires(bool(value & EECS), bool(value & EESK), bool(value & EEDI))
        else:
            self.eeprom.wires(False, False, False)

    @PAGE3.read(3, "CONFIG0")
    def read_config0(self) -> int:
        return 0  # 10BASE-T

    @PAGE3.read(5, "CONFIG2")
    def read_config2(self) -> int:
        s = self.state
        return s.config2 | (PF if s.refused and s.config2 & FCE else 0)

    @PAGE3.write(5, "CONFIG2")
    def write_config2(self, value: int) -> None:
        if self.state.eecr & EEM == CONFIG_WRITE:
            self.state.config2 = value & CONFIG2_WRITABLE

    @PAGE3.read(6, "CONFIG3")
    def read_config3(self) -> int:
        return self.state.config3

    @PAGE3.write(6, "CONFIG3")
    def write_config3(self, value: int) -> None:
        if self.state.eecr & EEM == CONFIG_WRITE:
            self.state.config3 = value & CONFIG3_WRITABLE

    @PAGE3.write(9, "HLTCLK")
    def write_hltclk(self, value: int) -> None:
        """Stops the clock in power-down mode; no register shows it."""

    @PAGE3.read(14, "8029ASID", count=2)
    def read_substep_id(self, index: int) -> int:
        return SUBSTEP_ID[index]
