"""iPXE's ROM, from reset to a program from the network that ran once 1 MiB had come by TFTP; ours and QEMU's e1000.

Both machines have a TAP in a network namespace made for the one boot, with a dnsmasq that gives leases, files, and router
advertisements: without these iPXE waits for a router of IPv6 for seconds that say nothing about a machine.
"""
import multiprocessing
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from miniguest.backend.netback.tap import CLONE_DEVICE
from miniguest.deploy import option_rom, topology
from miniguest.deploy.bench.net_paths import enter_namespace
from miniguest.ring.errors import MiniguestError
from miniguest.ring.process import die_with

TAP: Final = "mg0"
SIZE: Final = 1 << 20                   # bytes loaded before the program is
WATCHDOG: Final = 200.0                 # seconds for a boot with all it needs
PATIENCE: Final = 10.0                  # seconds for a machine to make its TAP
SCRIPT: Final = "#!ipxe\nimgfetch blob\nchain nbp\n"
NETWORK: Final = ("address add 10.77.0.1/24 dev", "address add fd77::1/64 nodad dev", "link set up dev")
DNSMASQ: Final = (
    "--keep-in-foreground --conf-file=/dev/null --port=0 --bind-dynamic --user= --group= --pid-file= "
    "--dhcp-range=10.77.0.50,10.77.0.60,255.255.255.0 --dhcp-range=fd77::,ra-only --enable-ra --dhcp-boot=boot.ipxe "
    "--dhcp-leasefile=/dev/null --enable-tftp"
).split()
TOPOLOGY: Final = """
[[guest]]
name = "hvm0"
vif = [{ model = "e1000", link = "lan0" }]
boot = "n"
[link.lan0]
kind = "tap"
device = "mg0"
"""

Boot = Callable[[Callable[[], None]], float]    # of a machine whose TAP is set up when it calls what it is given; seconds


class NetworkError(MiniguestError):
    """A boot over the network that could not be had."""


def serve(directory: Path, nbp: bytes) -> None:
    """What is loaded; `nbp` is a program for 0000:7c00 (Preboot Execution Environment 2.1, 4.4.5)."""
    for name, content in {"boot.ipxe": SCRIPT.encode(), "blob": os.urandom(SIZE), "nbp": nbp}.items():
        (directory / name).write_bytes(content)
    directory.chmod(0o755)


def missing() -> str:
    """What is not there, in one line; empty when all is."""
    for program in ("dnsmasq", "ip"):
        if shutil.which(program) is None:
            return f"no {program}: install the package {'iproute2' if program == 'ip' else program}"
    if not os.access(CLONE_DEVICE, os.R_OK | os.W_OK):
        return f"{CLONE_DEVICE} cannot be opened"
    try:
        rom()
    except MiniguestError as error:
        return str(error)
    return ""


def rom() -> Path:
    """The card's ROM. FirmwareError without one."""
    found = option_rom.find("auto", "e1000", Path())
    assert found, "auto is not none"
    return found


def machine(directory: Path) -> topology.Topology:
    """Ours."""
    file = directory / "bench-ipxe.toml"
    file.write_text(TOPOLOGY)
    return topology.load(file)


def in_namespace(served: Path, boot: Boot) -> float:
    """Seconds of a boot in a process and a namespace of its own. NetworkError when it did not come to that."""
    fork = multiprocessing.get_context("fork")
    mine, its = fork.Pipe()
    child = fork.Process(target=_child, args=(its, served, boot))
    child.start()
    its.close()
    try:
        answer = mine.recv() if mine.poll(WATCHDOG) else "no boot came to its end"
    except EOFError:
        answer = "the process that boots died"
    finally:
        child.join(10)
        child.kill()
    if isinstance(answer, str):
        raise NetworkError(answer)
    return float(answer)


def _child(answers: Connection, served: Path, boot: Boot) -> None:
    try:
        enter_namespace()
        with open(served / "dnsmasq.log", "wb") as log:
            server = subprocess.Popen(
                ["dnsmasq", *DNSMASQ, f"--interface={TAP}", f"--tftp-root={served}"], stderr=log,
                preexec_fn=partial(die_with, os.getpid()),
            )
        try:
            answers.send(boot(set_up))
        finally:
            server.kill()
            server.wait()
    except (MiniguestError, OSError, subprocess.CalledProcessError) as error:
        answers.send(str(error))


def set_up() -> None:
    """Addresses for the TAP, once it is there; then dnsmasq has a moment to see it. OSError when it does not come."""
    deadline = time.monotonic() + PATIENCE
    while TAP not in (name for _, name in socket.if_nameindex()):
        if time.monotonic() > deadline:
            raise OSError(f"there is no {TAP} after {PATIENCE:g} s")
        time.sleep(0.01)
    for command in NETWORK:
        subprocess.run(["ip", *command.split(), TAP], check=True, capture_output=True)
    time.sleep(0.5)
