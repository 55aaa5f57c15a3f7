"""Frames that tell when one is lost, doubled, out of order or changed: a flow, a number in it, a length and a CRC each.

    0   destination, source      the source is the flow's: its second byte is 0x16 for all, its last the flow
    14  CRC32 of what follows    4 bytes, little endian as all of these
    18  flow, length             2 bytes each; the length is the whole frame's
    22  number in the flow       4 bytes
    26  bytes of no pattern, other ones in each frame

Work on many frames at a time is numpy's; only the CRC is made frame by frame.
"""
import zlib
from functools import cache
from typing import Any, Final

import numpy
from numpy.typing import NDArray

from miniguest.deploy.stress.workers import StressError

ETHERTYPE: Final = 0x88B5               # IEEE 802, local experimental
HELLO: Final = 0x88B6                   # the other one: only says who is there
HEADER: Final = numpy.dtype([
    ("target", "u1", 6), ("source", "u1", 6), ("type", ">u2"), ("crc", "<u4"), ("flow", "<u2"), ("length", "<u2"),
    ("number", "<u4"),
])
CHECKED: Final = 18                     # what the CRC covers begins here
LEAST: Final = 60
MOST: Final = 65535
CYCLE: Final = 4096                     # frames, after which their sizes come again
EDGES: Final = (
    60, 61, 127, 128, 129, 1514, 4095, *(4096 * pages + byte for pages in range(1, 16) for byte in (0, 1)), 65534, MOST,
)
CLASSES: Final = ((0.78, 60, 256), (0.18, 256, 1514), (0.03, 1514, 9014), (0.01, 9014, MOST))     # share, least, most
BATCH: Final = 128                      # frames at a time at most
NOISE: Final = BATCH * MOST
Bytes = NDArray[numpy.uint8]
Numbers = NDArray[numpy.uint32]


def sizes_of(seed: int) -> Numbers:
    """The sizes of CYCLE frames: mostly small, every edge at least once."""
    chance = numpy.random.default_rng(seed)
    shares = [share for share, _, _ in CLASSES]
    kinds = chance.choice(len(CLASSES), CYCLE, p=shares)
    sizes = numpy.array([chance.integers(CLASSES[kind][1], CLASSES[kind][2] + 1) for kind in kinds], numpy.uint32)
    sizes[chance.choice(CYCLE, len(EDGES), replace=False)] = EDGES
    return sizes


@cache
def noise() -> Bytes:
    """NOISE bytes without a pattern."""
    return numpy.random.default_rng(0).integers(0, 256, NOISE, numpy.uint8)


def flow_address(mac: bytes, flow: int) -> bytes:
    """The source address of a flow; flow 0 has the station's own."""
    return mac if flow == 0 else b"\x02" + mac[1:5] + bytes([flow])


def hello(mac: bytes, target: bytes = b"\xff" * 6) -> bytes:
    """A frame that lets the switch, and whoever it is for, know of `mac`."""
    return (target + mac + HELLO.to_bytes(2, "big")).ljust(LEAST, b"\0")


def _headers(data: Bytes, starts: NDArray[numpy.int64]) -> NDArray[Any]:
    rows: NDArray[Any] = data[starts[:, None] + numpy.arange(HEADER.itemsize)]
    return rows.reshape(-1).view(HEADER)


