"""Statistics registers of the 82540EM (section 13.7 of the manual that `e1000_registers` names).

64 dwords from 4000h. All clear when read and stick at ones; octet counts are 64 bits in two registers and clear when
the upper one is read. Lengths include the FCS.
"""

from __future__ import annotations

from bisect import bisect_left

COUNTERS = 64
FCS = 4
MPC, RLEC, PRC64, GPRC, BPRC, MPRC, GPTC, GORC, GOTC, RNBC, ROC = 4, 16, 23, 29, 30, 31, 32, 34, 36, 40, 43
TOR, TOT, TPR, TPT, PTC64, MPTC, BPTC, TSCTC, TSCTFC = 48, 50, 52, 53, 54, 60, 61, 62, 63
WIDE = {GORC, GOTC, TOR, TOT}           # the lower register; the whole value is kept there
SIZES = (64, 127, 255, 511, 1023)       # upper bounds of all size classes but the last
BROADCAST = b"\xff" * 6
STUCK, STUCK_WIDE = (1 << 32) - 1, (1 << 64) - 1


def read(counters: list[int], index: int) -> int:
    """Read a register, which clears it (the lower half of a wide one does not)."""
    if index in WIDE:
        return min(counters[index], STUCK_WIDE) & STUCK
    if index - 1 in WIDE:
        value = min(counters[index - 1], STUCK_WIDE) >> 32
        counters[index - 1] = 0
        return value
    value = min(counters[index], STUCK)
    counters[index] = 0
    return value


def heard(counters: list[int], size: int) -> None:
    """A frame of `size` bytes without FCS was on the line, for us or not."""
    counters[TPR] += 1
    counters[TOR] += size + FCS


def received(counters: list[int], frame: bytes) -> None:
    """A good frame, without FCS, passed the filters."""
    size = len(frame) + FCS
    counters[GPRC] += 1
    counters[GORC] += size
    counters[PRC64 + bisect_left(SIZES, size)] += 1
    if frame[0] & 1:
        counters[BPRC if frame.startswith(BROADCAST) else MPRC] += 1


def sent(counters: list[int], frame: bytes) -> None:
    """A frame, without FCS, went out."""
    size = len(frame) + FCS
    counters[TPT] += 1
    counters[TOT] += size
    if size >= SIZES[0]:
        counters[GPTC] += 1
        counters[GOTC] += size
    counters[PTC64 + bisect_left(SIZES, size)] += 1
    if frame[0] & 1:
        counters[BPTC if frame.startswith(BROADCAST) else MPTC] += 1
