"""First light: unmodified SeaBIOS and GRUB boot from a disk that a blkif ring serves, and every sector is accounted for."""
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import pyxs
from guests import MINIGUEST, Conversation, run

from miniguest.deploy import images

SECTOR = 512
ON_SERIAL = "serial --unit=0 --speed=115200\nterminal_input serial\nterminal_output serial\n"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1bc")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> images.FirstLight:
    return images.build_first_light(tmp_path_factory.mktemp("image"))


def rows(report: dict[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    every = report["guests"][0]["exits"]["rows"]
    return [row for row in every if all(row[key] == value for key, value in wanted.items())]


def left_behind() -> set[Path]:
    """What the command makes in places that others use too."""
    places = ("/tmp", "/dev/shm", "/run", os.environ.get("XDG_RUNTIME_DIR", "/run"))
    return {found for place in places for found in Path(place).glob("miniguest-*")}


def test_make_run_ends_well(tmp_path: Path) -> None:
    """`make run` without its set-up: builds the image, boots it, compares the hash, and leaves nothing."""
    before = left_behind()
    done = subprocess.run([*MINIGUEST, "run"], capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (host,) = re.findall(r"sha256sum on the host: ([0-9a-f]{64}): the guest computed the same", done.stdout)
    assert f"{host}  /random.bin" in done.stdout
    assert left_behind() == before


@pytest.mark.parametrize("doorbell", ["zmq", "fifo"])
def test_every_sector_is_accounted_for(tmp_path: Path, image: images.FirstLight, doorbell: str) -> None:
    topology = tmp_path / "first.toml"
    topology.write_text(
        f'doorbell = "{doorbell}"\n[[guest]]\nname = "hvm0"\ndisk = [{{ image = "{image.image}", vdev = "hda" }}]\n'
    )
    ran = run(tmp_path, str(topology), "--timeout", "100")
    assert (ran.status, ran.guest["ended"]) == (0, "poweroff"), ran.stderr
    assert image.sha256 in ran.console
    (disk,), (ring,) = ran.guest["disks"], ran.report["rings"]
    assert ring["requests"] == ring["responses"] == disk["requests"] > 0
    assert disk["bytes_written"] == 0
    # The data port moved 256 words for each sector that the guest asked for, and for its one IDENTIFY.
    data = rows(ran.report, device="ide0", address=0x1F0, kind="pio_in")
    words = sum(row["elements"] * row["size"] // 2 for row in data)
    assert words == 256 * (disk["bytes_read"] // SECTOR + 1)
    assert all(row["size"] == 2 for row in data)
    # A string instruction is one exit of many elements: a sector's 256 words are one exit.
    assert sum(row["exits"] for row in data) == words // 256


def test_the_report_adds_up(tmp_path: Path, image: images.FirstLight) -> None:
    ran = run(tmp_path, "--disk", str(image.image), "--timeout", "100")
    exits = ran.guest["exits"]
    assert exits["total"] == sum(exits["by_kind"].values()) == sum(row["exits"] for row in exits["rows"])
    for device, count in exits["by_device"].items():
        assert count["exits"] == sum(row["exits"] for row in exits["rows"] if row["device"] == device)
    for row in exits["rows"]:
        time = row["time_ns"]
        assert time["min"] * row["exits"] <= time["total"] <= time["max"] * row["exits"]
    assert {process["name"]: process["exit_code"] for process in ran.report["processes"]} == {
        "hypervisor": 0, "xenstored": 0, "blkback": 0, "console": 0, "hvm0-dm": 0, "hvm0-vcpu0": 11,
    }
    assert ran.guest["device_model"] == "domain"
    assert ran.guest["engine"] == "unicorn"


def test_two_guests_on_shared_backends(tmp_path: Path, image: images.FirstLight) -> None:
    topology = tmp_path / "two.toml"
    guest = '[[guest]]\nname = "{name}"\nserial = "{serial}"\ndisk = [{{ image = "{image}", vdev = "hda", access = "ro" }}]\n'
    topology.write_text(
        guest.format(name="a", serial="stdio", image=image.image) + guest.format(name="b", serial="b.log", image=image.image)
    )
    ran = run(tmp_path, str(topology), "--timeout", "100")
    assert ran.status == 0, ran.stderr
    assert [guest["ended"] for guest in ran.report["guests"]] == ["poweroff", "poweroff"]
    assert all(image.sha256 in guest["console"] for guest in ran.report["guests"])
    assert image.sha256 in (tmp_path / "b.log").read_text()
    assert f"a| {image.sha256}" in ESCAPES.sub("", ran.stdout)


def test_json_on_standard_output(tmp_path: Path, image: images.FirstLight) -> None:
    command = [*MINIGUEST, "run", "--disk", str(image.image), "--json", "-", "--timeout", "100"]
    done = subprocess.run(command, capture_output=True, timeout=120, stdin=subprocess.DEVNULL)
    assert json.loads(done.stdout)["guests"][0]["ended"] == "poweroff"
    assert image.sha256.encode() in done.stderr


def test_grub_is_talked_to_over_the_serial_line(tmp_path: Path) -> None:
    """GRUB's serial terminal takes keys: its command line lists the disk and powers off."""
    menu = images.build(tmp_path, ON_SERIAL, {}, modules=f"{images.MODULES} ls")
    with Conversation("--disk", str(menu), "--timeout", "100") as guest:
        guest.read_until(b"grub>")
        guest.write(b"echo a${grub_platform}z\r")
        guest.read_until(b"apcz")
        guest.write(b"ls (hd0)\r")
        guest.read_until(b"Sector size 512B")
        guest.write(b"halt\r")
        assert guest.wait() == 0


def test_the_runtime_directory_while_it_lives(tmp_path: Path, image: images.FirstLight) -> None:
    runtime = Path("/dev/shm") / f"mgt{tmp_path.name[-20:]}"
    menu = images.build(tmp_path, ON_SERIAL, {}, modules=f"{images.MODULES} ls")
    with Conversation("--disk", str(menu), "--timeout", "100", "--runtime", str(runtime)) as guest:
        guest.read_until(b"grub>")
        names = {path.name for path in runtime.iterdir()}
        assert {"xenstored.sock", "dom0", "dom1", "dom2"} <= names
        assert {f"{name}.log" for name in ("hypervisor", "xenstored", "blkback", "console", "hvm0-dm", "hvm0-vcpu0")} <= names
        assert (runtime / "dom1" / "memory").stat().st_size > 128 << 20
        listing = subprocess.run(
            ["xenstore-ls", "-f"], env={"XENSTORED_PATH": str(runtime / "xenstored.sock")}, capture_output=True, text=True,
        )
        assert '/local/domain/0/backend/vbd/2/768/state = "4"' in listing.stdout
        assert '/local/domain/2/device/vbd/768/state = "4"' in listing.stdout
        store_tools(runtime / "xenstored.sock")
        guest.write(b"halt\r")
        assert guest.wait() == 0
    assert not runtime.exists()


def store_tools(socket: Path) -> None:
    """Debian's clients and pyxs, on the xenstored of a topology whose guest runs."""
    environment = {"XENSTORED_PATH": str(socket)}
    watch = subprocess.Popen(["xenstore-watch", "-n", "2", "/tool/test"], env=environment, stdout=subprocess.PIPE, text=True)
    assert watch.stdout is not None
    assert watch.stdout.readline() == "/tool/test\n"          # every watch fires once when it is set
    subprocess.run(["xenstore-write", "/tool/test/key", "from the tools"], env=environment, check=True)
    assert watch.communicate(timeout=30)[0] == "/tool/test/key\n"
    with pyxs.Client(unix_socket_path=str(socket)) as client:
        assert client[b"/tool/test/key"] == b"from the tools"
        assert b"0" in client.list(b"/local/domain")
        client.transaction()
        client[b"/tool/test/other"] = b"from pyxs"
        assert client.commit()
    read = subprocess.run(["xenstore-read", "/tool/test/other"], env=environment, capture_output=True, text=True, check=True)
    assert read.stdout == "from pyxs\n"


def test_the_serial_line_on_a_pty(tmp_path: Path) -> None:
    images.build(tmp_path, ON_SERIAL, {})
    topology = tmp_path / "pty.toml"
    topology.write_text('[[guest]]\nname = "g"\nserial = "pty"\ndisk = [{ image = "grub.img", vdev = "hda" }]\n')
    process = subprocess.Popen(
        [*MINIGUEST, "run", str(topology), "--timeout", "100"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    assert process.stderr is not None
    (name,) = re.findall(r"g: serial line on (/dev/pts/[0-9]+)\n", process.stderr.readline().decode())
    with open(name, "r+b", buffering=0) as terminal:
        said = b""
        while b"grub>" not in said:
            said += terminal.read(4096)
        terminal.write(b"halt\r")
        assert process.wait(timeout=60) == 0
    process.communicate()
