"""The network path's bench: every way passes its frames, and one that cannot be had is named."""
from pathlib import Path

import pytest

from miniguest.deploy import bench, bench_net

FEW = {60: 300, 65535: 30}


def test_every_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_net, "WINDOWS", FEW)
    rows, left_out = bench.net_rows(2, tmp_path)
    assert {"unix", "tap"} - set(left_out) >= {"unix"}
    assert all(row.median > 0 and row.best >= row.median and row.rounds == 2 for row in rows)
    for size in FEW:
        compared = {row.reference for row in rows if row.name == f"vif to vif, {size} B" and row.reference}
        assert compared == {f"{bench.REFERENCES[way]}, {size} B" for way in bench.REFERENCES if way not in left_out}
        (volume,) = [row for row in rows if row.name == f"vif to vif, {size} B" and row.unit == "GB/s"]
        rate = next(row for row in rows if row.name == f"vif to vif, {size} B" and row.unit == "k/s")
        assert volume.median == pytest.approx(rate.median * size / 1e6)


def test_a_tap_that_is_not_permitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(bench_net, "enter_namespace", refuse)
    with bench_net.paths(tmp_path) as (ways, left_out):
        assert set(ways) == {"unix", "vif"}
        assert left_out == {"tap": "Operation not permitted"}
