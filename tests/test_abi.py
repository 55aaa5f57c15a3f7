"""Every layout and constant of ring/abi against Xen's own headers, by a C program made from the tables themselves."""
from __future__ import annotations

import pkgutil
import re
import subprocess
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from miniguest.ring import abi
from miniguest.ring.abi import blkif, ioreq, netif, ring, xs_wire
from miniguest.ring.abi.layout import CHAR, S16, U8, U16, U32, U64, Array, Bits, CType, Layout, Union

MODULES = [
    module
    for info in pkgutil.iter_modules(abi.__path__, f"{abi.__name__}.")
    if hasattr(module := import_module(info.name), "HEADER")
]

RINGS = {
    "blkif": blkif.SLOT_SIZE,
    "netif_tx": netif.TX_SLOT_SIZE,
    "netif_rx": netif.RX_SLOT_SIZE,
    "xen_netif_ctrl": netif.CTRL_SLOT_SIZE,
}
SRING = {"req_prod": ring.REQ_PROD, "req_event": ring.REQ_EVENT, "rsp_prod": ring.RSP_PROD,
         "rsp_event": ring.RSP_EVENT, "ring": ring.SLOTS_OFFSET}

PROGRAM = """
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <xen/xen.h>
#include <xen/event_channel.h>
%(headers)s
#define NUMBER(name, value) printf("%%s\\t%%lld\\n", name, (long long)(value))
#define TEXT(name, value) printf("%%s\\t\\"%%s\\"\\n", name, value)
int main(void) {
%(lines)s
    return 0;
}
"""

BITS = """    {{ union {{ {struct} s; unsigned char b[sizeof({struct})]; }} u; uint{width}_t unit;
      memset(&u, 0, sizeof u); u.s.{field} = ~0ull; memcpy(&unit, u.b + {offset}, sizeof unit);
      NUMBER("{name}", unit); }}"""

Line = tuple[str, str, "int | str"]     # the name it prints, the C statement, the value our table says


def layouts(module: ModuleType) -> Iterator[Layout]:
    return (value for value in vars(module).values() if isinstance(value, Layout))


def constants(module: ModuleType) -> dict[str, int | str]:
    """The module's constants that are the header's; ours are the slot sizes and the two rings of the console."""
    ours = re.compile(r"HEADER|_.*|PAGE_SIZE|SLOTS_OFFSET|(.*_)?SLOT_SIZE|(IN|OUT)_SIZE|(REQ|RSP)_(PROD|EVENT)")
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, int | str) and not ours.fullmatch(name)
    }


def number(name: str, expression: str, value: int) -> Line:
    return name, f'    NUMBER("{name}", {expression});', value


def members(layout: Layout | Union, prefix: str = "") -> Iterator[tuple[str, CType]]:
    """Each member that C knows by a name, inside structures and unions too."""
    for name, member in layout.members.items():
        if not isinstance(member, Bits):
            yield prefix + name, member
        if isinstance(member, Layout):
            yield from members(member, f"{prefix}{name}.")


def layout_lines(layout: Layout) -> Iterator[Line]:
    struct = layout.name
    yield number(f"sizeof {struct}", f"sizeof({struct})", layout.size)
    yield number(f"alignof {struct}", f"_Alignof({struct})", layout.align)
    for name, member in members(layout):
        yield number(f"{struct}.{name} offset", f"offsetof({struct}, {name})", layout.offset[name])
        yield number(f"{struct}.{name} size", f"sizeof((({struct} *)0)->{name})", member.size)
        if isinstance(member, Array):
            yield number(f"{struct}.{name} element", f"sizeof((({struct} *)0)->{name}[0])", member.of.size)
    for name, bit in layout.bits.items():
        key = f"{struct}.{name} bits"
        yield key, BITS.format(struct=struct, width=bit.size * 8, field=name, offset=bit.offset, name=key), bit.mask


def constant_lines(module: ModuleType) -> Iterator[Line]:
    for name, value in constants(module).items():
        if isinstance(value, str):
            yield name, f'    TEXT("{name}", {name});', value
        else:
            yield number(name, name, value)


def ring_lines() -> Iterator[Line]:
    for name, slot_size in RINGS.items():
        yield number(f"{name} slot", f"sizeof(((struct {name}_sring *)0)->ring[0])", slot_size)
        for member, offset in SRING.items():
            yield number(f"{name} {member}", f"offsetof(struct {name}_sring, {member})", offset)
        for pages in range(1, 17):
            slots = ring.ring_slots(pages, slot_size)
            yield number(f"{name} slots of {pages}", f"__CONST_RING_SIZE({name}, {pages} * 4096)", slots)


def error_lines() -> Iterator[Line]:
    count = len(xs_wire.XSD_ERRORS)
    yield number("xsd_errors", "sizeof(xsd_errors) / sizeof(xsd_errors[0])", count)
    for index, name in enumerate(xs_wire.XSD_ERRORS):
        yield f"xsd_errors {index}", f'    TEXT("xsd_errors {index}", xsd_errors[{index}].errstring);', name


