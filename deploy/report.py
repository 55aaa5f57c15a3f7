"""What a run was like: the result that goes out as JSON, and its tables for people.

The columns of the exit table are those of `perf kvm stat report`.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Literal, get_args

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

Kind = Literal[
    "pio_in", "pio_out", "mmio_read", "mmio_write", "hlt", "cpuid", "msr", "hypercall", "irq_window"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
Ended = Literal["halt", "poweroff", "timeout", "crash"]


class TimeNs(msgspec.Struct, frozen=True):
    """Nanoseconds that exits took, from leaving the guest to going back in."""

    total: int
    min: int
    max: int


class Row(msgspec.Struct, frozen=True):
    """The exits of one kind at one address. `size` in bytes of one access, 0 where there is none.

    A string instruction is one exit of many elements.
    """

    kind: Kind
    device: str
    address: int
    size: int
    exits: int
    elements: int
    time_ns: TimeNs


class Count(msgspec.Struct, frozen=True):
    """Exits, and the elements they moved."""

    exits: int
    elements: int


class Exits(msgspec.Struct, frozen=True):
    """All exits of a guest. `by_kind` holds every kind, the absent ones as 0."""

    total: int
    by_kind: dict[Kind, int]
    by_device: dict[str, Count]
    rows: tuple[Row, ...]

    @classmethod
    def of_rows(cls, rows: Iterable[Row]) -> Exits:
        """The sums over rows; the rows come out ordered by device, kind and address."""
        rows = tuple(sorted(rows, key=lambda row: (row.device, row.kind, row.address, row.size)))
        by_kind = dict.fromkeys(KINDS, 0)
        for row in rows:
            by_kind[row.kind] += row.exits
        by_device = {
            device: Count(sum(row.exits for row in group), sum(row.elements for row in group))
            for device, group in _grouped(rows)
        }
        return cls(sum(by_kind.values()), by_kind, by_device, rows)


class Disk(msgspec.Struct, frozen=True):
    """What the backend served of one disk: ring requests and bytes."""

    requests: int
    bytes_read: int
    bytes_written: int


class Vif(msgspec.Struct, frozen=True):
    """What crossed one vif, tx being what the guest sent, and what its card cost.

    exits_idle: accesses to the card's registers that were polling which found nothing; exits_work: all others, and
    elements_work their elements. The card's PCI configuration space and ROM are not in it.
    """

    model: str
    mac: str
    link: str
    tx_packets: int
    rx_packets: int
    tx_bytes: int
    rx_bytes: int
    exits_work: int
    exits_idle: int
    elements_work: int
    interrupts: int


class Guest(msgspec.Struct, frozen=True):
    """One guest's run. `device_model` is where it ran; `console` what came out of the serial line."""

    name: str
    domid: int
    engine: str
    device_model: str
    ended: Ended
    console: str
    exits: Exits
    disks: tuple[Disk, ...]
    vifs: tuple[Vif, ...] = ()


class Ring(msgspec.Struct, frozen=True):
    """One shared ring. A notification is saved when the other side was awake and needed none."""

    name: str
    kind: str
    requests: int
    responses: int
    notifications_sent: int
    notifications_saved: int


class Process(msgspec.Struct, frozen=True):
    """One process of the topology. `exit_code` as in subprocess: -9 when killed by signal 9."""

    name: str
    pid: int
    exit_code: int | None
    cpu_s: float
    max_rss_bytes: int


class RunResult(msgspec.Struct, frozen=True):
    """One `miniguest run`. `topology` is its name."""

    topology: str
    guests: tuple[Guest, ...]
    rings: tuple[Ring, ...]
    processes: tuple[Process, ...]


def to_json(result: RunResult) -> bytes:
    """The result as JSON, indented, with a newline at the end. Console bytes that are no UTF-8 must be gone by now."""
    return msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n"


