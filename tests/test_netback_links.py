"""Links to the outside, with netback as a process: a TAP with the kernel's stack behind it, sockets, capture files."""
import ctypes
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from dom0 import dom0
from netpeer import BROADCAST, CSUM_BLANK, OKAY, Received, Vif, World, gso_slot
from peer import WATCHDOG
from test_netback_uplinks import read_frames, tshark, write_pcap

from miniguest.backend.netback.links import LinkConfig
from miniguest.backend.netback.pcap import packets
from miniguest.ring.statistics import link_statistics_path, read_link_statistics

HOST, GUEST = bytes([10, 77, 0, 1]), bytes([10, 77, 0, 2])
ARP, IPV4 = b"\x08\x06", b"\x08\x00"
ICMP, TCP, UDP = 1, 6, 17
FIN, SYN, PSH, ACK = 1, 2, 8, 16


class Namespace:
    """A network namespace of its own, as long as this lives; with a user namespace around it unless we are root."""

    def __init__(self) -> None:
        mine = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        self._kinds = ["net"] if os.geteuid() == 0 else ["user", "net"]
        self._holder = subprocess.Popen(
            ["unshare", *mine, "--net", "sh", "-c", "echo ready; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._holder.stdout
        assert self._holder.stdout.readline() == b"ready\n"

    def enter(self) -> None:
        """This process goes there, for good."""
        libc = ctypes.CDLL(None, use_errno=True)
        for kind in self._kinds:
            with open(f"/proc/{self._holder.pid}/ns/{kind}") as file:
                assert libc.setns(file.fileno(), 0) == 0, os.strerror(ctypes.get_errno())

    def start(self, *command: str) -> "subprocess.Popen[str]":
        """Run something there."""
        where = [f"--{kind}=/proc/{self._holder.pid}/ns/{kind}" for kind in self._kinds]
        return subprocess.Popen(["nsenter", *where, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, *command: str) -> str:
        process = self.start(*command)
        out, _ = process.communicate(timeout=WATCHDOG)
        assert process.returncode == 0
        return out

    def close(self) -> None:
        self._holder.communicate(b"")


def total(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    value = sum(struct.unpack(f">{len(data) // 2}H", data))
    while value >> 16:
        value = (value & 0xFFFF) + (value >> 16)
    return value


class Station:
    """A vif with a little of an IPv4 stack, for what the kernel at the other end wants to know."""

    def __init__(self, vif: Vif) -> None:
        self.vif = vif
        # Ask for the host's address, by which it learns ours: an earlier test's vif had the same.
        question = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1) + vif.mac + GUEST + bytes(6) + HOST
        assert vif.q.send((BROADCAST + vif.mac + ARP + question).ljust(60, b"\0")) == OKAY
        answer = self._next()
        while answer[12:14] != ARP or answer[20:22] != b"\0\2":
            answer = self._next()
        self.host_mac = answer[6:12]

    def packet(self, protocol: int, body: bytes) -> bytes:
        head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 1, 0x4000, 64, protocol, 0, GUEST, HOST)
        return self.host_mac + self.vif.mac + IPV4 + head[:10] + struct.pack(">H", 0xFFFF - total(head)) + head[12:] + body

    def receive(self, protocol: int) -> bytes:
        """The body of the next IPv4 packet of a kind for us; ARP is answered meanwhile."""
        while True:
            frame = self._next()
            if frame[12:14] == ARP and frame[20:22] == b"\0\1" and frame[38:42] == GUEST:
                self.host_mac = frame[6:12]
                answer = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 2) + self.vif.mac + GUEST + frame[22:32]
                assert self.vif.q.send((frame[6:12] + self.vif.mac + ARP + answer).ljust(60, b"\0")) == OKAY
            elif frame[12:14] == IPV4 and frame[23] == protocol and frame[30:34] == GUEST:
                assert total(frame[14:34]) == 0xFFFF
                self.host_mac = frame[6:12]
                return frame[34 : 14 + int.from_bytes(frame[16:18], "big")]

    def _next(self) -> Received:
        frame = self.vif.q.receive()
        self.vif.q.post(1)
        return frame


class Connection:
    """A TCP connection to the host, made by us; in order and without loss, as the wire is."""

    def __init__(self, station: Station, port: int) -> None:
        self.station, self.port = station, port
        self.sequence, self.acknowledged, self.next = 0xFFFFF000, 0, 0
        self._send(SYN)
        header = station.receive(TCP)
        assert header[13] == SYN | ACK
        self.sequence = (self.sequence + 1) & 0xFFFFFFFF
        self.next = (int.from_bytes(header[4:8], "big") + 1) & 0xFFFFFFFF
        self._send(ACK)

    def _send(self, flags: int, data: bytes = b"", mss: int = 0) -> None:
        header = struct.pack(
            ">HHIIBBHHH", 40000, self.port, self.sequence, self.next, 5 << 4, flags, 65535, 0, 0
        )
        frame = self.station.packet(TCP, header + data)         # its checksum is left to netback
        assert self.station.vif.q.send(frame, CSUM_BLANK, extras=[gso_slot(mss)] if mss else None) == OKAY

    def write(self, data: bytes, mss: int) -> None:
        """One large packet, and wait until all of it is acknowledged."""
        self._send(ACK | PSH, data, mss)
        self.sequence = (self.sequence + len(data)) & 0xFFFFFFFF
        while int.from_bytes(self._take()[0][8:12], "big") != self.sequence:
            pass

    def _take(self) -> tuple[bytes, bytes]:
        segment = self.station.receive(TCP)
        data = segment[(segment[12] >> 4) * 4 :]
        if data or segment[13] & FIN:
            assert int.from_bytes(segment[4:8], "big") == self.next
            self.next = (self.next + len(data) + (segment[13] & FIN)) & 0xFFFFFFFF
            self._send(ACK)
        return segment, data

    def finish(self) -> bytes:
        """Say that this is all, and read to the other side's end."""
        self._send(FIN | ACK)
        self.sequence = (self.sequence + 1) & 0xFFFFFFFF
        found = b""
        while True:
            segment, data = self._take()
            found += data
            if segment[13] & FIN:
                return found


@pytest.fixture(scope="module")
def place() -> Iterator[Namespace]:
    namespace = Namespace()
    yield namespace
    namespace.close()


@pytest.fixture(scope="module")
def listener() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as made:
        yield made


@pytest.fixture(scope="module")
def running(place: Namespace, listener: socket.socket) -> Iterator[World]:
    with ExitStack() as undo:
        supervisor, runtime = undo.enter_context(dom0("fifo"))
        listener.bind(str(runtime / "peer.sock"))
        listener.listen()
        listener.settimeout(WATCHDOG)
        place.run("ip", "tuntap", "add", "dev", "mg-old", "mode", "tap")
        place.run("ip", "link", "set", "mg-old", "mtu", "1400")
        write_pcap(runtime / "in.pcap", [(9, n, BROADCAST + b"\2" * 6 + bytes([n]) * 50) for n in range(5)])
        world = World(supervisor, runtime, {
            "tap": LinkConfig("tap", device="mg-test0", address="10.77.0.1/24", capture=runtime / "tap.pcap"),
            "big": LinkConfig("tap", device="mg-test1", mtu=9000),
            "old": LinkConfig("tap", device="mg-old", address="10.78.0.1/24"),
            "six": LinkConfig("tap", device="mg-six", address="fd00:77::1/64"),
            "file": LinkConfig("pcap", file=runtime / "out.pcap", replay=runtime / "in.pcap"),
            "socket": LinkConfig("socket", path=runtime / "peer.sock"),
            "null": LinkConfig("null"),
        }, place.enter)
        yield world
        world.close()


# -- TAP
def test_the_tap_is_up_as_configured(world: World, place: Namespace) -> None:
    assert "10.77.0.1/24" in place.run("ip", "-o", "address", "show", "mg-test0")
    shown = place.run("ip", "-o", "link", "show", "mg-test0")
    assert "UP" in shown
    assert "mtu 1500" in shown
    assert "mtu 9000" in place.run("ip", "-o", "link", "show", "mg-test1")
    assert "fd00:77::1/64" in place.run("ip", "-o", "address", "show", "mg-six")


def test_a_tap_that_was_there_is_left_as_it_is(world: World, place: Namespace) -> None:
    """Its owner has set it up, or will."""
    assert "mtu 1400" in place.run("ip", "-o", "link", "show", "mg-old")
    assert "10.78.0.1" not in place.run("ip", "-o", "address", "show", "mg-old")
    place.run("ip", "link", "set", "mg-old", "up")
    vif, other = world.vif("old").connect(), world.vif("old").connect(buffers=100)
    frame = vif.frame(BROADCAST, b"out")
    assert vif.q.send(frame) == OKAY
    while other.q.receive() != frame:
        pass


PING = """
import socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
s.settimeout(20)
for n in range(3):
    body = struct.pack(">HH", 77, n) + bytes(1400)
    total = sum(struct.unpack(f">{len(body) // 2}H", body)) + 0x800
    total = (total & 0xffff) + (total >> 16)
    s.sendto(struct.pack(">BBH", 8, 0, 0xffff - total) + body, ("10.77.0.2", 0))
    answer = s.recv(65536)[20:]
    print("received" if (answer[0], answer[4:]) == (0, body) else "wrong")
"""


def test_ping(world: World, place: Namespace) -> None:
    station = Station(world.vif("tap").connect())
    ping = place.start(sys.executable, "-c", PING)
    for _ in range(3):
        request = station.receive(ICMP)
        assert request[0] == 8
        reply = b"\0\0\0\0" + request[4:]
        reply = reply[:2] + struct.pack(">H", 0xFFFF - total(reply)) + reply[4:]
        assert station.vif.q.send(station.packet(ICMP, reply)) == OKAY
    out, _ = ping.communicate(timeout=WATCHDOG)
    assert out == "received\n" * 3


UDP_ECHO = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("10.77.0.1", 7))
print("ready", flush=True)
for _ in range(5):
    data, whence = s.recvfrom(65536)
    s.sendto(data[::-1], whence)
