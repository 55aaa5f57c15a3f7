"""The state of an 82540EM: its parts' and what belongs to none of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from miniguest.frontend.devices import e1000_registers as r
from miniguest.frontend.devices.e1000_eeprom import PortState
from miniguest.frontend.devices.e1000_filters import FilterState
from miniguest.frontend.devices.e1000_interrupts import InterruptState, moved
from miniguest.frontend.devices.e1000_phy import PhyState
from miniguest.frontend.devices.e1000_receive import ReceiveState
from miniguest.frontend.devices.e1000_statistics import COUNTERS
from miniguest.frontend.devices.e1000_transmit import TransmitState

CTRL_INITIAL = r.CTRL_FD | r.CTRL_SLU | 2 << 8 | 0x140000


@dataclass(slots=True)
class State:
    """`now` is the clock when saved. A software reset loses `plain` and all that follows."""

    KIND: ClassVar = ("e1000", 1)
    eeprom: PortState = field(default_factory=PortState)
    phy: PhyState = field(default_factory=PhyState)
    io_address: int = 0
    now: int = 0
    plain: list[int] = field(default_factory=lambda: [initial for _, _, _, initial in r.PLAIN])
    ctrl: int = CTRL_INITIAL
    ctrl_ext: int = 0
    counters: list[int] = field(default_factory=lambda: [0] * COUNTERS)
    interrupts: InterruptState = field(default_factory=InterruptState)
    filters: FilterState = field(default_factory=FilterState)
    receive: ReceiveState = field(default_factory=ReceiveState)
    transmit: TransmitState = field(default_factory=TransmitState)

    def after_reset(self) -> State:
        """CTRL.RST leaves the EEPROM, the PHY and the packet buffer's division (13.4.1)."""
        new = State(eeprom=self.eeprom, phy=self.phy, io_address=self.io_address)
        new.plain[r.PBA] = self.plain[r.PBA]
        return new

    def move(self, by: int) -> None:
        """Times are on a clock that is `by` ns ahead."""
        self.interrupts.ready = moved(self.interrupts.ready, by)
        self.transmit.resume = moved(self.transmit.resume, by)
        for delay in (self.receive.delay, self.transmit.delay):
            delay.due, delay.latest = moved(delay.due, by), moved(delay.latest, by)
