"""The 8042's translation from scan code set 2 to set 1 (IBM PS/2 Technical Reference, "Keyboard Controller").

Given the other way round, because set 1 numbers the keys of the first PC in rows: each line below is one row of keys,
its set 2 codes in the order of the set 1 codes.
"""

from __future__ import annotations

_ROWS = """
    76 16 1e 26 25 2e 36 3d 3e 46 45 4e 55 66
    0d 15 1d 24 2d 2c 35 3c 43 44 4d 54 5b 5a
    14 1c 1b 23 2b 34 33 3b 42 4b 4c 52 0e
    12 5d 1a 22 21 2a 32 31 3a 41 49 4a 59 7c
    11 29 58
    05 06 04 0c 03 0b 83 0a 01 09
    77 7e
    6c 75 7d 7b 6b 73 74 79 69 72 7a 70 71
    84 60 61 78 07
    0f 17 1f 27 2f 37 3f 47 4f 56 5e
    08 10 18 20 28 30 38 40 48 50 57 6f
    13 19 39 51 53 5c 5f 62 63 64 65 67 68 6a 6d 6e
"""
"""From 0x01: digits; Tab row; Ctrl row; Shift row; Alt, space, Caps Lock; F1-F10; locks; keypad; SysRq to F12; rest."""

BREAK = 0xF0


def _table() -> bytes:
    table = bytearray(range(256))  # what has no counterpart passes through
    for set1, set2 in enumerate(bytes.fromhex(_ROWS), start=1):
        table[set2] = set1
    table[0x7F], table[0x02] = table[0x84], table[0x83]  # SysRq and F7 have two codes in set 2
    table[0x00] = 0xFF  # overrun
    return bytes(table)


TO_SET1 = _table()
"""Indexed by a set 2 byte. The break prefix 0xF0 is the caller's to turn into bit 7 of the next code."""
