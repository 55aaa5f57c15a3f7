"""Guests that are added to a topology that runs, and removed from it: over the command, and step by step."""
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import pytest
import zmq
from dom0 import dom0
from guests import MINIGUEST

from miniguest.deploy import checks, runtime, starting
from miniguest.deploy.control import SOCKET
from miniguest.deploy.errors import AskedInVain, RuntimeDirError, TopologyError
from miniguest.deploy.runtime import check_room, find, runtime_directory
from miniguest.deploy.supervisor import Supervisor
from miniguest.deploy.toolstack import Toolstack
from miniguest.deploy.topology import Disk, Guest, Topology, load_guests
from miniguest.ring.abi.sched import SHUTDOWN_poweroff
from miniguest.ring.errors import HypercallError
from miniguest.ring.memory import domain_directory

# Says ACK, for a UART that was just switched on has five bits, and sleeps for good:
# mov dx, 0x3f8; mov al, 6; out dx, al; mov al, 10; out dx, al; 1: sti; hlt; jmp 1b
FIRMWARE = (bytes(0xFFF0) + bytes.fromhex("baf803 b006 ee b00a ee fb f4 ebfc")).ljust(0x10000, b"\0")
GUEST = '[[guest]]\nname = "{name}"\nmemory = 16\nfirmware = "fw.bin"\nserial = "{serial}"\n'
ADDED = (
    GUEST.format(name="hvm1", serial="stdio")
    + 'disk = [{ image = "b.img", vdev = "hda" }]\nvif = [{ rom = "none" }]\n'
    + GUEST.format(name="hvm2", serial="pty")
)


def make_files(place: Path) -> None:
    (place / "fw.bin").write_bytes(FIRMWARE)
    for image in ("a.img", "b.img"):
        (place / image).write_bytes(bytes(1 << 20))


class Run:
    """`miniguest run` with one guest, which has said that it is there."""

    def __init__(self, place: Path) -> None:
        self.place = place
        make_files(place)
        self.name = f"t{os.getpid()}-{place.name[:12]}"
        (place / "t.toml").write_text(
            f'name = "{self.name}"\n' + GUEST.format(name="hvm0", serial="stdio")
            + 'disk = [{ image = "a.img", vdev = "hda" }]\nvif = [{ mac = "00:16:3e:00:00:01", rom = "none" }]\n[link.lan0]\n'
        )
        self.process = subprocess.Popen(
            [*MINIGUEST, "run", "t.toml", "--json", "result.json"], cwd=place, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        self.said = b""
        self.hear(b"\6\n")
        self.runtime = find(self.name)

    def hear(self, what: bytes) -> None:
        """Read what its guests say until this was said."""
        assert self.process.stdout is not None
        while what not in self.said:
            data = os.read(self.process.stdout.fileno(), 4096)
            assert data, self.process.communicate()
            self.said += data
        self.said = self.said.partition(what)[2]

    def ask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*MINIGUEST, *arguments], cwd=self.place, capture_output=True, text=True, timeout=100)

    def domains(self) -> set[str]:
        return {path.name for path in self.runtime.glob("dom*")}

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.communicate(timeout=60)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = Run(tmp_path)
    yield made
    made.end()


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """One that nobody changes."""
    made = Run(tmp_path_factory.mktemp("steady"))
    yield made
    made.end()


# -- the command
def test_guests_come_and_go(run: Run) -> None:
    """Found by name and by directory; the last one that is removed ends the run, whose report has them all."""
    (run.place / "g.toml").write_text(ADDED)
    done = run.ask("add", run.name, "g.toml", "--json", "-")
    assert done.returncode == 0, done.stderr
    reply = json.loads(done.stdout)
    one, two = reply["guests"]
    assert reply["topology"] == run.name
    assert (one["name"], one["domid"], one["mini_guest"], one["serial"]) == ("hvm1", 3, 4, "stdio")
    assert (two["name"], two["domid"], two["mini_guest"]) == ("hvm2", 5, 6) and two["serial"].startswith("/dev/pts/")
    assert f"{run.name}/hvm1: domain 3, mini-guest domain 4" in done.stderr
    assert f"miniguest: hvm2: serial line on {two['serial']}" in done.stderr
    run.hear(b"hvm1| \6\n")
    for guest, where in (("hvm1", run.name), ("hvm2", str(run.runtime)), ("hvm0", run.name)):
        done = run.ask("remove", where, guest)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert run.process.wait(60) == 0
    result = json.loads((run.place / "result.json").read_text())
    assert [(guest["name"], guest["ended"]) for guest in result["guests"]] == [(f"hvm{n}", "poweroff") for n in range(3)]
    assert not run.runtime.exists()


