"""What a link leads to: capture files, sockets, nothing. In one process, with the switch's clock told the time."""
import os
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dom0 import runtime_directory
from hypothesis import given, settings
from hypothesis import strategies as st
from netpeer import BROADCAST, OKAY
from netrig import SECOND, Rig

from miniguest.backend.netback.links import LinkConfig, LinkError, check
from miniguest.backend.netback.pcap import PcapError, packets
from miniguest.backend.netback.replay import Replay
from miniguest.ring import _core


@pytest.fixture
def directory() -> Iterator[Path]:
    with runtime_directory() as path:
        yield path


# -- pcap
def tshark(path: Path, *fields: str) -> list[list[str]]:
    command = ["tshark", "-n", "-r", str(path), "-T", "fields"]
    for field in fields:
        command += ["-e", field]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line.split("\t") for line in done.stdout.splitlines()]


def test_a_capture_that_tshark_reads(directory: Path) -> None:
    path = directory / "capture.pcap"
    with path.open("wb") as file:
        rig = Rig(directory, None, _core.PcapWriter(file.fileno()))
        one, two = rig.vif(), rig.vif()
        two.q.post(100)
        before = _core.now_ns()
        sent = [one.frame(two, bytes([number]), size) for number, size in enumerate((60, 1514, 9014, 65535))]
        for frame in sent:
            assert one.q.send(frame) == OKAY
        assert before < _core.now_ns()
    found = tshark(path, "frame.len", "frame.cap_len", "eth.src", "frame.time_epoch", "data.data")
    assert [(row[0], row[1], row[2]) for row in found] == [
        (str(len(frame)), str(len(frame)), ":".join(f"{byte:02x}" for byte in one.mac)) for frame in sent
    ]
    assert [bytes.fromhex(row[4]) for row in found] == [frame[14:] for frame in sent]
    times = [float(row[3]) for row in found]
    assert times == sorted(times)
    assert times[0] > 1_500_000_000
    assert [frame for _, frame in packets(path)] == sent


def test_a_file_system_that_is_full_stops_the_capture_and_nothing_else(directory: Path) -> None:
    with open("/dev/full", "wb", buffering=0) as file:
        writer = _core.PcapWriter(file.fileno())
        rig = Rig(directory, None, writer)
        one, two = rig.vif(), rig.vif()
        two.q.post(2)
        assert one.q.send(one.frame(two)) == OKAY
        assert len(two.received()) == 1
        assert writer.error == 28               # ENOSPC


def write_pcap(path: Path, records: "list[tuple[int, int, bytes]]", order: str = "<", magic: int = 0xA1B2C3D4) -> None:
    data = struct.pack(order + "IHHIIII", magic, 2, 4, 0, 0, 65535, 1)
    for seconds, fraction, frame in records:
        data += struct.pack(order + "4I", seconds, fraction, len(frame), len(frame)) + frame
    path.write_bytes(data)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("magic", "unit"), [(0xA1B2C3D4, 1000), (0xA1B23C4D, 1)])
def test_captures_of_every_kind(directory: Path, order: str, magic: int, unit: int) -> None:
    frames = [bytes([number]) * (60 + number) for number in range(5)]
    write_pcap(directory / "x", [(7, number * 3, frame) for number, frame in enumerate(frames)], order, magic)
    assert [*packets(directory / "x")] == [(7 * SECOND + n * 3 * unit, frame) for n, frame in enumerate(frames)]


