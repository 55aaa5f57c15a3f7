"""blkback beside a frontend in C that knows only Xen's headers: ring.h's macros, blkif.h's structures, bare memory."""
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zmq
from blkpeer import WATCHDOG, Domain, Vbd, World
from dom0 import dom0

from miniguest.deploy.supervisor import Supervisor
from miniguest.ring.abi.xenbus import XenbusState
from miniguest.ring.doorbell import Bells
from miniguest.ring.events import table_path
from miniguest.ring.memory import Memory, domain_directory
from miniguest.ring.xenbus import write_keys

SOURCE = Path(__file__).parent / "blkfront_c" / "blkfront.c"
SECTORS = (64 << 20) // 512
WORDS = 64                      # of a sector


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The frontend compiled for each machine that protocols.h names for x86."""
    directory = tmp_path_factory.mktemp("blkfront")
    flags = ["-O2", "-Wall", "-Wextra", "-Werror"]
    built = {}
    for protocol, defines in (("x86_64-abi", []), ("x86_32-abi", ["-DI386_LAYOUT"])):
        built[protocol] = directory / protocol
        subprocess.run(["cc", *flags, *defines, "-o", str(built[protocol]), str(SOURCE)], check=True)
    return built


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[Supervisor, Path]]:
    with dom0("fifo") as running:
        yield running


def contents(sectors: int) -> "np.ndarray[tuple[int, int], np.dtype[np.uint64]]":
    """What the program puts into the sectors: 63 words that follow from the sector's number, and their sum."""
    words = np.arange(sectors * WORDS, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    image = words.reshape(sectors, WORDS)
    image[:, -1] = image[:, :-1].sum(axis=1, dtype=np.uint64)
    return image


class Program:
    """The program as the frontend of a vbd."""

    def __init__(self, program: Path, vbd: Vbd, bells: str, mode: str, **numbers: int) -> None:
        domain, runtime = vbd.domain, vbd.domain.runtime
        dom0_memory = Memory(domain_directory(runtime, 0) / "memory")
        self.port = domain.hypercalls.call("evtchn_alloc_unbound", domid=domain.domid, vcpu=0, remote_domid=0)
        directory = domain_directory(runtime, domain.domid)
        arguments = {
            "memory": directory / "memory", "dom0-memory": domain_directory(runtime, 0) / "memory",
            "channels": table_path(runtime, domain.domid), "dom0-channels": table_path(runtime, 0),
            "bell": directory / "doorbell0", "bells": bells, "mode": mode, "port": self.port,
            "shared-info": domain.memory.special("shared_info"), "grants": domain.memory.special("grants"),
            "dom0-shared-info": dom0_memory.special("shared_info"), **numbers,
        }
        self.process = subprocess.Popen(
            [str(program), *(f"{name}={value}" for name, value in arguments.items())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        assert self.process.stdout
        word, *grefs = self.process.stdout.readline().split()
        assert word == "grefs"
        self.grefs = [int(gref) for gref in grefs]

    def run(self) -> dict[str, int]:
        """Let it go, to its end; what it counted."""
        out, err = self.process.communicate("connected\n", timeout=WATCHDOG)
        assert self.process.returncode == 0, err
        words = out.split()
        return {name: int(value) for name, value in zip(words[::2], words[1::2], strict=True)}


def serve(
    world: tuple[Supervisor, Path], program: Path, image: Path, keys: dict[str, str | int | bytes], *,
    order: int = 0, segments: int = 11, persistent: int = 0, mode: str = "rw", bells: str = "",
) -> dict[str, int]:
    """Run the program on an image to its end, and compare its counts with the backend's; the backend's."""
    domain = Domain(*world, memory=16 << 20)
    domain.close()                          # its events are the program's
    vbd = domain.add_disk(image, access="ro" if mode == "ro" else "rw")
    vbd.wait_state(XenbusState.InitWait)
    bells = bells or str(domain_directory(world[1], 0) / "doorbell")
    running = Program(program, vbd, bells, mode, order=order, segments=segments, persistent=persistent, sectors=SECTORS)
    names = ["ring-ref"] if len(running.grefs) == 1 else [f"ring-ref{index}" for index in range(len(running.grefs))]
    refs: dict[str, str | int | bytes] = dict(zip(names, running.grefs, strict=True))
    write_keys(vbd.store, vbd.front, refs | keys | {"event-channel": running.port, "feature-persistent": persistent})
    vbd.switch(XenbusState.Initialised)
    assert vbd.wait_state(XenbusState.Connected, XenbusState.Closing) == XenbusState.Connected, vbd.error
    counted, statistics = running.run(), vbd.statistics
    assert statistics["requests"] == statistics["responses"] == counted["requests"]
    assert statistics["bytes_written"] == counted["written"]
    assert statistics["bytes_read"] == counted["read"]
    assert statistics["errors"] == counted["refused"]
    vbd.switch(XenbusState.Closing)
    vbd.wait_state(XenbusState.Closing)
    assert domain.in_use == []
    vbd.switch(XenbusState.Closed)
    vbd.wait_state(XenbusState.Closed)
    domain.destroy()
    return statistics


def check_image(image: Path) -> None:
    """Every sector as the program wrote it, but for the 64 in the middle that it discarded."""
    found = np.fromfile(image, dtype=np.uint64).reshape(SECTORS, WORDS)
    wanted = contents(SECTORS)
    wanted[SECTORS // 2 : SECTORS // 2 + 64] = 0
    assert np.array_equal(found, wanted)


@pytest.fixture
def image(world: tuple[Supervisor, Path]) -> Iterator[Path]:
    path = world[1] / "disk.img"
    with open(path, "wb") as file:
        file.truncate(SECTORS * 512)
    yield path
    path.unlink()


@pytest.mark.parametrize(
    ("protocol", "keys", "how"),
    [
        ("x86_64-abi", {"protocol": "x86_64-abi"}, {}),
        ("x86_64-abi", {}, {"persistent": 1}),
        (
            "x86_64-abi", {"protocol": "x86_64-abi", "ring-page-order": 4, "num-ring-pages": 16},
            {"order": 4, "segments": 256, "persistent": 1},
        ),
        ("x86_64-abi", {"num-ring-pages": 2}, {"order": 1, "segments": 100}),
        ("x86_32-abi", {"protocol": "x86_32-abi"}, {}),
        ("x86_32-abi", {"protocol": "x86_32-abi", "ring-page-order": 3}, {"order": 3, "segments": 256, "persistent": 1}),
    ],
    ids=["one-page", "persistent", "16-pages-indirect-persistent", "num-ring-pages-indirect", "i386", "i386-indirect"],
)
def test_64_mib_there_and_back(
    world: tuple[Supervisor, Path], programs: dict[str, Path], image: Path, protocol: str,
    keys: dict[str, str | int | bytes], how: dict[str, int],
) -> None:
    statistics = serve(world, programs[protocol], image, keys, **how)     # type: ignore[arg-type]
    assert statistics["bytes_written"] == statistics["bytes_read"] == SECTORS * 512
    assert statistics["errors"] == 0
    check_image(image)


@pytest.mark.parametrize("how", [{}, {"order": 2, "segments": 256, "persistent": 1}], ids=["direct", "indirect"])
def test_a_read_only_disk_refuses_writes(
    world: tuple[Supervisor, Path], programs: dict[str, Path], image: Path, how: dict[str, int]
) -> None:
    contents(SECTORS).tofile(image)
    keys: dict[str, str | int | bytes] = {"ring-page-order": how.get("order", 0)}
    statistics = serve(world, programs["x86_64-abi"], image, keys, mode="ro", **how)     # type: ignore[arg-type]
    assert statistics["bytes_read"] == SECTORS * 512
    assert statistics["bytes_written"] == 0
    assert statistics["errors"] > 0
    assert np.array_equal(np.fromfile(image, dtype=np.uint64).reshape(SECTORS, WORDS), contents(SECTORS))


def test_blkback_killed_again_and_again(
    world: tuple[Supervisor, Path], programs: dict[str, Path], image: Path
) -> None:
    """Each successor takes up the ring where the last one stopped answering; the program notices nothing."""
    everybody = World(*world)
    domain = everybody.domain(memory=16 << 20)
    domain.close()
    vbd = domain.add_disk(image)
    vbd.wait_state(XenbusState.InitWait)
    bells = str(domain_directory(world[1], 0) / "doorbell")
    running = Program(programs["x86_64-abi"], vbd, bells, "rw", order=2, segments=256, persistent=1, sectors=SECTORS)
    refs: dict[str, str | int | bytes] = {f"ring-ref{index}": gref for index, gref in enumerate(running.grefs)}
    write_keys(vbd.store, vbd.front, refs | {"ring-page-order": 2, "event-channel": running.port, "feature-persistent": 1})
    vbd.switch(XenbusState.Initialised)
    assert vbd.wait_state(XenbusState.Connected, XenbusState.Closing) == XenbusState.Connected, vbd.error
    assert running.process.stdin
    running.process.stdin.write("connected\n")
    running.process.stdin.flush()
    for _ in range(4):
        served = vbd.statistics["requests"]
        while vbd.statistics["requests"] == served and running.process.poll() is None:
            pass                            # it ends by its own watchdog
        everybody.blkback.kill(signal.SIGKILL)
        everybody.blkback.reap()
        everybody.start_blkback()
    _, err = running.process.communicate(timeout=WATCHDOG)
    assert running.process.returncode == 0, err
    check_image(image)
    everybody.end_of_test()
    everybody.destroy_domains()


@contextmanager
def relay(runtime: Path) -> Iterator[str]:
    """A FIFO for blkback's doorbell, whose bytes go on as zmq messages; what comes before the vCPU's number."""
    path = runtime / "relay1"
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    def pass_on() -> None:
        bells = Bells(context, runtime)
        while b"q" not in os.read(fd, 1):
            bells.ring(0, 1)
        bells.close()

    thread = threading.Thread(target=pass_on)
    thread.start()
    try:
        yield str(runtime / "relay")
    finally:
        os.write(fd, b"q")
        thread.join()
        os.close(fd)
        context.term()


def test_zmq_doorbells(programs: dict[str, Path], tmp_path: Path) -> None:
    with dom0("zmq") as world, relay(world[1]) as bells:
        image = tmp_path / "disk.img"           # on whatever file system that is, for once
        with open(image, "wb") as file:
            file.truncate(SECTORS * 512)
        keys: dict[str, str | int | bytes] = {"ring-page-order": 2}
        serve(world, programs["x86_64-abi"], image, keys, order=2, segments=256, persistent=1, bells=bells)
        found = np.fromfile(image, dtype=np.uint64).reshape(SECTORS, WORDS)
        assert np.array_equal(found[: SECTORS // 2], contents(SECTORS)[: SECTORS // 2])


def test_there_is_a_compiler() -> None:
    """The tests above would have failed, and this one says why."""
    assert shutil.which("cc")
    assert Path("/usr/include/xen/io/blkif.h").exists(), "libxen-dev is not installed"