@pytest.mark.parametrize(("content", "message"), [
    (GUEST.format(name="hvm0", serial="stdio"), "guest[0].name: 'hvm0' is the name of {run}/hvm0 already"),
    (GUEST.format(name="x", serial="stdio") * 2, "guest[1].name: 'x' is the name of guest[0] already"),
    (GUEST.format(name="x", serial="stdio") + 'disk = [{ image = "no.img", vdev = "hda" }]\n',
     "guest[0].disk[0].image: {place}/no.img: cannot be opened rw: No such file or directory"),
    (GUEST.format(name="x", serial="stdio") + 'disk = [{ image = "a.img", vdev = "hda" }]\n',
     'guest[0].disk[0].image: {place}/a.img: {run}/hvm0 uses it too: both need access = "ro"'),
    (GUEST.format(name="x", serial="a.img"), "guest[0].serial: {place}/a.img: {run}/hvm0 is read from there"),
    (GUEST.format(name="x", serial="stdio") + 'vif = [{ link = "lan1" }]\n',
     "guest[0].vif[0].link: 'lan1' is no link: known are lan0"),
    (GUEST.format(name="x", serial="stdio") + 'vif = [{ mac = "00:16:3e:00:00:01" }]\n',
     "guest[0].vif[0].mac: 00:16:3e:00:00:01 is the address of {run}/hvm0 already"),
    (GUEST.format(name="x", serial="stdio") + "size = 3\n", "guest[0].size: unknown key: known are name, memory, "),
    ('name = "more"\n' + GUEST.format(name="x", serial="stdio"), "name: unknown key: known are guest"),
    ("guest = []\n", "guest: at least one [[guest]] is needed"),
])
def test_a_bad_file_is_the_askers_and_changes_nothing(steady: Run, content: str, message: str) -> None:
    (steady.place / "g.toml").write_text(content)
    done = steady.ask("add", steady.name, "g.toml")
    wanted = f"miniguest: g.toml: {message.format(run=steady.name, place=steady.place)}"
    assert done.stderr.startswith(wanted) and done.stderr.count("\n") == 1 and not done.stdout
    assert done.returncode == 2
    assert steady.domains() == {"dom0", "dom1", "dom2"}
    assert steady.process.poll() is None


def test_who_is_not_there_is_not_removed(steady: Run) -> None:
    done = steady.ask("remove", steady.name, "hvm7")
    assert done.stderr == f"miniguest: hvm7: no such guest runs in {steady.name}: what runs is hvm0\n" and done.returncode == 2
    assert steady.ask("remove", steady.name).returncode == 2


def test_askers_that_go_away_or_talk_nonsense_harm_nobody(run: Run) -> None:
    """One that was killed is served, and not missed: what comes later is answered."""
    context = zmq.Context.instance()
    for request in (
        b"", b"\xc1", msgpack.packb([]), msgpack.packb({"op": "sing"}), msgpack.packb({"op": "add"}),
        msgpack.packb({"op": "add", "file": "x", "base": "/", "guests": 5}),
        msgpack.packb({"op": "add", "file": 5, "base": "/", "guests": []}), msgpack.packb({"op": ["add"]}),
    ):
        asker = context.socket(zmq.REQ)
        asker.linger = 0
        asker.connect(f"ipc://{run.runtime / SOCKET}")
        asker.send(request)
        assert msgpack.unpackb(asker.recv())["status"] == 1
        asker.close()
    asker = context.socket(zmq.REQ)
    asker.connect(f"ipc://{run.runtime / SOCKET}")
    guest = {"name": "x", "memory": 16, "firmware": "fw.bin", "serial": "stdio"}
    asker.send(msgpack.packb({"op": "add", "file": "f", "base": str(run.place), "guests": [guest]}))
    run.hear(b"x| \6\n")                    # the request is there
    asker.close(linger=0)
    (run.place / "g.toml").write_text(GUEST.format(name="x", serial="stdio"))
    done = run.ask("add", run.name, "g.toml")
    assert "'x' is the name of" in done.stderr and done.returncode == 2


def test_an_asker_is_told_that_the_topology_ended(run: Run) -> None:
    """It was stopped before it could answer, and ended."""
    run.process.send_signal(signal.SIGSTOP)
    (run.place / "g.toml").write_text(ADDED)
    asker = subprocess.Popen([*MINIGUEST, "add", run.name, "g.toml"], cwd=run.place, stderr=subprocess.PIPE, text=True)
    run.process.kill()
    _, stderr = asker.communicate(timeout=60)
    assert asker.returncode in (1, 2) and stderr.count("\n") == 1       # 2: it was gone before it was found
    assert "the topology ended before it answered" in stderr or "no such topology runs" in stderr


# -- where a topology is
def test_a_topology_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "candidates", lambda: iter([(tmp_path, "mg-")]))
    monkeypatch.setattr(runtime, "is_tmpfs", lambda _path: True)
    monkeypatch.setattr(runtime, "SOCKET_PATH_MAX", 200)
    one, other = Topology(name="one", guest=()), Topology(name="one-other", guest=())
    with runtime_directory(one) as here, runtime_directory(other) as there:
        assert (find("one"), find("one-other"), find(str(here))) == (here, there, here)
        with pytest.raises(RuntimeDirError, match=r"^two: no such topology runs.*: what runs is one, one-other$"):
            find("two")
        with runtime_directory(one), pytest.raises(RuntimeDirError, match=r"^one: several of that name run"):
            find("one")
    with pytest.raises(RuntimeDirError, match=r"^one: no such topology runs, and no such runtime directory is there$"):
        find("one")
    left = tmp_path / "mg-one-12345678"
    left.mkdir()
    (left / runtime.LOCK).touch()
    with pytest.raises(RuntimeDirError, match="left over from a run that was killed"):
        find(str(left))


