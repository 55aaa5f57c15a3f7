"""`miniguest bench`: runs the benches asked for, prints their rows and writes them as JSON."""
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click
from rich.console import Console

from miniguest.deploy.bench import machine, rows
from miniguest.deploy.bench.rows import Measured
from miniguest.ring.errors import UserError

# Windows of each bench unless --windows says how many: as many as take some ten seconds, and five boots.
BENCHES: Final = {"ring": 21, "exit": 11, "blk": 9, "net": 9, "boot": 5, "spawn": 5}
PACKAGE: Final = "miniguest.deploy.bench"
WIDTH: Final = 150                      # columns of a table that goes to a file or a pipe


@click.command()
@click.argument("names", metavar=f"[{'|'.join(BENCHES)}]...", nargs=-1)
@click.option("--peers", is_flag=True, help="Measure beside what else a user could take, too.")
@click.option("--json", "json_file", metavar="FILE|-", help="Write the rows as JSON, too.")
@click.option("--windows", type=click.IntRange(min=1), help="How many windows of each thing measured.")
def bench(names: tuple[str, ...], peers: bool, json_file: str | None, windows: int | None) -> int:
    """Measure rings, exits, disks, networks, boots and spawning, each beside a reference in the same minute."""
    for name in names:
        if name not in BENCHES:
            raise UserError(f"bench {name}: there is none: known are {', '.join(BENCHES)}")
    errors = Console(stderr=True)
    output = _writer(json_file)
    found = Measured()
    for name in names or [name for name in BENCHES if _is_there(name)]:
        with errors.status(name) as status:
            found.add(_measure(name, windows or BENCHES[name], peers, status.update))
    console = errors if json_file == "-" else Console()
    rows.table(found.rows, console if console.is_terminal else Console(file=console.file, width=WIDTH))
    for name, reason in found.left_out.items():
        errors.print(f"left out: {name}: {reason}", highlight=False, soft_wrap=True)
    if warning := machine.STEADINESS.warning():
        errors.print(f"warning: {warning}", highlight=False, soft_wrap=True)
    output(rows.to_json(machine.describe(), found))
    return 0


def _is_there(name: str) -> bool:
    return importlib.util.find_spec(f"{PACKAGE}.{name}") is not None


def _measure(name: str, windows: int, peers: bool, progress: Callable[[str], None]) -> Measured:
    if not _is_there(name):
        return Measured(left_out={name: "not part of this version"})
    found = importlib.import_module(f"{PACKAGE}.{name}").measure(windows, peers, progress)
    assert isinstance(found, Measured)
    return found


def _writer(name: str | None) -> Callable[[bytes], object]:
    """Where the JSON goes. UserError when it cannot be written, before anything is measured."""
    if name is None:
        return lambda _: None
    if name == "-":
        return lambda data: (sys.stdout.flush(), sys.stdout.buffer.write(data))
    path = Path(name)
    try:
        was_there = path.exists()
        path.open("ab").close()
        if not was_there:
            path.unlink()                       # a bench that fails leaves none behind
    except OSError as error:
        raise UserError(f"{path}: --json: cannot be written: {error.strerror}") from None
    return path.write_bytes
