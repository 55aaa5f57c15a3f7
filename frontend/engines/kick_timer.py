"""A timer that signals one thread: timer_create(2) with SIGEV_THREAD_ID, which Python has no name for.

setitimer(2) signals the process, and any other thread may get that; numpy starts some.
"""
import ctypes
import os
import struct
import threading
from typing import Final

CLOCK_MONOTONIC: Final = 1
SIGEV_THREAD_ID: Final = 4
_EVENT: Final = struct.Struct("<Qiii44x")       # struct sigevent: value, signal, how, thread
_SPEC: Final = struct.Struct("<qqqq")           # struct itimerspec: interval and value, seconds and nanoseconds each
_BILLION: Final = 1_000_000_000
_libc = ctypes.CDLL(None, use_errno=True)


class KickTimer:
    """Sends `number` to the thread that made it. OSError when there is no timer to be had."""

    def __init__(self, number: int) -> None:
        self._id = ctypes.c_void_p()
        event = _EVENT.pack(0, number, SIGEV_THREAD_ID, threading.get_native_id())
        _check(_libc.timer_create(CLOCK_MONOTONIC, event, ctypes.byref(self._id)))

    def start(self, first_ns: int, period_ns: int) -> None:
        """First after `first_ns` (more than 0), then every `period_ns`."""
        self._set(first_ns, period_ns)

    def stop(self) -> None:
        """No more; one may be pending."""
        self._set(0, 0)

    def _set(self, first_ns: int, period_ns: int) -> None:
        spec = _SPEC.pack(*divmod(period_ns, _BILLION), *divmod(first_ns, _BILLION))
        _check(_libc.timer_settime(self._id, 0, spec, None))

    def close(self) -> None:
        """Give it back."""
        _libc.timer_delete(self._id)


def _check(status: int) -> None:
    if status:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
