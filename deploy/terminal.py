"""The terminal that a run was started on, when it is a guest's serial line."""
import os
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def keys_as_typed(wanted: bool) -> Iterator[None]:
    """Pass keys on as they are typed, if that is wanted and there is a terminal; put it back afterwards."""
    if not wanted or not sys.stdin or not os.isatty(0):
        yield
        return
    before = termios.tcgetattr(0)
    now = termios.tcgetattr(0)
    now[3] &= ~(termios.ICANON | termios.ECHO)
    termios.tcsetattr(0, termios.TCSANOW, now)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSANOW, before)
