"""Where the 82540EM's frames go when they do not go out on the wire."""

from __future__ import annotations

from miniguest.frontend.devices.e1000_receive import Receiver


class Loop:
    """What goes out comes in; there is nobody who would hold a frame that finds no descriptor."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver

    def room(self) -> bool:
        return True

    def send(self, frame: bytes) -> None:
        if not self.receiver.receive(frame):
            self.receiver.lost()


class Nowhere:
    """A line without link."""

    def room(self) -> bool:
        return True

    def send(self, frame: bytes) -> None:
        """Lost."""


NOWHERE = Nowhere()
