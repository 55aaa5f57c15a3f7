"""RTL8139C+: the registers that configure it (datasheet 1.6, sections 5.3, 6.8, 6.17 to 6.31).

Station address, multicast filter, EEPROM wires, CONFIG0 to CONFIG5, media and MII registers, wake-up frames, timer.
The link is up, 100 Mb/s, full duplex. Reserved registers read as zero.
"""

from __future__ import annotations

from typing import ClassVar

from miniguest.frontend.devices import rtl8139_registers as r
from miniguest.frontend.devices.device import Clock, Model
from miniguest.frontend.devices.eeprom93c46 import Eeprom93c46
from miniguest.frontend.devices.regmap import RegMap

CONFIG_WRITABLE = (0, 0xF3, 0, 0x70, 0xF5, 0x7F)
CONFIG_BYTES = {0: 0x14, 1: 0x15, 3: 0x0D, 4: 0x19, 5: 0x1F}  # where the EEPROM has them
FAST_BACK_TO_BACK = 0x01  # CONFIG3
AUX_POWER, FLOW = 0x10, 0xC0  # MSR
# name, offset, bytes, writable bits, at power-up
PLAIN = (
    ("MULINT", 0x5C, 2, 0x0FFF, 0),
    ("NWAYTR", 0x70, 2, 0x0098, 0),
    ("CSCR", 0x74, 2, 0x83CD, 0x03C8),
    ("PHY1_PARM", 0x78, 4, 0xFFFFFFFF, 0x60F60C59),
    ("TW_PARM", 0x7C, 4, 0xFFFFFFFF, 0x7B732660),
    ("PHY2_PARM", 0x80, 1, 0xFF, 0xEB),
    *((f"CRC{index}", 0x84 + 4 * index, 4, 0xFFFFFFFF, 0) for index in range(2)),
    *((f"WAKEUP{index}", 0x8C + 4 * index, 4, 0xFFFFFFFF, 0) for index in range(16)),
    *((f"LSBCRC{index}", 0xCC + 4 * index, 4, 0xFFFFFFFF, 0) for index in range(2)),
    ("FLASH", 0xD4, 4, 0x000FFFFF, 0),
    ("ETTHR", 0xEC, 1, 0x3F, 0),
)
READ_ONLY = (
    ("ERBCR", 0x34, 2, 0),
    ("ERSR", 0x36, 1, 0),
    ("MIIR", 0x5E, 2, 0x0010),
    ("BMSR", 0x64, 2, r.BMSR_VALUE),
    ("ANLPAR", 0x68, 2, 0x45E1),
    ("ANER", 0x6A, 2, 0x0001),
    ("DIS", 0x6C, 2, 0),
    ("FCSC", 0x6E, 2, 0),
    ("REC", 0x72, 2, 0),
)


def _bytes(value: int, size: int) -> bytes:
    return value.to_bytes(size, "little")


def eeprom_words(mac: bytes) -> list[int]:
    """What a card's EEPROM holds: identification, configuration, station address; the rest is erased."""
    content = bytearray(b"\xff" * 128)
    content[:14] = _bytes(0x8129, 2) + _bytes(0x813910EC, 4) + _bytes(0x813910EC, 4) + b"\x20\x40\x00" + b"\x41"
    content[14:20] = mac
    content[20:32] = bytes((0, r.MAPPED, 0, 0, 0, 0)) + _bytes(0x60F60C59, 4) + b"\xeb\x00"
    return [int.from_bytes(content[at : at + 2], "little") for at in range(0, 128, 2)]


