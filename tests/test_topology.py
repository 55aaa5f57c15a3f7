"""Topology files: what is accepted, and the one line each mistake gets."""
from __future__ import annotations

import os
from pathlib import Path

import pytest

from miniguest.deploy import checks, firmware, topology
from miniguest.deploy.errors import FirmwareError, TopologyError
from miniguest.deploy.topology import Disk, Guest, Topology

GUEST = '[[guest]]\nname = "hvm0"\nfirmware = "bios.bin"\n'
ISSUE = """
name = "first-light"
[[guest]]
name = "hvm0"
memory = 128
vcpus = 1
engine = "auto"
firmware = "bios.bin"
serial = "stdio"
disk = [{ image = "grub.img", vdev = "hda", access = "rw" }]
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with an image of eight sectors and a file that could be firmware."""
    (tmp_path / "grub.img").write_bytes(bytes(8 * 512))
    (tmp_path / "other.img").write_bytes(bytes(512))
    (tmp_path / "bios.bin").write_bytes(bytes(1 << 18))
    return tmp_path


def write(place: Path, text: str) -> Path:
    file = place / "t.toml"
    file.write_text(text)
    return file


def test_every_key_arrives_and_paths_start_at_the_file(place: Path) -> None:
    disk = Disk(image=place / "grub.img", vdev="hda", access="rw", format="raw")
    guest = Guest(name="hvm0", memory=128, vcpus=1, engine="auto", firmware=str(place / "bios.bin"), serial="stdio",
                  disk=(disk,))
    assert topology.load(write(place, ISSUE)) == Topology(name="first-light", guest=(guest,), doorbell="zmq")


def test_defaults(place: Path) -> None:
    loaded = topology.load(write(place, GUEST))
    (guest,) = loaded.guest
    assert (loaded.name, loaded.doorbell, loaded.memory) == ("t", "zmq", 128)
    assert (guest.vcpus, guest.engine, guest.serial, guest.boot, guest.disk) == (1, "auto", "stdio", "c", ())


def test_several_guests_share_backends_and_read_only_images(place: Path) -> None:
    one, two = (
        f'[[guest]]\nname = "{name}"\nmemory = 64\nfirmware = "bios.bin"\nserial = "{name}.log"\n'
        'disk = [{ image = "grub.img", vdev = "hda", access = "ro" }]\n'
        for name in ("a", "b")
    )
    loaded = topology.load(write(place, f'doorbell = "fifo"\n{one}{two}'))
    assert [guest.name for guest in loaded.guest] == ["a", "b"]
    assert [guest.serial for guest in loaded.guest] == [str(place / "a.log"), str(place / "b.log")]
    assert (loaded.doorbell, loaded.memory) == ("fifo", 128)


def disk(image: str = "grub.img", vdev: str = "hda", rest: str = "") -> str:
    return f'{{ image = "{image}", vdev = "{vdev}"{rest} }}'


