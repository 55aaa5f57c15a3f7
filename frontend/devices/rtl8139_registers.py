"""Names of the RTL8139C+'s bits, and its state (Realtek RTL8139C+ datasheet 1.6, sections 5 and 6)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from miniguest.frontend.devices.eeprom93c46 import EepromState

# CR, command
RST, RE, TE, BUFE = 0x10, 0x08, 0x04, 0x01
# ISR and IMR
ROK, RER, TOK, TER, RXOVW, LINK, FOVW, TDU = (1 << bit for bit in range(8))
SWINT, TIMEOUT = 1 << 8, 1 << 14
INTERRUPTS = 0xE1FF
# TSD, transmit status of descriptor
TSD_SIZE, TSD_OWN, TSD_TUN, TSD_TOK, TSD_TABT = 0x1FFF, 1 << 13, 1 << 14, 1 << 15, 1 << 30
TSD_WRITABLE = 0x003F3FFF  # size, OWN and early threshold
# TCR, transmit configuration
TCR_NO_CRC, TCR_LOOPBACK, TCR_WRITABLE = 1 << 16, 3 << 17, 0x030F07F0
VERSION = 0x74800000  # hardware version id of the C+: 11101 and 10
# RCR, receive configuration
AAP, APM, AM, AB, AR, AER, WRAP = 1, 2, 4, 8, 16, 32, 128
RCR_WRITABLE = 0x0F03FFBF
# A received frame's kind, as in the classic header
BAR, PAM, MAR = 1 << 13, 1 << 14, 1 << 15
HEADER_ROK, HEADER_LONG = 1, 8
LONGEST = 4096  # bytes with FCS; beyond it a frame is an error
# 9346CR, EEPROM command: modes, and wires of the programming mode
EEM, AUTO_LOAD, PROGRAMMING, CONFIG_WRITE = 0xC0, 0x40, 0x80, 0xC0
EECS, EESK, EEDI, EEDO = 8, 4, 2, 1
# CPCR, C+ command
CPTX, CPRX, RXCHKSUM, RXVLAN, CPCR_WRITABLE = 0x01, 0x02, 0x20, 0x40, 0x7B
# TPPoll, transmit priority polling
HPQ, NPQ, FSWINT = 0x80, 0x40, 0x01
# BMCR, basic mode control. What is writable needs CONFIG_WRITE; reset and restart clear themselves
BMCR_RESET, BMCR_WRITABLE = 0x8000, 0x3100
BMCR_INITIAL, BMSR_VALUE = 0x3100, 0x782D  # 100 Mb/s, full duplex, autonegotiated; link is up
# CONFIG1: the decoders are on, whatever the EEPROM says
MAPPED = 0x0C

DTCCR_DUMP = 8
TICK = 30  # nanoseconds of the PCI clock, which TCTR counts
COUNTER = TICK << 32  # ... and in how many it wraps
COUNTERS = 6
SENT, RECEIVED, RX_ERRORS, RECEIVED_MINE, RECEIVED_BROADCAST, RECEIVED_MULTICAST = range(COUNTERS)


@dataclass(slots=True)
class QueueState:
    """A C+ transmit ring: its next descriptor, and segments of that frame that are sent already."""

    index: int = 0
    segment: int = 0


@dataclass(slots=True)
class Rtl8139State:
    """Registers by their datasheet names; `plain` are those that only remember, where they lie."""

    KIND: ClassVar = ("rtl8139c+", 1)
    eeprom: EepromState = field(default_factory=EepromState)
    idr: bytearray = field(default_factory=lambda: bytearray(8))
    mar: bytearray = field(default_factory=lambda: bytearray(8))
    plain: bytearray = field(default_factory=lambda: bytearray(256))
    config: list[int] = field(default_factory=lambda: [0] * 6)
    bmcr: int = BMCR_INITIAL
    anar: int = 0x05E1
    eecr: int = 0
    flow: int = 0  # MSR's writable bits
    counters: list[int] = field(default_factory=lambda: [0] * COUNTERS)
    # from here on a software reset sets everything to these values
    tsd: list[int] = field(default_factory=lambda: [TSD_OWN] * 4)
    tsad: list[int] = field(default_factory=lambda: [0] * 4)  # in C+ mode TNPDS and THPDS
    dtccr: list[int] = field(default_factory=lambda: [0, 0])
    rbstart: int = 0
    command: int = 0
    capr: int = 0xFFF0
    cbr: int = 0
    imr: int = 0
    isr: int = 0
    tcr: int = 0x03000000
    rcr: int = 0
    mpc: int = 0
    cpcr: int = 0
    rdsar: list[int] = field(default_factory=lambda: [0, 0])
    tx_next: int = 0  # the classic descriptor whose turn it is
    rx_next: int = 0  # the C+ receive descriptor
    polled: int = 0  # TPPoll's queues that have not run dry
    queues: list[QueueState] = field(default_factory=lambda: [QueueState(), QueueState()])  # high priority, normal
    refused: bool = False  # the frame offered last found no room, and that has been told
    timer_interrupt: int = 0
    epoch: int = 0  # ns when TCTR was 0
    due: int = 0  # ns when it will next be equal to TimerInt
    now: int = 0  # the clock when saved


KEPT = ("eeprom", "idr", "mar", "plain", "config", "bmcr", "anar", "eecr", "flow", "counters")
"""What a software reset leaves alone."""
