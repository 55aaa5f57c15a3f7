"""The benches: each runs with tiny windows and gives the rows it should; what is missing is named and left out."""
import json
import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from miniguest.deploy import cli
from miniguest.deploy.bench import (
    command,
    exit,
    machine,
    net,
    net_paths,
    references,
    ring,
    ring_peers,
    ring_sleep,
    spawn,
    windows,
)
from miniguest.deploy.bench.machine import Steadiness
from miniguest.deploy.bench.rows import Measured, Row, row, to_json

FIELDS = {"bench", "name", "value", "unit", "reference", "ratio", "ratio_low", "ratio_high", "windows", "best", "p90"}


def quiet(_: str) -> None: ...


def look_at(found: Measured, bench: str, count: int, *names: str) -> dict[str, Row]:
    """The rows by name: these are there, all are of this bench, and each ratio is to a row that is there."""
    rows = {each.name: each for each in found.rows}
    assert set(names) <= set(rows)
    for each in rows.values():
        assert each.bench == bench and each.windows == count and each.value > 0
        assert each.ratio_low <= each.ratio <= each.ratio_high
        assert (each.reference in rows) if each.reference else (each.ratio == 1)
    return rows


# -- rows and windows
def test_a_row_is_medians_and_extremes() -> None:
    made = row("ring x", "M/s", [4.0, 1.0, 3.0], "ring c", [2.0, 1.0, 1.0])
    assert made == Row("ring", "ring x", 3.0, "M/s", "ring c", 2.0, 1.0, 3.0, 3, 4.0, 3.0)
    assert row("exit x", "us", [float(n) for n in range(11, 0, -1)], least=True) == Row(
        "exit", "exit x", 6.0, "us", "", 1.0, 1.0, 1.0, 11, 1.0, 2.0)


def test_json_has_the_schema() -> None:
    found = Measured([row("net 1500", "k/s", [1.0])], {"net, tap": "not permitted"})
    content = json.loads(to_json(machine.describe(), found))
    assert set(content) == {"machine", "rows", "left_out"}
    assert set(content["rows"][0]) == FIELDS
    assert {"cores", "kernel"} <= set(content["machine"])


def test_windows_take_turns_and_turn_round() -> None:
    order: list[str] = []

    def way(name: str) -> Callable[[], float]:
        return lambda: float(order.append(name) or len(order))

    found = windows.interleave({"a": way("a"), "b": way("b")}, 3, quiet)
    assert "".join(order) == "abbaab"
    assert found == {"a": [1.0, 4.0, 5.0], "b": [2.0, 3.0, 6.0]}


@pytest.mark.parametrize(("seconds", "warns"), [([1.0] * 20, False), ([1.0] * 16 + [1.6] * 4, True)])
def test_a_noisy_machine_is_warned_of(monkeypatch: pytest.MonkeyPatch, seconds: list[float], warns: bool) -> None:
    clock = iter([at for each in seconds for at in (0.0, each)])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    steadiness = Steadiness()
    assert steadiness.warning() is None
    for _ in seconds:
        steadiness.look()
    assert ("too noisy to say" in (steadiness.warning() or "")) is warns


# -- what is missing
def test_no_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "COMPILERS", ("no-such-compiler",))
    with pytest.raises(references.MissingReferenceError, match=r"^no C compiler: install the package gcc$"):
        references.build("ring")


def test_no_header_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(references, "XEN_HEADER", tmp_path / "ring.h")
    with pytest.raises(references.MissingReferenceError, match=r"ring.h: install the package libxen-dev$"):
        references.build("ring")


def test_what_cannot_be_compiled_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bad.c").write_text("int main(void) { return nothing; }\n")
    monkeypatch.setattr(references, "SOURCES", tmp_path)
    monkeypatch.setattr(references, "CACHE", tmp_path / "cache")
    with pytest.raises(references.MissingReferenceError, match=r"^bad.c cannot be compiled: .*nothing") as caught:
        references.build("bad")
    assert "\n" not in str(caught.value)


def test_a_program_is_made_once_and_again_when_it_changes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "one.c").write_text("int main(void) { return 0; }\n")
    monkeypatch.setattr(references, "SOURCES", source)
    monkeypatch.setattr(references, "CACHE", tmp_path / "cache")
    first = references.build("one")
    made = first.stat().st_mtime_ns
    assert references.build("one") == first and first.stat().st_mtime_ns == made
    (source / "one.c").write_text("int main(void) { return 1; }\n")
    assert references.build("one") != first


def test_a_cache_of_somebody_elses_is_not_trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(references, "CACHE", tmp_path / "cache")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(references.MissingReferenceError, match="somebody else's"):
        references.build("ring")


# -- each bench
def test_rings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "SECONDS", 0.002)
    found = ring.measure(2, False, quiet)
    rows = look_at(found, "ring", 2, *ring.SPINNING, *ring.SLEEPING, ring.C_SLEEP)
    assert found.left_out == {}
    assert rows["ring netif-256 spin"].reference == "ring netif-256 spin, C with Xen's macros"
    assert multiprocessing.active_children() == []


def test_rings_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "SECONDS", 0.002)
    monkeypatch.setattr(ring, "SLEEPING", {})
    monkeypatch.setattr(references, "COMPILERS", ())
    found = ring.measure(1, False, quiet)
    assert set(look_at(found, "ring", 1)) == set(ring.SPINNING)
    assert len(found.left_out) == 4 and all("compiler" in reason for reason in found.left_out.values())


