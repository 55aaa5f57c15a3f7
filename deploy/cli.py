"""The `miniguest` command.

Exit status: 0 when every guest ended by itself, 1 after a crash, 2 for bad usage or a bad file (one line on stderr that
names the file and the key), 3 at the timeout, 128 + N when signal N ended it.
"""
from __future__ import annotations

import math
import os
import signal
import stat
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import BinaryIO, NoReturn

import click
import msgspec
from rich.console import Console

from miniguest.deploy import control, engines, images, report, topology
from miniguest.deploy.errors import Interrupted, TopologyError
from miniguest.deploy.images import FirstLight
from miniguest.deploy.report import RunResult
from miniguest.deploy.runtime import find, runtime_directory
from miniguest.deploy.topology import Topology
from miniguest.ring.errors import MiniguestError, UserError

TABLE_WIDTH = 120       # columns of a table that goes to a file or a pipe


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="miniguest")
def cli() -> None:
    """Xen's stub-domain architecture as ordinary Linux processes."""


@cli.command()
@click.argument("file", metavar="[TOPOLOGY]", required=False, type=click.Path(path_type=Path))
@click.option("--disk", metavar="IMAGE", type=click.Path(path_type=Path),
              help="The first guest's first disk; without TOPOLOGY a default guest boots it.")
@click.option("--timeout", metavar="SECONDS", type=float, help="End the guests after so long, with status 3.")
@click.option("--runtime", metavar="DIR", type=click.Path(path_type=Path),
              help="Runtime directory, absent or empty; otherwise one on a tmpfs.")
@click.option("--json", "json_file", metavar="FILE|-", help="Write the result as JSON; '-' moves all else to stderr.")
@click.option("--record", metavar="FILE", type=click.Path(path_type=Path),
              help="Write every exit of the guest to FILE, for engine = \"replay\".")
def run(file: Path | None, disk: Path | None, timeout: float | None, runtime: Path | None,
        json_file: str | None, record: Path | None) -> int:
    """Run the guests of a TOPOLOGY to their end, then print their exits.

    Without TOPOLOGY and --disk: builds a GRUB image that hashes a file of random bytes, boots it and compares the hash.
    """
    if timeout is not None and not (timeout > 0 and math.isfinite(timeout)):
        raise UserError(f"--timeout: {timeout:g} is no time to wait: give seconds, more than 0")
    with ExitStack() as undo:
        first_light = None
        leftovers: list[Path] = []
        if file is not None:
            what = topology.load(file, disk)
        elif disk is not None:
            what = topology.of_disk(disk)
        else:
            first_light = _first_light(undo)
            leftovers.append(first_light.image.parent)
            what = topology.of_disk(first_light.image, "first-light")
        if record is not None:
            undo.enter_context(engines.recording(what, record))
        output = _Output(json_file, undo)
        directory = undo.enter_context(runtime_directory(what, runtime))
        progress(f"{what.name}: runtime directory {directory}")
        result = start(what, directory, timeout, output.console, leftovers, record)
        output.write(result)
        return _status(result) or _compare(first_light, result, output)


@cli.command()
@click.argument("running", metavar="TOPOLOGY|DIR")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--json", "json_file", metavar="FILE|-", help="Write what was added as JSON; '-' moves all else to stderr.")
def add(running: str, file: Path, json_file: str | None) -> int:
    """Add the guests of FILE to a topology that runs.

    FILE holds [[guest]] tables, as a topology file does. The topology is found by its name, or by its runtime directory.
    Either all guests of FILE are added, or none.
    """
    guests = topology.load_guests(file)
    with ExitStack() as undo:
        output = _Output(json_file, undo)
        reply = control.ask(
            find(running), "add", file=str(file), base=str(file.absolute().parent), guests=topology.pack_guests(guests)
        )
        output.write_json(msgspec.json.format(msgspec.json.encode(reply), indent=2) + b"\n")
        for each in reply["guests"]:
            line = f"{reply['topology']}/{each['name']}: domain {each['domid']}, mini-guest domain {each['mini_guest']}"
            output.tables.print(line, highlight=False, soft_wrap=True)
        for each, guest in zip(reply["guests"], guests, strict=True):
            if guest.serial == "pty":
                click.echo(f"miniguest: {each['name']}: serial line on {each['serial']}", err=True)
    return 0


@cli.command()
@click.argument("running", metavar="TOPOLOGY|DIR")
@click.argument("guest", metavar="GUEST")
def remove(running: str, guest: str) -> int:
    """Switch off GUEST of a topology that runs, and take away its devices.

    It is in the run's report nevertheless, and a run whose last guest goes ends.
    """
    control.ask(find(running), "remove", guest=guest)
    return 0


