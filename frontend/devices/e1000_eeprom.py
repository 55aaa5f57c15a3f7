"""The 82540EM's EEPROM, a 93C46: what is in it, and the two registers that reach it.

Chapter 5 (contents, checksum) and sections 13.4.3-13.4.4 (EECD, EERD) of the manual that `e1000_registers` names.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from miniguest.frontend.devices import e1000_registers as r
from miniguest.frontend.devices.eeprom93c46 import WORDS, Eeprom93c46, EepromState

CHECKSUM = 0xBABA                       # the sum of all words
PINS = r.EECD_SK | r.EECD_CS | r.EECD_DI | r.EECD_FWE | r.EECD_REQ


def image(mac: bytes, device: int, subsystem: tuple[int, int]) -> list[int]:
    """The 64 words of a card with address `mac` (table 5-2); `subsystem` is vendor, id."""
    words = [0] * WORDS
    words[0:3] = [int.from_bytes(mac[i : i + 2], "little") for i in (0, 2, 4)]
    words[0x04] = 0xFFFF
    words[0x08:0x0A] = [0x3000, 0x1000]                     # printed board assembly number
    words[0x0A] = 0x6403                                    # signature; load vendor and subsystem from here
    words[0x0B:0x0F] = [subsystem[1], subsystem[0], device, 0x8086]
    words[0x0F] = 0x3040
    words[0x3F] = CHECKSUM - sum(words) & 0xFFFF
    return words


@dataclass(slots=True)
class PortState:
    part: EepromState = field(default_factory=EepromState)
    pins: int = 0                       # EECD as last written
    eerd: int = 0


class EepromPort:
    """EECD, the part's wires, and EERD, which reads a word by itself."""

    def __init__(self, state: PortState) -> None:
        self.state = state
        self.part = Eeprom93c46(state.part)

    def words(self, first: int, count: int) -> bytes:
        """A piece of the contents, the low byte of each word first."""
        return b"".join((word & 0xFFFF).to_bytes(2, "little") for word in self.state.part.words[first : first + count])

    def start_read(self, value: int) -> None:
        """A write to EERD: the word is there at once."""
        s = self.state
        s.eerd = value & 0xFF00
        if value & r.EERD_START:
            s.eerd |= (s.part.words[(value >> 8) % WORDS] & 0xFFFF) << 16 | r.EERD_DONE

    def read_pins(self) -> int:
        """EECD; who asks for the wires has them."""
        pins = self.state.pins
        granted = r.EECD_GNT if pins & r.EECD_REQ else 0
        return pins | granted | r.EECD_PRES | (r.EECD_DO if self.part.output else 0)

    def write_pins(self, value: int) -> None:
        """EECD."""
        self.state.pins = value & PINS
        self.part.wires(bool(value & r.EECD_CS), bool(value & r.EECD_SK), bool(value & r.EECD_DI))
