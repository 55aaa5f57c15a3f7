"""What an exit costs and how long a boot takes, each beside a reference that ran in the same rounds.

    exit round trip    IN from the POST port: vCPU -> ioreq -> mini-guest -> vCPU, from the exit counters
    exit, local        IN from the PIC's mask register, answered in the vCPU's own process: the reference for it
    boot to GRUB       from reset until GRUB printed its first line
    boot, reference    a fixed amount of Python, the reference for it
    vif to vif         frames through netback's switch, of several sizes; beside them AF_UNIX datagrams between two
                       processes and writes to a TAP (miniguest.deploy.bench_net)

Times of shared machines mean little; the ratios mean more. Run with `make bench`, or `python -m miniguest.deploy.bench`.
"""
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import click
import msgspec
from rich.console import Console
from rich.progress import track
from rich.table import Table

from miniguest.deploy import bench_net, images, topology
from miniguest.deploy.report import RunResult
from miniguest.deploy.runtime import runtime_directory
from miniguest.deploy.supervisor import Supervisor

EXITS: Final = 20_000
LOOP: Final = 300_000
REFERENCES: Final = {"unix": "AF_UNIX datagrams", "tap": "write to a TAP"}
POST: Final = 0x80
PIC_MASK: Final = 0x21
# Boot sector: ECX times IN AL from both ports, then power off through ACPI.
EXIT_LOOP: Final = bytes.fromhex(
    "fa"                                                    # cli
    "66b9" + EXITS.to_bytes(4, "little").hex() +            # mov ecx, EXITS
    "e480" "e421" "6649" "75f8"                             # 1: in al, 0x80; in al, 0x21; dec ecx; jnz 1b
    "ba04b0" "b80020" "ef" "f4"                             # mov dx, 0xb004; mov ax, 0x2000; out dx, ax; hlt
)


class Row(msgspec.Struct, frozen=True):
    """One figure over all rounds, and its ratio to the reference of the same rounds."""

    name: str
    median: float
    best: float
    unit: str
    reference: str
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: int


def exit_times() -> tuple[float, float]:
    """Mean microseconds of (a round trip through the mini-guest, an exit answered locally)."""
    with tempfile.TemporaryDirectory(prefix="miniguest-bench-") as name:
        image = Path(name) / "exits.img"
        image.write_bytes((EXIT_LOOP.ljust(510, b"\0") + b"\x55\xaa").ljust(1 << 20, b"\0"))
        result, _ = _run(image, None)
    rows = {row.address: row for row in result.guests[0].exits.rows if row.kind == "pio_in"}
    return rows[POST].time_ns.total / rows[POST].exits / 1e3, rows[PIC_MASK].time_ns.total / rows[PIC_MASK].exits / 1e3


def boot_times(image: Path) -> tuple[float, float]:
    """Seconds (from reset to GRUB's first line, of the reference loop)."""
    start = time.perf_counter()
    total = 0
    for number in range(LOOP):
        total += number
    reference = time.perf_counter() - start
    return _run(image, images.FIRST_LINE.encode())[1], reference


def _run(image: Path, line: bytes | None) -> tuple[RunResult, float]:
    """Run an image to its end; seconds from reset until `line` was printed."""
    what = topology.of_disk(image, "bench")
    reader, writer = os.pipe()
    with ExitStack() as undo:
        undo.callback(os.close, reader)
        runtime = undo.enter_context(runtime_directory(what))
        with open(writer, "wb") as console:
            supervisor = Supervisor(what, runtime, console, lambda message: None, ())
            undo.callback(supervisor.kill)
            supervisor.start_dom0(undo)
        supervisor.start_guests()
        reset = time.perf_counter()
        said = b""
        while line is not None and line not in said:
            data = os.read(reader, 4096)
            if not data:
                raise RuntimeError(f"the guest ended without {line!r}: {said!r}")
            said += data
        seconds = time.perf_counter() - reset
        return supervisor.watch(120.0), seconds


def row(
    name: str, unit: str, reference: str, pairs: list[tuple[float, float]], best: Callable[[list[float]], float] = min
) -> Row:
    """Figures of several rounds, each with its reference."""
    values, ratios = [value for value, _ in pairs], [value / other for value, other in pairs]
    return Row(
        name, statistics.median(values), best(values), unit, reference, statistics.median(ratios), min(ratios), max(ratios),
        len(pairs),
    )


def net_rows(rounds: int, logs: Path) -> tuple[list[Row], dict[str, str]]:
    """Rates of the network path, and the references that cannot be had here, with the reason."""
    with bench_net.paths(logs) as (ways, left_out):
        found = bench_net.rates(rounds, ways)
    rows = []
    for size in bench_net.WINDOWS:
        vif = [rate / 1e3 for rate in found["vif", size]]
        name = f"vif to vif, {size} B"
        for way in ways:
            if way != "vif":
                other = [rate / 1e3 for rate in found[way, size]]
                rows.append(row(name, "k/s", f"{REFERENCES[way]}, {size} B", list(zip(vif, other, strict=True)), max))
                rows.append(row(f"{REFERENCES[way]}, {size} B", "k/s", "", [(rate, rate) for rate in other], max))
        rows.append(row(name, "GB/s", "", [(rate * size / 1e6,) * 2 for rate in vif], max))
    return rows, left_out


@click.command()
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(min=1))
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the rows as JSON too.")
def main(rounds: int, json_file: Path | None) -> None:
    """Measure, and print a table."""
    errors = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="miniguest-bench-") as name:
        image = images.build_first_light(Path(name)).image
        exits, boots = [], []
        for _ in track(range(rounds), "rounds", console=errors, disable=not errors.is_terminal):
            exits.append(exit_times())
            boots.append(boot_times(image))
        with errors.status("the network path"):
            net, left_out = net_rows(rounds, Path(name))
    rows = [
        row("exit round trip", "us", "exit, local", exits),
        row("exit, local", "us", "", [(local, local) for _, local in exits]),
        row("boot to GRUB's first line", "s", "boot, reference", boots),
        row("boot, reference", "s", "", [(reference, reference) for _, reference in boots]),
        *net,
    ]
    if json_file:
        found = {"machine": _machine(), "rows": rows, "left_out": left_out}
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    _print(rows)
    for way, reason in left_out.items():
        errors.print(f"left out: {REFERENCES[way]}: {reason}")


def _machine() -> dict[str, str | int]:
    return {"cores": os.cpu_count() or 0, "kernel": subprocess.check_output(["uname", "-r"], text=True).strip()}


def _print(rows: list[Row]) -> None:
    table = Table("What", "Median", "Best", "Unit", "Reference", "Ratio", "Spread")
    for each in rows:
        spread = f"{each.ratio_low:.2f}..{each.ratio_high:.2f}" if each.reference else ""
        ratio = f"{each.ratio:.2f}" if each.reference else ""
        table.add_row(each.name, f"{each.median:.3f}", f"{each.best:.3f}", each.unit, each.reference, ratio, spread)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
