"""Names of the DP8390's bits, and its state with that of an NE2000 around it (DP8390D datasheet, section 10)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from miniguest.frontend.devices.eeprom93c46 import EepromState

# CR, command. RD, remote DMA command, is a field of three bits
STP, STA, TXP, RD, PS = 0x01, 0x02, 0x04, 0x38, 0xC0
RD_READ, RD_WRITE, RD_SEND, RD_ABORT = 0x08, 0x10, 0x18, 0x20
# ISR, interrupt status; IMR has the same without RST
PRX, PTX, RXE, TXE, OVW, CNT, RDC, RST = (1 << bit for bit in range(8))
# DCR, data configuration: word-wide DMA
WTS = 0x01
# TCR, transmit configuration: loopback mode; inhibit CRC
LB, CRC_INHIBITED = 0x06, 0x01
# TSR, transmit status: bit 1 is always one
TSR_PTX, TSR_ABT = 0x03, 0x0A
# RCR, receive configuration
AB, AM, PRO, MON = 0x04, 0x08, 0x10, 0x20
# RSR, receive status
RSR_PRX, RSR_MPA, RSR_PHY = 0x01, 0x10, 0x20

PAGE = 256  # bytes of buffer memory, and the unit of its management
HEADER = 4  # bytes before a frame in the ring: status, next page, count with FCS
TALLY_LIMIT, TALLY_INTERRUPT = 192, 128
LOST = 2  # the tally counter of frames without room; 0 and 1 are for frames that the wire garbled
RAM, RAM_END = 0x4000, 0x8000  # where the buffer memory is for DMA


@dataclass(slots=True)
class Dp8390State:
    """Registers by their datasheet names. `rsar` and `rbcr` count while remote DMA goes on."""

    KIND: ClassVar = ("rtl8029as", 1)
    ram: bytearray = field(default_factory=lambda: bytearray(RAM_END - RAM))
    command: int = STP | RD_ABORT
    pstart: int = 0
    pstop: int = 0
    bnry: int = 0
    curr: int = 0
    tpsr: int = 0
    tbcr: int = 0
    rsar: int = 0
    rbcr: int = 0
    isr: int = RST
    imr: int = 0
    dcr: int = 0x04
    rcr: int = 0
    tcr: int = 0
    tsr: int = 0
    rsr: int = 0
    par: bytearray = field(default_factory=lambda: bytearray(6))
    mar: bytearray = field(default_factory=lambda: bytearray(8))
    tally: list[int] = field(default_factory=lambda: [0, 0, 0])
    fifo: bytearray = field(default_factory=lambda: bytearray(8))
    fifo_next: int = 0
    refused: bool = False  # the frame offered last found no room, and the driver can know it
    eeprom: EepromState = field(default_factory=EepromState)  # from here on the RTL8029AS's own
    eecr: int = 0
    config2: int = 0
    config3: int = 0
