"""The vifs and links of a topology file: what is accepted, and the one line each mistake gets."""
from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from miniguest.backend.netback import tap
from miniguest.backend.netback.links import LinkConfig
from miniguest.deploy import cli, firmware, option_rom, runtime, topology
from miniguest.deploy.errors import TopologyError
from miniguest.deploy.network import MOST_VIFS, link_config
from miniguest.deploy.topology import Link, Topology, Vif

GUEST = '[[guest]]\nname = "hvm0"\nfirmware = "bios.bin"\n'
LAN = "[link.lan0]\n"
NOBODY = 65534
LINKTYPE_ETHERNET = 1


def rom(size: int = 512, at: int = 0x1C, ids: tuple[int, int] = (0, 0), code: bytes = b"") -> bytes:
    """An option ROM: the signature, its size, a PCI data structure at `at`, and a checksum byte that makes its sum 0."""
    image = bytearray(size)
    image[:3] = b"\x55\xaa" + bytes([size // 512 & 0xFF])
    image[0x40 : 0x40 + len(code)] = code
    struct.pack_into("<H", image, 0x18, at)
    struct.pack_into("<4sHHHH", image, at, b"PCIR", *ids, 0, 24)
    image[6] = -sum(image) & 0xFF
    return bytes(image)


def pcap(*frames: bytes, magic: int = 0xA1B2C3D4, linktype: int = LINKTYPE_ETHERNET) -> bytes:
    head = struct.pack("<IHHiIII", magic, 2, 4, 0, 0, 65535, linktype)
    return head + b"".join(struct.pack("<IIII", 0, 0, len(one), len(one)) + one for one in frames)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with firmware, an image, ROMs for every model, and captures whole and not."""
    for name in ("roms", "no-roms", "directory"):
        (tmp_path / name).mkdir()
    for model in ("e1000", "rtl8139", "ne2k_pci"):
        (tmp_path / f"roms/pxe-{model}.rom").write_bytes(rom())
    (tmp_path / "bios.bin").write_bytes(bytes(1 << 16))
    (tmp_path / "grub.img").write_bytes(bytes(4096))
    (tmp_path / "my.rom").write_bytes(rom())
    (tmp_path / "large.rom").write_bytes(rom(512 << 10))
    (tmp_path / "isa.rom").write_bytes(b"\x55\xaa\x01".ljust(512, b"\0"))
    (tmp_path / "cut.rom").write_bytes(b"\x55\xaa\x01".ljust(0x18, b"\0") + struct.pack("<H", 508) + bytes(482) + b"PCIR")
    (tmp_path / "good.pcap").write_bytes(pcap(bytes(60), bytes(1514)))
    (tmp_path / "cut.pcap").write_bytes(pcap(bytes(60), bytes(1514))[:-1])
    (tmp_path / "short.pcap").write_bytes(pcap(bytes(13)))
    (tmp_path / "ng.pcap").write_bytes(b"\x0a\x0d\x0d\x0a" + bytes(60))
    (tmp_path / "wifi.pcap").write_bytes(pcap(linktype=105))
    (tmp_path / "other-name.pcap").symlink_to("lan.pcap")
    (tmp_path / "linked.pcap").hardlink_to(tmp_path / "good.pcap")
    (tmp_path / "circle.pcap").symlink_to("circle.pcap")
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.setenv(option_rom.ENVIRONMENT, str(tmp_path / "roms"))
    return tmp_path


def write(place: Path, text: str, name: str = "t.toml") -> Path:
    (place / name).write_text(text)
    return place / name


def load(place: Path, text: str) -> Topology:
    return topology.load(write(place, text))


def vif(**keys: str) -> str:
    return "{ " + ", ".join(f'{name} = "{value}"' for name, value in keys.items()) + " }"


def vifs(*each: str) -> str:
    return GUEST + f"vif = [{', '.join(each)}]\n"


# -- what is accepted
def test_every_key_arrives(place: Path) -> None:
    loaded = load(place, """
        [[guest]]
        name = "hvm0"
        firmware = "bios.bin"
        boot = "nc"
        vif = [{ model = "ne2k_pci", mac = "00:16:3E:00:00:0A", link = "lan1", rom = "my.rom", rate = "1MB/s@20ms" }]
        [link.lan0]
        [link.lan1]
        kind = "pcap"
        mtu = 9000
        file = "sub/../out.pcap"
        replay = "good.pcap"
        capture = "all.pcap"
    """.replace("sub/../", ""))
    (guest,) = loaded.guest
    assert guest.vif == (Vif(
        model="ne2k_pci", mac="00:16:3e:00:00:0a", link="lan1", rom=str(place / "my.rom"), rate="20000,20000",
    ),)
    assert loaded.link == {
        "lan0": Link(kind="switch", mtu=1500),
        "lan1": Link(kind="pcap", mtu=9000, file=place / "out.pcap", replay=place / "good.pcap", capture=place / "all.pcap"),
    }
    assert link_config(loaded.link["lan1"]) == LinkConfig(
        "pcap", 9000, file=place / "out.pcap", replay=place / "good.pcap", capture=place / "all.pcap",
    )


def test_defaults(place: Path) -> None:
    (guest,) = load(place, vifs("{}") + LAN).guest
    (made,) = guest.vif
    assert (made.model, made.link, made.rom, made.rate) == ("e1000", "lan0", str(place / "roms/pxe-e1000.rom"), "")


@pytest.mark.parametrize("model", ["e1000", "rtl8139", "ne2k_pci"])
def test_each_model_has_its_own_rom(place: Path, model: str) -> None:
    (guest,) = load(place, vifs(vif(model=model)) + LAN).guest
    assert guest.vif[0].rom == str(place / f"roms/pxe-{model}.rom")
    (guest,) = load(place, vifs(vif(model=model, rom="none")) + LAN).guest
    assert guest.vif[0].rom == ""


def test_addresses_without_being_given_are_unique_and_stay(place: Path) -> None:
    text = 'name = "n"\n' + (GUEST + f"vif = [{', '.join(['{}'] * 8)}]\n") + GUEST.replace("hvm0", "hvm1") + "vif = [{}]\n" + LAN
    first, again = load(place, text), load(place, text)
    macs = [one.mac for guest in first.guest for one in guest.vif]
    assert macs == [one.mac for guest in again.guest for one in guest.vif]
    assert len(set(macs)) == 9 and all(mac.startswith("00:16:3e:") and len(mac) == 17 for mac in macs)
    other = load(place, text.replace('"n"', '"m"'))
    assert not set(macs) & {one.mac for guest in other.guest for one in guest.vif}
    # The first of a guest keeps its own when others come and go.
    assert load(place, 'name = "n"\n' + vifs("{}") + LAN).guest[0].vif[0].mac == macs[0]


@pytest.mark.parametrize(("rate", "credit"), [
    ("1MB/s@20ms", "20000,20000"),          # xl-network-configuration(5)'s own example
    ("10Mb/s", "62500,50000"), ("250KB/s", "12500,50000"), ("1GB/s", "50000000,50000"), ("1Gb/s", "6250000,50000"),
    ("100B/s", "5,50000"), ("800b/s", "5,50000"), ("8Kb/s@1s", "1000,1000000"), ("1MB/s@1000us", "1000,1000"),
    ("1MB/s@1us", "1,1"), ("4294967295B/s@1s", "4294967295,1000000"), ("8b/s@4294s", "4294,4294000000"),
])
def test_rates_are_xls(place: Path, rate: str, credit: str) -> None:
    assert load(place, vifs(vif(rate=rate)) + LAN).guest[0].vif[0].rate == credit


def test_eight_vifs_with_roms_of_half_a_quarter_fit(place: Path) -> None:
    (place / "my.rom").write_bytes(rom(128 << 10))
    (guest,) = load(place, vifs(*[vif(rom="my.rom")] * MOST_VIFS) + LAN).guest
    assert len(guest.vif) == 8


def test_a_replay_may_be_several_links(place: Path) -> None:
    loaded = load(place, GUEST + '[link.a]\nkind = "pcap"\nreplay = "good.pcap"\n[link.b]\nkind = "pcap"\nreplay = "good.pcap"\n')
    assert len(loaded.link) == 2


def test_a_socket_that_somebody_listens_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)                # its full name may be longer than a socket's path can be
    with socket.socket(socket.AF_UNIX) as unix, socket.create_server(("127.0.0.1", 0)) as tcp:
        unix.bind("lan.sock")
        unix.listen()
        (place / "t.toml").write_text("")
        text = f'[link.b]\nkind = "socket"\naddress = "127.0.0.1:{tcp.getsockname()[1]}"\n'
        assert load(place, GUEST + text).link["b"].address == f"127.0.0.1:{tcp.getsockname()[1]}"
        short = Path(tempfile.mkdtemp(dir="/tmp"))
        try:
            (short / "l").symlink_to(place)
            loaded = topology.load(write(short / "l", GUEST + '[link.a]\nkind = "socket"\npath = "lan.sock"\n'))
            assert loaded.link["a"].path == short / "l/lan.sock"
        finally:
            shutil.rmtree(short)


# -- what is not
def link(kind: str = "switch", name: str = "lan0", **keys: str) -> str:
    return f'[link.{name}]\nkind = "{kind}"\n' + "".join(f'{key} = "{value}"\n' for key, value in keys.items())


ONE = vifs("{}")
MISTAKES = {
    "model": (vifs(vif(model="ne2000")) + LAN, "guest[0].vif[0].model", "'ne2000' is none of rtl8139, e1000, ne2k_pci"),
    "vif key": (vifs(vif(bridge="x")) + LAN, "guest[0].vif[0].bridge", "unknown key: known are model, mac, link, rom, rate"),
    "vif type": (GUEST + "vif = 3\n" + LAN, "guest[0].vif", "must be a list, not an integer"),
    "mac type": (GUEST + "vif = [{ mac = 22 }]\n" + LAN, "guest[0].vif[0].mac", "must be a string, not an integer"),
    "kind": (GUEST + link("bridge"), "link.lan0.kind", "'bridge' is none of switch, tap, pcap, socket, null"),
    "link key": (GUEST + link(vlan="3"), "link.lan0.vlan", "unknown key: known are kind, mtu, device,"),
    "link type": (GUEST + "[link]\nlan0 = 3\n", "link.lan0", "must be a table, not an integer"),
    "links type": ("link = 3\n" + GUEST, "link", "must be a table, not an integer"),
    "mtu type": (GUEST + link(mtu="1500"), "link.lan0.mtu", "must be an integer, not a string"),
    "file type": (GUEST + LAN + "capture = 3\n", "link.lan0.capture", "must be a string, not an integer"),
    "link name with a slash": (GUEST + '[link."../x"]\n', "link", "'../x' is no name"),
    "link name with a line": (GUEST + '[link."a\\nb"]\n', "link", "'a\\nb' is no name"),
    "empty link name": (GUEST + '[link.""]\n', "link", "'' is no name"),
    "long link name": (GUEST + f"[link.{'x' * 33}]\n", "link", "is no name"),
    "unknown link": (vifs(vif(link="lan1")) + LAN, "guest[0].vif[0].link", "'lan1' is no link: known are lan0"),
    "no links": (vifs(vif(link="lan1")), "guest[0].vif[0].link", "'lan1' is no link: there is no [link.lan1]"),
    "no link": (ONE, "guest[0].vif[0].link", "missing: there is no [link.NAME] to be on"),
    "which link": (ONE + LAN + "[link.lan1]\n", "guest[0].vif[0].link", "missing: give one of lan0, lan1"),
    "no address": (vifs(vif(mac="0:16:3e:0:0:1")) + LAN, "guest[0].vif[0].mac", "'0:16:3e:0:0:1' is no Ethernet address"),
    "dashes": (vifs(vif(mac="00-16-3e-00-00-01")) + LAN, "guest[0].vif[0].mac", "is no Ethernet address"),
    "seven bytes": (vifs(vif(mac="00:16:3e:00:00:01:02")) + LAN, "guest[0].vif[0].mac", "is no Ethernet address"),
    "not hexadecimal": (vifs(vif(mac="00:16:3e:00:00:0g")) + LAN, "guest[0].vif[0].mac", "is no Ethernet address"),
    "a line behind": (vifs(vif(mac="00:16:3e:00:00:01\\n")) + LAN, "guest[0].vif[0].mac", "is no Ethernet address"),
    "group": (vifs(vif(mac="01:16:3e:00:00:01")) + LAN, "guest[0].vif[0].mac", "a group address: the first byte must be even"),
    "broadcast": (vifs(vif(mac="FF:ff:ff:ff:ff:ff")) + LAN, "guest[0].vif[0].mac", "ff:ff:ff:ff:ff:ff is a group address"),
    "zero": (vifs(vif(mac="00:00:00:00:00:00")) + LAN, "guest[0].vif[0].mac", "is nobody's address"),
    "same address": (
        vifs(vif(mac="00:16:3e:00:00:0a"), vif(mac="00:16:3E:00:00:0A")) + LAN, "guest[0].vif[1].mac",
        "00:16:3e:00:00:0a is the address of guest[0].vif[0] already",
    ),
    "same address elsewhere": (
        vifs(vif(mac="00:16:3e:00:00:0a", link="lan0")) + vifs(vif(mac="00:16:3e:00:00:0a", link="b")).replace("hvm0", "hvm1")
        + LAN + "[link.b]\n", "guest[1].vif[0].mac", "is the address of guest[0].vif[0] already",
    ),
    "nine vifs": (vifs(*["{}"] * 9) + LAN, "guest[0].vif", "9 vifs: give up to 8"),
    "mtu 67": (GUEST + LAN + "mtu = 67\n", "link.lan0.mtu", "67 bytes: give 68 to 65521"),
    "mtu 65522": (GUEST + LAN + "mtu = 65522\n", "link.lan0.mtu", "65522 bytes: give 68 to 65521"),
    "mtu negative": (GUEST + LAN + "mtu = -1\n", "link.lan0.mtu", "-1 bytes: give 68 to 65521"),
    "switch device": (GUEST + link(device="tap0"), "link.lan0.device", "a switch has none"),
    "null file": (GUEST + link("null", file="x.pcap"), "link.lan0.file", "a null has none"),
    "tap path": (GUEST + link("tap", device="tap0", path="x"), "link.lan0.path", "a tap has none"),
    "pcap address": (GUEST + link("pcap", file="x", address="h:1"), "link.lan0.address", "a pcap has none"),
    "socket device": (GUEST + link("socket", path="x", device="tap0"), "link.lan0.device", "a socket has none"),
    "empty device of a switch": (GUEST + link(device=""), "link.lan0.device", "a switch has none"),
    "tap without": (GUEST + link("tap"), "link.lan0.device", "missing: a tap needs device"),
    "tap with an address alone": (GUEST + link("tap", address="10.0.0.1/8"), "link.lan0.device", "missing: a tap needs device"),
    "pcap without": (GUEST + link("pcap"), "link.lan0.file", "missing: a pcap needs file or replay"),
    "socket without": (GUEST + link("socket"), "link.lan0.path", "missing: a socket needs path or address"),
    "socket with both": (GUEST + link("socket", path="x", address="h:1"), "link.lan0.address", "not both"),
    "tap name": (GUEST + link("tap", device="x" * 16), "link.lan0.device", "is no name for a TAP: 1 to 15 bytes"),
    "tap name with a slash": (GUEST + link("tap", device="a/b"), "link.lan0.device", "is no name for a TAP"),
    "empty tap name": (GUEST + link("tap", device=""), "link.lan0.device", "is no name for a TAP"),
    "tap address": (GUEST + link("tap", device="t", address="10.0.0.300/8"), "link.lan0.address", "is no address"),
    "socket port": (GUEST + link("socket", address="localhost:0"), "link.lan0.address", "'localhost:0' is no host:port"),
    "nobody listens": (GUEST + link("socket", path="/nowhere.sock"), "link.lan0.path", "nobody listens on /nowhere.sock"),
    "long socket path": (GUEST + link("socket", path="/" + "x" * 107), "link.lan0.path", "longer than the 107 bytes"),
    "capture nowhere": (GUEST + link(capture="no/x.pcap"), "link.lan0.capture", "there is no directory"),
    "capture directory": (GUEST + link(capture="directory"), "link.lan0.capture", "cannot be written"),
    "empty capture": (GUEST + link(capture=""), "link.lan0.capture", "cannot be written"),
    "capture fifo": (GUEST + link(capture="fifo"), "link.lan0.capture", "cannot be written: it is no file"),
    "capture in a circle": (GUEST + link(capture="circle.pcap"), "link.lan0.capture", "cannot be written"),
    "file below a file": (GUEST + link("pcap", file="bios.bin/x"), "link.lan0.file", "cannot be written"),
    "missing replay": (GUEST + link("pcap", replay="no.pcap"), "link.lan0.replay", "No such file or directory"),
    "replay directory": (GUEST + link("pcap", replay="directory"), "link.lan0.replay", "is not a file"),
    "replay fifo": (GUEST + link("pcap", replay="fifo"), "link.lan0.replay", "is not a file"),
    "truncated replay": (GUEST + link("pcap", replay="cut.pcap"), "link.lan0.replay", "ends within packet 2"),
    "runt replay": (GUEST + link("pcap", replay="short.pcap"), "link.lan0.replay", "packet 1 has 13 of 13 bytes"),
    "pcapng replay": (GUEST + link("pcap", replay="ng.pcap"), "link.lan0.replay", "a pcapng file: convert it"),
    "wireless replay": (GUEST + link("pcap", replay="wifi.pcap"), "link.lan0.replay", "its link type is 105, not Ethernet"),
    "image as replay": (GUEST + link("pcap", replay="grub.img"), "link.lan0.replay", "not a pcap file"),
    "file is capture": (GUEST + link("pcap", file="a", capture="a"), "link.lan0.capture", "link.lan0.file writes there already"),
    "two captures": (GUEST + link(capture="a") + link(name="b", capture="./a"), "link.b.capture", "lan0.capture writes there"),
    "two captures by other names": (
        GUEST + link(capture="lan.pcap") + link(name="b", capture="other-name.pcap"), "link.b.capture",
        "link.lan0.capture writes there already",
    ),
    "replay is written by another name": (
        GUEST + link("pcap", replay="good.pcap") + link(name="b", capture="linked.pcap"), "link.b.capture",
        "lan0.replay is read from there",
    ),
    "capture through a directory": (
        GUEST + link(capture="a") + link(name="b", capture="directory/../a"), "link.b.capture", "link.lan0.capture writes there",
    ),
    "replay is file": (GUEST + link("pcap", replay="good.pcap", file="good.pcap"), "link.lan0.replay", "lan0.file writes there"),
    "replay is written before": (
        GUEST + link(capture="good.pcap") + link("pcap", "b", replay="good.pcap"), "link.b.replay", "lan0.capture writes there",
    ),
    "replay is written later": (
        GUEST + link("pcap", replay="good.pcap") + link(name="b", capture="good.pcap"), "link.b.capture",
        "link.lan0.replay is read from there",
    ),
    "capture over an image": (
        GUEST + 'disk = [{ image = "grub.img", vdev = "hda" }]\n' + link(capture="grub.img"), "guest[0].disk[0].image",
        "link.lan0.capture writes there",
    ),
    "capture over a ROM": (vifs(vif(rom="my.rom")) + link(capture="my.rom"), "guest[0].vif[0].rom", "lan0.capture writes there"),
    "capture and serial": (
        GUEST + 'serial = "log"\n' + link(capture="log"), "guest[0].serial", "link.lan0.capture writes there already",
    ),
    "serial over an image": (
        GUEST + 'disk = [{ image = "grub.img", vdev = "hda", access = "ro" }]\n' + GUEST.replace("hvm0", "hvm1")
        + 'serial = "grub.img"\n', "guest[1].serial", "guest[0].disk[0].image is read from there",
    ),
    "two taps": (GUEST + "XY", "link.b.device", "mgx0 is link.lan0's already"),
    "zero byte": (GUEST + link(capture="a\\u0000b"), "link.lan0.capture", "has a zero byte in it"),
    "zero byte in a list": (vifs(vif(rom="a\\u0000b")) + LAN, "guest[0].vif[0].rom", "has a zero byte in it"),
    "no rom": (vifs(vif(rom="no.rom")) + LAN, "guest[0].vif[0].rom", "no.rom: cannot be read: No such file or directory"),
    "rom directory": (vifs(vif(rom="directory")) + LAN, "guest[0].vif[0].rom", "is not a file"),
    "rom fifo": (vifs(vif(rom="fifo")) + LAN, "guest[0].vif[0].rom", "is not a file"),
    "empty rom": (vifs(vif(rom="")) + LAN, "guest[0].vif[0].rom", "is not a file"),
    "image as rom": (vifs(vif(rom="grub.img")) + LAN, "guest[0].vif[0].rom", "is no option ROM: it does not begin with 55 aa"),
    "ISA rom": (vifs(vif(rom="isa.rom")) + LAN, "guest[0].vif[0].rom", "is no PCI option ROM"),
    "cut rom": (vifs(vif(rom="cut.rom")) + LAN, "guest[0].vif[0].rom", "is no PCI option ROM"),
    "roms that do not fit": (
        vifs(*[vif(rom="large.rom")] * 3) + LAN, "guest[0].vif",
        '1536 KiB of option ROMs, of 1024 KiB there is room for: give one of them rom = "none"',
    ),
    "boot from no ROM": (
        GUEST + f'boot = "n"\nvif = [{vif(rom="none")}]\n' + LAN, "guest[0].boot", "needs a vif with an option ROM to boot from",
    ),
    "deep lists": ("x = " + "[" * 50_000, "", "within each other without end"),
    "deep tables": (".".join("x" * 3000) + " = 1", "", "within each other without end"),
    **{f"rate {rate[:20]}": (vifs(vif(rate=rate)) + LAN, "guest[0].vif[0].rate", word) for rate, word in {
        "fast": "'fast' is no rate", "100": "is no rate", "100Mb": "is no rate", "1mb/s": "is no rate", "1.5Mb/s": "is no rate",
        "-1Mb/s": "is no rate", " 1Mb/s": "is no rate", "1Mb/s ": "is no rate", "1TB/s": "is no rate", "1Mb/s@": "is no rate",
        # xl's manual takes this for microseconds, xl itself for seconds
        "1Mb/s@20": "is no rate", "1Mb/s@20m": "is no rate", "\uff11Mb/s": "is no rate", "9" * 5000 + "b/s": "is no rate",
        "0Mb/s": "is 0 bytes every 50000 us", "1Mb/s@0ms": "is 0 bytes every 0 us", "7b/s@1s": "is 0 bytes",
        "1B/s@1us": "is 0 bytes every 1 us", "999999999GB/s": "give more than none and less than all",
        "4294967296B/s@1s": "less than all", "1Mb/s@4295s": "4295000000 us",
    }.items()},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_file_and_key(place: Path, monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    text, key, message = MISTAKES[mistake]
    if mistake == "two taps":
        monkeypatch.setattr(tap, "Tap", NoTap)
        text = text.replace("XY", link("tap", device="mgx0") + link("tap", "b", device="mgx0"))
    file = write(place, text)
    before = sorted(place.rglob("*"))
    with pytest.raises(TopologyError) as caught:
        topology.load(file)
    assert (caught.value.key, caught.value.file) == (key, file)
    assert message in caught.value.message
    line = str(caught.value)
    assert line.startswith(f"{file}: {key}: " if key else f"{file}: ")
    assert "\n" not in line
    assert sorted(place.rglob("*")) == before


class NoTap:
    """A TAP that is always to be had."""

    def __init__(self, *_: object) -> None: ...
    def __enter__(self) -> NoTap:
        return self

    def __exit__(self, *_: object) -> None: ...


def test_no_rom_installed_names_the_package(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = vifs(vif(model="rtl8139")) + LAN
    monkeypatch.setenv(option_rom.ENVIRONMENT, str(place / "no-roms"))
    with pytest.raises(TopologyError, match=r"guest\[0\]\.vif\[0\]\.rom: no iPXE ROM for rtl8139 .* package ipxe-qemu"):
        load(place, text)
    monkeypatch.delenv(option_rom.ENVIRONMENT)
    monkeypatch.setattr(option_rom, "PLACES", (str(place / "no-roms"), str(place / "roms")))
    assert load(place, text).guest[0].vif[0].rom == str(place / "roms/pxe-rtl8139.rom"), "the first that has it"
    monkeypatch.setattr(option_rom, "PLACES", ())
    with pytest.raises(TopologyError, match="no iPXE ROM for rtl8139"):
        load(place, text)
    assert load(place, vifs(vif(rom="none")) + LAN).guest[0].vif[0].rom == "", "which needs none"


# -- TAPs that are not to be had
@contextmanager
def unprivileged() -> Iterator[None]:
    """As somebody who may not make a TAP: another user's rights, when this is root."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_place(place: Path) -> Iterator[Path]:
    """The directory where somebody else can read it, too."""
    directory = Path(tempfile.mkdtemp(prefix="mgt-", dir="/tmp"))
    os.chmod(directory, 0o755)
    (directory / "bios.bin").write_bytes(bytes(1 << 16))
    yield directory
    shutil.rmtree(directory)


TAP = GUEST + link("tap", device="mgnotmine")


def test_a_tap_that_may_not_be_made(open_place: Path) -> None:
    file = write(open_place, TAP)
    with unprivileged(), pytest.raises(TopologyError) as caught:
        topology.load(file)
    assert caught.value.key == "link.lan0.device"
    assert "run as root" in caught.value.message or "load the module tun" in caught.value.message
    assert not Path("/sys/class/net/mgnotmine").exists()


@pytest.mark.parametrize(("device", "message"), [
    ("none", "cannot open {}: No such file or directory: load the module tun"),
    ("closed", "cannot open {}: Permission denied: run as root, or give access to it"),
])
def test_a_tun_device_that_cannot_be_opened(
    open_place: Path, monkeypatch: pytest.MonkeyPatch, device: str, message: str
) -> None:
    (open_place / "closed").touch(mode=0)
    monkeypatch.setattr(tap, "CLONE_DEVICE", str(open_place / device))
    file = write(open_place, TAP)
    with unprivileged(), pytest.raises(TopologyError) as caught:
        topology.load(file)
    assert (caught.value.key, caught.value.message) == ("link.lan0.device", message.format(open_place / device))


def test_a_capture_that_may_not_be_written(open_place: Path) -> None:
    """Asked as another process: access(2) goes by the real user."""
    file = write(open_place, GUEST + link(capture="x.pcap"))
    program = (
        "import os, sys; from pathlib import Path; from miniguest.deploy import topology\n"
        "from miniguest.deploy.errors import TopologyError\n"
        "os.getuid() or os.setresuid(*[int(sys.argv[2])] * 3)\n"
        "try: topology.load(Path(sys.argv[1]))\n"
        "except TopologyError as error: print(error)"
    )
    if os.getuid():
        os.chmod(open_place, 0o555)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", program, file, str(NOBODY)], env=environment, capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == (
        f"{file}: link.lan0.capture: {open_place}/x.pcap cannot be written: no permission for {open_place}\n", "",
    )


# -- the command
@pytest.mark.parametrize(("text", "message"), [
    (vifs(vif(link="lan1")) + LAN, "t.toml: guest[0].vif[0].link: 'lan1' is no link: known are lan0"),
    (vifs(vif(rate="fast")) + LAN, "t.toml: guest[0].vif[0].rate: 'fast' is no rate: give one like"),
    (GUEST + link("pcap", replay="cut.pcap", capture="a\\nb.pcap"), "cut.pcap: ends within packet 2"),
    (GUEST + '[link."a\\nb"]\nmtu = "1"\n', "mtu: must be an integer"),
])
def test_the_command_says_so_and_leaves_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    write(place, text)
    (place / "tmp").mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv(firmware.ENVIRONMENT, str(place / "bios.bin"))
    monkeypatch.setattr("tempfile.tempdir", str(place / "tmp"))
    monkeypatch.setattr(runtime, "candidates", lambda: iter([(place / "tmp", "miniguest-")]))
    monkeypatch.setattr(sys, "argv", ["miniguest", "run", "t.toml", "--json", "out.json"])
    before = sorted(place.rglob("*"))
    assert cli._guarded(cli._invoke) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err
    assert err.startswith("miniguest: ") and err.count("\n") == 1
    assert sorted(place.rglob("*")) == before