class Rtl8139Settings(Model):
    """The part of an RTL8139 that drivers touch when they start it."""

    regs = RegMap(size=256, blank=0)
    State: ClassVar = r.Rtl8139State
    state: r.Rtl8139State

    def __init__(self, mac: bytes, clock: Clock) -> None:
        self.clock = clock
        self.state = self.State()
        self.state.eeprom.words = eeprom_words(mac)
        self.eeprom = Eeprom93c46(self.state.eeprom)
        for _, offset, size, _, initial in PLAIN:
            self.state.plain[offset : offset + size] = _bytes(initial, size)
        self.state.epoch = clock()
        self._auto_load()

    def _auto_load(self) -> None:
        """Take station address and configuration from the EEPROM, as at power-up."""
        s = self.state
        content = b"".join(_bytes(word & 0xFFFF, 2) for word in s.eeprom.words)
        s.idr[:6] = content[14:20]
        for number, offset in CONFIG_BYTES.items():
            s.config[number] = content[offset] & CONFIG_WRITABLE[number]
        s.config[1] |= r.MAPPED
        s.config[3] |= FAST_BACK_TO_BACK

    def restored(self) -> None:
        s = self.state
        self.eeprom.state = s.eeprom
        passed = self.clock() - s.now
        s.epoch += passed
        s.due += passed
        for name, size in (("idr", 8), ("mar", 8), ("plain", 256)):
            setattr(s, name, getattr(s, name)[:size].ljust(size, b"\0"))

    def saving(self) -> None:
        self.state.now = self.clock()

    # Station address and multicast filter

    @regs.read(0x00, "IDR", 4, count=2)
    def read_idr(self, index: int) -> int:
        return int.from_bytes(self.state.idr[4 * index : 4 * index + 4], "little")

    @regs.write(0x00, "IDR", 4, count=2)
    def write_idr(self, index: int, value: int) -> None:
        self.state.idr[4 * index : 4 * index + 4] = _bytes(value, 4)

    @regs.read(0x08, "MAR", 4, count=2)
    def read_mar(self, index: int) -> int:
        return int.from_bytes(self.state.mar[4 * index : 4 * index + 4], "little")

    @regs.write(0x08, "MAR", 4, count=2)
    def write_mar(self, index: int, value: int) -> None:
        self.state.mar[4 * index : 4 * index + 4] = _bytes(value, 4)

    # EEPROM and configuration

    @regs.read(0x50, "9346CR")
    def read_9346cr(self) -> int:
        return self.state.eecr | (r.EEDO if self.eeprom.output else 0)

    @regs.write(0x50, "9346CR")
    def write_9346cr(self, value: int) -> None:
        mode = value & r.EEM
        if mode == r.AUTO_LOAD:
            self._auto_load()
            mode = 0  # it goes back to normal by itself
        self.state.eecr = mode | value & (r.EECS | r.EESK | r.EEDI)
        if mode == r.PROGRAMMING:
            self.eeprom.wires(bool(value & r.EECS), bool(value & r.EESK), bool(value & r.EEDI))
        else:
            self.eeprom.wires(False, False, False)

    def _unlocked(self) -> bool:
        return self.state.eecr & r.EEM == r.CONFIG_WRITE

    @regs.read(0x51, "CONFIG", count=2)
    def read_config_low(self, index: int) -> int:
        return self.state.config[index]

    @regs.read(0x59, "CONFIG3")
    def read_config3(self) -> int:
        return self.state.config[3]

    @regs.read(0x5A, "CONFIG4")
    def read_config4(self) -> int:
        return self.state.config[4]

    @regs.read(0xD8, "CONFIG5")
    def read_config5(self) -> int:
        return self.state.config[5]

    def _write_config(self, number: int, value: int) -> None:
        mask = CONFIG_WRITABLE[number]
        self.state.config[number] = self.state.config[number] & ~mask | value & mask

    @regs.write(0x52, "CONFIG1")
    def write_config1(self, value: int) -> None:
        if self._unlocked():
            self._write_config(1, value)

    @regs.write(0x59, "CONFIG3")
    def write_config3(self, value: int) -> None:
        if self._unlocked():
            self._write_config(3, value)

    @regs.write(0x5A, "CONFIG4")
    def write_config4(self, value: int) -> None:
        if self._unlocked():
            self._write_config(4, value)

    @regs.write(0xD8, "CONFIG5")
    def write_config5(self, value: int) -> None:
        self._write_config(5, value)  # the only one that is not locked

    @regs.write(0x5B, "HLTCLK")
    def write_hltclk(self, value: int) -> None:
        """Stops the clock to save power when the PCI bus's is stopped too; no register shows it."""

    # Media

    @regs.read(0x58, "MSR")
    def read_msr(self) -> int:
        return AUX_POWER | self.state.flow

    @regs.write(0x58, "MSR")
    def write_msr(self, value: int) -> None:
        self.state.flow = value & FLOW

    @regs.read(0x62, "BMCR", 2)
    def read_bmcr(self) -> int:
        return self.state.bmcr

    @regs.write(0x62, "BMCR", 2)
    def write_bmcr(self, value: int) -> None:
        if value & r.BMCR_RESET:
            self.state.bmcr = r.BMCR_INITIAL
        elif self._unlocked():
            self.state.bmcr = value & r.BMCR_WRITABLE

    @regs.read(0x66, "ANAR", 2)
    def read_anar(self) -> int:
        return self.state.anar

    @regs.write(0x66, "ANAR", 2)
    def write_anar(self, value: int) -> None:
        self.state.anar = value & 0xFDFF | 1

    # Timer

    @regs.read(0x48, "TCTR", 4)
    def read_tctr(self) -> int:
        return (self.clock() - self.state.epoch) // r.TICK & 0xFFFFFFFF

    @regs.write(0x48, "TCTR", 4)
    def write_tctr(self, value: int) -> None:
        """Any write sets it to zero."""
        self.state.epoch = self.clock()
        self._arm()

    @regs.read(0x54, "TIMERINT", 4)
    def read_timerint(self) -> int:
        return self.state.timer_interrupt

    @regs.write(0x54, "TIMERINT", 4)
    def write_timerint(self, value: int) -> None:
        self.state.timer_interrupt = value
        self._arm()

    def _arm(self) -> None:
        """When TCTR is next equal to TimerInt: after now, for it is a match that interrupts."""
        s = self.state
        first = s.epoch + s.timer_interrupt * r.TICK
        s.due = first + max((self.clock() - first) // r.COUNTER + 1, 0) * r.COUNTER

    def deadline(self) -> int | None:
        """When the timer interrupts, in ns; None while TimerInt is zero."""
        return self.state.due if self.state.timer_interrupt else None


def _remembered(regs: RegMap) -> None:
    """The tables of registers that only remember, or only tell."""
    for name, offset, size, mask, _ in PLAIN:

        def read(device: Rtl8139Settings, at: int = offset, size: int = size) -> int:
            return int.from_bytes(device.state.plain[at : at + size], "little")

        def write(device: Rtl8139Settings, value: int, at: int = offset, size: int = size, mask: int = mask) -> None:
            device.state.plain[at : at + size] = _bytes(value & mask, size)

        regs.read(offset, name, size)(read)
        regs.write(offset, name, size)(write)
    for name, offset, size, value in READ_ONLY:
        regs.read(offset, name, size)(lambda device, value=value: value)


_remembered(Rtl8139Settings.regs)
