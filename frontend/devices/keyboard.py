"""An AT keyboard on its serial line (IBM PC/AT Technical Reference, "Keyboard"; PS/2 command set).

Scan code set 2 only: a guest that asks for another gets the answer "resend", as from a keyboard without it. The
controller translates to set 1 if told to.
"""

from __future__ import annotations

from dataclasses import dataclass, field

ACK, RESEND, ECHO, BAT_OK, OVERRUN = 0xFA, 0xFE, 0xEE, 0xAA, 0x00
QUEUE = 16  # scan codes
IDENTITY = b"\xab\x83"


@dataclass(slots=True)
class KeyboardState:
    """`queue` is what waits to be sent; `command` the one that waits for its argument."""

    queue: bytearray = field(default_factory=bytearray)
    scanning: bool = True
    leds: int = 0
    typematic: int = 0x2B  # 10.9 a second after 500 ms
    command: int = 0
    last: int = 0  # last byte sent, for RESEND


def key(s: KeyboardState, codes: bytes) -> None:
    """A key event as set 2 codes (make, or 0xF0 and make). Dropped while scanning is off; a full queue overruns."""
    if not s.scanning:
        return
    if len(s.queue) + len(codes) <= QUEUE:
        s.queue += codes
    elif not s.queue.endswith(bytes((OVERRUN,))):
        s.queue.append(OVERRUN)


def take(s: KeyboardState) -> int:
    """The next byte to send; the queue must not be empty."""
    s.last = s.queue.pop(0)
    return s.last


def command(s: KeyboardState, value: int) -> None:
    """A byte from the controller: a command, or the argument of the one before."""
    if s.command and value < 0x80:
        waiting, s.command = s.command, 0
        _argument(s, waiting, value)
        return
    s.command = 0
    if value == 0xFE:
        s.queue.insert(0, s.last)
        return
    s.queue.clear()  # a command stops what was being sent
    if value == 0xEE:
        s.queue.append(ECHO)
    elif value in (0xED, 0xF0, 0xF3):  # LEDs, scan code set, typematic: an argument follows
        s.queue.append(ACK)
        s.command = value
    elif value == 0xF2:
        s.queue += bytes((ACK,)) + IDENTITY
    elif value in (0xF4, 0xF5, 0xF6):  # enable, disable with defaults, defaults
        s.queue.append(ACK)
        if value != 0xF4:
            s.typematic = 0x2B
        s.scanning = value != 0xF5
    elif 0xF7 <= value <= 0xFD:  # key types of set 3: taken, without effect on set 2
        s.queue.append(ACK)
    elif value == 0xFF:
        s.leds, s.typematic, s.scanning = 0, 0x2B, True
        s.queue += bytes((ACK, BAT_OK))
    else:
        s.queue.append(RESEND)


def _argument(s: KeyboardState, waiting: int, value: int) -> None:
    answer = bytes((ACK,))
    if waiting == 0xED:
        s.leds = value & 7
    elif waiting == 0xF3:
        s.typematic = value
    elif value == 0:
        answer += b"\x02"
    elif value != 2:
        answer = bytes((RESEND,))
    s.queue += answer
