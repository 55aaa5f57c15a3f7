"""Boots of the README's image, one after the other: each must end by itself, with the right hash on its console."""
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from miniguest.deploy import images
from miniguest.deploy.report import RunResult
from miniguest.deploy.stress.workers import StressError


def boot(times: int, seconds: float) -> None:
    """`times` runs of the command, each ended after `seconds`. StressError at the first that is not as it should be."""
    with tempfile.TemporaryDirectory(prefix="miniguest-soak-") as name:
        image = images.build_first_light(Path(name))
        command = [sys.executable, "-m", "miniguest.deploy", "run", "--disk", str(image.image), "--json", "-"]
        for index in range(times):
            done = subprocess.run(
                [*command, "--timeout", str(seconds)], stdin=subprocess.DEVNULL, capture_output=True,
                timeout=2 * seconds,
            )
            if done.returncode:
                raise StressError(f"boot {index}: status {done.returncode}: {done.stderr.decode(errors='replace')[-500:]}")
            guest = msgspec.json.decode(done.stdout, type=RunResult).guests[0]
            if image.sha256 not in guest.console:
                raise StressError(f"boot {index}: the guest said {guest.console!r}")