class Source:
    """Makes the frames of some flows from `mac` to `target`."""

    def __init__(self, mac: bytes, target: bytes, flows: list[int], seed: int) -> None:
        self._random = numpy.random.default_rng(seed)
        self._sizes = sizes_of(seed)
        self._noise = noise()
        self._target = numpy.frombuffer(target, numpy.uint8)
        self._sources = numpy.array([list(flow_address(mac, flow)) for flow in flows], numpy.uint8)
        self._flows = numpy.array(flows)
        self._next = numpy.zeros(len(flows), numpy.uint32)
        self.made = 0

    def batch(self, count: int) -> tuple[Bytes, Numbers]:
        """The next `count` frames, BATCH at most, end to end, and their lengths."""
        lengths = self._sizes[(self.made + numpy.arange(count)) % CYCLE]
        ends = numpy.cumsum(lengths, dtype=numpy.int64)
        total = int(ends[-1])
        first = int(self._random.integers(0, NOISE - total + 1))
        data = self._noise[first : first + total].copy()
        which = self._random.integers(0, len(self._flows), count)
        header = numpy.zeros(count, HEADER)
        header["target"] = self._target
        header["source"] = self._sources[which]
        header["type"] = ETHERTYPE
        header["flow"] = self._flows[which]
        header["length"] = lengths
        for index in range(len(self._flows)):
            mine = numpy.flatnonzero(which == index)
            header["number"][mine] = self._next[index] + numpy.arange(len(mine), dtype=numpy.uint32)
            self._next[index] += len(mine)
        starts = ends - lengths
        places = starts[:, None] + numpy.arange(HEADER.itemsize)
        data[places] = header.view(numpy.uint8).reshape(count, -1)
        header["crc"] = _crcs(data, starts, ends)
        data[places] = header.view(numpy.uint8).reshape(count, -1)
        self.made += count
        return data, lengths


def _crcs(data: Bytes, starts: NDArray[numpy.int64], ends: NDArray[numpy.int64]) -> list[int]:
    view = data.data
    return [zlib.crc32(view[start:end]) for start, end in zip((starts + CHECKED).tolist(), ends.tolist(), strict=True)]


class Sink:
    """Checks the frames of all flows from `mac` to `target`. StressError at the first that is not the next of its flow."""

    def __init__(self, mac: bytes, target: bytes, flows: int) -> None:
        self._target = numpy.frombuffer(target, numpy.uint8)
        self._sources = numpy.array([list(flow_address(mac, flow)) for flow in range(flows)], numpy.uint8)
        self._next = numpy.zeros(flows, numpy.int64)
        self.taken = 0

    @property
    def numbers(self) -> list[int]:
        """How many frames of each flow have come."""
        return self._next.tolist()

    def check(self, data: Bytes, lengths: Numbers) -> bool:
        """Frames end to end; whether any of them, a hello among them, came from there."""
        ends = numpy.cumsum(lengths, dtype=numpy.int64)
        starts = ends - lengths
        if len(lengths) == 0:
            return False
        if lengths.min() < LEAST:
            raise StressError(f"a frame of {lengths.min()} bytes")
        header = _headers(data, starts)
        ours = header["type"] != HELLO
        heard = bool(ours.any() or (header["source"] == self._sources[0]).all(axis=1).any())
        if not ours.all():
            header, starts, ends, lengths = header[ours], starts[ours], ends[ours], lengths[ours]
        if len(header):
            self._check(header, lengths, numpy.array(_crcs(data, starts, ends), numpy.uint32))
        return heard

    def _check(self, header: NDArray[Any], lengths: Numbers, crcs: Numbers) -> None:
        flows = header["flow"]
        good = (header["type"] == ETHERTYPE) & (header["crc"] == crcs) & (header["length"] == lengths) & (flows < len(self._next))
        if not good.all():
            self._complain("not as it was sent", header, int(good.argmin()))
        good = (header["target"] == self._target).all(axis=1) & (header["source"] == self._sources[flows]).all(axis=1)
        if not good.all():
            self._complain("of another address", header, int(good.argmin()))
        for flow in range(len(self._next)):
            mine = numpy.flatnonzero(flows == flow)
            wanted = self._next[flow] + numpy.arange(len(mine))
            wrong = header["number"][mine] != wanted
            if wrong.any():
                at = int(wrong.argmax())
                self._complain(f"should be number {wanted[at]}", header, int(mine[at]))
            self._next[flow] += len(mine)
        self.taken += len(header)

    def _complain(self, what: str, header: NDArray[Any], row: int) -> None:
        frame = header[row]
        raise StressError(f"frame {self.taken + row}, number {frame['number']} of flow {frame['flow']}, {frame['length']} bytes "
                          f"from {bytes(frame['source']).hex(':')}: {what}")
