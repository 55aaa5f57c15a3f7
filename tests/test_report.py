"""The result of a run as JSON and as tables, from fixed numbers."""
from __future__ import annotations

import io
import json

from rich.console import Console

from miniguest.deploy.report import (
    KINDS,
    Count,
    Disk,
    Exits,
    Guest,
    Process,
    Ring,
    Row,
    RunResult,
    TimeNs,
    Vif,
    print_tables,
    to_json,
)

ROWS = (
    Row("pio_in", "ide0", 0x1F0, 2, 10, 2560, TimeNs(50_000, 4_000, 9_000)),
    Row("pio_in", "ide0", 0x1F7, 1, 50, 50, TimeNs(100_000, 1_000, 5_500)),
    Row("pio_out", "uart0", 0x3F8, 1, 40, 40, TimeNs(50_000, 500, 2_000)),
)
RESULT = RunResult(
    topology="first-light",
    guests=(
        Guest("hvm0", 1, "unicorn", "domain", "halt", "hello\n", Exits.of_rows(reversed(ROWS)),
              (Disk(10, 5120, 1 << 20),), (Vif("e1000", "00:16:3e:00:00:01", "lan0", 4, 6, 400, 600, 30, 70, 33, 5),)),
    ),
    rings=(Ring("vbd-768", "blkif", 10, 10, 3, 7),),
    processes=(Process("xenstored", 4711, 0, 0.25, 1 << 24),),
)


def test_json_is_what_is_promised() -> None:
    kinds = dict.fromkeys(KINDS, 0) | {"pio_in": 60, "pio_out": 40}
    assert json.loads(to_json(RESULT)) == {
        "topology": "first-light",
        "guests": [{
            "name": "hvm0", "domid": 1, "engine": "unicorn", "device_model": "domain", "ended": "halt",
            "console": "hello\n",
            "exits": {
                "total": 100,
                "by_kind": kinds,
                "by_device": {"ide0": {"exits": 60, "elements": 2610}, "uart0": {"exits": 40, "elements": 40}},
                "rows": [
                    {"kind": "pio_in", "device": "ide0", "address": 0x1F0, "size": 2, "exits": 10, "elements": 2560,
                     "time_ns": {"total": 50_000, "min": 4_000, "max": 9_000}},
                    {"kind": "pio_in", "device": "ide0", "address": 0x1F7, "size": 1, "exits": 50, "elements": 50,
                     "time_ns": {"total": 100_000, "min": 1_000, "max": 5_500}},
                    {"kind": "pio_out", "device": "uart0", "address": 0x3F8, "size": 1, "exits": 40, "elements": 40,
                     "time_ns": {"total": 50_000, "min": 500, "max": 2_000}},
                ],
            },
            "disks": [{"requests": 10, "bytes_read": 5120, "bytes_written": 1 << 20}],
            "vifs": [{
                "model": "e1000", "mac": "00:16:3e:00:00:01", "link": "lan0", "tx_packets": 4, "rx_packets": 6,
                "tx_bytes": 400, "rx_bytes": 600, "exits_work": 30, "exits_idle": 70, "elements_work": 33, "interrupts": 5,
            }],
        }],
        "rings": [{"name": "vbd-768", "kind": "blkif", "requests": 10, "responses": 10, "notifications_sent": 3,
                   "notifications_saved": 7}],
        "processes": [{"name": "xenstored", "pid": 4711, "exit_code": 0, "cpu_s": 0.25, "max_rss_bytes": 1 << 24}],
    }


def test_kinds_are_the_promised_ones() -> None:
    assert KINDS == ("pio_in", "pio_out", "mmio_read", "mmio_write", "hlt", "cpuid", "msr", "hypercall", "irq_window")


def test_sums_do_not_depend_on_the_order_of_rows() -> None:
    assert Exits.of_rows(ROWS) == Exits.of_rows(reversed(ROWS))
    assert Exits.of_rows([]).by_device == {}
    assert Exits.of_rows(ROWS).by_device["ide0"] == Count(60, 2610)


def rendered(result: RunResult) -> list[list[str]]:
    """The printed lines, split at white space."""
    console = Console(file=io.StringIO(), width=120)
    print_tables(result, console)
    file = console.file
    assert isinstance(file, io.StringIO)
    return [line.split() for line in file.getvalue().splitlines()]


def test_exit_table_has_the_columns_of_perf_kvm_stat() -> None:
    lines = rendered(RESULT)
    assert "Device VM-EXIT Samples Samples% Elements Time% Min Time Max Time Avg time".split() in lines
    ide = "ide0 pio_in 60 60.00% 2610 75.00% 1.00us 9.00us 2.50us".split()
    uart = "uart0 pio_out 40 40.00% 40 25.00% 0.50us 2.00us 1.25us".split()
    assert lines.index(ide) < lines.index(uart)         # the most frequent first


def test_exits_per_disk_request() -> None:
    lines = rendered(RESULT)
    assert "0 10 5.0 KiB 1.0 MiB".split() in lines
    assert "all 10 5.0 KiB 1.0 MiB 10.0 6.0".split() in lines


def test_a_guest_that_did_nothing_divides_by_nothing() -> None:
    guest = Guest("idle", 2, "unicorn", "domain", "timeout", "", Exits.of_rows([]), (Disk(0, 0, 0),))
    lines = rendered(RunResult("t", (guest,), (), ()))
    assert "all 0 0 B 0 B - -".split() in lines


def test_exits_per_packet_with_idle_polls_apart() -> None:
    assert "e1000 4 6 30 3.0 30.7 33 70 5".split() in rendered(RESULT)
