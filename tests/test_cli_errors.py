"""The command: what bad usage, bad files and accidents print and return, and that nothing stays behind."""
from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from miniguest.deploy import cli, firmware, images, runtime, topology
from miniguest.deploy.errors import Interrupted, ProcessDied
from miniguest.deploy.report import Disk, Ended, Exits, Guest, Row, RunResult, TimeNs
from miniguest.deploy.topology import Topology

Start = Callable[[Topology, Path, "float | None", BinaryIO], RunResult]
TOPOLOGY = '[[guest]]\nname = "hvm0"\nfirmware = "bios.bin"\ndisk = [{ image = "grub.img", vdev = "hda" }]\n'


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a good topology t.toml with its files, and everything temporary below it."""
    place = tmp_path / "w"
    for directory in (place, tmp_path / "tmp", tmp_path / "shm"):
        directory.mkdir()
    (place / "grub.img").write_bytes(bytes(4096))
    (place / "bios.bin").write_bytes(bytes(1 << 16))
    (place / "t.toml").write_text(TOPOLOGY)
    monkeypatch.chdir(place)
    monkeypatch.setenv(firmware.ENVIRONMENT, str(place / "bios.bin"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(runtime, "candidates", lambda: iter([(tmp_path / "shm", "miniguest-")]))
    monkeypatch.setattr(runtime, "is_tmpfs", lambda _path: True)
    monkeypatch.setattr(runtime, "SOCKET_PATH_MAX", 200)            # pytest's own directories have long names
    return place


def everything(place: Path) -> set[Path]:
    return set(place.parent.rglob("*"))


def result(ended: Ended = "halt", console: str = "", *more: Ended) -> RunResult:
    exits = Exits.of_rows([Row("pio_in", "ide0", 0x1F0, 2, 3, 768, TimeNs(9000, 2000, 4000))])
    guests = (Guest(f"hvm{i}", 2 * i + 1, "unicorn", "domain", end, console, exits, (Disk(3, 1536, 0),))
              for i, end in enumerate((ended, *more)))
    return RunResult("t", tuple(guests), (), ())


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str, start: Start | None = None) -> int:
    """The status of `miniguest run ARGUMENTS`, with `start` for a supervisor: by default none may be started."""
    def never(*_: object) -> RunResult:
        raise AssertionError("something was started")

    monkeypatch.setattr(sys, "argv", ["miniguest", "run", *arguments])
    monkeypatch.setattr(cli, "start", start or never)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.raises(SystemExit) as caught:
            cli.main()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def giving(value: RunResult) -> Start:
    return lambda *_: value


def raising(error: BaseException) -> Start:
    def start(*_: object) -> RunResult:
        raise error

    return start


MISTAKES = {
    "no topology": (["no.toml"], "no.toml: cannot be read: No such file or directory"),
    "topology is an image": (["grub.img"], "grub.img: not a topology file: an image goes with --disk"),
    "unknown key": (["key.toml"], "key.toml: guest[0].cpus: unknown key: known are name,"),
    "wrong type": (["type.toml"], "type.toml: guest[0].memory: must be an integer, not a string"),
    "missing image": (["--disk", "no.img"], "no.img: --disk: cannot be opened rw: No such file or directory"),
    "empty image": (["--disk", "empty.img"], "empty.img: --disk: is empty"),
    "odd image": (["--disk", "odd.img"], "odd.img: --disk: has 513 bytes, which is no multiple of 512"),
    "odd image in place": (["t.toml", "--disk", "odd.img"], "odd.img: --disk: has 513 bytes"),
    "image is a directory": (["--disk", "."], ".: --disk: is a directory, not an image"),
    "no firmware": (["firmware.toml"], "firmware.toml: guest[0].firmware: no SeaBIOS on this machine: install"),
    "busy runtime": (["t.toml", "--runtime", "."], "--runtime: busy runtime directory: it is not empty"),
    "runtime is a file": (["t.toml", "--runtime", "grub.img"], "grub.img: --runtime: cannot be used: Not a directory"),
    "runtime nowhere": (["t.toml", "--runtime", "no/dir"], "no/dir: --runtime: cannot be made: No such file"),
    "runtime too long": (["t.toml", "--runtime", "d" * 150], "bytes too long for the paths of UNIX sockets"),
    "json nowhere": (["t.toml", "--json", "no/out.json"], "no/out.json: --json: cannot be written: No such file"),
    "json is a directory": (["t.toml", "--json", "."], ".: --json: cannot be written: Is a directory"),
    "no time": (["t.toml", "--timeout", "0"], "--timeout: 0 is no time to wait"),
    "not a time": (["t.toml", "--timeout", "nan"], "--timeout: nan is no time to wait"),
    "not a number": (["t.toml", "--timeout", "soon"], "'--timeout': 'soon' is not a valid float"),
    "unknown option": (["t.toml", "--fast"], "No such option"),
    "two topologies": (["t.toml", "u.toml"], "unexpected extra argument"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_status_2_and_leaves_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mistake: str
) -> None:
    (place / "key.toml").write_text(TOPOLOGY + "cpus = 2")
    (place / "type.toml").write_text(TOPOLOGY + 'memory = "64"')
    (place / "firmware.toml").write_text(TOPOLOGY.replace("bios.bin", "seabios"))
    (place / "empty.img").touch()
    (place / "odd.img").write_bytes(bytes(513))
    if mistake == "no firmware":
        monkeypatch.delenv(firmware.ENVIRONMENT)
        monkeypatch.setattr(firmware, "PLACES", ())
    before = everything(place)
    arguments, message = MISTAKES[mistake]
    status = run(monkeypatch, *arguments)
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert message in err
    assert err.startswith("miniguest: ")
    assert err.count("\n") == 1
    assert everything(place) == before


def test_a_machine_without_grub_is_told_so(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(images, "_MODULE_DIRS", ())
    before = everything(place)
    assert run(monkeypatch) == 2
    assert "grub-pc-bin: install" in capsys.readouterr().err
    assert everything(place) == before


def test_no_room_anywhere(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(runtime, "free_bytes", lambda _path: 5 << 20)
    assert run(monkeypatch, "t.toml") == 2
    err = capsys.readouterr().err
    assert "no tmpfs has 256 MiB of room" in err
    assert "shm has 5 MiB: use --runtime DIR" in err


@pytest.mark.parametrize(("ends", "status"), [
    (["halt"], 0), (["poweroff"], 0), (["timeout"], 3), (["crash"], 1), (["halt", "timeout"], 3),
    (["timeout", "crash"], 1),
])
def test_status_says_how_the_guests_ended(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ends: list[Ended], status: int
) -> None:
    before = everything(place)
    assert run(monkeypatch, "t.toml", start=giving(result(ends[0], "", *ends[1:]))) == status
    assert "VM-EXIT" in capsys.readouterr().out
    assert everything(place) == before


@pytest.mark.parametrize(("error", "status", "message"), [
    (ProcessDied("blkback (pid 7) was killed by SIGKILL"), 1, "blkback (pid 7) was killed by SIGKILL"),
    (Interrupted(signal.SIGTERM), 143, "ended by SIGTERM"),
    (KeyboardInterrupt(), 130, "ended by SIGINT"),
])
def test_accidents_are_one_line_and_leave_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, status: int,
    message: str,
) -> None:
    before = everything(place)
    assert run(monkeypatch, "t.toml", "--json", "out.json", start=raising(error)) == status
    out, err = capsys.readouterr()
    # click ends the line that a terminal's ^C has begun.
    assert (out, err.strip()) == ("", f"miniguest: {message}")
    assert everything(place) == before


def test_sigterm_before_the_supervisor_is_up_cleans_up_as_well(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = everything(place)

    def start(_what: Topology, directory: Path, *_: object) -> RunResult:
        (directory / "dom1").mkdir()
        (directory / "dom1/memory").write_bytes(b"x")
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal did not arrive")

    assert run(monkeypatch, "t.toml", start=start) == 143
    assert everything(place) == before


def test_json_replaces_what_was_in_the_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "out.json").write_text("old " * 4000)
    assert run(monkeypatch, "t.toml", "--json", "out.json", start=giving(result())) == 0
    assert json.loads((place / "out.json").read_text())["guests"][0]["exits"]["total"] == 3


def test_json_on_stdout_moves_all_else_to_stderr(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    def start(_what: Topology, _directory: Path, _timeout: float | None, console: BinaryIO, *_: object) -> RunResult:
        console.write(b"from the guest\n")
        return result()

    assert run(monkeypatch, "t.toml", "--json", "-", start=start) == 0
    sys.stderr.flush()
    out, err = capfdbinary.readouterr()
    assert json.loads(out)["topology"] == "t"
    assert b"from the guest" in err
    assert b"VM-EXIT" in err


@pytest.mark.parametrize(("honest", "status", "word"), [(True, 0, "computed the same"), (False, 1, "did not compute")])
def test_without_topology_the_hash_is_compared(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], honest: bool, status: int,
    word: str,
) -> None:
    image = place / "grub.img"
    monkeypatch.setattr(images, "build_first_light", lambda _directory: images.FirstLight(image, "ab" * 32, 1))
    started: list[Topology] = []

    def start(what: Topology, *_: object) -> RunResult:
        started.append(what)
        return result("poweroff", f"{'ab' * 32 if honest else ''}  /random.bin\n")

    before = everything(place)
    assert run(monkeypatch, start=start) == status
    assert word in capsys.readouterr().out
    assert (started[0].name, started[0].guest[0].disk[0].image) == ("first-light", image)
    assert everything(place) == before


def test_options_reach_the_supervisor(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def start(what: Topology, directory: Path, timeout: float | None, console: BinaryIO, *_: object) -> RunResult:
        seen.extend([what.name, directory, timeout, stat.S_IMODE(directory.stat().st_mode)])
        assert console.writable()
        return result()

    assert run(monkeypatch, "t.toml", "--timeout", "2.5", "--runtime", "here", start=start) == 0
    assert seen == ["t", place / "here", 2.5, 0o700]
    assert not (place / "here").exists()


def test_a_runtime_directory_that_was_there_stays_empty(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "here").mkdir()

    def start(_what: Topology, directory: Path, *_: object) -> RunResult:
        (directory / "xenstored.sock").touch()
        return result()

    assert run(monkeypatch, "t.toml", "--runtime", "here", start=start) == 0
    assert list((place / "here").iterdir()) == []


def test_a_runtime_directory_in_use_names_the_process(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    what = topology.load(place / "t.toml")
    with runtime.runtime_directory(what, place / "here"):
        before = everything(place)
        assert run(monkeypatch, "t.toml", "--runtime", "here") == 2
        assert f"busy runtime directory: process {os.getpid()} uses it" in capsys.readouterr().err
        assert everything(place) == before


def test_what_a_killed_run_left_goes_with_the_next(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shm = place.parent / "shm"
    program = (
        "import os, sys; from pathlib import Path; from miniguest.deploy import runtime\n"
        "d = Path(sys.argv[1]); d.mkdir(); runtime._lock(d); (d / 'dom1').mkdir(); os.kill(os.getpid(), 9)"
    )
    left = shm / "miniguest-t-left"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", program, left], env=environment)
    assert (killed.returncode, left.is_dir()) == (-signal.SIGKILL, True)
    (shm / "miniguest-not-ours").mkdir()                # has no lock: somebody's, or still being set up
    assert run(monkeypatch, "t.toml", start=giving(result())) == 0
    assert [entry.name for entry in shm.iterdir()] == ["miniguest-not-ours"]


def test_a_reader_that_goes_away_is_no_traceback(place: Path) -> None:
    program = (
        "import sys; from miniguest.deploy import cli; from miniguest.deploy.report import RunResult\n"
        "def start(*_):\n    cli.sys.stdout.write('x' * (1 << 20)); return RunResult('t', (), (), ())\n"
        "cli.start = start; sys.argv[1:] = ['run', 't.toml']; cli.main()"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    assert command.stdout is not None
    command.stdout.close()
    _, err = command.communicate()
    assert (command.returncode, err) == (128 + signal.SIGPIPE, b"")
