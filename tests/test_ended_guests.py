"""Guests that end by themselves in a topology that goes on: they are taken down as `miniguest remove` does it."""
import json
import os
import select
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil
import pytest
from dom0 import dom0
from test_added_guests import GUEST, Run, make_files

from miniguest.deploy.children import Child
from miniguest.deploy.errors import AskedInVain, ProcessDied
from miniguest.deploy.starting import Running
from miniguest.deploy.supervisor import Supervisor
from miniguest.deploy.toolstack import Toolstack, console_copy
from miniguest.deploy.topology import Disk, Guest
from miniguest.ring.abi.sched import SHUTDOWN_crash, SHUTDOWN_poweroff
from miniguest.ring.errors import HypercallError
from miniguest.ring.xenstore import Xenstore

PRINTED = 1500                          # bytes: less than a console ring holds
# mov dx, 0x3f8; mov al, 6; mov cx, PRINTED; 1: out dx, al; loop 1b; mov al, 10; out dx, al; cli; hlt
PRINTS_AND_HALTS = bytes.fromhex("baf803 b006 b9") + PRINTED.to_bytes(2, "little") + bytes.fromhex("ee e2fd b00a ee fa f4")
WORDS = "\6" * PRINTED + "\n"


def make_firmware(place: Path) -> None:
    # 16 bytes are too few behind the reset vector: jmp f000:0
    halting = PRINTS_AND_HALTS.ljust(0xFFF0, b"\0") + bytes.fromhex("ea 0000 00f0")
    (place / "halts.bin").write_bytes(halting.ljust(0x10000, b"\0"))


# -- the command
def ended(run: Run, name: str) -> None:
    """Wait for a process of it to end; the supervisor hears of that before it hears what is asked later."""
    for child in psutil.Process(run.process.pid).children():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if child.name() == name:
                fd = os.pidfd_open(child.pid)
                assert select.select([fd], [], [], 30)[0]
                os.close(fd)


def test_a_name_and_a_disk_can_be_used_again(tmp_path: Path) -> None:
    """And the report has all of them."""
    make_firmware(tmp_path)
    run = Run(tmp_path)
    try:
        before = sorted(run.runtime.rglob("*"))
        (tmp_path / "g.toml").write_text(
            GUEST.format(name="hvm1", serial="stdio").replace("fw.bin", "halts.bin")
            + 'disk = [{ image = "b.img", vdev = "hda" }]\nvif = [{ rom = "none", mac = "00:16:3e:00:00:02" }]\n'
        )
        for _ in range(3):
            done = run.ask("add", run.name, "g.toml")
            assert done.returncode == 0, done.stderr
            run.hear(WORDS.encode())
            ended(run, "hvm1-vcpu0")
            done = run.ask("remove", run.name, "hvm1")
            assert f"hvm1: no such guest runs in {run.name}: what runs is hvm0" in done.stderr
            assert sorted(run.runtime.rglob("*")) == before
        assert run.ask("remove", run.name, "hvm0").returncode == 0
        assert run.process.wait(60) == 0
        result = json.loads((tmp_path / "result.json").read_text())
        assert [(each["name"], each["domid"], each["ended"]) for each in result["guests"]] == [
            ("hvm0", 1, "poweroff"), ("hvm1", 3, "halt"), ("hvm1", 5, "halt"), ("hvm1", 7, "halt"),
        ]
        assert [each["console"] for each in result["guests"][1:]] == [WORDS] * 3
        assert [each["exits"]["by_kind"]["pio_out"] for each in result["guests"][1:]] == [PRINTED + 1] * 3
        assert [each["name"] for each in result["processes"]].count("hvm1-dm") == 3
        assert not run.runtime.exists()
    finally:
        run.end()


# -- step by step
@pytest.fixture
def ground(tmp_path: Path) -> Iterator[tuple[Supervisor, Path]]:
    make_files(tmp_path)
    make_firmware(tmp_path)
    with dom0() as made:
        yield made


def guest(place: Path, name: str, firmware: str = "fw.bin") -> Guest:
    disk = Disk(image=place / f"{'b' if name == 'b' else 'a'}.img", vdev="hda", access="rw")
    return Guest(name=name, memory=16, firmware=str(place / firmware), serial=str(place / f"{name}.serial"), disk=(disk,))


def process(supervisor: Supervisor, name: str) -> Child:
    return next(child for child in supervisor._children.all if child.name == name)


