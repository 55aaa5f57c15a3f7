"""Registers of the 82540EM that have no consequence of their own: they keep what is written, or count.

Chapter 13 of the manual that `e1000_registers` names.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from miniguest.frontend.devices import e1000_registers as r
from miniguest.frontend.devices import e1000_statistics as statistics
from miniguest.frontend.devices.regmap import RegMap

if TYPE_CHECKING:
    from miniguest.frontend.devices.e1000 import E1000

FIELDS = (
    # Fields of the state: offset, name, where, field, writable bits (0 = the write is elsewhere)
    (r.EERD, "EERD", "eeprom", "eerd", 0), (r.MDIC, "MDIC", "phy", "mdic", 0), (r.FCT, "FCT", "receive", "fct", 0xFFFF),
    (r.VET, "VET", "filters", "vet", 0), (r.IMS, "IMS", "interrupts", "ims", 0), (r.ITR, "ITR", "interrupts", "itr", 0),
    (r.RCTL, "RCTL", "receive", "control", 0x06DFB3FE), (r.RXCSUM, "RXCSUM", "receive", "rxcsum", 0x3FF),
    (r.RDBAL, "RDBAL", "receive", "low", 0xFFFFFFF0), (r.RDBAH, "RDBAH", "receive", "high", 0xFFFFFFFF),
    (r.RDLEN, "RDLEN", "receive", "length", 0xFFF80), (r.RDH, "RDH", "receive", "head", 0xFFFF),
    (r.RDT, "RDT", "receive", "tail", 0xFFFF), (r.RSRPD, "RSRPD", "receive", "rsrpd", 0xFFF),
    (r.RDTR, "RDTR", "receive.delay", "delay", 0), (r.RADV, "RADV", "receive.delay", "absolute", 0xFFFF),
    (r.TCTL, "TCTL", "transmit", "control", 0),
    (r.TDBAL, "TDBAL", "transmit", "low", 0xFFFFFFF0), (r.TDBAH, "TDBAH", "transmit", "high", 0xFFFFFFFF),
    (r.TDLEN, "TDLEN", "transmit", "length", 0xFFF80), (r.TDH, "TDH", "transmit", "head", 0),
    (r.TDT, "TDT", "transmit", "tail", 0), (r.TXDCTL, "TXDCTL", "transmit", "txdctl", 0xFF3F3F3F),
    (r.TIDV, "TIDV", "transmit.delay", "delay", 0), (r.TADV, "TADV", "transmit.delay", "absolute", 0xFFFF),
)

Reader = Callable[["E1000"], int]
Writer = Callable[["E1000", int], None]


def keep_values(regs: RegMap) -> None:
    """Add these registers to the map."""
    for offset, name, where, field, mask in FIELDS:
        _add(regs, offset, name, *_field(attrgetter(where), field, mask), bool(mask))
    for index, (offset, name, mask, _) in enumerate(r.PLAIN):
        _add(regs, offset, name, *_plain(index, mask), True)
    regs.read(r.STATISTICS, "STATISTICS", 4, statistics.COUNTERS)(_read_counter)
    regs.read(r.RA, "RA", 4, 32)(lambda device, index: device.state.filters.ra[index])
    for offset, name in ((r.MTA, "MTA"), (r.VFTA, "VFTA")):
        _table(regs, offset, name)


def _add(regs: RegMap, offset: int, name: str, read: Reader, write: Writer, writable: bool) -> None:
    regs.read(offset, name, 4)(read)
    if writable:
        regs.write(offset, name, 4)(write)


def _field(part: Callable[[Any], Any], field: str, mask: int) -> tuple[Reader, Writer]:
    return (
        lambda device: getattr(part(device.state), field),
        lambda device, value: setattr(part(device.state), field, value & mask),
    )


def _plain(index: int, mask: int) -> tuple[Reader, Writer]:
    def write(device: E1000, value: int) -> None:
        device.state.plain[index] = value & mask

    return lambda device: device.state.plain[index], write


def _read_counter(device: E1000, index: int) -> int:
    return statistics.read(device.state.counters, index)


def _table(regs: RegMap, offset: int, name: str) -> None:
    """An array of 128 registers of the filters, MTA or VFTA."""
    field = attrgetter(name.lower())

    def write(device: E1000, index: int, value: int) -> None:
        field(device.state.filters)[index] = value

    regs.read(offset, name, 4, 128)(lambda device, index: field(device.state.filters)[index])
    regs.write(offset, name, 4, 128)(write)