def compare(directory: Path, lines: list[Line]) -> dict[str, tuple[int | str, int | str]]:
    """What the headers say otherwise than our tables: name -> (ours, theirs)."""
    headers = "\n".join(f"#include <{module.HEADER}>" for module in MODULES)
    source, program = directory / "abi.c", directory / "abi"
    source.write_text(PROGRAM % {"headers": headers, "lines": "\n".join(statement for _, statement, _ in lines)})
    flags = ["-std=gnu11", "-Werror", "-Wno-overflow", "-D__XEN_TOOLS__"]
    subprocess.run(["cc", *flags, "-o", program, source], check=True)
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    pairs = (line.split("\t") for line in output.splitlines())
    theirs = {name: text.strip('"') if text.startswith('"') else int(text) for name, text in pairs}
    ours = {name: value for name, _, value in lines}
    assert theirs.keys() == ours.keys()
    return {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]}


def all_lines() -> list[Line]:
    lines = [*ring_lines(), *error_lines()]
    for module in MODULES:
        lines += constant_lines(module)
        for layout in layouts(module):
            lines += layout_lines(layout)
    return lines


def test_every_layout_and_constant_is_what_the_headers_say(tmp_path: Path) -> None:
    lines = all_lines()
    assert len(lines) > 600                 # a registry that lost its modules would agree with anything
    assert compare(tmp_path, lines) == {}


def test_wrong_layouts_are_found(tmp_path: Path) -> None:
    segment = Layout("struct blkif_request_segment", gref=U32, last_sect=U8, first_sect=U8)
    request = Layout("struct blkif_request_indirect", **blkif.REQUEST_INDIRECT.members | {"handle": U32})
    control = Bits(U8, state=4, dir=1, data_is_ptr=1, df=1, _pad1=1)
    swapped = Layout("struct ioreq", **ioreq.IOREQ.members | {"control": control})
    wrong = compare(tmp_path, [line for layout in (segment, request, swapped) for line in layout_lines(layout)])
    assert wrong == {
        "struct blkif_request_segment.first_sect offset": (5, 4),
        "struct blkif_request_segment.last_sect offset": (4, 5),
        "struct blkif_request_indirect.handle size": (4, 2),
        "struct ioreq.dir bits": (0x10, 0x20),
        "struct ioreq.data_is_ptr bits": (0x20, 0x10),
    }


def test_struct_skips_padding_and_flattens() -> None:
    packed = blkif.REQUEST.struct.pack(1, 2, 3, 4, 5, *range(33))
    assert len(packed) == blkif.REQUEST.size
    at = blkif.REQUEST.offset["seg"]
    assert blkif.REQUEST_SEGMENT.struct.unpack_from(packed, at + 8) == (3, 4, 5)
    assert packed[4:8] == bytes(4)
    assert packed[8] == 4


def test_struct_has_the_size_of_every_layout() -> None:
    for module in MODULES:
        for layout in layouts(module):
            assert layout.struct.size == layout.size, layout


def test_alignment_inside_arrays_and_unions() -> None:
    inner = Layout("struct inner", a=U64, b=U8)
    outer = Layout("struct outer", x=U8, two=inner * 2, y=U16, name=CHAR * 3, u=Union("union", p=U32, q=U8 * 6), z=S16)
    assert inner.size == 16
    assert outer.offset == {"x": 0, "two": 8, "y": 40, "name": 42, "u": 48, "u.p": 48, "u.q": 48, "z": 56}
    assert outer.size == 64
    values = (1, 2, 3, 4, 5, 6, b"abc", b"12345678", -7)
    assert outer.struct.unpack(outer.struct.pack(*values)) == values


@pytest.mark.parametrize(("field", "value"), [("type", 0xFF), ("dir", 1), ("size", 3), ("addr", 0xABCDE)])
def test_bits_go_in_and_come_out(field: str, value: int) -> None:
    bit = ioreq.BUF_IOREQ.bits[field]
    assert bit.get(bit.put(value)) == value
    assert bit.get(0xFFFFFFFF ^ bit.mask) == 0
    assert bit.put(value | 1 << bit.width) == bit.put(value)


def test_bits_that_do_not_fit_their_unit_are_refused() -> None:
    with pytest.raises(ValueError, match="9 bits"):
        Bits(U8, a=8, b=1)


def test_ring_slots_is_a_power_of_two_that_fits_and_the_next_does_not() -> None:
    for pages in range(1, 17):
        for slot_size in (1, 4, 8, 12, 16, 112, 4032):
            slots = ring.ring_slots(pages, slot_size)
            room = pages * ring.PAGE_SIZE - ring.SLOTS_OFFSET
            assert slots & (slots - 1) == 0
            assert slots * slot_size <= room < 2 * slots * slot_size
