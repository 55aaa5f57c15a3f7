"""What a network card's model counts besides what its vif does, in a small shared file that outlives its process."""
from pathlib import Path
from typing import Final

from miniguest.ring.memory import domain_directory
from miniguest.ring.words import map_words

FIELDS: Final = ("idle", "interrupts")


def card_counters_path(runtime: Path, domid: int, card: int) -> Path:
    """Where card number `card` of HVM guest `domid` counts."""
    return domain_directory(runtime, domid) / f"card{card}.counters"


class CardCounters:
    """The writing end: one u64 for each of FIELDS.

    idle: register accesses that were polling which found nothing. interrupts: edges of INTA#, and messages.
    """

    def __init__(self, path: Path) -> None:
        self._words = map_words(path, len(FIELDS), create=not path.exists()).cast("B").cast("Q")

    def add_idle(self, count: int) -> None:
        """`count` more accesses were idle."""
        self._words[0] += count

    def add_interrupt(self) -> None:
        """The card asked for attention."""
        self._words[1] += 1


def read_card_counters(path: Path) -> dict[str, int]:
    """Every counter by name; zeros when the card was never made."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raw = b""
    raw = raw.ljust(len(FIELDS) * 8, b"\0")
    return {name: int.from_bytes(raw[i * 8 : i * 8 + 8], "little") for i, name in enumerate(FIELDS)}
