"""A recorded run of a guest: everything that went between its vCPU's engine and the rest, in order.

The file is a gzip stream of msgpack objects: a header (a map), then one array for each event, the last of them `End`.
Every event carries the times at which the guest's clock was set since the event before it, each as nanoseconds since
the time before. What a run needs besides is with the topology: the disks as they were, and the same firmware.

Limits. The clock of a recorded guest stands still during an exit and its disk requests end before the exit is answered,
so a recorded run sees no busy disk where another one might. What comes from outside is not in a trace: a guest that has
network cards, or a serial line that takes input, cannot be recorded. RAM that the processor alone reads and writes is
not in it either; what devices read of RAM is.

    TraceError           the file is none, or is not of this guest
    +-- Difference       a replayed run went another way than the recorded one
    +-- RecordingEnded   a replayed run came to where the recorded one was stopped from outside
"""
from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO, Final, cast

import msgpack
import msgspec

from miniguest.ring.errors import MiniguestError
from miniguest.ring.exits import ExitKind

FORMAT: Final = "miniguest-trace"
VERSION: Final = 1
LEVEL: Final = 1                        # of compression: a trace is written while the guest runs
CHUNK: Final = 1 << 18                  # bytes
CUT_OFF: Final = "is cut off: the run that wrote it did not come to its end"
LARGEST: Final = 1 << 24                # bytes of one event: a string instruction moves at most 256 KiB


class TraceError(MiniguestError):
    """A trace cannot be read, or is another guest's."""


class Difference(TraceError):
    """A replayed run is not what was recorded."""


class RecordingEnded(TraceError):
    """The trace is at its end, where the recorded guest was stopped from outside."""

    def __init__(self, how: str) -> None:
        super().__init__(f"the recorded run ended here: {how}")
        self.how = how


class DiskFacts(msgspec.Struct, frozen=True):
    """A disk of the recorded guest."""

    vdev: str
    access: str
    sectors: int


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What was recorded. memory: MiB; firmware: SHA-256 in hex; wall_ns: since the epoch, when the guest's time was 0."""

    format: str = FORMAT
    version: int = VERSION
    guest: str
    memory: int
    firmware: str
    boot: str
    wall_ns: int
    disk: tuple[DiskFacts, ...] = ()


