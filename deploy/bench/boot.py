"""Boots, in real time, beside QEMU's TCG with the same firmware and the same image.

    seabios   from reset to the first byte that a boot sector writes to the serial line
    grub      from reset until GRUB has printed the SHA-256 of a file of 4 MiB
    ipxe      from reset, over a network of its own, as boot_ipxe says

QEMU's clock starts when its machine does, after everything is set up; so does ours. A row of its own, `with its start`, has
the time from the start of QEMU's process.
"""
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

from miniguest.deploy import firmware, images, topology
from miniguest.deploy.bench import boot_ipxe
from miniguest.deploy.bench.rows import Measured, row
from miniguest.deploy.bench.windows import interleave
from miniguest.deploy.errors import ImageError
from miniguest.deploy.runtime import runtime_directory
from miniguest.deploy.supervisor import Supervisor
from miniguest.ring.errors import MiniguestError

QEMU: Final = "qemu-system-x86_64"
GRUB_FILE: Final = 4 << 20              # bytes
WATCHDOG: Final = 120.0                 # seconds for a boot
MARK: Final = b"booted"
# A boot sector: print MARK, which follows it, on COM1, then stop.
SECTOR: Final = bytes.fromhex(
    "fc 31c0 8ed8 be177c"               # cld; ds = 0; si = text
    "baf803 ac 84c0 7403 ee ebf8"       # dx = 0x3f8; 1: lodsb; test al, al; jz 2f; out dx, al; jmp 1b
    "fa f4 ebfc"                        # 2: cli; hlt; jmp 2b
) + MARK + bytes(1)


class BootError(MiniguestError):
    """A machine did not boot."""


def measure(windows: int, peers: bool, progress: Callable[[str], None]) -> Measured:
    """All boots. QEMU is the reference, whether peers were asked for or not."""
    found = Measured()
    program = shutil.which(QEMU)
    if program is None:
        found.left_out["boot, QEMU"] = f"no {QEMU}: install the package qemu-system-x86"
    with tempfile.TemporaryDirectory(prefix="miniguest-bench-") as name:
        directory = Path(name)
        for what, (image, said) in _images(directory, found).items():
            ways = {f"boot {what}": partial(ours, topology.of_disk(image, "bench-boot"), said)}
            if program:
                disk = ("-drive", f"file={image},format=raw,if=ide,snapshot=on")
                ways[f"boot {what}, QEMU"] = partial(qemu, program, directory, disk, said, False)
                ways[f"boot {what}, QEMU with its start"] = partial(qemu, program, directory, disk, said, True)
            _rows(what, interleave(ways, windows, progress), found)
        _ipxe(directory, program, windows, progress, found)
    return found


def _rows(what: str, values: dict[str, list[float]], found: Measured) -> None:
    """Ours next to QEMU's, and QEMU's with its start next to ours."""
    for way, seconds in values.items():
        reference = f"boot {what}" if way.endswith("start") else f"{way}, QEMU"
        others = values.get(reference, [])
        found.rows.append(row(way, "s", seconds, reference if others else "", others, least=True))


def _ipxe(directory: Path, program: str | None, windows: int, progress: Callable[[str], None], found: Measured) -> None:
    """From the network, if all is there that this needs."""
    if reason := boot_ipxe.missing():
        found.left_out["boot ipxe"] = reason
        return
    served = directory / "served"
    served.mkdir()
    directory.chmod(0o755)
    boot_ipxe.serve(served, SECTOR)
    what = boot_ipxe.machine(directory)
    ways = {"boot ipxe": partial(boot_ipxe.in_namespace, served, partial(ours, what, MARK))}
    if program:
        card = ("-netdev", f"tap,id=n,ifname={boot_ipxe.TAP},script=no,downscript=no", "-boot", "n",
                "-device", f"e1000,netdev=n,romfile={boot_ipxe.rom()},mac={what.guest[0].vif[0].mac}")
        ways["boot ipxe, QEMU"] = partial(
            boot_ipxe.in_namespace, served, partial(qemu, program, directory, card, MARK, False))
    try:
        _rows("ipxe", interleave(ways, windows, progress), found)
    except boot_ipxe.NetworkError as error:
        found.left_out["boot ipxe"] = str(error)


def _images(directory: Path, found: Measured) -> dict[str, tuple[Path, bytes]]:
    """What is booted, and what it says when it has."""
    sector = directory / "sector.img"
    sector.write_bytes((SECTOR.ljust(510, b"\0") + b"\x55\xaa").ljust(1 << 20, b"\0"))
    made = {"seabios": (sector, MARK)}
    try:
        grub = images.build_first_light(directory, GRUB_FILE)
        made["grub"] = grub.image, grub.sha256.encode()
    except ImageError as error:
        found.left_out["boot grub"] = str(error)
    return made


def ours(what: topology.Topology, said: bytes, ready: Callable[[], None] = lambda: None) -> float:
    """Seconds from reset until the serial line says so. ready: called just before reset."""
    reader, writer = os.pipe()
    with ExitStack() as undo:
        undo.callback(os.close, reader)
        runtime = undo.enter_context(runtime_directory(what))
        with open(writer, "wb") as console:
            supervisor = Supervisor(what, runtime, console, lambda message: None, ())
            undo.callback(supervisor.kill)
            supervisor.start_dom0(undo)
        ready()
        supervisor.start_guests()
        return _until(reader, said, time.perf_counter())


def qemu(
    program: str, directory: Path, devices: tuple[str, ...], said: bytes, with_start: bool,
    ready: Callable[[], None] = lambda: None,
) -> float:
    """The same of QEMU's PC. with_start: from the start of its process."""
    serial = directory / "serial"
    os.mkfifo(serial)
    reader = os.open(serial, os.O_RDWR | os.O_NONBLOCK)
    start = time.perf_counter()
    machine = subprocess.Popen(
        [program, "-accel", "tcg", "-M", "pc", "-nodefaults", "-display", "none", "-m", "128", "-bios", firmware.seabios(),
         *devices, "-serial", f"file:{serial}", "-S", "-qmp", "stdio"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1,
    )
    try:
        _order(machine, "qmp_capabilities")
        ready()
        start = start if with_start else time.perf_counter()
        _order(machine, "cont")
        return _until(reader, said, start)
    finally:
        machine.kill()
        machine.communicate()
        os.close(reader)
        serial.unlink()


def _order(machine: "subprocess.Popen[str]", command: str) -> None:
    """A command of QEMU's machine protocol."""
    assert machine.stdin and machine.stdout and machine.stderr
    try:
        print(json.dumps({"execute": command}), file=machine.stdin, flush=True)
    except BrokenPipeError:
        pass                            # it says why on stderr
    for line in machine.stdout:
        if "return" in json.loads(line):
            return
    raise BootError(f"QEMU ended: {machine.stderr.read().strip()}")


def _until(reader: int, said: bytes, start: float) -> float:
    """Seconds since `start` when `said` has come."""
    heard = b""
    while said not in heard:
        left = start + WATCHDOG - time.perf_counter()
        if left <= 0 or not select.select([reader], [], [], left)[0]:
            raise BootError(f"the guest has not said {said!r} in {WATCHDOG:g} s: {heard[-200:]!r}")
        data = os.read(reader, 4096)
        if not data:
            raise BootError(f"the guest ended without {said!r}: {heard[-200:]!r}")
        heard += data
    return time.perf_counter() - start
