"""What Unicorn knows of an exception and does not tell: its error code, and that the one before it is over.

Unicorn leaves delivery to its hook and never clears the processor's note of an exception in flight (QEMU's
old_exception), so that a second page fault arrives as a double fault and a third as HLT. Both fields are in the saved
context; where, is found once by making exceptions whose values are known.
"""
import ctypes
import struct
from functools import cache
from typing import Any, Final

from unicorn import Uc
from unicorn import unicorn_const as uc_const
from unicorn.unicorn_py3.unicorn import uclib

NONE_IN_FLIGHT: Final = -1
_CODE: Final = 0x1000


def _bytes(context: Any) -> bytes:
    return ctypes.string_at(context.context, context.size)


def _probe(code: str) -> tuple[bytes, bytes]:
    """The context before, and in the hook of, the exception that these bytes of machine code make."""
    uc = Uc(uc_const.UC_ARCH_X86, uc_const.UC_MODE_32)
    uc.mem_map(0, 2 * _CODE)
    uc.mem_write(_CODE, bytes.fromhex(code))
    seen: list[bytes] = []

    def hook(engine: Uc, _vector: int, _: object) -> None:
        seen.append(_bytes(engine.context_save()))
        engine.emu_stop()

    uc.hook_add(uc_const.UC_HOOK_INTR, hook)
    before = _bytes(uc.context_save())
    uc.emu_start(_CODE, 2 * _CODE)
    return before, seen[0]


@cache
def layout() -> tuple[int, int]:
    """(offset of the error code, offset of the exception in flight) in a saved context, both 32 bits wide."""
    # mov ax, selector; mov gs, ax: general protection with the selector, less its RPL, as the error code.
    first, second = _probe("66b85712 8ee8")[1], _probe("66b89f34 8ee8")[1]
    before, divide = _probe("31c9 31d2 f7f1")      # xor ecx, ecx; xor edx, edx; div ecx: vector 0
    where = range(0, len(before) - 3, 4)

    def at(context: bytes, offset: int) -> int:
        value: int = struct.unpack_from("<i", context, offset)[0]
        return value

    codes = [o for o in where if (at(first, o), at(second, o)) == (0x1254, 0x349C)]
    flights = [o for o in where if (at(before, o), at(first, o), at(divide, o)) == (NONE_IN_FLIGHT, 13, 0)]
    if len(codes) != 1 or len(flights) != 1:
        raise RuntimeError(f"this Unicorn keeps exceptions elsewhere: candidates {codes} and {flights}")
    return codes[0], flights[0]


def take_error_code(uc: Uc) -> int:
    """The error code of the exception being hooked; the exception is no longer in flight for Unicorn."""
    code_at, flight_at = layout()
    context = uc.context_save()
    base = ctypes.cast(context.context, ctypes.c_void_p).value or 0
    code: int = ctypes.c_uint32.from_address(base + code_at).value
    ctypes.c_int32.from_address(base + flight_at).value = NONE_IN_FLIGHT
    uclib.uc_context_restore(uc._uch, context.context)
    return code
