"""Collects what a run left in its runtime directory into the report: exits, disks, rings, console."""
from pathlib import Path
from typing import cast

from miniguest.deploy import report
from miniguest.deploy.toolstack import VDEVS, console_copy
from miniguest.deploy.topology import Guest
from miniguest.ring.exits import ExitRow, exits_path, read_exits
from miniguest.ring.statistics import read_statistics, statistics_path


def guest_report(runtime: Path, guest: Guest, domid: int, stub: int, ended: report.Ended) -> report.Guest:
    """One guest's part of the report."""
    rows = [_row(row) for row in read_exits(exits_path(runtime, domid))]
    disks = []
    for disk in guest.disk:
        counted = read_statistics(statistics_path(runtime, "vbd", stub, VDEVS[disk.vdev]))
        disks.append(report.Disk(counted["requests"], counted["bytes_read"], counted["bytes_written"]))
    return report.Guest(
        name=guest.name, domid=domid, engine="unicorn", device_model="domain", ended=ended,
        console=_console(runtime, stub), exits=report.Exits.of_rows(rows), disks=tuple(disks),
    )


def ring_reports(runtime: Path, guest: Guest, stub: int) -> list[report.Ring]:
    """The rings of one guest's mini-guest."""
    rings = []
    for disk in guest.disk:
        counted = read_statistics(statistics_path(runtime, "vbd", stub, VDEVS[disk.vdev]))
        rings.append(report.Ring(
            name=f"{guest.name}/{disk.vdev}", kind="blkif", requests=counted["requests"], responses=counted["responses"],
            notifications_sent=counted["notifications_sent"], notifications_saved=counted["notifications_saved"],
        ))
    return rings


def _row(row: ExitRow) -> report.Row:
    return report.Row(
        kind=cast(report.Kind, row.kind.name.lower()), device=row.device, address=row.address, size=row.size,
        exits=row.exits, elements=row.elements, time_ns=report.TimeNs(row.total_ns, row.min_ns, row.max_ns),
    )


def _console(runtime: Path, stub: int) -> str:
    try:
        return console_copy(runtime, stub).read_bytes().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