"""


def test_udp(world: World, place: Namespace) -> None:
    station = Station(world.vif("tap").connect())
    echo = place.start(sys.executable, "-c", UDP_ECHO)
    assert echo.stdout
    assert echo.stdout.readline() == "ready\n"
    for size in (0, 1, 100, 1471, 1472):
        data = bytes(n & 255 for n in range(size))
        body = struct.pack(">HHHH", 5000, 7, 8 + size, 0) + data
        assert station.vif.q.send(station.packet(UDP, body), CSUM_BLANK) == OKAY
        found = station.receive(UDP)
        assert found[8:] == data[::-1]
    echo.communicate(timeout=WATCHDOG)


TCP_ECHO = """
import socket
s = socket.create_server(("10.77.0.1", 9))
print("ready", flush=True)
c, _ = s.accept()
data = b""
while part := c.recv(65536):
    data += part
c.sendall(data[::-1])
c.close()
"""


def test_tcp_in_large_packets(world: World, place: Namespace) -> None:
    """Segmentation and checksums of netback's, judged by the kernel."""
    station = Station(world.vif("tap").connect(buffers=200))
    echo = place.start(sys.executable, "-c", TCP_ECHO)
    assert echo.stdout
    assert echo.stdout.readline() == "ready\n"
    connection = Connection(station, 9)
    parts = [bytes((n * 7 + size) >> 2 & 255 for n in range(size)) for size in (1, 1460, 20000, 40000, 1461)]
    for part in parts:
        connection.write(part, 1460)
    assert connection.finish() == b"".join(parts)[::-1]
    echo.communicate(timeout=WATCHDOG)


