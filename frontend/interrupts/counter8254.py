"""One counter of the 8254 programmable interval timer (Intel 8254 datasheet, order 231164): all six modes.

Nothing counts: a counter is a function of the time since it was loaded. Times are ticks of the 1.193182 MHz clock.
Loading takes effect at the write (the chip takes one clock more).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class CounterState:
    """One counter. `start` is the tick the current count began; `count` 0 means none was loaded yet."""

    mode: int = 3
    access: int = 3  # RW bits: 1 low byte, 2 high byte, 3 low then high
    bcd: bool = False
    gate: bool = True
    count: int = 0
    start: int = 0
    running: bool = False
    held: int = 0  # ticks counted before the gate stopped it
    next_count: int = 0  # written while counting in mode 2 or 3: loaded at `next_at` as if started at `next_start`
    next_at: int = 0
    next_start: int = 0
    trigger_count: int = 0  # what modes 1 and 5 load at the next trigger
    low_byte: int = -1  # first half of a two-byte write
    read_high: bool = False  # second half of a two-byte read comes next
    latch: int = -1  # latched count
    status_latch: int = -1


def span(s: CounterState) -> int:
    """What the counter wraps at."""
    return 10000 if s.bcd else 0x10000


def write_control(s: CounterState, value: int) -> None:
    """The control word's low six bits: access, mode, BCD. Stops the counter until a count is written."""
    s.access = value >> 4 & 3
    mode = value >> 1 & 7
    s.mode = mode - 4 if mode > 5 else mode
    s.bcd = bool(value & 1)
    s.count = s.held = s.next_count = s.trigger_count = 0
    s.running = s.read_high = False
    s.low_byte = s.latch = s.status_latch = -1


def write_byte(s: CounterState, value: int, now: int) -> None:
    """A byte written to the counter's port; the count is loaded when it is complete."""
    if s.access == 3:
        if s.low_byte < 0:
            s.low_byte = value
            if s.mode == 0 and s.running:  # the first byte stops the count and drops OUT
                s.running = False
                s.held = 0
            return
        written = s.low_byte | value << 8
        s.low_byte = -1
    else:
        written = value << 8 if s.access == 2 else value
    _load(s, (_from_bcd(written) if s.bcd else written) or span(s), now)


def _load(s: CounterState, count: int, now: int) -> None:
    advance(s, now)
    if s.mode in (1, 5):
        s.trigger_count = count
    elif s.mode in (2, 3) and s.running:
        s.next_count = count
        s.next_at, s.next_start = _end_of_cycle(s, count, now)
    else:
        s.count, s.start, s.held, s.next_count = count, now, 0, 0
        s.running = s.gate


def _end_of_cycle(s: CounterState, count: int, now: int) -> tuple[int, int]:
    """When the running cycle (mode 2) or half cycle (mode 3) ends, and the start a new count then has."""
    cycles, phase = divmod(now - s.start, s.count)
    end = s.start + (cycles + 1) * s.count
    half = (s.count + 1) // 2
    if s.mode == 3 and phase < half:
        middle = end - s.count + half
        return middle, middle - (count + 1) // 2
    return end, end


def advance(s: CounterState, now: int) -> None:
    """Load the count that waited for the end of its cycle, if that has come."""
    if s.next_count and now >= s.next_at:
        s.count, s.start, s.next_count = s.next_count, s.next_start, 0


def set_gate(s: CounterState, gate: bool, now: int) -> None:
    """The GATE input: level sensitive in modes 0 and 4, a trigger in the others."""
    if gate == s.gate:
        return
    advance(s, now)
    s.gate = gate
    if gate:
        _trigger(s, now)
    elif s.mode not in (1, 5) and s.running:
        s.held = now - s.start
        s.running = False


def _trigger(s: CounterState, now: int) -> None:
    """A rising edge of GATE: go on (0, 4), start again (2, 3) or start the shot (1, 5)."""
    if s.mode in (0, 4):
        if s.count and s.low_byte < 0:
            s.start = now - s.held
            s.running = True
    else:
        s.count = s.trigger_count or s.next_count or s.count
        s.start, s.held, s.next_count = now, 0, 0
        s.running = s.count != 0


def elapsed(s: CounterState, now: int) -> int:
    """Ticks counted since the count was loaded."""
    return now - s.start if s.running else s.held


def value(s: CounterState, now: int) -> int:
    """The counting element, 0 to span - 1, as a number (not BCD)."""
    advance(s, now)
    if not s.count:
        return 0
    t = elapsed(s, now)
    if s.mode == 2:
        return (s.count - t % s.count) % span(s)
    if s.mode == 3:
        phase, half = t % s.count, (s.count + 1) // 2
        return ((s.count & ~1) - 2 * (phase if phase < half else phase - half)) % span(s)
    return (s.count - t) % span(s)


def out(s: CounterState, now: int) -> bool:
    """The OUT pin."""
    advance(s, now)
    if not s.count:
        return s.mode != 0
    t = elapsed(s, now)
    if s.mode == 0:
        return s.low_byte < 0 and t >= s.count
    if s.mode == 1:
        return t >= s.count
    if s.mode == 2:
        return not s.running or t % s.count != s.count - 1
    if s.mode == 3:
        return not s.running or t % s.count < (s.count + 1) // 2
    return t != s.count


def next_rise(s: CounterState, after: int) -> int | None:
    """The first tick later than `after` at which OUT rises, or None if it will not by itself."""
    advance(s, after)
    if not s.running or not s.count:
        return None
    if s.mode in (2, 3):
        rise = s.start + ((after - s.start) // s.count + 1) * s.count
        if s.next_count and rise >= s.next_at:  # beyond the change the new count decides
            base = s.next_start
            rise = base + max((s.next_at - base + s.next_count - 1) // s.next_count, 0) * s.next_count
        return rise
    rise = s.start + s.count + (1 if s.mode in (4, 5) else 0)
    return rise if rise > after else None


def latch_count(s: CounterState, now: int) -> None:
    """The counter latch command; a second one before the read is ignored."""
    if s.latch < 0:
        s.latch = _to_port(s, now)


def latch_status(s: CounterState, now: int) -> None:
    """The status half of the read-back command; ignored while a status is latched."""
    if s.status_latch < 0:
        null = not s.count or s.next_count or (s.trigger_count and not s.running)
        s.status_latch = out(s, now) << 7 | bool(null) << 6 | s.access << 4 | s.mode << 1 | s.bcd


def read_byte(s: CounterState, now: int) -> int:
    """A byte read from the counter's port: latched status, then latched or live count."""
    if s.status_latch >= 0:
        status, s.status_latch = s.status_latch, -1
        return status
    count = s.latch if s.latch >= 0 else _to_port(s, now)
    if s.access == 3:
        high = s.read_high
        s.read_high = not high
        if high:
            s.latch = -1
        return count >> 8 if high else count & 0xFF
    s.latch = -1
    return count >> 8 if s.access == 2 else count & 0xFF


def _to_port(s: CounterState, now: int) -> int:
    number = value(s, now)
    return int(f"{number:04d}", 16) if s.bcd else number


def _from_bcd(word: int) -> int:
    """Four decimal digits; a digit above nine counts as what it is worth in its place."""
    return sum((word >> 4 * i & 15) * 10**i for i in range(4))
