"""Collects what a run left in its runtime directory into the report: exits, disks, rings, console."""
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from miniguest.deploy import report
from miniguest.deploy.toolstack import VDEVS, console_copy
from miniguest.deploy.topology import Guest
from miniguest.frontend.network_card import card_names
from miniguest.ring.card_counters import card_counters_path, read_card_counters
from miniguest.ring.exits import ExitRow, exits_path, read_exits
from miniguest.ring.statistics import read_statistics, read_vif_statistics, statistics_path


def guest_report(runtime: Path, guest: Guest, engine: str, domid: int, stub: int, ended: report.Ended) -> report.Guest:
    """One guest's part of the report."""
    rows = [_row(row) for row in read_exits(exits_path(runtime, domid))]
    disks = []
    for disk in guest.disk:
        counted = read_statistics(statistics_path(runtime, "vbd", stub, VDEVS[disk.vdev]))
        disks.append(report.Disk(counted["requests"], counted["bytes_read"], counted["bytes_written"]))
    exits = report.Exits.of_rows(rows)
    return report.Guest(
        name=guest.name, domid=domid, engine=engine, device_model="domain", ended=ended,
        console=_console(runtime, stub), exits=exits, disks=tuple(disks),
        vifs=tuple(_vifs(runtime, guest, domid, stub, exits)),
    )


def _vifs(runtime: Path, guest: Guest, domid: int, stub: int, exits: report.Exits) -> Iterator[report.Vif]:
    for handle, (vif, name) in enumerate(zip(guest.vif, card_names([vif.model for vif in guest.vif]), strict=True)):
        counted = read_vif_statistics(statistics_path(runtime, "vif", stub, handle))
        card = read_card_counters(card_counters_path(runtime, domid, handle))
        all_of_it = exits.by_device.get(name, report.Count(0, 0))
        yield report.Vif(
            model=vif.model, mac=vif.mac, link=vif.link, tx_packets=counted["tx_packets"], rx_packets=counted["rx_packets"],
            tx_bytes=counted["tx_bytes"], rx_bytes=counted["rx_bytes"], exits_work=all_of_it.exits - card["idle"],
            exits_idle=card["idle"], elements_work=all_of_it.elements - card["idle"], interrupts=card["interrupts"],
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
    for handle in range(len(guest.vif)):
        counted = read_vif_statistics(statistics_path(runtime, "vif", stub, handle))
        for way in ("tx", "rx"):
            rings.append(report.Ring(
                name=f"{guest.name}/vif{handle}-{way}", kind="netif", requests=counted[f"{way}_requests"],
                responses=counted[f"{way}_responses"], notifications_sent=counted[f"{way}_notifications_sent"],
                notifications_saved=counted[f"{way}_notifications_saved"],
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