def test_a_frame_longer_than_the_mtu_does_not_go_out(world: World, place: Namespace) -> None:
    one, two = world.vif("big").connect(buffers=100), world.vif("big").connect(buffers=100)

    def received() -> int:
        shown = json.loads(place.run("ip", "-s", "-j", "link", "show", "mg-test1"))
        return int(shown[0]["stats64"]["rx"]["packets"])

    was = received()
    for size in (9018, 9019, 30000):
        frame = one.frame(BROADCAST, b"", size)
        assert one.q.send(frame) == OKAY
        while two.q.receive() != frame:         # the kernel's own frames come in between
            pass
    world.catch_up()
    assert received() == was + 1


def test_the_capture_of_a_link(world: World) -> None:
    """Everything above is in the file, whole and in order."""
    vif = world.vif("tap").connect()
    frame = vif.frame(BROADCAST, b"the last one", 99)
    assert vif.q.send(frame) == OKAY
    world.catch_up()
    rows = tshark(world.runtime / "tap.pcap", "frame.len", "frame.cap_len", "frame.time_epoch")
    found = [each for _, each in packets(world.runtime / "tap.pcap")][: len(rows)]
    assert frame in found
    assert [int(row[0]) for row in rows] == [int(row[1]) for row in rows] == [len(each) for each in found]
    assert all(float(row[2]) > 1_500_000_000 for row in rows)


