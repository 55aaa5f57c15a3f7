"""What a network card's model is given and gives: a wire to send on, frames to receive."""
from collections.abc import Mapping
from typing import ClassVar, Protocol

from miniguest.frontend.devices.device import Device
from miniguest.frontend.devices.pci_function import Bar, Identity

MIN_FRAME = 60                          # bytes without FCS (IEEE 802.3, 3.2.8)


class Wire(Protocol):
    """Where a card's frames go. A frame is without preamble and FCS."""

    def room(self) -> bool:
        """Whether `send` takes a frame now; when it does not, the card's `wire_ready` is called later."""

    def send(self, frame: bytes) -> None:
        """Transmit a frame; only while there is `room`."""


class Nic(Protocol):
    """A network card, registers only."""

    IDENTITY: ClassVar[Identity]
    BARS: ClassVar[tuple[Bar, ...]]     # but the expansion ROM's
    idle: int                           # accesses so far that were idle polling: a status read that reported nothing

    def windows(self) -> Mapping[tuple[int, str], Device]:
        """What answers in each BAR: by (index, kind)."""

    def irq(self) -> bool:
        """INTA#."""

    def receive(self, frame: bytes) -> bool:
        """A frame of 14 to 65,535 bytes comes in. False when there is no room now: it is offered again later.

        True says that it was taken, or that the card would not have taken it: another's address, a receiver that is off.
        """

    def wire_ready(self) -> None:
        """The wire has room again."""