def spoil(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        write_pcap(path, [(1, number, bytes(60)) for number in range(3)])
        path.write_bytes(change(path.read_bytes()))
    return make


BAD_CAPTURES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "No such file"),
    "directory": (lambda path: path.mkdir(), "directory"),
    "empty": (lambda path: path.write_bytes(b""), "not a pcap file"),
    "text": (lambda path: path.write_bytes(b"hello" * 20), "not a pcap file"),
    "pcapng": (lambda path: path.write_bytes(b"\x0a\x0d\x0d\x0a" + bytes(40)), "editcap"),
    "half-a-header": (spoil(lambda data: data[:20]), "not a pcap file"),
    "link-type": (spoil(lambda data: data[:20] + b"\x65" + data[21:]), "link type is 101"),
    "truncated-header": (spoil(lambda data: data[: 24 + 76 + 7]), "within the header of packet 2"),
    "truncated-packet": (spoil(lambda data: data[:-1]), "within packet 3"),
    "cut-packet": (spoil(lambda data: data[:32] + b"\x20" + data[33:]), "packet 1 has 32 of 60 bytes"),
    "huge-packet": (spoil(lambda data: data[:32] + b"\xff" * 8 + data[40:]), "packet 1 has 4294967295"),
    "tiny-packet": (spoil(lambda data: data[:32] + b"\x01\0\0\0\x01\0\0\0" + data[40:]), "packet 1 has 1 of 1"),
}


@pytest.mark.parametrize("what", BAD_CAPTURES)
def test_captures_that_are_none(directory: Path, what: str) -> None:
    make, reason = BAD_CAPTURES[what]
    path = directory / "bad.pcap"
    make(path)
    with pytest.raises(PcapError, match=reason):
        list(packets(path))
    with pytest.raises(LinkError, match=reason) as caught:
        check(LinkConfig(kind="pcap", replay=path))
    assert caught.value.key == "replay"
    assert "\n" not in str(caught.value)


class FakeTimer:
    def __init__(self, due: int, fn: Callable[[], None]) -> None:
        self.due, self.fn = due, fn

    def cancel(self) -> None:
        self.fn = lambda: None