def listed(store: Xenstore, path: str) -> list[str]:
    return store.directory(path) if store.exists(path) else []


def left(supervisor: Supervisor, directory: Path) -> tuple[list[str], ...]:
    """Everything that a guest could leave behind, but for its part of the report."""
    store, images = supervisor.store, ("a.img", "b.img")
    descriptors = Path(f"/proc/{process(supervisor, 'blkback').pid}/fd").iterdir()
    return (
        # The logs of these two are made by themselves, when they come to it.
        sorted({path.name for path in directory.iterdir()} - {"blkback.log", "console.log"}),
        sorted({*listed(store, "/local/domain"), "0"}),
        [each.name for each in supervisor._topology.guest], [child.name for child in supervisor.processes],
        [name for kind in ("vbd", "console") for name in listed(store, f"/local/domain/0/backend/{kind}")],
        sorted(name for each in descriptors if (name := os.path.basename(os.readlink(each))) in images),
    )


def end(supervisor: Supervisor, running: Running, reason: int = SHUTDOWN_poweroff) -> None:
    """Have a guest end, of which the supervisor has not heard yet."""
    supervisor._hypercalls.call("shutdown", domid=running.domid, reason=reason)
    gone(*running.vcpus)


def gone(*children: Child) -> None:
    for child in children:
        assert select.select([child.pidfd], [], [], 30)[0]


def hear(supervisor: Supervisor) -> None:
    for child in supervisor._children.wait(30):
        supervisor._ended(child)


@pytest.mark.parametrize(("reason", "ended"), [(SHUTDOWN_poweroff, "poweroff"), (SHUTDOWN_crash, "crash")])
def test_nothing_stays_of_it(ground: tuple[Supervisor, Path], tmp_path: Path, reason: int, ended: str) -> None:
    supervisor, directory = ground
    (stays,) = supervisor.add_guests((guest(tmp_path, "a"),))
    before = left(supervisor, directory)
    for _ in range(2):
        (ends,) = supervisor.add_guests((guest(tmp_path, "b"),))
        assert left(supervisor, directory) != before
        end(supervisor, ends, reason)
        hear(supervisor)
        assert left(supervisor, directory) == before
        assert ends.told and ends.told[0].ended == ended
        with pytest.raises(HypercallError, match="no domain"):
            supervisor._hypercalls.call("domain_info", domid=ends.stub)
    assert not stays.ended and not stays.told


def test_one_that_ended_as_it_is_removed(ground: tuple[Supervisor, Path], tmp_path: Path) -> None:
    """Its own end is told."""
    supervisor, directory = ground
    supervisor.add_guests((guest(tmp_path, "a"),))
    before = left(supervisor, directory)
    (ends,) = supervisor.add_guests((guest(tmp_path, "b"),))
    end(supervisor, ends, SHUTDOWN_crash)
    supervisor.remove_guest("b")
    assert ends.told and ends.told[0].ended == "crash"
    assert left(supervisor, directory) == before
    assert supervisor._children.wait(0) == []


def test_its_mini_guest_is_killed_as_it_ends(ground: tuple[Supervisor, Path], tmp_path: Path) -> None:
    """Both deaths are heard of together, the mini-guest's first: nobody misses it. While its guest runs it is missed."""
    supervisor, directory = ground
    supervisor.add_guests((guest(tmp_path, "a"),))
    before = left(supervisor, directory)
    (ends,) = supervisor.add_guests((guest(tmp_path, "b"),))
    end(supervisor, ends)
    ends.mini_guest.kill(signal.SIGKILL)
    gone(ends.mini_guest)
    hear(supervisor)
    assert ends.told and left(supervisor, directory) == before
    (lives,) = supervisor.add_guests((guest(tmp_path, "b"),))
    lives.mini_guest.kill(signal.SIGKILL)
    gone(lives.mini_guest)
    with pytest.raises(ProcessDied, match="b-dm was killed by SIGKILL"):
        hear(supervisor)


def test_two_end_together(ground: tuple[Supervisor, Path], tmp_path: Path) -> None:
    supervisor, directory = ground
    before = left(supervisor, directory)
    both = supervisor.add_guests((guest(tmp_path, "a"), guest(tmp_path, "b")))
    for running in both:
        end(supervisor, running)
    hear(supervisor)
    assert all(running.told for running in both) and left(supervisor, directory) == before