def test_memory_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the topology has taken already counts as its own."""
    monkeypatch.setattr(runtime, "free_bytes", lambda _path: 100 << 20)
    (tmp_path / "memory").write_bytes(b"x" * (64 << 20))
    small = Topology(name="t", guest=(Guest(name="g", memory=36),))
    check_room(tmp_path, small, Path("g.toml"))
    with pytest.raises(TopologyError, match=r"^g\.toml: guest: 165 MiB of room are needed, and .* has 164 MiB$"):
        check_room(tmp_path, Topology(name="t", guest=(Guest(name="g", memory=37),)), Path("g.toml"))


# -- step by step
@pytest.fixture
def ground(tmp_path: Path) -> Iterator[tuple[Supervisor, Path]]:
    make_files(tmp_path)
    with dom0() as made:
        yield made


def guest(place: Path, name: str) -> Guest:
    disk = Disk(image=place / "b.img", vdev="hda", access="ro")
    return Guest(name=name, memory=16, firmware=str(place / "fw.bin"), serial=str(place / f"{name}.serial"), disk=(disk,))


def left(supervisor: Supervisor, directory: Path) -> tuple[list[str], list[str], list[str], list[str], list[str]]:
    """Everything that a guest could leave behind."""
    store = supervisor.store
    return (
        sorted(path.name for path in directory.iterdir()), store.directory("/local/domain"),
        [child.name for child in supervisor._children.all], [each.name for each in supervisor._topology.guest],
        [name for kind in ("vbd", "console") for name in store.directory(f"/local/domain/0/backend/{kind}")],
    )


def die(*_: object) -> None:
    raise SystemExit(7)


def refuse(*_: object) -> None:
    raise HypercallError("EIO", "no reason at all")


@pytest.mark.parametrize(("owner", "name", "broken", "message"), [
    (starting.miniguest, "main", die, "c-dm ended with status 7 while starting"),
    (starting.vcpu, "main", die, "c-vcpu0 ended with status 7 while starting"),
    (Toolstack, "create_guest", refuse, "no reason at all"),
    (Toolstack, "describe_guest", refuse, "no reason at all"),
    (Toolstack, "unpause", refuse, "no reason at all"),
])
def test_of_guests_that_cannot_start_nothing_stays(
    ground: tuple[Supervisor, Path], tmp_path: Path, owner: object, name: str, broken: Callable[..., None], message: str
) -> None:
    """Nor of those before it in the same file. The topology goes on."""
    supervisor, directory = ground
    supervisor.add_guests((guest(tmp_path, "a"),))
    before = left(supervisor, directory)
    real = supervisor._start_guest
    with pytest.MonkeyPatch.context() as patch:
        def start(made: Guest, domid: int, stub: int) -> starting.Running:
            if made.name == "c":
                patch.setattr(owner, name, broken)
            return real(made, domid, stub)

        patch.setattr(supervisor, "_start_guest", start)
        with pytest.raises(AskedInVain, match=message):
            supervisor.add_guests((guest(tmp_path, "b"), guest(tmp_path, "c")))
    assert left(supervisor, directory) == before
    assert supervisor._children.wait(0) == []
    (again,) = supervisor.add_guests((guest(tmp_path, "c"),))
    assert again.domid > 5, "a domain's number is never another's"
    assert not supervisor._guests[0].ended


def test_another_guest_may_end_while_one_is_added(ground: tuple[Supervisor, Path], tmp_path: Path) -> None:
    supervisor, directory = ground
    (old,) = supervisor.add_guests((guest(tmp_path, "old"),))
    supervisor._hypercalls.call("shutdown", domid=old.domid, reason=SHUTDOWN_poweroff)
    (new,) = supervisor.add_guests((guest(tmp_path, "new"),))
    while not old.ended:
        for child in supervisor._children.wait(30):
            supervisor._ended(child)
    assert old.told and supervisor.store.directory("/local/domain/0/backend/vbd") == [str(new.stub)]
    assert not new.ended
    supervisor.remove_guest("new")
    assert new.told and new.told[0].ended == "poweroff"
    assert not domain_directory(directory, new.domid).exists() and not domain_directory(directory, new.stub).exists()


def test_paths_start_where_the_asker_said(tmp_path: Path) -> None:
    make_files(tmp_path)
    (tmp_path / "g.toml").write_text(ADDED)
    running = Topology(name="t", guest=(), link={})
    guests = tuple(each for each in load_guests(tmp_path / "g.toml") if not each.vif)
    (found,) = checks.check_added(running, guests, Path("g.toml"), tmp_path)
    assert found.firmware == str(tmp_path / "fw.bin")