@cli.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> int:
    """Measure it, beside what else there is."""
    from miniguest.deploy.bench import command

    with command.bench.make_context("miniguest bench", list(arguments)) as context:
        status = command.bench.invoke(context)
    return status if isinstance(status, int) else 0


def start(
    what: Topology, directory: Path, timeout: float | None, console: BinaryIO, leftovers: Sequence[Path],
    record: Path | None = None,
) -> RunResult:
    """Hand over to the supervisor, which is loaded only now: wrong options are answered sooner without it."""
    from miniguest.deploy import supervisor

    return supervisor.run(
        what, runtime=directory, timeout=timeout, console=console, progress=progress, leftovers=leftovers, record=record
    )


def progress(message: str) -> None:
    """Say what is going on to whoever sits before a terminal; others are not disturbed."""
    if sys.stderr.isatty():
        click.echo(click.style(f"miniguest: {message}", dim=True), err=True)


def main() -> NoReturn:
    """The console script: runs the command and turns what goes wrong into one line and an exit status."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:      # nohup wants to be left alone
            signal.signal(number, _interrupt)
    sys.exit(_guarded(_invoke))


def _invoke() -> int:
    # Not cli.main(), which would end the process with status 1 by itself when whoever reads our output goes away.
    try:
        with cli.make_context("miniguest", sys.argv[1:]) as context:
            status = cli.invoke(context)
    except click.exceptions.Exit as ended:      # --help and --version
        return ended.exit_code
    return status if isinstance(status, int) else 0


def _guarded(command: Callable[[], int]) -> int:
    try:
        status = command()
        sys.stdout.flush()
        return status
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        return _complain(error.format_message(), 2)
    except UserError as error:
        return _complain(str(error), 2)
    except (KeyboardInterrupt, click.Abort):
        return _complain("ended by SIGINT", 128 + signal.SIGINT)
    except Interrupted as error:
        return _complain(str(error), 128 + error.number)
    except MiniguestError as error:
        return _complain(str(error), 1)
    except BrokenPipeError:
        # Whoever read our output has gone: as quietly as if SIGPIPE had done it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _complain(message: str, status: int) -> int:
    """One line, whatever strange name is in it."""
    click.echo(f"miniguest: {' '.join(message.split())}", err=True)
    return status


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    raise Interrupted(number)


def _first_light(undo: ExitStack) -> FirstLight:
    directory = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="miniguest-")))
    progress(f"building a GRUB image in {directory}")
    return images.build_first_light(directory)


class _Output:
    """Where console, tables and JSON go. Opens the JSON file, so that nothing is started when it cannot be written."""

    def __init__(self, json_file: str | None, undo: ExitStack) -> None:
        stream = sys.stderr if json_file == "-" else sys.stdout
        self.console: BinaryIO = stream.buffer
        self.tables = Console(file=stream, width=None if stream.isatty() else TABLE_WIDTH)
        self.json = None
        if json_file is not None:
            self.json = sys.stdout.buffer if json_file == "-" else self._open(Path(json_file), undo)

    def _open(self, path: Path, undo: ExitStack) -> BinaryIO:
        try:
            was_there = path.exists()
            file = undo.enter_context(path.open("ab"))
        except OSError as error:
            raise TopologyError(path, "--json", f"cannot be written: {error.strerror}") from None
        if not was_there:
            undo.callback(_remove_if_empty, path)       # a run that failed leaves none behind
        return file

    def write(self, result: RunResult) -> None:
        """The JSON, then the tables."""
        self.write_json(report.to_json(result))
        report.print_tables(result, self.tables)

    def write_json(self, content: bytes) -> None:
        """The JSON, where it was asked for; it replaces what was in the file. Raises MiniguestError on a full disk."""
        if self.json is None:
            return
        try:
            if self.json is not sys.stdout.buffer and stat.S_ISREG(os.fstat(self.json.fileno()).st_mode):
                self.json.truncate(0)
            self.json.write(content)
            self.json.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise MiniguestError(f"--json: cannot be written: {error.strerror}") from None


def _remove_if_empty(path: Path) -> None:
    if path.is_file() and path.stat().st_size == 0:
        path.unlink()


def _status(result: RunResult) -> int:
    ends = {guest.ended for guest in result.guests}
    return 1 if "crash" in ends else 3 if "timeout" in ends else 0


def _compare(first_light: FirstLight | None, result: RunResult, output: _Output) -> int:
    """Whether GRUB saw the file that is in the image; 1 when it did not."""
    if first_light is None:
        return 0
    agrees = first_light.sha256 in result.guests[0].console
    word = "the guest computed the same" if agrees else "the guest did not compute that"
    output.tables.print(f"sha256sum on the host: {first_light.sha256}: {word}", highlight=False, soft_wrap=True)
    return 0 if agrees else 1
