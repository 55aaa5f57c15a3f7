"""netback between frontends in C that know only Xen's headers: ring.h's macros, netif.h's structures, bare memory."""
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from dom0 import dom0
from netpeer import WATCHDOG, Key, Vif, World

from miniguest.ring.abi.xenbus import XenbusState
from miniguest.ring.events import table_path
from miniguest.ring.memory import Memory, domain_directory
from miniguest.ring.xenbus import write_keys

SOURCE = Path(__file__).parent / "netfront_c" / "netfront.c"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("netfront") / "netfront"
    subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(path), str(SOURCE)], check=True)
    return path


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with dom0("fifo") as (supervisor, runtime):
        world = World(supervisor, runtime)
        yield world
        world.close()


class Program:
    """The program as the frontend of a vif."""

    def __init__(self, program: Path, world: World, vif: Vif, to: Vif, split: bool, **numbers: int) -> None:
        domain, runtime = vif.domain, world.runtime
        self.vif = vif
        domain.close()                          # its events are the program's
        dom0_memory = Memory(domain_directory(runtime, 0) / "memory")

        def port() -> int:
            return int(domain.hypercalls.call("evtchn_alloc_unbound", domid=domain.domid, vcpu=0, remote_domid=0))

        tx = port()
        rx = port() if split else tx
        directory = domain_directory(runtime, domain.domid)
        arguments = {
            "memory": directory / "memory", "dom0-memory": domain_directory(runtime, 0) / "memory",
            "channels": table_path(runtime, domain.domid), "dom0-channels": table_path(runtime, 0),
            "bell": directory / "doorbell0", "bells": str(domain_directory(runtime, 0) / "doorbell"),
            "shared-info": domain.memory.special("shared_info"), "grants": domain.memory.special("grants"),
            "dom0-shared-info": dom0_memory.special("shared_info"), "port": tx, "rx-port": rx,
            "mac": vif.mac.hex(":"), "to": to.mac.hex(":"), **numbers,
        }
        self.process = subprocess.Popen(
            [str(program), *(f"{name}={value}" for name, value in arguments.items())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        _, tx_ref, rx_ref = self.line().split()
        ports: dict[str, Key] = {"event-channel-tx": tx, "event-channel-rx": rx} if split else {"event-channel": tx}
        write_keys(vif.store, vif.front, {                          # type: ignore[arg-type]
            "tx-ring-ref": tx_ref, "rx-ring-ref": rx_ref, "request-rx-copy": 1, "feature-rx-notify": 1, "feature-sg": 1, **ports,
        })
        vif.switch(XenbusState.Connected)
        assert vif.wait_state(XenbusState.Connected, XenbusState.Closing) == XenbusState.Connected, vif.error

    def line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline()

    def say(self, word: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def announce(self) -> None:
        self.say("connected")
        assert self.line() == "announced\n", self.process.communicate()[1]

    def end(self) -> dict[str, int]:
        """Wait for its end; what it counted."""
        out, err = self.process.communicate(timeout=2 * WATCHDOG)
        assert self.process.returncode == 0, err
        words = out.split()
        return {name: int(value) for name, value in zip(words[::2], words[1::2], strict=True)}


def pair(
    program: Path, world: World, split: bool, frames: int, buffers: tuple[int, int], largest: int, loose: int = 0
) -> list[Program]:
    vifs = [world.vif(memory=16 << 20) for _ in range(2)]
    for vif in vifs:
        vif.wait_state(XenbusState.InitWait)
    made = [
        Program(program, world, vif, other, split, frames=frames, buffers=count, largest=largest, loose=loose)
        for vif, other, count in zip(vifs, reversed(vifs), buffers, strict=True)
    ]
    for each in made:
        each.announce()
    return made


@pytest.mark.parametrize("split", [False, True], ids=["one-port", "split-ports"])
@pytest.mark.parametrize(
    ("buffers", "frames", "largest"),
    [((256, 256), 4000, 65535), ((17, 256), 2000, 65535), ((1, 2), 4000, 4096), ((255, 254), 20000, 60)],
    ids=["mixed", "few-buffers-on-one-side", "one-buffer", "small"],
)
def test_every_frame_both_ways(
    program: Path, world: World, split: bool, buffers: tuple[int, int], frames: int, largest: int
) -> None:
    programs = pair(program, world, split, frames, buffers, largest)
    for each in programs:
        each.say("go")
    counted = [each.end() for each in programs]
    for mine, other, each in zip(counted, reversed(counted), programs, strict=True):
        assert mine["sent"] == mine["arrived"] == frames
        assert mine["out"] == other["in"]
        found = each.vif.statistics
        assert (found["tx_packets"], found["tx_bytes"]) == (frames + 1, mine["out"] + 60)
        assert (found["rx_packets"], found["rx_bytes"]) == (frames, mine["in"])
        assert found["tx_requests"] == found["tx_responses"] == mine["slots"] + 1
        assert found["errors"] == found["tx_dropped"] == found["rx_dropped"] == 0
    for each in programs:
        each.vif.switch(XenbusState.Closing)
        each.vif.wait_state(XenbusState.Closing)
        assert each.vif.domain.in_use == []
    world.end_of_test()


def test_netback_killed_while_frames_fly(program: Path, world: World) -> None:
    """Its successor takes up the rings: every frame is answered, and what arrives is whole."""
    programs = pair(program, world, False, 100_000, (256, 256), 9000, loose=1)
    for each in programs:
        each.say("go")
    vif = programs[0].vif
    for _ in range(3):
        was = vif.statistics["rx_packets"]
        while vif.statistics["rx_packets"] < was + 1000 and all(each.process.poll() is None for each in programs):
            pass                                # they end by their own watchdogs
        assert [each.process.poll() for each in programs] == [None, None]
        world.netback.kill(signal.SIGKILL)
        world.netback.reap()
        world.start_netback()
    counted = [each.end() for each in programs]
    assert all(mine["sent"] == 100_000 for mine in counted)
    # One that was killed between writing its answers and showing them takes those, and no more, with it.
    assert all(mine["refused"] <= 3 * 64 for mine in counted)
    world.end_of_test()


def test_there_is_a_compiler() -> None:
    """The tests above would have failed, and this one says why."""
    assert shutil.which("cc")
    assert Path("/usr/include/xen/io/netif.h").exists(), "libxen-dev is not installed"