# -- a file
def test_a_file_and_a_replay(world: World) -> None:
    vif = world.vif("file").connect()
    assert [vif.q.receive()[14] for _ in range(5)] == [0, 1, 2, 3, 4]
    frames = [vif.frame(BROADCAST, bytes([number]), 60 + number * 100) for number in range(10)]
    for frame in frames:
        assert vif.q.send(frame) == OKAY
    world.catch_up()
    assert [frame for _, frame in packets(world.runtime / "out.pcap")] == frames
    assert len(tshark(world.runtime / "out.pcap", "frame.number")) == 10


def test_null(world: World) -> None:
    one, two = world.vif("null").connect(), world.vif("null").connect()
    one.reaches(two)
    assert one.q.send(one.frame(b"\2" * 6, b"", 65535)) == OKAY


# -- a socket
def test_a_socket_and_its_peer_that_comes_and_goes(world: World, listener: socket.socket) -> None:
    vif = world.vif("socket").connect(buffers=200)

    def speak(peer: socket.socket) -> None:
        peer.settimeout(WATCHDOG)
        frame = vif.frame(BROADCAST, b"out", 300)
        assert vif.q.send(frame) == OKAY
        assert read_frames(peer, 1, 7) == [frame]
        incoming = vif.mac + b"\2" * 6 + b"\x88\xb5" + b"in" * 500
        data = len(incoming).to_bytes(4, "big") + incoming
        for at in range(0, len(data), 100):
            peer.sendall(data[at : at + 100])
        assert vif.q.receive() == incoming

    ends: list[Callable[[socket.socket], None]] = [
        lambda peer: peer.sendall(bytes(4)),                            # a length of 0
        lambda peer: peer.sendall(b"\xff\xff\xff\xff"),
        lambda peer: peer.sendall(b"\0\0\1\0only a part of it"),
        lambda peer: None,
    ]
    for end in ends:
        peer, _ = listener.accept()
        with peer:
            speak(peer)
            end(peer)
            if end is ends[0] or end is ends[1]:
                assert peer.recv(10) == b""                             # netback hangs up
        world.others_work()
    peer, _ = listener.accept()
    with peer:
        speak(peer)
    link = world.vif("socket").connect()
    link.reaches(vif)                           # without the peer it is a switch


def test_link_statistics(world: World) -> None:
    vif = world.vif("null").connect()
    was = read_link_statistics(link_statistics_path(world.runtime, "null"))
    for _ in range(3):
        assert vif.q.send(vif.frame(b"\2" * 6, b"", 1000)) == OKAY
    world.catch_up()
    now = read_link_statistics(link_statistics_path(world.runtime, "null"))
    assert {name: now[name] - was[name] for name in now if now[name] != was[name]} == {
        "frames": 3, "bytes": 3000, "flooded": 3, "uplink_sent_frames": 3, "uplink_sent_bytes": 3000,
    }
    assert set(read_link_statistics(world.runtime / "none").values()) == {0}


def test_a_tap_that_somebody_deletes(world: World, place: Namespace) -> None:
    """The link goes on as a switch; netback does not run in circles."""
    one, two = world.vif("big").connect(), world.vif("big").connect()
    place.run("ip", "link", "delete", "mg-test1")
    one.reaches(two)
    assert one.q.send(one.frame(BROADCAST)) == OKAY
    assert "link big: down" in (world.runtime / "netback.log").read_text()
    two.reaches(one)


def test_it_is_all_gone_when_netback_is(world: World, place: Namespace) -> None:
    """Killed: the TAPs go with it, and its successor makes them again; captures go on where they were."""
    vif = world.vif("file").connect()
    before = [frame for _, frame in packets(world.runtime / "out.pcap")]
    world.backend.kill(9)
    world.backend.reap()
    with open(world.runtime / "out.pcap", "ab") as file:
        file.write(b"half a record")
    assert "mg-test" not in place.run("ip", "-o", "link", "show")
    assert "mg-old" in place.run("ip", "-o", "link", "show")
    world.start_backend()
    world.others_work()
    assert "mg-test0" in place.run("ip", "-o", "link", "show")
    assert vif.q.send(vif.frame(BROADCAST, b"after")) == OKAY
    world.catch_up()
    assert [frame for _, frame in packets(world.runtime / "out.pcap")] == [*before, vif.frame(BROADCAST, b"after")]
