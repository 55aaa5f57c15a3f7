"""Which engine a guest gets and how its time goes on; what of that cannot be is found before anything is started."""
from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from miniguest.deploy.errors import TopologyError
from miniguest.frontend.engines import kvm_probe, trace
from miniguest.frontend.engines.plan import Plan, load

if TYPE_CHECKING:
    from miniguest.deploy.topology import Guest, Topology

SECTOR: Final = 512                     # bytes
BEGINNING: Final = 1_136_073_600_000_000_000    # ns since the epoch: virtual time starts with the year 2006, on every boot


@dataclass(frozen=True, slots=True)
class Choice:
    """plan: what its vCPU runs on. wall_ns: since the epoch, when a stepped clock starts; None for real time. deaf: its
    serial line takes no input, which would come at another time on every run."""

    plan: Plan
    wall_ns: int | None = None
    deaf: bool = False


def trouble(guest: Guest, clock: str) -> tuple[str, str] | None:
    """(key, message) when a guest cannot run as it says. Its paths are absolute and there."""
    if guest.engine == "replay" and guest.trace is not None:
        if card := _outside(guest):
            return card
        try:
            trace.check(guest.trace, describe(guest, 0))
        except trace.TraceError as error:
            return "trace", f"{guest.trace}: {error}"
    if guest.engine == "kvm":
        if clock == "virtual":
            return "engine", 'kvm counts nothing that virtual time could go by: with clock = "virtual" give unicorn'
        if reason := kvm_probe.reason_against():
            return "engine", f"kvm does not work here: {reason}"
    return None


def _outside(guest: Guest) -> tuple[str, str] | None:
    """What a guest has that cannot be recorded or replayed."""
    if guest.vif:
        return "vif", "what comes from a network is not in a trace: a guest that is recorded or replayed has no vif"
    if guest.serial == "pty":
        return "serial", 'what is typed is not in a trace: give "stdio" or a file'
    return None


def choose(guest: Guest, clock: str, record: Path | None) -> Choice:
    """What a guest that was checked runs on; what its engine needs is imported."""
    if guest.engine == "replay" and guest.trace is not None:
        header = _header(guest.trace)
        wall_ns = header.wall_ns
        plan = Plan("replay", f"as {guest.trace} was recorded", guest.trace, _record(guest, record, wall_ns))
        return Choice(plan, wall_ns, deaf=True)
    engine, reason = _processor(guest, clock)
    load(engine)
    if clock != "virtual" and record is None:
        return Choice(Plan(engine, reason))
    wall_ns = BEGINNING if clock == "virtual" else time.time_ns()
    plan = Plan(engine, reason, record=_record(guest, record, wall_ns), virtual=clock == "virtual")
    return Choice(plan, wall_ns, deaf=record is not None)


def _processor(guest: Guest, clock: str) -> tuple[str, str]:
    """(engine, why this one)."""
    if guest.engine != "auto":
        return guest.engine, "asked for"
    if clock == "virtual":
        return "unicorn", "virtual time goes by what it counts"
    against = kvm_probe.reason_against()
    return ("unicorn", f"kvm does not work here: {against}") if against else ("kvm", "its probe passed")


def _header(path: Path) -> trace.Header:
    reader = trace.TraceReader(path)
    reader.close()
    return reader.header


def _record(guest: Guest, record: Path | None, wall_ns: int) -> tuple[Path, trace.Header] | None:
    return (record, describe(guest, wall_ns)) if record else None


def describe(guest: Guest, wall_ns: int) -> trace.Header:
    """What a trace says of its guest."""
    return trace.Header(
        guest=guest.name, memory=guest.memory, firmware=hashlib.sha256(Path(guest.firmware).read_bytes()).hexdigest(),
        boot=guest.boot, wall_ns=wall_ns,
        disk=tuple(trace.DiskFacts(disk.vdev, disk.access, _sectors(disk.image)) for disk in guest.disk),
    )


def _sectors(image: Path) -> int:
    with image.open("rb") as file:
        return file.seek(0, os.SEEK_END) // SECTOR


@contextmanager
def recording(topology: Topology, file: Path) -> Iterator[None]:
    """Make sure that the one guest of a topology can be recorded, and that `file` can be written.

    Raises TopologyError. A file that was made stays only if a trace was written to it.
    """
    if len(topology.guest) != 1:
        raise TopologyError(file, "--record", f"a trace is of one guest, and {topology.name} has {len(topology.guest)}")
    (guest,) = topology.guest
    if found := _outside(guest):
        raise TopologyError(file, "--record", f"guest[0].{found[0]}: {found[1]}")
    if any(path.exists() and file.exists() and path.samefile(file) for path in _read(guest)):
        raise TopologyError(file, "--record", "the guest reads this file")
    was_there = file.exists()
    try:
        file.open("ab").close()
    except OSError as error:
        raise TopologyError(file, "--record", f"cannot be written: {error.strerror}") from None
    try:
        yield
    finally:
        if not was_there and file.is_file() and not file.stat().st_size:
            file.unlink()


def _read(guest: Guest) -> list[Path]:
    return [Path(guest.firmware), *([guest.trace] if guest.trace else []), *(disk.image for disk in guest.disk)]
