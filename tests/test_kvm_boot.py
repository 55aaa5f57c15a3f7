"""SeaBIOS on the kvm engine, as processes: even a KVM that emulates what it should run gets that far."""
import os
import sys
from pathlib import Path
from typing import Any

import guests
import pytest
from guests import LIBRARY, Ran, assemble, run

from miniguest.frontend.engines.kvm_machine import DEVICE

pytestmark = pytest.mark.skipif(not os.access(DEVICE, os.R_OK | os.W_OK), reason=f"no {DEVICE}")

# The command, on a machine whose probe passes.
WITHOUT_PROBE = """
from miniguest.frontend.engines import kvm_probe
kvm_probe.reason_against = lambda: ""
from miniguest.deploy.cli import main
main()
"""
PROGRAM = """
        cli
        xor ax, ax
        mov ds, ax
        mov ss, ax
        mov sp, 0x7c00
        mov si, offset text
        call puts
        jmp poweroff
text:   .asciz "booted"
"""


def rows(ran: Ran, device: str) -> list[Any]:
    names = ("kind", "address", "size", "exits", "elements")
    return [[row[name] for name in names] for row in ran.guest["exits"]["rows"] if row["device"] == device]


def test_seabios_boots_and_its_run_is_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk.img").write_bytes(assemble(tmp_path, PROGRAM + LIBRARY).ljust(1 << 20, b"\0"))
    engines = {"unicorn": "", "kvm": "", "replay": '\ntrace = "trace"'}
    for engine, more in engines.items():
        (tmp_path / f"{engine}.toml").write_text(
            f'[[guest]]\nname = "g"\nmemory = 16\ndisk = [{{ image = "disk.img", vdev = "hda" }}]\nengine = "{engine}"{more}\n'
        )
    with monkeypatch.context() as patch:
        patch.setattr(guests, "MINIGUEST", [sys.executable, "-c", WITHOUT_PROBE])
        kvm = run(tmp_path, str(tmp_path / "kvm.toml"), "--record", str(tmp_path / "trace"), "--timeout", "100")
    assert (kvm.status, kvm.guest["ended"], kvm.guest["engine"]) == (0, "poweroff", "kvm"), kvm.stderr
    assert kvm.console.endswith("booted")
    others = [run(tmp_path, str(tmp_path / f"{engine}.toml"), "--timeout", "100") for engine in ("unicorn", "replay")]
    for other in others:
        assert (other.status, other.guest["ended"]) == (0, "poweroff"), other.stderr
        for device in ("fw_cfg", "pci"):        # neither knows time
            assert rows(other, device) == rows(kvm, device)
    assert others[1].guest["exits"]["total"] == kvm.guest["exits"]["total"]
