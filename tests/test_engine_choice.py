"""Which engine a guest gets, and what it is told when it cannot have it."""
from pathlib import Path

import pytest

from miniguest.deploy import engines
from miniguest.deploy.engines import BEGINNING, choose, trouble
from miniguest.deploy.errors import TopologyError
from miniguest.deploy.topology import Engine, Guest, load
from miniguest.frontend.engines import kvm_probe


@pytest.fixture(params=["", "a 32-bit IRET fails"])
def against(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the probe says."""
    monkeypatch.setattr(kvm_probe, "reason_against", lambda: request.param)
    monkeypatch.setattr(engines, "load", lambda engine: None)
    return request.param


def guest(engine: Engine) -> Guest:
    return Guest(name="g", engine=engine, firmware="/dev/null")


def test_auto_takes_kvm_where_it_works_and_says_why_not(against: str) -> None:
    plan = choose(guest("auto"), "real", None).plan
    assert plan.engine == ("unicorn" if against else "kvm")
    assert plan.reason == (f"kvm does not work here: {against}" if against else "its probe passed")


def test_what_is_asked_for_is_taken_or_refused(against: str) -> None:
    assert choose(guest("unicorn"), "real", None).plan.engine == "unicorn"
    assert trouble(guest("unicorn"), "real") is None
    found = trouble(guest("kvm"), "real")
    assert found == (("engine", f"kvm does not work here: {against}") if against else None)


def test_virtual_time_goes_by_blocks_which_only_unicorn_counts(against: str) -> None:
    choice = choose(guest("auto"), "virtual", None)
    assert (choice.plan.engine, choice.plan.virtual, choice.wall_ns, choice.deaf) == ("unicorn", True, BEGINNING, False)
    found = trouble(guest("kvm"), "virtual")
    assert found is not None
    assert found[0] == "engine"
    assert "virtual" in found[1]


def test_real_time_is_the_hosts_unless_it_is_recorded(against: str, tmp_path: Path) -> None:
    assert choose(guest("auto"), "real", None).wall_ns is None
    choice = choose(guest("auto"), "real", tmp_path / "t")
    assert choice.wall_ns is not None
    assert choice.plan.record is not None
    assert choice.plan.record[0] == tmp_path / "t"
    assert choice.plan.record[1].wall_ns == choice.wall_ns
    assert choice.deaf


def test_a_topology_that_asks_for_a_kvm_that_does_not_work(against: str, tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_text('[[guest]]\nname = "g"\nengine = "kvm"\n')
    if against:
        with pytest.raises(TopologyError, match=rf"^{file}: guest\[0\].engine: kvm does not work here: {against}$"):
            load(file)
    else:
        load(file)


def test_a_machine_without_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kvm_probe.reason_against.cache_clear()
    monkeypatch.setattr(kvm_probe, "DEVICE", tmp_path / "kvm")
    assert kvm_probe.reason_against() == f"there is no {tmp_path / 'kvm'}"
    kvm_probe.reason_against.cache_clear()
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(kvm_probe.os, "access", lambda *_: False)
    assert kvm_probe.reason_against() == f"{tmp_path / 'kvm'} may not be opened"
    kvm_probe.reason_against.cache_clear()
