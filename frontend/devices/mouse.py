"""A PS/2 mouse with two buttons and no wheel (IBM PS/2 Technical Reference, "Auxiliary device")."""

from __future__ import annotations

from dataclasses import dataclass, field

ACK, NACK, BAT_OK, IDENTITY = 0xFA, 0xFE, 0xAA, 0x00
QUEUE = 16


@dataclass(slots=True)
class MouseState:
    """`queue` is what waits to be sent; `x` and `y` what was moved and not yet reported."""

    queue: bytearray = field(default_factory=bytearray)
    reporting: bool = False
    remote: bool = False
    wrap: bool = False
    double: bool = False  # 2:1 scaling
    resolution: int = 2
    rate: int = 100
    buttons: int = 0
    x: int = 0
    y: int = 0
    command: int = 0


def move(s: MouseState, dx: int, dy: int, buttons: int) -> None:
    """The mouse moved (y upwards) or a button changed (bit 0 left, 1 right, 2 middle)."""
    s.x = max(-32768, min(32767, s.x + dx))
    s.y = max(-32768, min(32767, s.y + dy))
    s.buttons = buttons & 7
    if s.reporting and not s.remote and len(s.queue) + 3 <= QUEUE:
        s.queue += _packet(s)


def command(s: MouseState, value: int) -> None:
    """A byte from the controller: a command, or the argument of the one before."""
    if s.wrap and value not in (0xEC, 0xFF):
        s.queue.append(value)
        return
    s.queue.clear()
    if s.command:
        waiting, s.command = s.command, 0
        _argument(s, waiting, value)
        return
    s.queue.append(ACK)
    action = COMMANDS.get(value)
    if action is None:
        s.queue[-1] = NACK
    else:
        action(s, value)


def _argument(s: MouseState, waiting: int, value: int) -> None:
    if waiting == 0xE8 and value < 4:
        s.resolution = value
    elif waiting == 0xF3 and value in (10, 20, 40, 60, 80, 100, 200):
        s.rate = value
    else:
        s.queue.append(NACK)
        return
    s.queue.append(ACK)


def _packet(s: MouseState) -> bytes:
    """The three-byte packet: buttons, signs and overflows, then x and y as far as nine bits go."""
    dx, dy = max(-256, min(255, s.x)), max(-256, min(255, s.y))
    s.x -= dx
    s.y -= dy
    return bytes((0x08 | s.buttons | (dx < 0) << 4 | (dy < 0) << 5, dx & 0xFF, dy & 0xFF))


def _defaults(s: MouseState, _: int) -> None:
    s.reporting = s.remote = s.wrap = s.double = False
    s.resolution, s.rate, s.x, s.y = 2, 100, 0, 0


def _reset(s: MouseState, value: int) -> None:
    _defaults(s, value)
    s.queue += bytes((BAT_OK, IDENTITY))


def _status(s: MouseState, _: int) -> None:
    left, right, middle = s.buttons & 1, s.buttons >> 1 & 1, s.buttons >> 2 & 1
    first = right | middle << 1 | left << 2 | s.double << 4 | s.reporting << 5 | s.remote << 6
    s.queue += bytes((first, s.resolution, s.rate))


def _scale(s: MouseState, value: int) -> None:
    s.double = value == 0xE7


def _wait(s: MouseState, value: int) -> None:
    s.command = value


def _stream(s: MouseState, _: int) -> None:
    s.remote = False


def _read(s: MouseState, _: int) -> None:
    s.queue += _packet(s)


def _wrap(s: MouseState, value: int) -> None:
    s.wrap = value == 0xEE


def _remote(s: MouseState, _: int) -> None:
    s.remote = True


def _identify(s: MouseState, _: int) -> None:
    s.queue.append(IDENTITY)


def _report(s: MouseState, value: int) -> None:
    s.reporting = value == 0xF4


COMMANDS = {
    0xE6: _scale,
    0xE7: _scale,
    0xE8: _wait,
    0xE9: _status,
    0xEA: _stream,
    0xEB: _read,
    0xEC: _wrap,
    0xEE: _wrap,
    0xF0: _remote,
    0xF2: _identify,
    0xF3: _wait,
    0xF4: _report,
    0xF5: _report,
    0xF6: _defaults,
    0xFF: _reset,
}
