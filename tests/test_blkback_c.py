"""blkback beside a frontend in C that knows only Xen's headers: ring.h's macros, blkif.h's structures, bare memory."""
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blkpeer import Domain, Vbd, World
from c_frontend import CFrontend, alloc_port, build
from dom0 import dom0
from peer import WATCHDOG, Key

from miniguest.deploy.supervisor import Supervisor
from miniguest.ring.abi.xenbus import XenbusState
from miniguest.ring.doorbell import Bells

SECTORS = (64 << 20) // 512
WORDS = 64                      # of a sector


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The frontend compiled for each machine that protocols.h names for x86."""
    directory = tmp_path_factory.mktemp("blkfront")
    return {
        protocol: build("blkfront_c/blkfront.c", directory / protocol, *flags)
        for protocol, flags in (("x86_64-abi", []), ("x86_32-abi", ["-DI386_LAYOUT"]))
    }


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


def start(
    program: Path, vbd: Vbd, keys: dict[str, Key], *,
    order: int = 0, segments: int = 11, persistent: int = 0, mode: str = "rw", bells: str = "",
) -> CFrontend:
    """The program as the frontend of a vbd, connected."""
    vbd.domain.close()                      # its events are the program's
    vbd.wait_state(XenbusState.InitWait)
    port = alloc_port(vbd.domain)
    running = CFrontend(
        program, vbd.domain, bells, mode=mode, port=port, order=order, segments=segments, persistent=persistent, sectors=SECTORS
    )
    names = ["ring-ref"] if len(running.grefs) == 1 else [f"ring-ref{index}" for index in range(len(running.grefs))]
    refs = dict(zip(names, running.grefs, strict=True))
    vbd.write_front(refs | keys | {"event-channel": port, "feature-persistent": persistent})
    vbd.switch(XenbusState.Initialised)
    vbd.wait_connected()
    running.say("connected")
    return running


def serve(
    world: tuple[Supervisor, Path], program: Path, image: Path, keys: dict[str, Key], *, mode: str = "rw", **how: Any
) -> dict[str, int]:
    """Run the program on an image to its end, and compare its counts with the backend's; the backend's."""
    domain = Domain(*world, memory=16 << 20)
    vbd = domain.add_disk(image, access="ro" if mode == "ro" else "rw")
    running = start(program, vbd, keys, mode=mode, **how)
    counted, statistics = running.end(WATCHDOG), vbd.statistics
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
    keys: dict[str, Key], how: dict[str, int],
) -> None:
    statistics = serve(world, programs[protocol], image, keys, **how)
    assert statistics["bytes_written"] == statistics["bytes_read"] == SECTORS * 512
    assert statistics["errors"] == 0
    check_image(image)


@pytest.mark.parametrize("how", [{}, {"order": 2, "segments": 256, "persistent": 1}], ids=["direct", "indirect"])
def test_a_read_only_disk_refuses_writes(
    world: tuple[Supervisor, Path], programs: dict[str, Path], image: Path, how: dict[str, int]
) -> None:
    contents(SECTORS).tofile(image)
    keys: dict[str, Key] = {"ring-page-order": how.get("order", 0)}
    statistics = serve(world, programs["x86_64-abi"], image, keys, mode="ro", **how)
    assert statistics["bytes_read"] == SECTORS * 512
    assert statistics["bytes_written"] == 0
    assert statistics["errors"] > 0
    assert np.array_equal(np.fromfile(image, dtype=np.uint64).reshape(SECTORS, WORDS), contents(SECTORS))


def test_blkback_killed_again_and_again(
    world: tuple[Supervisor, Path], programs: dict[str, Path], image: Path
) -> None:
    """Each successor takes up the ring where the last one stopped answering; the program notices nothing."""
    everybody = World(*world)
    vbd = everybody.domain(memory=16 << 20).add_disk(image)
    running = start(programs["x86_64-abi"], vbd, {"ring-page-order": 2}, order=2, segments=256, persistent=1)
    for _ in range(4):
        served = vbd.statistics["requests"]
        while vbd.statistics["requests"] == served and running.process.poll() is None:
            pass                            # it ends by its own watchdog
        everybody.backend.kill(signal.SIGKILL)
        everybody.backend.reap()
        everybody.start_backend()
    running.end(WATCHDOG)
    check_image(image)
    everybody.end_of_test()
    everybody.close()


@contextmanager
def relay(runtime: Path) -> Iterator[str]:
    """A FIFO for blkback's doorbell, whose bytes go on as zmq messages; what comes before the vCPU's number."""
    path = runtime / "relay1"
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR)

    def pass_on() -> None:
        bells = Bells(runtime)
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


def test_zmq_doorbells(programs: dict[str, Path], tmp_path: Path) -> None:
    with dom0("zmq") as world, relay(world[1]) as bells:
        image = tmp_path / "disk.img"           # on whatever file system that is, for once
        with open(image, "wb") as file:
            file.truncate(SECTORS * 512)
        keys: dict[str, Key] = {"ring-page-order": 2}
        serve(world, programs["x86_64-abi"], image, keys, order=2, segments=256, persistent=1, bells=bells)
        found = np.fromfile(image, dtype=np.uint64).reshape(SECTORS, WORDS)
        assert np.array_equal(found[: SECTORS // 2], contents(SECTORS)[: SECTORS // 2])


def test_there_is_a_compiler() -> None:
    """The tests above would have failed, and this one says why."""
    assert shutil.which("cc")
    assert Path("/usr/include/xen/io/blkif.h").exists(), "libxen-dev is not installed"