def test_peers_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("iceoryx2", "posix_ipc", "faster_fifo"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(ring, "SECONDS", 0.002)
    monkeypatch.setattr(ring, "SLEEPING", {})
    found = ring.measure(1, True, quiet)
    missing = {"ring peer iceoryx2, 16 a sample", "ring peer posix_ipc", "ring peer faster-fifo"}
    assert set(found.left_out) == missing
    rows = look_at(found, "ring", 1)
    every = {f"ring peer {name}" for name in ring_peers.peers(Path())}
    assert every - set(rows) == missing
    assert all(rows[name].reference == ring.PEERS_OF for name in every - missing)


def test_a_peer_that_dies_is_named() -> None:
    class Broken:
        def client(self) -> None:
            raise RuntimeError("no room for a queue")

        server = client

    found = Measured()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ring, "all_peers", lambda _: {"broken": Broken})
        patch.setattr(ring, "SPINNING", {})
        patch.setattr(ring, "SLEEPING", {})
        patch.setattr(ring, "SECONDS", 0.002)
        found = ring.measure(1, True, quiet)
    assert found.left_out == {"ring peer broken": "RuntimeError: no room for a queue"}


def test_exits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exit, "HOT_SECONDS", 0.01)
    monkeypatch.setattr(exit, "SECTOR_SECONDS", 0.05)
    monkeypatch.setattr(exit, "GAPS", {"": 0.001})
    found = exit.measure(1, False, quiet)
    rows = look_at(found, "exit", 1, "exit hot", "exit hot p99", "exit cold", "exit cold, fifo", "exit sector", "exit sector p99")
    assert rows["exit hot p99"].value >= rows["exit hot"].value
    assert rows["exit hot"].reference == exit.C and found.left_out == {}
    assert rows[exit.C_SECTOR].value > rows[exit.C].value


def test_the_network_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(net_paths, "WINDOWS", {1500: 300, 65535: 30})
    found = net.measure(2, False, quiet)
    rows = look_at(found, "net", 2, "net 1500", "net 65535", "net 1500, fifo")
    assert rows["net 1500"].reference == "net 1500, AF_UNIX datagrams" and rows["net 1500"].unit == "k/s"
    assert rows["net 65535"].reference == "net 65535, memcpy on one core" and rows["net 65535"].unit == "GB/s"
    assert set(found.left_out) <= {"net, write to a TAP"}


def test_a_tap_that_is_not_permitted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(net_paths, "enter_namespace", refuse)
    monkeypatch.setattr(net_paths, "WINDOWS", {1500: 300})
    found = net.measure(1, False, quiet)
    assert found.left_out == {"net, write to a TAP": "Operation not permitted"}
    assert "net 1500" in look_at(found, "net", 1)


# -- the command
def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["miniguest", "bench", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_the_command_prints_and_writes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[int, bool]] = []

    def measure(windows: int, peers: bool, progress: Callable[[str], None]) -> Measured:
        progress("window 1")
        asked.append((windows, peers))
        return Measured([row("ring blkif-32 spin", "M/s", [2.0], "ring c", [4.0])], {"ring c": "no C compiler"})

    monkeypatch.setattr(ring, "measure", measure)
    assert run(monkeypatch, "ring", "--peers", "--windows", "3", "--json", str(tmp_path / "out.json")) == 0
    out, err = capsys.readouterr()
    assert "ring blkif-32 spin" in out and "0.50" in out
    assert "left out: ring c: no C compiler" in err
    assert asked == [(3, True)]
    assert json.loads((tmp_path / "out.json").read_text())["rows"][0]["ratio"] == 0.5
    assert run(monkeypatch, "ring", "--json", "-") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["left_out"] == {"ring c": "no C compiler"} and "ring blkif-32 spin" in err
    assert asked[1] == (command.BENCHES["ring"], False)


@pytest.mark.parametrize(("arguments", "message"), [
    (["rong"], "bench rong: there is none: known are ring, exit, blk"),
    (["ring", "--json", "no/out.json"], "no/out.json: --json: cannot be written"),
    (["ring", "--windows", "0"], "--windows"),
    (["ring", "--fast"], "No such option"),
])
def test_a_mistake_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(monkeypatch, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1


def test_a_sleeping_pair_that_dies_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("miniguest.deploy.bench.pair.WATCHDOG", 0.3)

    def die(self: object) -> None:
        raise RuntimeError("gone")

    monkeypatch.setattr(ring_sleep._Front, "_put", die)
    with pytest.raises(Exception, match="gone"), ring_sleep.sleeping_ring(ring.NETIF, "fifo", False) as pair:
        pair.window(0.01)


def test_spawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawn, "GUESTS", 2)
    found = spawn.measure(2, False, quiet)
    rows = {each.name: each for each in found.rows}
    assert set(rows) == {
        "spawn guest", spawn.PYTHON, "spawn guest, PSS", spawn.PYTHON_PSS, "spawn idle",
        *(f"spawn {what}, the {end} 10" for what in ("guest", "guest, CPU", "guest, CPU in pythons", "page")
          for end in ("first", "last")),
    }
    assert rows.pop("spawn idle").unit == "ms/s"
    assert all(each.value > 0 and (not each.reference or each.reference in rows) for each in rows.values())
    assert rows["spawn guest"].windows == 2 and rows["spawn guest"].unit == "ms"
