"""netback between frontends in C that know only Xen's headers: ring.h's macros, netif.h's structures, bare memory."""
import shutil
import signal
from pathlib import Path

import pytest
from c_frontend import CFrontend, alloc_port, build
from netpeer import Vif, World
from peer import WATCHDOG

from miniguest.ring.abi.xenbus import XenbusState


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("netfront_c/netfront.c", tmp_path_factory.mktemp("netfront") / "netfront")


class Program(CFrontend):
    """The program as the frontend of a vif, connected."""

    def __init__(self, program: Path, vif: Vif, to: Vif, split: bool, **numbers: int) -> None:
        self.vif = vif
        vif.domain.close()                      # its events are the program's
        tx = alloc_port(vif.domain)
        rx = alloc_port(vif.domain) if split else tx
        super().__init__(program, vif.domain, port=tx, rx_port=rx, mac=vif.mac.hex(":"), to=to.mac.hex(":"), **numbers)
        tx_ref, rx_ref = self.grefs
        vif.write_front({
            "tx-ring-ref": tx_ref, "rx-ring-ref": rx_ref, "request-rx-copy": 1, "feature-rx-notify": 1, "feature-sg": 1,
            **({"event-channel-tx": tx, "event-channel-rx": rx} if split else {"event-channel": tx}),
        })
        vif.switch(XenbusState.Connected)
        vif.wait_connected()

    def announce(self) -> None:
        self.say("connected")
        assert self.line() == "announced\n", self.process.communicate()[1]


def pair(
    program: Path, world: World, split: bool, frames: int, buffers: tuple[int, int], largest: int, loose: int = 0
) -> list[Program]:
    vifs = [world.vif(memory=16 << 20) for _ in range(2)]
    for vif in vifs:
        vif.wait_state(XenbusState.InitWait)
    made = [
        Program(program, vif, other, split, frames=frames, buffers=count, largest=largest, loose=loose)
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
    counted = [each.end(2 * WATCHDOG) for each in programs]
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
        world.backend.kill(signal.SIGKILL)
        world.backend.reap()
        world.start_backend()
    counted = [each.end(2 * WATCHDOG) for each in programs]
    assert all(mine["sent"] == 100_000 for mine in counted)
    # One that was killed between writing its answers and showing them takes those, and no more, with it.
    assert all(mine["refused"] <= 3 * 64 for mine in counted)


def test_there_is_a_compiler() -> None:
    """The tests above would have failed, and this one says why."""
    assert shutil.which("cc")
    assert Path("/usr/include/xen/io/netif.h").exists(), "libxen-dev is not installed"
