"""C structures as plain tables: sizes, offsets and `struct.Struct`s with the alignment of the x86-64 ABI.

    SEGMENT = Layout("struct blkif_request_segment", gref=U32, first_sect=U8, last_sect=U8)
    REQUEST = Layout("struct blkif_request", operation=U8, ..., seg=SEGMENT * 11)

    REQUEST.size                    112 (bytes)
    REQUEST.offset["seg"]           24 (bytes); inside unions and structures too: EXTRA_INFO.offset["u.gso.size"]
    SEGMENT.struct.unpack(slot)     (gref, first_sect, last_sect): padding is skipped, arrays and structures are flat

Source: System V ABI, AMD64 supplement, section 3.1.2 (a member starts at a multiple of its own alignment, and a
structure ends at a multiple of the largest).
"""
from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, Protocol


class CType(Protocol):
    """What can be a member: a number, an array, a structure, a union or a group of bit-fields."""

    @property
    def size(self) -> int: ...                  # bytes
    @property
    def align(self) -> int: ...                 # bytes
    @property
    def format(self) -> str: ...                # for struct.Struct, exactly `size` bytes, without a byte order
    @property
    def offset(self) -> dict[str, int]: ...     # bytes, of the members
    @property
    def bits(self) -> dict[str, Bit]: ...       # where the bit-fields are


@dataclass(frozen=True, slots=True)
class Bit:
    """A bit-field: `width` bits from bit `shift` of the little-endian unit of `size` bytes at byte `offset`."""

    offset: int
    size: int
    shift: int
    width: int

    @property
    def mask(self) -> int:
        """The field's bits, in the place they have in the unit."""
        return ((1 << self.width) - 1) << self.shift

    def get(self, unit: int) -> int:
        """The field's value in a unit."""
        return (unit & self.mask) >> self.shift

    def put(self, value: int) -> int:
        """A value in its place, to be or-ed into a unit. High bits that do not fit are cut off, as C does."""
        return value << self.shift & self.mask


@dataclass(frozen=True, slots=True)
class Scalar:
    """An integer; `format` is its letter in the struct module. As large as it is aligned."""

    format: str
    size: int
    offset: ClassVar[dict[str, int]] = {}
    bits: ClassVar[dict[str, Bit]] = {}

    @property
    def align(self) -> int:
        return self.size

    def __mul__(self, count: int) -> Array:
        return Array(self, count)


@dataclass(frozen=True, slots=True)
class Array:
    """`count` times the same. Bytes of CHAR come out of `struct` as one bytes object, all else as that many values."""

    of: CType
    count: int
    offset: ClassVar[dict[str, int]] = {}
    bits: ClassVar[dict[str, Bit]] = {}

    @property
    def size(self) -> int:
        return self.of.size * self.count

    @property
    def align(self) -> int:
        return self.of.align

    @property
    def format(self) -> str:
        return f"{self.count}s" if self.of is CHAR else self.of.format * self.count


class Bits:
    """Bit-fields that share one unit, the lowest first, with their widths in bits: `Bits(U8, state=4, dir=1)`."""

    def __init__(self, unit: Scalar, **widths: int) -> None:
        self.size, self.align, self.format = unit.size, unit.align, unit.format
        self.offset: dict[str, int] = {}
        self.bits: dict[str, Bit] = {}
        shift = 0
        for name, width in widths.items():
            self.bits[name] = Bit(0, unit.size, shift, width)
            shift += width
        if shift > 8 * unit.size:
            raise ValueError(f"bit-fields of {shift} bits do not fit a unit of {8 * unit.size}")


class Layout:
    """A C structure.

    `name`    what C calls it, such as "struct blkif_request"
    `size`    in bytes, padding at the end included
    `align`   in bytes
    `offset`  bytes from the start, by member; members of members as "u.gso.size"
    `bits`    the bit-fields by name; they have no offset of their own
    `struct`  packs and unpacks all of it, little-endian, flat
    """

    def __init__(self, name: str, /, **members: CType) -> None:
        self.name = name
        self.members = members
        self.offset: dict[str, int] = {}
        self.bits: dict[str, Bit] = {}
        self.align = max(member.align for member in members.values())
        self.size, self.format = self._place()
        self.struct = struct.Struct("<" + self.format)

    def _place(self) -> tuple[int, str]:
        end, text = 0, ""
        for name, member in self.members.items():
            gap = -end % member.align
            self._put(name, member, end + gap)
            text += "x" * gap + member.format
            end += gap + member.size
        gap = -end % self.align
        return end + gap, text + "x" * gap

    def _put(self, name: str, member: CType, at: int) -> None:
        self.offset[name] = at
        self.offset.update({f"{name}.{inner}": at + offset for inner, offset in member.offset.items()})
        for inner, bit in member.bits.items():
            self.bits[inner] = Bit(at + bit.offset, bit.size, bit.shift, bit.width)

    def __mul__(self, count: int) -> Array:
        return Array(self, count)

    def __repr__(self) -> str:
        return f"<{self.name}: {self.size} bytes>"


class Union(Layout):
    """A C union: every member starts at 0. `struct` gives its bytes as they are."""

    def _place(self) -> tuple[int, str]:
        for name, member in self.members.items():
            self._put(name, member, 0)
        largest = max(member.size for member in self.members.values())
        size = largest + -largest % self.align
        return size, f"{size}s"


CHAR = Scalar("c", 1)
U8, U16, U32, U64 = Scalar("B", 1), Scalar("H", 2), Scalar("I", 4), Scalar("Q", 8)
S8, S16, S32, S64 = Scalar("b", 1), Scalar("h", 2), Scalar("i", 4), Scalar("q", 8)