def print_tables(result: RunResult, console: Console) -> None:
    """Exits by device and kind of each guest, and exits per disk request and per packet."""
    for guest in result.guests:
        console.print()
        console.print(f"{result.topology}/{guest.name}: {guest.exits.total} exits, ended by {guest.ended}, "
                      f"engine {guest.engine}", highlight=False, soft_wrap=True)
        console.print(_exit_table(guest.exits))
        if guest.disks:
            console.print(_disk_table(guest))
        if guest.vifs:
            console.print(_vif_table(guest))


def _exit_table(exits: Exits) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Device", no_wrap=True)
    table.add_column("VM-EXIT", no_wrap=True)
    for name in ("Samples", "Samples%", "Elements", "Time%", "Min Time", "Max Time", "Avg time"):
        table.add_column(name, justify="right", no_wrap=True)
    time = sum(row.time_ns.total for row in exits.rows)
    for row in sorted(_merged(exits.rows), key=lambda row: -row.exits):
        table.add_row(
            row.device,
            row.kind,
            str(row.exits),
            _share(row.exits, exits.total),
            str(row.elements),
            _share(row.time_ns.total, time),
            _us(row.time_ns.min),
            _us(row.time_ns.max),
            _us(row.time_ns.total / row.exits if row.exits else 0),
        )
    return table


def _disk_table(guest: Guest) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Disk", no_wrap=True)
    for name in ("Requests", "Read", "Written", "Exits/request", "IDE exits/request"):
        table.add_column(name, justify="right", no_wrap=True)
    ide = sum(count.exits for device, count in guest.exits.by_device.items() if device.startswith("ide"))
    for index, disk in enumerate(guest.disks):
        table.add_row(str(index), str(disk.requests), _bytes(disk.bytes_read), _bytes(disk.bytes_written), "", "")
    requests = sum(disk.requests for disk in guest.disks)
    read = sum(disk.bytes_read for disk in guest.disks)
    written = sum(disk.bytes_written for disk in guest.disks)
    # Exits belong to the guest, not to one of its disks: an IDE channel holds two.
    table.add_row("all", str(requests), _bytes(read), _bytes(written), _ratio(guest.exits.total, requests),
                  _ratio(ide, requests))
    return table


def _vif_table(guest: Guest) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Vif", no_wrap=True)
    for name in ("Sent", "Received", "Exits", "Exits/packet", "Exits/KiB", "Elements", "Idle exits", "Interrupts"):
        table.add_column(name, justify="right", no_wrap=True)
    for vif in guest.vifs:
        packets, count = vif.tx_packets + vif.rx_packets, vif.tx_bytes + vif.rx_bytes
        table.add_row(
            vif.model, str(vif.tx_packets), str(vif.rx_packets), str(vif.exits_work), _ratio(vif.exits_work, packets),
            _ratio(vif.exits_work << 10, count), str(vif.elements_work), str(vif.exits_idle), str(vif.interrupts),
        )
    return table


def _grouped(rows: Iterable[Row]) -> Iterator[tuple[str, list[Row]]]:
    for device, group in groupby(rows, key=lambda row: row.device):
        yield device, list(group)


def _merged(rows: Iterable[Row]) -> Iterator[Row]:
    """One row for each device and kind, with the addresses (0) and sizes (0) taken together."""
    for (device, kind), found in groupby(rows, key=lambda row: (row.device, row.kind)):
        group = list(found)
        times = TimeNs(
            sum(row.time_ns.total for row in group),
            min(row.time_ns.min for row in group),
            max(row.time_ns.max for row in group),
        )
        yield Row(kind, device, 0, 0, sum(row.exits for row in group), sum(row.elements for row in group), times)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole if whole else 0:.2f}%"


def _us(ns: float) -> str:
    return f"{ns / 1000:.2f}us"


def _ratio(part: int, whole: int) -> str:
    return f"{part / whole:.1f}" if whole else "-"


def _bytes(count: int) -> str:
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >> shift:
            return f"{count / (1 << shift):.1f} {unit}"
    return f"{count} B"
