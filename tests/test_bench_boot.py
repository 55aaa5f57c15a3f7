"""The bench of boots, with tiny windows or none: what is missing is named, and a boot over the network has one of its own."""
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
from test_bench import look_at, quiet

from miniguest.deploy.bench import boot, boot_ipxe
from miniguest.deploy.bench.rows import Measured


def test_boots_without_qemu_and_grub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot, "QEMU", "no-such-qemu")
    monkeypatch.setattr("miniguest.deploy.images._MODULE_DIRS", ())
    monkeypatch.setattr(boot_ipxe, "missing", lambda: "no network today")
    found = boot.measure(1, False, quiet)
    assert set(look_at(found, "boot", 1)) == {"boot seabios"}
    assert found.left_out["boot, QEMU"] == "no no-such-qemu: install the package qemu-system-x86"
    assert "grub-pc-bin" in found.left_out["boot grub"]
    assert found.left_out["boot ipxe"] == "no network today"


def test_a_boot_in_a_namespace_of_its_own(tmp_path: Path) -> None:
    """It is another network than ours; what it raises, and that it died, comes back as one error."""
    boot_ipxe.serve(tmp_path, boot.SECTOR)
    assert {file.name for file in tmp_path.iterdir()} == {"boot.ipxe", "blob", "nbp"}
    inode = Path("/proc/self/ns/net").stat().st_ino
    assert boot_ipxe.in_namespace(tmp_path, lambda _: float(Path("/proc/self/ns/net").stat().st_ino)) not in (inode, 0)

    def fails(_: Callable[[], None]) -> float:
        raise boot.BootError("it has not booted")

    with pytest.raises(boot_ipxe.NetworkError, match=r"^it has not booted$"):
        boot_ipxe.in_namespace(tmp_path, fails)
    assert multiprocessing.active_children() == []


def test_both_machines_boot_in_such_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(boot_ipxe, "in_namespace", lambda served, ways: 2.0 if ways.func is boot.ours else 1.0)
    found = Measured()
    boot._ipxe(tmp_path, "qemu", 1, quiet, found)
    rows = look_at(found, "boot", 1, "boot ipxe, QEMU")
    assert rows["boot ipxe"].ratio == 2.0
    assert found.left_out == {}


@pytest.mark.parametrize("program", ["dnsmasq", "ip"])
def test_what_a_network_boot_lacks_is_named(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None if name == program else name)
    assert boot_ipxe.missing().startswith(f"no {program}: install the package ")


def test_a_machine_without_its_tap_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot_ipxe, "PATIENCE", 0.0)
    monkeypatch.setattr("socket.if_nameindex", lambda: [(1, "lo")])
    with pytest.raises(OSError, match="no mg0 after 0 s"):
        boot_ipxe.set_up()
