"""The README stays true: its commands run, its topology loads, and the files it names are there."""
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from miniguest.deploy import images

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(sh|toml)\n(.*?)```", README, re.S)
COMMANDS = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
TOPOLOGIES = [block for kind, block in BLOCKS if kind == "toml"]
WORDS = ("run", "add", "remove")
TARGETS = [command.split()[1] for command in COMMANDS if command.startswith("make ")]


def test_every_command_is_known() -> None:
    """A command of another kind than those below would be run by no test."""
    for command in COMMANDS:
        assert command.startswith(("make ", "XENSTORED_PATH=", *(f".venv/bin/miniguest {word} " for word in WORDS))), command


@pytest.mark.parametrize("target", TARGETS)
def test_make_targets_exist(target: str) -> None:
    # What they do is tested where it belongs: `make run` in test_first_light.py, and this is `make test`.
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_topology_and_the_commands_run(tmp_path: Path) -> None:
    """The commands of the section on guests of one's own, in a directory with the files that they name."""
    image = images.build_first_light(tmp_path).image.rename(tmp_path / "grub.img")
    (tmp_path / "data.img").write_bytes(bytes(1 << 20))
    for topology in TOPOLOGIES:
        name = topology.split('"')[1]
        (tmp_path / f"{name}.toml").write_text(topology)
    ran = 0
    for command in COMMANDS:
        if command.startswith(".venv/bin/miniguest run ") and not command.endswith("&"):
            arguments = shlex.split(command)[1:]
            done = subprocess.run(
                [sys.executable, "-m", "miniguest.deploy", *arguments], cwd=tmp_path, capture_output=True, text=True,
                stdin=subprocess.DEVNULL, timeout=100,
            )
            network = "network-boot" in command
            assert done.returncode == (3 if network else 0), done.stderr
            assert ("Configuring (net0 00:16:3e:00:00:01)" if network else "miniguest: first light") in done.stdout
            ran += 1
    assert ran == 5
    assert image.exists()
    assert (tmp_path / "report.json").stat().st_size > 0


def test_the_store_of_a_running_topology(tmp_path: Path) -> None:
    """The commands that go together: a topology in the background, xenstore-ls on it, and a guest that comes and goes."""
    start = next(command for command in COMMANDS if command.endswith("&"))
    listing = next(command for command in COMMANDS if command.startswith("XENSTORED_PATH="))
    config = "serial --unit=0 --speed=115200\nterminal_input serial\nterminal_output serial\necho waiting\n"
    images.build(tmp_path, config, {})
    runtime = f"/dev/shm/first-{os.getpid()}"
    arguments = shlex.split(start.rstrip("& ").replace("/dev/shm/first", runtime))[1:]
    guest = subprocess.Popen(
        [sys.executable, "-m", "miniguest.deploy", *arguments], cwd=tmp_path, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    assert guest.stdout is not None
    assert os.read(guest.stdout.fileno(), 1)
    done = subprocess.run(listing.replace("/dev/shm/first", runtime), shell=True, capture_output=True, text=True)
    assert 'name = "hvm0-dm"' in done.stdout
    (tmp_path / "another.toml").write_text(next(topology for topology in TOPOLOGIES if '"another"' in topology))
    for word, is_there in (("add", True), ("remove", False)):
        command = next(command for command in COMMANDS if command.startswith(f".venv/bin/miniguest {word} "))
        arguments = shlex.split(command.replace("/dev/shm/first", runtime))[1:]
        asked = subprocess.run(
            [sys.executable, "-m", "miniguest.deploy", *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert asked.returncode == 0, asked.stderr
        done = subprocess.run(listing.replace("/dev/shm/first", runtime), shell=True, capture_output=True, text=True)
        assert ('name = "another-dm"' in done.stdout) == is_there
    guest.terminate()
    guest.communicate(timeout=60)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / target).exists(), target
