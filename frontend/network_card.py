"""A network card in the machine: a model of registers with its vif on one side, its interrupt pin or messages on the other."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from miniguest.frontend.devices.device import Clock, Device, GuestMemory
from miniguest.frontend.devices.e1000 import E1000
from miniguest.frontend.devices.ne2k_pci import Ne2kPci
from miniguest.frontend.devices.nic import Wire
from miniguest.frontend.devices.option_rom import OptionRom
from miniguest.frontend.devices.pci_function import ROM, Bar, Identity, MappingChanged, PciFunction
from miniguest.frontend.devices.rtl8139 import Rtl8139
from miniguest.ring.card_counters import CardCounters
from miniguest.ring.messages import vector_of

MODELS: Final[dict[str, Any]] = {"rtl8139": Rtl8139, "e1000": E1000, "ne2k_pci": Ne2kPci}


def card_names(models: Sequence[str]) -> list[str]:
    """What the cards of a guest are called, by their models: their exits are counted under these names."""
    return [
        model if models.count(model) == 1 else f"{model}.{models[:index].count(model)}" for index, model in enumerate(models)
    ]


class Vif(Wire, Protocol):
    """Both directions of a vif: `received` is called with frames, and keeps those it answers False to until `resume`."""

    mac: bytes
    received: Callable[[bytes], bool]
    ready: Callable[[], None]

    @property
    def keeps(self) -> bool: ...

    def resume(self) -> None: ...


class Unplugged:
    """The vif of a card whose backend could not be had: it sends nowhere and hears nothing, and the others keep their slots."""

    def __init__(self, mac: bytes) -> None:
        self.mac = mac
        self.received: Callable[[bytes], bool] = lambda frame: True
        self.ready: Callable[[], None] = lambda: None
        self.keeps = False

    def room(self) -> bool:
        """Always."""
        return True

    def send(self, frame: bytes) -> None:
        """It is lost."""

    def resume(self) -> None:
        """There is nothing to offer."""


@dataclass(frozen=True, slots=True)
class CardPlan:
    """What a card is made of. rom: the image, empty for none; rom_frame: the first of the frames that hold it."""

    model: str
    vif: Vif
    counters: CardCounters
    rom: bytes = b""
    rom_frame: int = 0


class CardFunction(PciFunction):
    """A card's configuration space. configured(): called after a write: messages may have taken the pin's place."""

    def __init__(
        self, identity: Identity, bars: tuple[Bar, ...], mapping_changed: MappingChanged, configured: Callable[[], None]
    ) -> None:
        super().__init__(identity, bars, mapping_changed=mapping_changed)
        self._configured = configured

    def written(self, offset: int, size: int) -> None:
        self._configured()


class NetworkCard:
    """One card. Its owner puts `nic` on the bus and calls `settle` after each access; `changed` is called for the rest.

    set_pin(level): drives INTA#. send(vector): sends a message-signalled interrupt.
    """

    def __init__(
        self, plan: CardPlan, memory: GuestMemory, clock: Clock, mapping_changed: MappingChanged,
        set_pin: Callable[[bool], None], send: Callable[[int], None],
    ) -> None:
        self.plan = plan
        self.nic = nic = MODELS[plan.model](plan.vif.mac, memory, plan.vif, clock)
        self.rom = OptionRom(plan.rom) if plan.rom else None
        rom = (Bar(ROM, "rom", self.rom.size),) if self.rom else ()
        self.function = CardFunction(nic.IDENTITY, nic.BARS + rom, mapping_changed, lambda: self.changed())
        self._set_pin = set_pin
        self._send = send
        self._level = False
        self._idle = 0
        self._resuming = False
        self.changed: Callable[[], None] = lambda: None
        plan.vif.received = self._receive
        plan.vif.ready = self._wire_ready
        if hasattr(nic, "capabilities"):
            nic.capabilities(self.function)
            nic.send_msi = self._message

    def windows(self) -> dict[tuple[int, str], tuple[Device, int]]:
        """What answers in each BAR but the ROM's, and its size in bytes: by (index, kind)."""
        found = self.nic.windows()
        return {(bar.index, bar.kind): (found[bar.index, bar.kind], bar.size) for bar in self.nic.BARS}

    def settle(self) -> None:
        """The card may have changed: drive its pin, count, and offer it the frames that it had no room for."""
        level = self.nic.irq()
        if level != self._level:
            self._level = level
            if level:
                self.plan.counters.add_interrupt()
            self._set_pin(level)
        if self.nic.idle != self._idle:
            self.plan.counters.add_idle(self.nic.idle - self._idle)
            self._idle = self.nic.idle
        if self.plan.vif.keeps and not self._resuming:
            self._resuming = True
            self.plan.vif.resume()
            self._resuming = False

    def _receive(self, frame: bytes) -> bool:
        taken: bool = self.nic.receive(frame)
        self.changed()
        return taken

    def _wire_ready(self) -> None:
        self.nic.wire_ready()
        self.changed()

    def _message(self, address: int, data: int) -> None:
        vector = vector_of(address, data)
        if vector is not None:
            self.plan.counters.add_interrupt()
            self._send(vector)
