"""ACPI fixed registers as the PIIX4 has them (Intel 290562, section 7.2; ACPI 1.0b, section 4.7), 64 I/O ports.

PM1a event and control, the 24-bit timer at 3.579545 MHz, and the general purpose registers. `Apm` is ports 0xB2 and
0xB3, through which an operating system asks firmware to turn ACPI on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from miniguest.frontend.devices.device import Clock, Model, nothing
from miniguest.frontend.devices.regmap import RegMap

TMR_STS, BM_STS, GBL_STS, PWRBTN_STS, RTC_STS, WAK_STS = 0x0001, 0x0010, 0x0020, 0x0100, 0x0400, 0x8000
EVENTS = TMR_STS | GBL_STS | PWRBTN_STS | RTC_STS
SCI_EN, SLP_TYP, SLP_EN = 0x0001, 0x1C00, 0x2000
S5 = 0  # sleep type of soft off
TIMER_MASK = 0xFFFFFF
HALF_TURN = 1 << 23  # TMR_STS is set each time bit 23 changes
ACPI_ENABLE, ACPI_DISABLE = 0xF1, 0xF0


def timer_ticks(ns: int) -> int:
    """Whole ticks of 315/88 MHz in so many nanoseconds."""
    return ns * 315 // 88000


class AcpiPm(Model):
    """The registers behind PMBASE. `power_off` is called when the guest enters S5."""

    regs = RegMap(size=64)

    @dataclass(slots=True)
    class State:
        KIND: ClassVar = ("piix4-pm", 1)
        status: int = 0
        enable: int = 0
        control: int = 0
        origin: int = 0  # ns at which the timer was 0
        turns: int = 0  # half turns of the timer that TMR_STS has seen
        gp_enable: int = 0
        processor: int = 0
        outputs: int = 0xFFBFFFFF  # GPOREG after reset
        apm_command: int = 0
        apm_status: int = 0
        now: int = 0  # the clock when saved

    state: State

    def __init__(self, clock: Clock, power_off: Callable[[], None] = nothing) -> None:
        self.clock = clock
        self.power_off = power_off
        self.state = self.State(origin=clock())

    def irq(self) -> bool:
        """SCI, IRQ 9 (level): an enabled event while SCI_EN is on."""
        s = self.state
        return bool(s.control & SCI_EN and s.status & s.enable & EVENTS)

    def press_power_button(self) -> None:
        """Ask the guest to shut down."""
        self.state.status |= PWRBTN_STS
        self.changed()

    def deadline(self) -> int | None:
        """When the timer's next half turn interrupts, in ns."""
        s = self.state
        if not s.enable & TMR_STS or s.status & TMR_STS:
            return None
        return s.origin - (-(s.turns + 1) * HALF_TURN * 88000 // 315)

    def tick(self) -> None:
        """Notice what the timer did."""
        self._advance()

    def _advance(self) -> None:
        turns = timer_ticks(self.clock() - self.state.origin) // HALF_TURN
        if turns > self.state.turns:
            self.state.turns = turns
            self.state.status |= TMR_STS

    @regs.read(0x00, "PMSTS", 2)
    def read_status(self) -> int:
        self._advance()
        return self.state.status

    @regs.write(0x00, "PMSTS", 2)
    def write_status(self, value: int) -> None:
        self._advance()
        self.state.status &= ~(value & (EVENTS | BM_STS | WAK_STS))

    @regs.read(0x02, "PMEN", 2)
    def read_enable(self) -> int:
        return self.state.enable

    @regs.write(0x02, "PMEN", 2)
    def write_enable(self, value: int) -> None:
        self._advance()
        self.state.enable = value & EVENTS

    @regs.read(0x04, "PMCNTRL", 2)
    def read_control(self) -> int:
        return self.state.control

    @regs.write(0x04, "PMCNTRL", 2)
    def write_control(self, value: int) -> None:
        """SLP_EN reads as zero; S5 turns the machine off and other sleep types do nothing."""
        self.state.control = value & (SCI_EN | 0x0002 | SLP_TYP)
        if value & SLP_EN and (value & SLP_TYP) >> 10 == S5:
            self.power_off()

    @regs.read(0x08, "PMTMR", 4)
    def read_timer(self) -> int:
        return timer_ticks(self.clock() - self.state.origin) & TIMER_MASK

    @regs.read(0x0C, "GPSTS", 2)
    def read_gp_status(self) -> int:
        return 0

    @regs.write(0x0C, "GPSTS", 2)
    def write_gp_status(self, value: int) -> None:
        """Nothing sets a general purpose status, so there is none to clear."""

    @regs.read(0x0E, "GPEN", 2)
    def read_gp_enable(self) -> int:
        return self.state.gp_enable

    @regs.write(0x0E, "GPEN", 2)
    def write_gp_enable(self, value: int) -> None:
        self.state.gp_enable = value & 0x0F01

    @regs.read(0x10, "PCNTRL", 4)
    def read_processor(self) -> int:
        return self.state.processor

    @regs.write(0x10, "PCNTRL", 4)
    def write_processor(self, value: int) -> None:
        self.state.processor = value & 0x0003FE1E

    @regs.read(0x14, "PLVL", count=2)
    def read_level(self, index: int) -> int:
        """Reading enters C2 or C3 on the chip; here the vCPU halts by HLT alone."""
        return 0

    @regs.read(0x30, "GPIREG", 4)
    def read_inputs(self) -> int:
        return 0

    @regs.read(0x34, "GPOREG", 4)
    def read_outputs(self) -> int:
        return self.state.outputs

    @regs.write(0x34, "GPOREG", 4)
    def write_outputs(self, value: int) -> None:
        self.state.outputs = value

    def saving(self) -> None:
        self._advance()
        self.state.now = self.clock()

    def restored(self) -> None:
        self.state.origin += self.clock() - self.state.now


class Apm(Model):
    """Ports 0xB2 (control) and 0xB3 (status). What firmware's SMI handler would do on the two ACPI commands is done
    here, since there is no SMM. Its two bytes are saved with the ACPI registers, whose state it shares.
    """

    regs = RegMap(size=2)

    def __init__(self, pm: AcpiPm) -> None:
        self.pm = pm
        self.ports = ((0xB2, 2, self),)

    @regs.read(0, "APMC")
    def read_control(self) -> int:
        return self.pm.state.apm_command

    @regs.write(0, "APMC")
    def write_control(self, value: int) -> None:
        state = self.pm.state
        state.apm_command = value
        if value == ACPI_ENABLE:
            state.control |= SCI_EN
        elif value == ACPI_DISABLE:
            state.control &= ~SCI_EN
        self.pm.changed()

    @regs.read(1, "APMS")
    def read_status(self) -> int:
        return self.pm.state.apm_status

    @regs.write(1, "APMS")
    def write_status(self, value: int) -> None:
        self.pm.state.apm_status = value
