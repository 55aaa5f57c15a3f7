"""What a local APIC does: priorities, delivery, IPIs to itself, errors (Intel SDM volume 3, chapter 11).

The registers that show it are in `lapic`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from miniguest.frontend.devices.device import Clock, Model, nothing
from miniguest.frontend.interrupts import lapic_timer as timer
from miniguest.frontend.interrupts.lapic_timer import TimerState

BASE_ENABLE, BASE_BSP, BASE_ADDRESS = 1 << 11, 1 << 8, 0xFEE00000
SVR_ENABLE = 0x100
MASKED, PERIODIC, LEVEL, REMOTE_IRR = 1 << 16, 1 << 17, 1 << 15, 1 << 14
FIXED, LOWEST, SMI, NMI, EXTINT = 0, 1, 2, 4, 7
SEND_ILLEGAL, RECEIVE_ILLEGAL, REGISTER_ILLEGAL = 1 << 5, 1 << 6, 1 << 7
TIMER, THERMAL, PERF, LINT0, LINT1, ERROR = range(6)


class LapicCore(Model):
    """Interrupts by priority for one vCPU.

    `nmi` is called when an LVT entry or an IPI to self asks for an NMI; `broadcast_eoi(vector)` when a level
    triggered interrupt ends (the I/O APIC listens). `base_msr` is IA32_APIC_BASE as RDMSR shows it.
    """

    @dataclass(slots=True)
    class State:
        KIND: ClassVar = ("lapic", 1)
        base_msr: int = BASE_ADDRESS | BASE_ENABLE | BASE_BSP
        id: int = 0
        tpr: int = 0
        ldr: int = 0
        dfr: int = 0xFFFFFFFF
        svr: int = 0xFF
        isr: int = 0  # 256 bits each
        tmr: int = 0
        irr: int = 0
        esr: int = 0  # as last latched by a write
        errors: int = 0  # since then
        icr_low: int = 0
        icr_high: int = 0
        lvt: list[int] = field(default_factory=lambda: [MASKED] * 6)
        pins: list[bool] = field(default_factory=lambda: [False, False])
        timer: TimerState = field(default_factory=TimerState)
        now: int = 0  # the clock when saved

    state: State

    def __init__(
        self,
        clock: Clock,
        apic_id: int = 0,
        nmi: Callable[[], None] = nothing,
        broadcast_eoi: Callable[[int], None] = lambda vector: None,
    ) -> None:
        self.clock = clock
        self.nmi = nmi
        self.broadcast_eoi = broadcast_eoi
        self.state = self.State(id=apic_id)
        # The boot processor starts in virtual wire mode, so that the 8259A works before software knows the APIC.
        self.state.lvt[LINT0] = EXTINT << 8

    # What the vCPU asks

    @property
    def base_msr(self) -> int:
        """IA32_APIC_BASE."""
        return self.state.base_msr

    @base_msr.setter
    def base_msr(self, value: int) -> None:
        self.state.base_msr = value & 0xFFFFFF800 | BASE_BSP
        if not self.enabled:
            base = self.state.base_msr  # disabling it forgets everything but where it is
            self.state = self.State(base_msr=base, id=self.state.id)
            self.state.lvt[LINT0] = EXTINT << 8

    @property
    def enabled(self) -> bool:
        """The hardware enable bit: without it there is no page, and INTR goes straight to the CPU."""
        return bool(self.state.base_msr & BASE_ENABLE)

    def accepts_extint(self) -> bool:
        """Virtual wire: whether the 8259A's INTR reaches the CPU through LINT0."""
        return not self.enabled or self.state.lvt[LINT0] & (MASKED | 0x700) == EXTINT << 8

    def pending(self) -> int | None:
        """The vector that would be delivered now, or None."""
        s = self.state
        if not s.irr or not s.svr & SVR_ENABLE or not self.enabled:
            return None
        vector = s.irr.bit_length() - 1
        return vector if vector >> 4 > self.ppr() >> 4 else None

    def acknowledge(self, vector: int) -> int:
        """The CPU takes `vector`. Gives the vector to run: the spurious one if it no longer asks."""
        s, bit = self.state, 1 << vector
        if not s.irr & bit:
            return s.svr & 0xFF
        s.irr &= ~bit
        s.isr |= bit
        return vector

    def deliver(self, vector: int, level: bool = False) -> bool:
        """A fixed interrupt from outside (I/O APIC, MSI) or inside; whether it is accepted. Vectors below 16 are illegal."""
        s = self.state
        if not s.svr & SVR_ENABLE or not self.enabled:
            return False
        if vector < 16:
            self._error(RECEIVE_ILLEGAL)
            return False
        s.irr |= 1 << vector
        s.tmr = s.tmr | 1 << vector if level else s.tmr & ~(1 << vector)
        return True

    def is_meant(self, target: int, logical: bool) -> bool:
        """Whether a message's destination, 8 bits, includes this processor."""
        s = self.state
        if not logical:
            return target in (s.id, 0xFF)
        mine = s.ldr >> 24
        if s.dfr >> 28 == 0xF:
            return bool(target & mine)
        return target >> 4 in (mine >> 4, 15) and bool(target & mine & 15)

    def set_pin(self, pin: int, level: bool) -> None:
        """Drive LINT0 or LINT1. ExtINT is not an edge here: see `accepts_extint`."""
        rising = level and not self.state.pins[pin]
        self.state.pins[pin] = level
        entry = self.state.lvt[LINT0 + pin]
        asks = level and not entry & REMOTE_IRR if entry & LEVEL and pin == 0 else rising
        if asks:
            self._local(LINT0 + pin)

    def ppr(self) -> int:
        """Processor priority: the higher class of TPR and of the highest interrupt in service."""
        s = self.state
        serving = s.isr.bit_length() - 1 if s.isr else 0
        return s.tpr if s.tpr >> 4 >= serving >> 4 else serving & 0xF0

    def deadline(self) -> int | None:
        """When the timer next expires, in ns."""
        return timer.deadline(self.state.timer)

    def tick(self) -> None:
        """Expire the timer if it is due."""
        if timer.expire(self.state.timer, self._periodic(), self.clock()):
            self._local(TIMER)

    # Inside

    def _periodic(self) -> bool:
        return bool(self.state.lvt[TIMER] & PERIODIC)

    def _local(self, index: int) -> None:
        """A local source fires through its LVT entry."""
        entry = self.state.lvt[index]
        if entry & MASKED:
            return
        mode = entry >> 8 & 7
        if mode == NMI:
            self.nmi()
        elif mode == FIXED:
            level = bool(entry & LEVEL) and index == LINT0
            if level:
                self.state.lvt[index] |= REMOTE_IRR
            self.deliver(entry & 0xFF, level)

    def _error(self, bit: int) -> None:
        """Note an error; the first of its kind since ESR was written interrupts."""
        new = not self.state.errors & bit
        self.state.errors |= bit
        if new and self.state.lvt[ERROR] & 0xFF > 15:
            self._local(ERROR)

    def unmapped(self, offset: int, writing: bool) -> None:
        if offset & 15 == 0:
            self._error(REGISTER_ILLEGAL)

    def _for_self(self) -> bool:
        """Whether the ICR's destination includes this processor."""
        s = self.state
        shorthand = s.icr_low >> 18 & 3
        if shorthand:
            return shorthand != 3
        return self.is_meant(s.icr_high >> 24, bool(s.icr_low & 0x800))

    def _send(self) -> None:
        """The ICR was written: deliver to this processor if it is meant, else drop."""
        mode, vector = self.state.icr_low >> 8 & 7, self.state.icr_low & 0xFF
        if mode in (FIXED, LOWEST):
            if vector < 16:
                self._error(SEND_ILLEGAL)
            elif self._for_self():
                self.deliver(vector)
        elif mode == NMI and self._for_self():
            self.nmi()

    def _end_level(self, vector: int) -> None:
        """A level interrupt ended: LINT0 may ask again at once, and the I/O APICs are told."""
        entry = self.state.lvt[LINT0]
        if entry & REMOTE_IRR and entry & 0xFF == vector:
            self.state.lvt[LINT0] &= ~REMOTE_IRR
            if self.state.pins[0]:
                self._local(LINT0)
        self.broadcast_eoi(vector)

    def saving(self) -> None:
        self.state.now = self.clock()

    def restored(self) -> None:
        """Move the timer to this clock."""
        away = self.clock() - self.state.now
        self.state.timer.start += away
        self.state.timer.last += away
