"""The script that installs Debian packages, among programs that only say what they were asked."""
from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "deploy/install-packages"
WANTED = (ROOT / "deploy/packages.txt").read_text().split()


class Machine:
    """A PATH of its own: the few tools a script needs, and stand-ins for the rest."""

    def __init__(self, directory: Path) -> None:
        self.bin = directory / "bin"
        self.bin.mkdir()
        self.log = directory / "log"
        self.log.touch()
        for tool in ("cat", "dirname", "env", "sh"):
            found = shutil.which(tool)
            assert found
            (self.bin / tool).symlink_to(found)
        self.fake("python3", "echo /opt/python")

    def fake(self, name: str, body: str) -> None:
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(f"#!/bin/sh\necho {name} \"$@\" >>{self.log}\n{body}\n")
        (self.bin / name).chmod(0o755)

    def debian(self, missing: str = "", user: int = 0) -> None:
        self.fake("dpkg-query", f'for p; do :; done; case " {missing} " in *" $p "*) exit 1;; esac; echo "ii "')
        self.fake("id", f"echo {user}")

    def run(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run([SCRIPT], env={"PATH": str(self.bin)}, capture_output=True, text=True)

    def calls(self, name: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if line.startswith(f"{name} ")]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_nothing_is_done_when_all_is_there(machine: Machine) -> None:
    machine.debian()
    machine.fake("apt-get", "exit 1")
    done = machine.run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert machine.calls("apt-get") == []
    assert len(machine.calls("dpkg-query")) == len(WANTED)


def test_only_what_is_missing_is_installed_and_lists_are_not_fetched_in_vain(machine: Machine) -> None:
    machine.debian(missing="xorriso mtools")
    machine.fake("apt-get", "exit 0")
    assert machine.run().returncode == 0
    simulated, installed = machine.calls("apt-get")
    assert "--simulate" in simulated
    assert installed.endswith("--no-install-recommends xorriso mtools")


def test_lists_are_fetched_when_they_lack_a_package(machine: Machine) -> None:
    machine.debian(missing="xorriso")
    machine.fake("apt-get", 'case "$*" in *--simulate*) exit 100;; esac')
    assert machine.run().returncode == 0
    assert [call.split()[1] for call in machine.calls("apt-get")] == ["install", "update", "install"]


def test_a_python_of_the_distribution_needs_two_packages_more(machine: Machine) -> None:
    machine.debian(missing="python3-venv python3-dev")
    machine.fake("python3", "echo /usr")
    machine.fake("apt-get", "exit 0")
    assert machine.run().returncode == 0
    assert machine.calls("apt-get")[-1].endswith(" python3-venv python3-dev")


def test_sudo_is_for_those_who_are_not_root(machine: Machine) -> None:
    machine.debian(missing="xorriso", user=1000)
    machine.fake("apt-get", "exit 0")
    machine.fake("sudo", 'exec "$@"')
    assert machine.run().returncode == 0
    assert len(machine.calls("sudo")) == len(machine.calls("apt-get")) == 2


@pytest.mark.parametrize(("user", "fakes", "reason"), [
    (0, {}, "there is no apt-get"),
    (1000, {"apt-get": "exit 0"}, "there is no sudo"),
    (0, {"apt-get": "exit 100"}, "apt-get update failed"),
    (0, {"apt-get": 'case "$*" in *--simulate*|update*) exit 0;; esac; exit 100'}, "apt-get could not install them"),
])
def test_failures_list_the_packages(machine: Machine, user: int, fakes: dict[str, str], reason: str) -> None:
    machine.debian(missing="xorriso mtools", user=user)
    for name, body in fakes.items():
        machine.fake(name, body)
    done = machine.run()
    assert done.returncode == 1
    assert reason in done.stderr
    assert done.stderr.splitlines()[-1].endswith(": xorriso mtools")


def test_other_distributions_are_told_the_list_unless_they_have_it_all(machine: Machine) -> None:
    done = machine.run()
    assert done.returncode == 1
    assert "neither dpkg nor cc" in done.stderr
    assert done.stderr.splitlines()[-1].endswith(" ".join(WANTED))
    for program in ("cc", "xorriso", "xenstore-ls", "grub2-mkrescue"):
        machine.fake(program, "exit 0")
    assert machine.run().returncode == 0