class FakeLoop:
    """Only timers."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.timers: list[FakeTimer] = []

    def call_later(self, seconds: float, fn: Callable[[], None]) -> FakeTimer:
        self.timers.append(FakeTimer(self.rig.now + round(seconds * SECOND), fn))
        return self.timers[-1]

    def advance(self) -> None:
        """To the next timer."""
        timer = min(self.timers, key=lambda timer: timer.due)
        self.timers.remove(timer)
        self.rig.now = max(self.rig.now, timer.due)
        timer.fn()


def test_a_replay_keeps_the_pace_and_waits_for_its_receiver(directory: Path) -> None:
    path = directory / "in.pcap"
    frames = [BROADCAST + b"\x02\0\0\0\0\x01" + bytes([n]) * 50 for n in range(4)]
    times = [0, 250_000, 250_000, 900_000]
    write_pcap(path, [(5, micro, frame) for micro, frame in zip(times, frames, strict=True)])
    uplink = _core.Uplink(_core.UPLINK_NULL)
    rig = Rig(directory, uplink)
    loop = FakeLoop(rig)

    def ready() -> None:
        rig.switch.uplink_event()
        rig.settle()
        replay.attend()

    replay = Replay(path, uplink, loop, lambda: rig.now, ready)     # type: ignore[arg-type]
    replay.attend()
    assert loop.timers == []                    # it does not begin before it is told to
    vif, began, found = rig.vif(), rig.now, []
    vif.q.post(10)
    replay.start()
    while True:
        found += [((rig.now - began) // 1000, frame) for frame in vif.received()]
        if not loop.timers:
            break
        loop.advance()
    assert found == list(zip(times, frames, strict=True))
    assert uplink.received_frames == 4


# -- a stream
def stream(directory: Path, mtu: int = 65521) -> tuple[Rig, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.settimeout(10)
    rig = Rig(directory, _core.Uplink(_core.UPLINK_STREAM, os.dup(ours.fileno()), mtu))
    ours.close()
    return rig, theirs


def close(rig: Rig, theirs: socket.socket) -> None:
    assert rig.uplink
    os.close(rig.uplink.fd)
    theirs.close()


def read_frames(theirs: socket.socket, count: int, chunk: int = 65536) -> list[bytes]:
    data = b""
    frames: list[bytes] = []
    while len(frames) < count:
        data += theirs.recv(chunk)
        while len(data) >= 4 and len(data) >= 4 + int.from_bytes(data[:4], "big"):
            size = int.from_bytes(data[:4], "big")
            frames.append(data[4 : 4 + size])
            data = data[4 + size :]
    assert data == b""
    return frames


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(14, 65535), min_size=1, max_size=20), cuts=st.lists(st.integers(1, 70000), max_size=30),
)
def test_frames_from_a_stream_however_they_are_cut(sizes: list[int], cuts: list[int]) -> None:
    with runtime_directory() as directory:
        rig, theirs = stream(directory)
        vif = rig.vif()
        frames = [(BROADCAST + b"\x02\0\0\0\0\x01" + bytes([n])).ljust(size, b"\x7e")[:size] for n, size in enumerate(sizes)]
        data = b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)
        found: list[bytes] = []
        for cut in [*cuts, *[100_000] * 20]:
            if data:
                sent = theirs.send(data[:cut])
                data = data[sent:]
            vif.q.post(min(20, 256 - (vif.q.rx.req_prod - vif.q.rx.rsp_cons)))
            rig.switch.uplink_event()
            rig.settle()
            found += vif.received()
        assert found == frames
        close(rig, theirs)


def test_a_stream_that_is_not_read_makes_senders_wait(directory: Path) -> None:
    rig, theirs = stream(directory)
    assert rig.uplink
    vif = rig.vif()
    theirs.send((60).to_bytes(4, "big") + vif.mac + b"\x02\0\0\0\0\x01" + bytes(48))     # that they are there
    rig.switch.uplink_event()
    rig.settle()
    target = b"\x02\0\0\0\0\x01"
    sent: list[bytes] = []
    while vif.q.tx.ready == vif.q.tx.req_prod - vif.q.tx.rsp_cons:
        vif.sent()
        sent.append(vif.frame(target, struct.pack("<I", len(sent)), 60000))
        vif.put(sent[-1])
        rig.settle()
        assert len(sent) < 1000
    assert 0 < rig.uplink.unsent <= 1 << 20
    assert rig.uplink.sent_frames == len(sent) - 1
    found: list[bytes] = []
    while len(found) < len(sent):               # as they read, it goes on
        found += read_frames(theirs, 1, 60004)
        rig.switch.uplink_event()
        rig.settle()
    assert found == sent
    assert vif.sent() == [OKAY] * 15
    assert rig.uplink.unsent == 0
    assert rig.uplink.dropped == 0
    close(rig, theirs)


def test_a_stream_that_is_never_read_is_not_waited_for(directory: Path) -> None:
    rig, theirs = stream(directory)
    assert rig.uplink
    vif = rig.vif()
    theirs.send((60).to_bytes(4, "big") + vif.mac + b"\x02\0\0\0\0\x01" + bytes(48))
    rig.switch.uplink_event()
    rig.now = _core.now_ns()                    # the connection is as old as the clock says
    rig.settle()
    for _ in range(60):
        vif.put(vif.frame(b"\x02\0\0\0\0\x01", b"", 60000))
        if vif.q.tx.req_prod - vif.q.tx.rsp_cons > 200:
            break
        rig.settle()
        vif.sent()
    rig.settle()
    assert vif.q.tx.ready < vif.q.tx.req_prod - vif.q.tx.rsp_cons
    rig.pass_time(1.0)
    assert vif.q.tx.ready == vif.q.tx.req_prod - vif.q.tx.rsp_cons
    assert rig.uplink.dropped > 0
    close(rig, theirs)


@pytest.mark.parametrize("anew", [False, True])
def test_whoever_waits_for_a_stream_goes_on_when_it_ends(directory: Path, anew: bool) -> None:
    rig, theirs = stream(directory)
    assert rig.uplink
    vif = rig.vif()
    theirs.send((60).to_bytes(4, "big") + vif.mac + b"\x02\0\0\0\0\x01" + bytes(48))
    rig.switch.uplink_event()
    rig.settle()
    while vif.q.tx.ready == vif.q.tx.req_prod - vif.q.tx.rsp_cons:
        vif.sent()
        vif.put(vif.frame(b"\x02\0\0\0\0\x01", b"", 60000))
        rig.settle()
    fd = rig.uplink.fd
    if anew:
        rig.uplink.attach(-1)
    else:
        theirs.close()
        rig.switch.uplink_event()
    rig.settle()                                # and no time passes
    assert vif.sent() == [OKAY] * 15
    assert rig.uplink.dropped == 1
    os.close(fd)
    theirs.close()


def test_frames_in_wait_for_a_vif_as_a_vifs_do(directory: Path) -> None:
    rig, theirs = stream(directory)
    assert rig.uplink
    vif = rig.vif()
    vif.announce()
    frames = [vif.mac + b"\x02\0\0\0\0\x01" + struct.pack("<I", n) + bytes(60000) for n in range(12)]
    data = b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)
    theirs.setblocking(False)
    while not rig.uplink.blocked:
        try:
            data = data[theirs.send(data) :]
        except BlockingIOError:
            assert rig.uplink.blocked
        rig.switch.uplink_event()
        rig.settle()
    found: list[bytes] = []
    while len(found) < 12:
        vif.q.post(20)
        if data:
            try:
                data = data[theirs.send(data) :]
            except BlockingIOError:
                pass
        rig.switch.uplink_event()
        rig.settle()
        found += vif.received()
    assert found == frames
    close(rig, theirs)


@pytest.mark.parametrize("length", [0, 65536, 1 << 20, 0xFFFFFFFF])
def test_a_length_that_cannot_be(directory: Path, length: int) -> None:
    rig, theirs = stream(directory)
    assert rig.uplink
    vif = rig.vif()
    vif.q.post(4)
    good = BROADCAST + b"\x02\0\0\0\0\x01" + bytes(48)
    theirs.send(len(good).to_bytes(4, "big") + good + length.to_bytes(4, "big") + bytes(100))
    rig.switch.uplink_event()
    rig.settle()
    assert rig.uplink.broken == 2
    assert vif.received() == [good]
    assert vif.q.send(vif.frame(BROADCAST)) == OKAY         # nobody waits for it
    close(rig, theirs)


def test_frames_too_short_to_be_any_are_passed_over(directory: Path) -> None:
    rig, theirs = stream(directory)
    vif = rig.vif()
    vif.q.post(4)
    good = BROADCAST + b"\x02\0\0\0\0\x01" + bytes(48)
    theirs.send((13).to_bytes(4, "big") + bytes(13) + len(good).to_bytes(4, "big") + good)
    rig.switch.uplink_event()
    rig.settle()
    assert vif.received() == [good]
    close(rig, theirs)


def test_a_socket_needs_no_padding(directory: Path) -> None:
    """Ethernet's least size is not a stream's: what an IP packet is padded with stays behind, and only that."""
    rig, theirs = stream(directory)
    vif, other = rig.vif(), rig.vif()
    other.q.post(4)
    packet = struct.pack(">BBHHHBBH8x", 0x45, 0, 40, 0, 0, 64, 6, 0) + bytes(20)
    short = BROADCAST + vif.mac + b"\x08\x00" + packet
    frames = [short.ljust(60, b"\0"), short.ljust(61, b"\0"), short, vif.frame(BROADCAST)]
    for frame in frames:
        assert vif.q.send(frame) == OKAY
    assert read_frames(theirs, 4) == [short, *frames[1:]]
    assert other.received() == frames                       # a vif gets what was sent
    close(rig, theirs)


def test_the_peer_goes(directory: Path) -> None:
    rig, theirs = stream(directory)
    assert rig.uplink
    vif = rig.vif()
    theirs.send(b"\0\0\0\x40half")
    theirs.close()
    rig.switch.uplink_event()
    rig.settle()
    assert rig.uplink.broken
    fd = rig.uplink.fd
    rig.uplink.attach(-1)
    assert vif.q.send(vif.frame(BROADCAST)) == OKAY
    assert rig.uplink.dropped == 1
    os.close(fd)


# -- nothing
def test_a_null_link_counts(directory: Path) -> None:
    uplink = _core.Uplink(_core.UPLINK_NULL)
    rig = Rig(directory, uplink)
    vif = rig.vif()
    for size in (60, 1514, 65535):
        assert vif.q.send(vif.frame(b"\2" * 6, b"", size)) == OKAY
    assert (uplink.sent_frames, uplink.sent_bytes, uplink.dropped) == (3, 60 + 1514 + 65535, 0)


# -- configurations that cannot be
@pytest.mark.parametrize(
    ("config", "key", "reason"),
    [
        (LinkConfig(kind="bridge"), "kind", "none of switch, tap"),     # type: ignore[arg-type]
        (LinkConfig(mtu=67), "mtu", "67 is not 68 to 65521"),
        (LinkConfig(mtu=65522), "mtu", "65522 is not"),
        (LinkConfig(device="tap0"), "device", "means nothing"),
        (LinkConfig(kind="tap"), "device", "no name"),
        (LinkConfig(kind="tap", device="a/b"), "device", "no name"),
        (LinkConfig(kind="tap", device="sixteen-letters-x"), "device", "no name"),
        (LinkConfig(kind="tap", device="mgt0", address="10.0.0"), "address", "no address with its prefix"),
        (LinkConfig(kind="tap", device="mgt0", address="10.0.0.1/33"), "address", "no address with its prefix"),
        (LinkConfig(kind="tap", device="lo"), "device", "lo"),
        (LinkConfig(kind="pcap"), "file", "missing"),
        (LinkConfig(kind="pcap", file=Path("/nowhere/x.pcap")), "file", "there is no directory /nowhere"),
        (LinkConfig(kind="pcap", file=Path("/dev")), "file", "cannot be written"),
        (LinkConfig(capture=Path("/nowhere/x.pcap")), "capture", "there is no directory /nowhere"),
        (LinkConfig(kind="socket"), "path", "either a path"),
        (LinkConfig(kind="socket", path=Path("/x"), address="a:1"), "path", "either a path"),
        (LinkConfig(kind="socket", path=Path("/nowhere/socket")), "path", "nobody listens on /nowhere/socket"),
        (LinkConfig(kind="socket", path=Path("/x" * 60)), "path", "longer than the 107 bytes"),
        (LinkConfig(kind="socket", address="localhost"), "address", "no host:port"),
        (LinkConfig(kind="socket", address="localhost:99999"), "address", "no host:port"),
        (LinkConfig(kind="socket", address="127.0.0.1:1"), "address", "nobody listens on 127.0.0.1:1"),
    ],
)
def test_a_link_that_cannot_be(config: LinkConfig, key: str, reason: str) -> None:
    with pytest.raises(LinkError, match=reason) as caught:
        check(config)
    assert caught.value.key == key
    assert "\n" not in str(caught.value)


def test_links_that_can_be(directory: Path) -> None:
    write_pcap(directory / "in.pcap", [(1, 1, bytes(60))])
    check(LinkConfig())
    check(LinkConfig(kind="null", capture=directory / "capture.pcap"))
    check(LinkConfig(kind="pcap", file=directory / "out.pcap", replay=directory / "in.pcap"))
    assert not (directory / "out.pcap").exists()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "socket"))
        listener.listen()
        check(LinkConfig(kind="socket", path=directory / "socket"))
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):    # who takes a single connection still can
            listener.accept()
    (directory / "out.pcap").symlink_to(directory / "in.pcap")
    with pytest.raises(LinkError, match="the file to be written as well"):
        check(LinkConfig(kind="pcap", file=directory / "out.pcap", replay=directory / "in.pcap"))