class Exit(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """An exit and its answer. address: port, guest-physical address, CPUID leaf or MSR.

    value: written, or the answer; CPUID's subleaf. count: elements, 0 for what is no string instruction. gpa, data: of a string
    instruction, the RAM that it moved. size: bytes of an element; 1 for WRMSR, 0 for RDMSR. reads: what else devices
    read of RAM, as (guest-physical address, bytes). answer: CPUID's four registers when the engine did not give them.
    """

    times: tuple[int, ...]
    kind: ExitKind
    address: int
    size: int
    value: int = 0
    count: int = 0
    gpa: int = 0
    data: bytes = b""
    reads: tuple[tuple[int, bytes], ...] = ()
    answer: tuple[int, int, int, int] | None = None

    def __str__(self) -> str:
        string = f" x {self.count} at {self.gpa:#x}" if self.count else ""
        writes = self.kind in (ExitKind.PIO_OUT, ExitKind.MMIO_WRITE)
        value = f" = {self.value:#x}" if writes and not self.count else ""
        return f"{self.kind.name.lower()} {self.address:#x}, {self.size} bytes{string}{value}"


class StopKind(IntEnum):
    """Stop, as a number that stays."""

    HALT = 0
    KICK = 1
    TIMER = 2
    WINDOW = 3
    CRASH = 4


class Stopped(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The engine's run ended. crash: why, after CRASH."""

    times: tuple[int, ...]
    stop: StopKind
    crash: str = ""


class Ready(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The engine was asked whether the guest could take an interrupt."""

    times: tuple[int, ...]
    answer: bool


class Interrupt(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The guest took an interrupt."""

    times: tuple[int, ...]
    vector: int


class Reset(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The processor was reset."""

    times: tuple[int, ...]


class End(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """The guest ended, in the word of miniguest.frontend.vcpu.Ended. events: how many there were before this one."""

    times: tuple[int, ...]
    how: str
    events: int


Event = Exit | Stopped | Ready | Interrupt | Reset | End


class TraceWriter:
    """Writes a trace. OSError when the file cannot be written."""

    def __init__(self, path: Path, header: Header) -> None:
        # Neither name nor time in the gzip header: equal runs make equal files.
        self._raw = path.open("wb")
        self._file = gzip.GzipFile("", "wb", LEVEL, cast(BinaryIO, self._raw), mtime=0)
        self._pack = msgpack.Packer().pack
        self._file.write(self._pack(msgspec.to_builtins(header)))
        self.events = 0

    def write(self, event: Event) -> None:
        """Put an event behind those before."""
        self._file.write(self._pack(msgspec.to_builtins(event, builtin_types=(bytes,))))
        self.events += 1

    def close(self) -> None:
        """Finish the file. Without an End behind its events it counts as cut off."""
        self._file.close()
        self._raw.close()


class TraceReader:
    """Reads a trace: `header`, and the events as an iterator. TraceError, in one line, for whatever is wrong with it."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = gzip.GzipFile(path, "rb")
        except OSError as error:
            raise TraceError(f"cannot be read: {error.strerror}") from None
        self._objects = self._unpack()
        try:
            self.header = _header(next(self._objects, None))
        except TraceError:
            self._file.close()
            raise

    def _unpack(self) -> Iterator[object]:
        unpacker = msgpack.Unpacker(max_buffer_size=LARGEST + CHUNK, strict_map_key=False)
        try:
            while chunk := self._file.read(CHUNK):
                unpacker.feed(chunk)
                yield from unpacker
        except EOFError:
            raise TraceError(CUT_OFF) from None
        except (gzip.BadGzipFile, zlib.error, ValueError, msgpack.UnpackException):
            raise TraceError("is no trace, or a damaged one") from None
        except OSError as error:
            raise TraceError(f"cannot be read: {error.strerror}") from None

    def __iter__(self) -> Iterator[Event]:
        for count, item in enumerate(self._objects):
            try:
                event = msgspec.convert(item, Event, strict=True)
            except msgspec.ValidationError as error:
                raise TraceError(f"event {count}: {error}") from None
            yield event
            if isinstance(event, End):
                if event.events != count or next(self._objects, None) is not None:
                    raise TraceError(f"is damaged: {count} events where it says {event.events}")
                return
        raise TraceError(CUT_OFF)

    def close(self) -> None:
        """Give the file back."""
        self._file.close()


def _header(item: object) -> Header:
    if not isinstance(item, dict) or item.get("format") != FORMAT:
        raise TraceError("is no trace")
    if item.get("version") != VERSION:
        raise TraceError(f"is a trace of version {item.get('version')}, and this program reads version {VERSION}")
    try:
        return msgspec.convert(item, Header, strict=True)
    except msgspec.ValidationError as error:
        raise TraceError(f"header: {error}") from None


def check(path: Path, wanted: Header) -> Header:
    """The header of a whole trace of the guest described by `wanted`. TraceError when it is not all there, or not of it."""
    reader = TraceReader(path)
    try:
        for _ in reader:
            pass
    finally:
        reader.close()
    header = reader.header
    facts = (
        ("MiB of memory", header.memory, wanted.memory), ("firmware", header.firmware[:16], wanted.firmware[:16]),
        ("boot order", header.boot, wanted.boot), ("disks", _named(header), _named(wanted)),
    )
    for what, recorded, here in facts:
        if recorded != here:
            raise TraceError(f"was recorded with other {what}: {recorded}, here {here}")
    return header


def _named(header: Header) -> str:
    return ", ".join(f"{disk.vdev} {disk.access} of {disk.sectors} sectors" for disk in header.disk) or "none"
