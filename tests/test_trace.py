"""Trace files: what is written is read, and what is no whole trace of this guest is one clear line."""
import gzip
from pathlib import Path

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniguest.frontend.engines import trace
from miniguest.frontend.engines.trace import (
    DiskFacts,
    End,
    Event,
    Exit,
    Header,
    Interrupt,
    Ready,
    Reset,
    StopKind,
    Stopped,
    TraceError,
    TraceReader,
    TraceWriter,
)
from miniguest.ring.exits import ExitKind

HEADER = Header(guest="g", memory=16, firmware="ab" * 32, boot="c", wall_ns=5, disk=(DiskFacts("hda", "rw", 2048),))
EVENTS: list[Event] = [
    Reset(()),
    Exit((10,), ExitKind.PIO_IN, 0x1F7, 1, 0x50),
    Exit((1, 2), ExitKind.PIO_OUT, 0xFFFF, 4, 0xFFFFFFFF, reads=((0x1000, b"\0\xff"), (1 << 40, b""))),
    Exit((), ExitKind.PIO_IN, 0x1F0, 2, 0, 256, 0x7C00, bytes(range(256)) * 2),
    Exit((), ExitKind.MMIO_WRITE, 0xFEE00300, 8, (1 << 64) - 1),
    Exit((), ExitKind.CPUID, 1, 0, answer=(1, 2, 3, 4)),
    Ready((), True),
    Interrupt((), 8),
    Stopped((5,), StopKind.CRASH, "why"),
]


def write(path: Path, events: list[Event], header: Header = HEADER, end: bool = True) -> Path:
    writer = TraceWriter(path, header)
    for event in events:
        writer.write(event)
    if end:
        writer.write(End((), "POWEROFF", len(events)))
    writer.close()
    return path


def read(path: Path) -> list[Event]:
    reader = TraceReader(path)
    try:
        return list(reader)
    finally:
        reader.close()


def trouble(path: Path, wanted: Header = HEADER) -> str:
    with pytest.raises(TraceError) as caught:
        trace.check(path, wanted)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "t", EVENTS)
    assert read(path) == [*EVENTS, End((), "POWEROFF", len(EVENTS))]
    assert trace.check(path, HEADER) == HEADER


def test_equal_runs_make_equal_files(tmp_path: Path) -> None:
    assert write(tmp_path / "a", EVENTS).read_bytes() == write(tmp_path / "b", EVENTS).read_bytes()


def test_any_msgpack_tool_reads_it(tmp_path: Path) -> None:
    with gzip.open(write(tmp_path / "t", EVENTS)) as file:
        objects = list(msgpack.Unpacker(file))
    assert objects[0]["format"] == "miniguest-trace"
    assert objects[2][:6] == [0, [10], 0, 0x1F7, 1, 0x50]
    assert len(objects) == len(EVENTS) + 2


@pytest.mark.parametrize(("header", "line"), [
    ({"memory": 32}, "was recorded with other MiB of memory: 16, here 32"),
    ({"firmware": "cd" * 32}, "was recorded with other firmware: abababababababab, here cdcdcdcdcdcdcdcd"),
    ({"boot": "n"}, "was recorded with other boot order: c, here n"),
    ({"disk": ()}, "was recorded with other disks: hda rw of 2048 sectors, here none"),
    ({"guest": "another", "wall_ns": 9}, ""),
])
def test_another_guests_trace(tmp_path: Path, header: dict[str, object], line: str) -> None:
    path = write(tmp_path / "t", EVENTS)
    wanted = msgspec.structs.replace(HEADER, **header)
    if line:
        assert trouble(path, wanted) == line
    else:
        trace.check(path, wanted)


def test_no_trace_at_all(tmp_path: Path) -> None:
    path = tmp_path / "t"
    assert trouble(path) == "cannot be read: No such file or directory"
    assert trouble(tmp_path) == "cannot be read: Is a directory"
    for garbage in (b"", b"garbage" * 100, gzip.compress(b""), gzip.compress(b"\xc1" * 50), gzip.compress(b"garbage"),
                    gzip.compress(msgpack.packb({"format": "other"})), gzip.compress(b"\xdf\xff\xff\xff\xff"),
                    b"\x1f\x8b" + bytes(30)):
        path.write_bytes(garbage)
        assert trouble(path) in ("is no trace", "is no trace, or a damaged one", trace.CUT_OFF)


def test_another_version(tmp_path: Path) -> None:
    path = write(tmp_path / "t", [], msgspec.structs.replace(HEADER, version=2))
    assert trouble(path) == "is a trace of version 2, and this program reads version 1"


def test_a_header_of_the_wrong_types(tmp_path: Path) -> None:
    header = msgspec.to_builtins(HEADER) | {"memory": "much"}
    (tmp_path / "t").write_bytes(gzip.compress(msgpack.packb(header)))
    assert trouble(tmp_path / "t") == "header: Expected `int`, got `str` - at `$.memory`"


def test_a_trace_without_its_end(tmp_path: Path) -> None:
    assert trouble(write(tmp_path / "t", EVENTS, end=False)) == trace.CUT_OFF


def test_cut_anywhere(tmp_path: Path) -> None:
    whole = write(tmp_path / "t", EVENTS).read_bytes()
    for size in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:size])
        assert trouble(tmp_path / "cut") in (trace.CUT_OFF, "is no trace", "is no trace, or a damaged one")


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_byte_changed_anywhere(tmp_path_factory: pytest.TempPathFactory, at: int, flip: int) -> None:
    directory = tmp_path_factory.mktemp("trace")
    raw = bytearray(write(directory / "t", EVENTS).read_bytes())
    raw[at % len(raw)] ^= flip
    (directory / "t").write_bytes(raw)
    try:
        trace.check(directory / "t", HEADER)
    except TraceError as error:
        assert "\n" not in str(error)       # noqa: PT017 - some bytes of gzip's header mean nothing


@pytest.mark.parametrize(("event", "line"), [
    ([9, []], "Invalid value 9"), ([0, [], 77, 0, 0], "Invalid enum value 77"),
    ([3, []], "Expected `array` of at least length 3"),
    ({}, "Expected `array`, got `object`"), (5, "Expected `array`, got `int`"), ([1, [], "halt"], "Expected `int`, got `str`"),
])
def test_an_event_that_is_none(tmp_path: Path, event: object, line: str) -> None:
    raw = msgpack.packb(msgspec.to_builtins(HEADER)) + msgpack.packb([4, []]) + msgpack.packb(event)
    (tmp_path / "t").write_bytes(gzip.compress(raw))
    said = trouble(tmp_path / "t")
    assert said.startswith("event 1: ")
    assert line in said


def test_an_end_that_does_not_add_up(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "t", HEADER)
    writer.write(End((), "POWEROFF", 3))
    writer.close()
    assert trouble(tmp_path / "t") == "is damaged: 0 events where it says 3"
