"""However a topology ends, it does so within two seconds, says who died, and leaves nothing."""
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from guests import MINIGUEST, assemble, run

SECONDS = 2.0
PROCESSES = ("hypervisor", "xenstored", "blkback", "netback", "console", "hvm0-dm", "hvm0-vcpu0")
# Interrupts off while it prints: the BIOS's timer handler may have a character of its own to say.
IDLE = """
        cli
        mov si, offset t
        1: lodsb
        test al, al
        jz 2f
        mov dx, 0x3f8
        out dx, al
        jmp 1b
        2: sti
        {loop}
        t: .asciz "up and running"
"""
LOOPS = {"asleep": "sti\n3: hlt\njmp 3b", "busy": "3: jmp 3b"}


class Topology:
    """A running topology of one guest that never ends."""

    def __init__(self, directory: Path, loop: str = "asleep", doorbell: str = "zmq") -> None:
        image = directory / "idle.img"
        program = "xor ax, ax\nmov ds, ax\n" + IDLE.format(loop=LOOPS[loop])
        image.write_bytes(assemble(directory, program).ljust(1 << 20, b"\0"))
        (directory / "idle.toml").write_text(
            f'doorbell = "{doorbell}"\n[[guest]]\nname = "hvm0"\ndisk = [{{ image = "idle.img", vdev = "hda" }}]\n'
            'vif = [{ model = "e1000", rom = "none" }]\n[link.lan0]\n'
        )
        self.runtime = Path("/dev/shm") / f"mge-{os.getpid()}-{time.monotonic_ns()}"
        self.process = subprocess.Popen(
            [*MINIGUEST, "run", str(directory / "idle.toml"), "--runtime", str(self.runtime)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        said = b""
        assert self.process.stdout is not None
        while b"running" not in said:
            data = os.read(self.process.stdout.fileno(), 4096)
            assert data, self.process.communicate()
            said += data
        self.children = {child.pid: self._name(child) for child in psutil.Process(self.process.pid).children()}

    @staticmethod
    def _name(process: psutil.Process) -> str:
        return Path(f"/proc/{process.pid}/comm").read_text().strip()

    def pid(self, name: str) -> int:
        return next(pid for pid, known in self.children.items() if known == name)

    def wait(self) -> tuple[int, str, float]:
        """(status, what it said on stderr, seconds until the last process had gone)."""
        start = time.monotonic()
        _, stderr = self.process.communicate(timeout=30)
        for pid in self.children:
            descriptor = self._open(pid)
            while descriptor is not None and not self._gone(descriptor):
                assert time.monotonic() - start < 30, f"{self.children[pid]} is still there"
        return self.process.returncode, stderr.decode(), time.monotonic() - start

    @staticmethod
    def _open(pid: int) -> int | None:
        try:
            return os.pidfd_open(pid)
        except ProcessLookupError:
            return None

    @staticmethod
    def _gone(descriptor: int) -> bool:
        ready = select.select([descriptor], [], [], 1.0)[0]
        if ready:
            os.close(descriptor)
        return bool(ready)

    def nothing_is_left(self) -> None:
        assert not self.runtime.exists()
        for pid in self.children:
            assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.fixture(params=["asleep", "busy"])
def topology(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Topology]:
    made = Topology(tmp_path, request.param)
    yield made
    if made.process.poll() is None:
        made.process.kill()
        made.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal(topology: Topology, number: signal.Signals) -> None:
    topology.process.send_signal(number)
    status, stderr, seconds = topology.wait()
    assert status == 128 + number
    assert stderr == f"miniguest: ended by {number.name}\n"
    assert seconds < SECONDS
    topology.nothing_is_left()


@pytest.mark.parametrize("name", PROCESSES)
def test_kill_9_of_any_process(tmp_path: Path, name: str) -> None:
    topology = Topology(tmp_path)
    os.kill(topology.pid(name), signal.SIGKILL)
    status, stderr, seconds = topology.wait()
    assert status == 1
    assert f"{name} was killed by SIGKILL" in stderr
    assert len(stderr.splitlines()) == 1
    assert seconds < SECONDS
    topology.nothing_is_left()


def test_kill_9_of_the_supervisor(topology: Topology) -> None:
    topology.process.kill()
    status, stderr, seconds = topology.wait()
    assert status == -signal.SIGKILL
    assert "the supervisor died" in stderr
    assert seconds < SECONDS
    topology.nothing_is_left()


def test_a_stopped_process_does_not_hold_up_the_end(tmp_path: Path) -> None:
    topology = Topology(tmp_path)
    os.kill(topology.pid("blkback"), signal.SIGSTOP)
    topology.process.send_signal(signal.SIGTERM)
    status, _, seconds = topology.wait()
    assert status == 128 + signal.SIGTERM
    assert seconds < SECONDS
    topology.nothing_is_left()


def test_the_first_light_image_goes_with_a_killed_supervisor(tmp_path: Path) -> None:
    before = set(Path("/tmp").glob("miniguest-*"))
    process = subprocess.Popen([*MINIGUEST, "run"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert os.read(process.stdout.fileno(), 10)             # the guest is up, so the topology is
    process.kill()
    assert b"the supervisor died" in process.communicate(timeout=30)[1]
    assert set(Path("/tmp").glob("miniguest-*")) == before


@pytest.mark.parametrize(("content", "said"), [(None, "No such file"), (b"", "empty"), (b"x" * 513, "513 bytes")])
def test_bad_image(tmp_path: Path, content: bytes | None, said: str) -> None:
    image = tmp_path / "bad.img"
    if content is not None:
        image.write_bytes(content)
    ran = run(tmp_path, "--disk", str(image))
    assert ran.status == 2
    assert len(ran.stderr.splitlines()) == 1
    assert str(image) in ran.stderr
    assert said in ran.stderr