def test_one_ends_while_another_is_taken_down(ground: tuple[Supervisor, Path], tmp_path: Path) -> None:
    """Its processes' deaths are heard of while the backends are waited for."""
    supervisor, directory = ground
    before = left(supervisor, directory)
    one, other = supervisor.add_guests((guest(tmp_path, "a"), guest(tmp_path, "b")))
    real = supervisor.toolstack.close_devices
    with pytest.MonkeyPatch.context() as patch:
        def close_devices(*arguments: object) -> list[str]:
            if not other.ended:
                end(supervisor, other)
            return real(*arguments)     # type: ignore[arg-type]

        patch.setattr(supervisor.toolstack, "close_devices", close_devices)
        supervisor.remove_guest("a")
        if not other.told:              # the backends were sooner
            hear(supervisor)
    assert one.told and other.told and left(supervisor, directory) == before


def test_one_ends_while_another_cannot_start(ground: tuple[Supervisor, Path], tmp_path: Path) -> None:
    """Its name stays free, and its part of the report is kept."""
    supervisor, directory = ground
    before = left(supervisor, directory)
    (old,) = supervisor.add_guests((guest(tmp_path, "a"),))
    with pytest.MonkeyPatch.context() as patch:
        def refuse(*_: object) -> None:
            end(supervisor, old)
            hear(supervisor)
            raise HypercallError("EIO", "no reason at all")

        patch.setattr(Toolstack, "unpause", refuse)
        with pytest.raises(AskedInVain, match="no reason at all"):
            supervisor.add_guests((guest(tmp_path, "a"),))
    assert left(supervisor, directory) == before
    assert supervisor._guests == [old] and old.told
    assert {"a-dm", "a-vcpu0"} <= {child.name for child in supervisor._children.all}


def test_its_last_words_are_in_the_report(ground: tuple[Supervisor, Path], tmp_path: Path) -> None:
    """Though the console backend comes to read them only when the guest and its mini-guest have ended."""
    supervisor, _ = ground
    console, toolstack = process(supervisor, "console"), supervisor.toolstack
    unpause, real = toolstack.unpause, toolstack.close_devices
    with pytest.MonkeyPatch.context() as patch:
        def unpause_it(domid: int) -> None:
            console.kill(signal.SIGSTOP)
            unpause(domid)

        def close_devices(*arguments: object) -> list[str]:
            assert not console_copy(supervisor._runtime, 2).read_bytes()
            console.kill(signal.SIGCONT)
            return real(*arguments)     # type: ignore[arg-type]

        patch.setattr(toolstack, "unpause", unpause_it)
        patch.setattr(toolstack, "close_devices", close_devices)
        (ends,) = supervisor.add_guests((msgspec.structs.replace(guest(tmp_path, "b", "halts.bin"), serial="pty"),))
        gone(*ends.vcpus)
        hear(supervisor)
    assert ends.told and ends.told[0].console == WORDS


def test_a_backend_that_does_not_let_go_is_not_waited_for_for_ever(
    ground: tuple[Supervisor, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    supervisor, directory = ground
    (ends,) = supervisor.add_guests((guest(tmp_path, "b"),))
    process(supervisor, "blkback").kill(signal.SIGSTOP)
    end(supervisor, ends)
    hear(supervisor)
    said = f"miniguest: /local/domain/0/backend/vbd/{ends.stub}/768: its backend does not close it\n"
    assert said in capsys.readouterr().err and ends.told
    assert not list(directory.glob(f"dom{ends.stub}"))


def test_a_backend_that_dies_meanwhile_ends_everything(ground: tuple[Supervisor, Path], tmp_path: Path) -> None:
    supervisor, _ = ground
    (ends,) = supervisor.add_guests((guest(tmp_path, "b"),))
    blkback = process(supervisor, "blkback")
    blkback.kill(signal.SIGSTOP)
    end(supervisor, ends)
    real = supervisor.toolstack.close_devices
    with pytest.MonkeyPatch.context() as patch:
        def close_devices(*arguments: object) -> list[str]:
            found = real(*arguments)    # type: ignore[arg-type]
            blkback.kill(signal.SIGKILL)
            return found

        patch.setattr(supervisor.toolstack, "close_devices", close_devices)
        with pytest.raises(ProcessDied, match="blkback was killed by SIGKILL"):
            hear(supervisor)