MISTAKES = {
    "syntax": ("name = \n", "line 1, column 8", "not TOML: Invalid value"),
    "unfinished": ("x = 1\ny = [", "line 2", "not TOML: Invalid value"),
    "no guest": ("", "guest", "missing: it must be given"),
    "empty guests": ("guest = []", "guest", "at least one [[guest]] is needed"),
    "guest is no list": ("guest = 3", "guest", "must be a list, not an integer"),
    "top-level key": ("gest = 1\n" + GUEST, "gest", "unknown key: known are guest, name, doorbell"),
    "guest key": (GUEST + "cpus = 1", "guest[0].cpus", "unknown key: known are name, memory, vcpus,"),
    "disk key": (GUEST + f'disk = [{disk(rest=", mode = 3")}]', "guest[0].disk[0].mode",
                 "unknown key: known are image,"),
    "no name": ("[[guest]]\nmemory = 64", "guest[0].name", "missing: it must be given"),
    "topology name": ('name = "../x"\n' + GUEST, "name", "'../x' is no name"),
    "guest name": ('[[guest]]\nname = "a b"', "guest[0].name", "'a b' is no name"),
    "same name": (GUEST + GUEST, "guest[1].name", "'hvm0' is the name of guest[0] already"),
    "memory type": (GUEST + 'memory = "64"', "guest[0].memory", "must be an integer, not a string"),
    "memory fraction": (GUEST + "memory = 64.5", "guest[0].memory", "must be an integer, not a fraction"),
    "little memory": (GUEST + "memory = 15", "guest[0].memory", "15 MiB: give 16 to 3072"),
    "much memory": (GUEST + "memory = 3073", "guest[0].memory", "3073 MiB: give 16 to 3072"),
    "two vcpus": (GUEST + "vcpus = 2", "guest[0].vcpus", "need an engine with real atomics, and unicorn has none"),
    "no vcpu": (GUEST + "vcpus = 0", "guest[0].vcpus", "0 vCPUs: give 1"),
    "engine": (GUEST + 'engine = "bochs"', "guest[0].engine", "'bochs' is none of auto, unicorn, kvm, replay"),
    "boot": (GUEST + 'boot = "d"', "guest[0].boot", "'d' is no boot order"),
    "boot twice": (GUEST + 'boot = "cc"', "guest[0].boot", "'cc' is no boot order"),
    "boot from no network": (GUEST + 'boot = "n"', "guest[0].boot", "needs a vif"),
    "doorbell": ('doorbell = "bell"\n' + GUEST, "doorbell", "'bell' is none of zmq, fifo"),
    "access": (GUEST + f"""disk = [{disk(rest=', access = "w"')}]""", "guest[0].disk[0].access",
               "'w' is none of rw, ro"),
    "format": (GUEST + f"""disk = [{disk(rest=', format = "qcow2"')}]""", "guest[0].disk[0].format",
               "'qcow2' is none of raw"),
    "image type": (GUEST + 'disk = [{ image = 3, vdev = "hda" }]', "guest[0].disk[0].image",
                   "must be a string, not an integer"),
    "no vdev": (GUEST + 'disk = [{ image = "grub.img" }]', "guest[0].disk[0].vdev", "missing: it must be given"),
    "vdev": (GUEST + f'disk = [{disk(vdev="hde")}]', "guest[0].disk[0].vdev", "'hde' is none of hda, hdb, hdc, hdd"),
    "same vdev": (GUEST + f'disk = [{disk()}, {disk("other.img")}]', "guest[0].disk[1].vdev",
                  "hda is taken by guest[0].disk[0]"),
    "same image": (GUEST + f'disk = [{disk()}, {disk(vdev="hdb")}]', "guest[0].disk[1].image",
                   "guest[0].disk[0] uses it too"),
    "missing image": (GUEST + f'disk = [{disk("no.img")}]', "guest[0].disk[0].image",
                      "cannot be opened rw: No such file or directory"),
    "directory": (GUEST + f'disk = [{disk(".")}]', "guest[0].disk[0].image", "is a directory, not an image"),
    "device": (GUEST + f'disk = [{disk("/dev/null")}]', "guest[0].disk[0].image", "neither a file nor a block device"),
    "serial": (GUEST + 'serial = ""', "guest[0].serial", "is empty"),
    "serial directory": (GUEST + 'serial = "."', "guest[0].serial", "is a directory"),
    "serial nowhere": (GUEST + 'serial = "no/log"', "guest[0].serial", "no such directory"),
    "no firmware": ('[[guest]]\nname = "a"\nfirmware = "no.bin"', "guest[0].firmware", "cannot be read: No such file"),
    "odd firmware": ('[[guest]]\nname = "a"\nfirmware = "grub.img"', "guest[0].firmware",
                     "has 4096 bytes: firmware is a power of two"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_file_and_key(place: Path, mistake: str) -> None:
    text, key, message = MISTAKES[mistake]
    file = write(place, text)
    with pytest.raises(TopologyError) as caught:
        topology.load(file)
    assert caught.value.key == key
    assert message in caught.value.message
    line = str(caught.value)
    assert line.startswith(f"{file}: {key}: ")
    assert "\n" not in line


@pytest.mark.parametrize(("size", "message"), [(0, "is empty"), (513, "has 513 bytes, which is no multiple of 512")])
def test_an_image_of_no_whole_sectors_is_refused(place: Path, size: int, message: str) -> None:
    (place / "grub.img").write_bytes(bytes(size))
    with pytest.raises(TopologyError, match=message):
        topology.load(write(place, ISSUE))


def test_an_image_that_may_only_be_read_needs_ro(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path, flags: int) -> int:
        raise PermissionError(13, "Permission denied") if flags & os.O_RDWR else FileNotFoundError(2, "gone")

    monkeypatch.setattr(os, "open", refuse)
    trouble = checks.image_trouble(place / "grub.img", "rw")
    assert trouble == 'cannot be opened rw: Permission denied (access = "ro" may do)'
    assert checks.image_trouble(place / "grub.img", "ro") == "cannot be opened ro: gone"


def test_the_same_file_is_known_by_another_name(place: Path) -> None:
    (place / "link.img").symlink_to("grub.img")
    with pytest.raises(TopologyError, match="uses it too"):
        topology.load(write(place, GUEST + f'disk = [{disk()}, {disk("link.img", "hdb")}]'))


@pytest.mark.parametrize("content", [b"\0" * 4096, b"name = '\xff'", b"#" * (topology.SIZE_MAX + 1)])
def test_an_image_is_not_taken_for_a_topology(place: Path, content: bytes) -> None:
    (place / "t.toml").write_bytes(content)
    with pytest.raises(TopologyError, match="not a topology file: an image goes with --disk"):
        topology.load(place / "t.toml")


def test_disk_option_replaces_the_first_disk_before_it_is_looked_at(place: Path) -> None:
    file = write(place, ISSUE.replace("grub.img", "absent.img"))
    loaded = topology.load(file, place / "other.img")
    assert loaded.guest[0].disk == (Disk(image=place / "other.img", vdev="hda"),)
    with pytest.raises(TopologyError, match=r"no\.img: --disk: cannot be opened rw"):
        topology.load(file, place / "no.img")


def test_disk_option_gives_a_disk_to_a_guest_without(place: Path) -> None:
    loaded = topology.load(write(place, GUEST), place / "other.img")
    assert [(disk.image.name, disk.vdev, disk.access) for disk in loaded.guest[0].disk] == [("other.img", "hda", "rw")]


def test_disk_alone_makes_a_default_guest(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(firmware.ENVIRONMENT, str(place / "bios.bin"))
    (place / "my image.img").write_bytes(bytes(512))
    made = topology.of_disk(place / "my image.img")
    assert (made.name, made.guest[0].name, made.guest[0].firmware) == ("my-image", "hvm0", str(place / "bios.bin"))


def test_no_seabios_names_the_package(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(firmware.ENVIRONMENT, raising=False)
    monkeypatch.setattr(firmware, "PLACES", (str(place / "nowhere.bin"),))
    with pytest.raises(TopologyError, match=r"t\.toml: guest\[0\]\.firmware: no SeaBIOS .* package seabios"):
        topology.load(write(place, '[[guest]]\nname = "hvm0"'))


def test_firmware_is_a_file(place: Path) -> None:
    with pytest.raises(FirmwareError, match="is not a file"):
        firmware.find(".", place)


@pytest.mark.parametrize(("text", "name"), [
    ("grub", "grub"), ("a b", "a-b"), ("-.x", "x"), ("", "guest"), ("n" * 40, "n" * 32),
])
def test_as_name_gives_a_name(text: str, name: str) -> None:
    assert checks.as_name(text) == name
    assert checks.NAME.fullmatch(name)
