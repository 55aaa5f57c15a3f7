"""Intel 82540EM gigabit Ethernet controller ("PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's
Manual", 317453), PCI 8086:100E.

`E1000` is the 128 KiB of registers; `IoWindow` reaches them through two ports (13.2.2). What the registers do is in
the modules beside: `e1000_interrupts`, `e1000_eeprom`, `e1000_phy`, `e1000_filters`, `e1000_receive`,
`e1000_transmit`, `e1000_offload` and `e1000_statistics`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from miniguest.frontend.devices import e1000_registers as r
from miniguest.frontend.devices.device import Clock, Device, GuestMemory, Model
from miniguest.frontend.devices.e1000_eeprom import EepromPort, image
from miniguest.frontend.devices.e1000_filters import ADDRESSES, Filters
from miniguest.frontend.devices.e1000_interrupts import Interrupts
from miniguest.frontend.devices.e1000_io import IoWindow
from miniguest.frontend.devices.e1000_kept import keep_values
from miniguest.frontend.devices.e1000_line import NOWHERE, Loop
from miniguest.frontend.devices.e1000_phy import Phy
from miniguest.frontend.devices.e1000_receive import Receiver
from miniguest.frontend.devices.e1000_state import State
from miniguest.frontend.devices.e1000_transmit import Port, Transmitter
from miniguest.frontend.devices.nic import Wire
from miniguest.frontend.devices.pci_capabilities import MsiCapability, PciXCapability, PowerManagement
from miniguest.frontend.devices.pci_function import Bar, Identity, PciFunction
from miniguest.frontend.devices.regmap import RegMap

RA_BITS = (0xFFFFFFFF, 0x8003FFFF)
POWER, PCI_X, MSI = 0xDC, 0xE4, 0xF0
POWER_ABILITIES = 0xC822                # PME# in D0, D3hot and D3cold; version 1.1
CTRL_KEPT = 0xFFFFFFFF & ~(r.CTRL_RST | r.CTRL_PHY_RST)


def unsent(address: int, data: int) -> None:
    """The message callback of somebody who sends none."""


class E1000(Model):
    """The registers.

    `receive`, `wire_ready` and `tick` do not call `changed`: who calls them looks at `irq()` and `deadline()` after.
    `send_msi(address, data)` is called for a message signaled interrupt, which `capabilities` makes possible.
    `idle` counts reads of ICR that found no cause.
    """

    IDENTITY: ClassVar = Identity(0x8086, 0x100E, 0x020000, revision=2, subsystem=(0x8086, 0x001E), interrupt_pin=1)
    BARS: ClassVar = (Bar(0, "memory", r.WINDOW), Bar(2, "io", 8))
    regs = RegMap(size=r.WINDOW, blank=0)
    state: State

    def __init__(self, mac: bytes, memory: GuestMemory, wire: Wire, clock: Clock) -> None:
        self.memory = memory
        self.wire = wire
        self.clock = clock
        self.idle = 0
        self.msi: MsiCapability | None = None
        self.send_msi: Callable[[int, int], None] = unsent
        self.state = State()
        self.state.eeprom.part.words = image(mac, self.IDENTITY.device, self.IDENTITY.subsystem)
        self._bind()
        self._load_address()

    def _bind(self) -> None:
        """Make the parts anew over the state."""
        s = self.state
        self.eeprom = EepromPort(s.eeprom)
        self.phy = Phy(s.phy)
        self.interrupts = Interrupts(s.interrupts, self.clock, self._raised)
        self.filters = Filters(s.filters)
        self.receiver = Receiver(s.receive, self.memory, self.clock, self.interrupts, self.filters, s.counters)
        self.transmitter = Transmitter(s.transmit, self.memory, self._port, self.clock, self.interrupts, s.counters)

    def _load_address(self) -> None:
        """What the EEPROM is read for after a reset."""
        self.filters.load_address(self.eeprom.words(0, 3))

    # The wrapper's side

    def windows(self) -> dict[tuple[int, str], Device]:
        return {(0, "memory"): self, (2, "io"): IoWindow(self)}

    def capabilities(self, function: PciFunction) -> None:
        """Give the PCI function made of IDENTITY and BARS its capabilities list (4.1.1, 4.1.3)."""
        PowerManagement(function, POWER, PCI_X, POWER_ABILITIES)
        PciXCapability(function, PCI_X, MSI)
        self.msi = MsiCapability(function, MSI)

    def irq(self) -> bool:
        """INTA#, which stays quiet while interrupts are messages."""
        return self.state.interrupts.line and not (self.msi is not None and self.msi.enabled)

    def _raised(self) -> None:
        if self.msi is not None and self.msi.enabled:
            self.send_msi(self.msi.address, self.msi.data)

    def deadline(self) -> int | None:
        """The next of the interrupt delays, the throttle, and the transmitter's next go, in ns."""
        s = self.state
        if not (s.receive.delay.due or s.transmit.delay.due or s.interrupts.ready or s.transmit.resume):
            return None
        times = (self.receiver.delay.deadline(), self.transmitter.delay.deadline(), self.interrupts.deadline(),
                 s.transmit.resume)
        return min((time for time in times if time), default=None)

    def tick(self) -> None:
        """Do what is due."""
        self.receiver.delay.tick()
        self.transmitter.delay.tick()
        self.interrupts.tick()
        if self.state.transmit.resume and self.clock() >= self.state.transmit.resume:
            self.transmitter.run()

    def receive(self, frame: bytes) -> bool:
        """A frame without FCS; see `nic.Nic`. In loopback the line is cut off."""
        if not self.phy.link or self._looped():
            return True
        return self.receiver.receive(frame)

    def wire_ready(self) -> None:
        self.transmitter.run()

    def set_link(self, up: bool) -> None:
        """The cable is plugged in or pulled; the guest hears of it."""
        if self.phy.set_cable(up):
            self.interrupts.cause(r.LSC)
            self.changed()

    # Where frames go

    def _looped(self) -> bool:
        """RCTL.LBM, or the PHY's loopback."""
        return bool(self.state.receive.control & r.RCTL_LBM) or self.phy.loopback

    def _port(self) -> Port:
        """On the wire, back in, or nowhere when there is no link."""
        if self._looped():
            return Loop(self.receiver)
        return self.wire if self.phy.link else NOWHERE

    # State

    def saving(self) -> None:
        self.state.now = self.clock()

    def restored(self) -> None:
        self.state.move(self.clock() - self.state.now)
        self._bind()

    def reset(self) -> None:
        """CTRL.RST."""
        self.state = self.state.after_reset()
        self._bind()
        self._load_address()

    # Device control and status (13.4.1-13.4.6)

    @regs.read(r.CTRL, "CTRL", 4)
    def read_ctrl(self) -> int:
        return self.state.ctrl

    @regs.write(r.CTRL, "CTRL", 4)
    def write_ctrl(self, value: int) -> None:
        if value & r.CTRL_PHY_RST:
            self._negotiated(self.phy.reset())
        if value & r.CTRL_RST:
            self.reset()
            return
        s = self.state
        s.ctrl = value & CTRL_KEPT
        s.receive.stripping = s.transmit.tagging = bool(value & r.CTRL_VME)

    @regs.read(r.STATUS, "STATUS", 4)
    def read_status(self) -> int:
        """Forced speed and duplex are CTRL's, others the PHY's."""
        ctrl = self.state.ctrl
        link = self.phy.link
        speed = ctrl >> 8 & 3 if ctrl & r.CTRL_FRCSPD else self.phy.speed()
        full = ctrl & r.CTRL_FD if ctrl & r.CTRL_FRCDPX else self.phy.full_duplex()
        return (r.STATUS_FD if full else 0) | (r.STATUS_LU if link else 0) | speed << 6 | self.phy.speed() << 8

    @regs.write(r.STATUS, "STATUS", 4)
    def write_status(self, value: int) -> None:
        """Read only."""

    @regs.read(r.CTRL_EXT, "CTRL_EXT", 4)
    def read_ctrl_ext(self) -> int:
        return self.state.ctrl_ext

    @regs.write(r.CTRL_EXT, "CTRL_EXT", 4)
    def write_ctrl_ext(self, value: int) -> None:
        """EE_RST reads the EEPROM anew and clears itself."""
        self.state.ctrl_ext = value & 0x00FFFFFF & ~r.CTRL_EXT_EE_RST
        if value & r.CTRL_EXT_EE_RST:
            self._load_address()

    @regs.read(r.EECD, "EECD", 4)
    def read_eecd(self) -> int:
        return self.eeprom.read_pins()

    @regs.write(r.EECD, "EECD", 4)
    def write_eecd(self, value: int) -> None:
        self.eeprom.write_pins(value)

    @regs.write(r.EERD, "EERD", 4)
    def write_eerd(self, value: int) -> None:
        self.eeprom.start_read(value)

    @regs.write(r.MDIC, "MDIC", 4)
    def write_mdic(self, value: int) -> None:
        self._negotiated(self.phy.command(value))
        if value & r.MDIC_INTERRUPT:
            self.interrupts.cause(r.MDAC)

    def _negotiated(self, anew: bool) -> None:
        if anew:
            self.interrupts.cause(r.LSC)

    @regs.write(r.VET, "VET", 4)
    def write_vet(self, value: int) -> None:
        self.state.filters.vet = self.state.transmit.tag_type = value & 0xFFFF
        self.filters.refresh()

    # Interrupts (13.4.17-13.4.21)

    @regs.read(r.ICR, "ICR", 4)
    def read_icr(self) -> int:
        causes = self.interrupts.read()
        if not causes:
            self.idle += 1
        return causes

    @regs.write(r.ICR, "ICR", 4)
    def write_icr(self, value: int) -> None:
        self.interrupts.acknowledge(value)

    @regs.write(r.ICS, "ICS", 4)
    def write_ics(self, value: int) -> None:
        self.interrupts.cause(value & r.CAUSES)

    @regs.write(r.IMS, "IMS", 4)
    def write_ims(self, value: int) -> None:
        self.interrupts.enable(value)

    @regs.write(r.IMC, "IMC", 4)
    def write_imc(self, value: int) -> None:
        self.interrupts.disable(value)

    @regs.write(r.ITR, "ITR", 4)
    def write_itr(self, value: int) -> None:
        self.interrupts.throttle(value)

    # Rings (13.4.22-13.4.44): what does more than keep its value

    @regs.write(r.TCTL, "TCTL", 4)
    def write_tctl(self, value: int) -> None:
        self.transmitter.control(value)

    @regs.write(r.TDH, "TDH", 4)
    def write_tdh(self, value: int) -> None:
        self.transmitter.forget()
        self.state.transmit.head = value & 0xFFFF

    @regs.write(r.TDT, "TDT", 4)
    def write_tdt(self, value: int) -> None:
        self.state.transmit.tail = value & 0xFFFF
        self.transmitter.run()

    @regs.write(r.TIDV, "TIDV", 4)
    def write_tidv(self, value: int) -> None:
        self.transmitter.delay.program(value)

    @regs.write(r.RDTR, "RDTR", 4)
    def write_rdtr(self, value: int) -> None:
        self.receiver.delay.program(value)

    @regs.write(r.RA, "RA", 4, count=2 * ADDRESSES)
    def write_ra(self, index: int, value: int) -> None:
        self.state.filters.ra[index] = value & RA_BITS[index & 1]
        self.filters.refresh()


keep_values(E1000.regs)
