"""The network path: frames a second and bytes a second from one vif to another, beside what else a process could take.

1500 bytes are compared with AF_UNIX datagrams, 65,535 bytes (scatter-gather) with a copy of the same bytes by one core. The
other sizes, writes to a TAP and the FIFO doorbell are rows of their own.
"""
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from miniguest.deploy.bench import net_paths
from miniguest.deploy.bench.rows import Measured, row
from miniguest.deploy.bench.windows import interleave

WAYS: Final = {
    "vif, zmq": "", "vif, fifo": ", fifo", "unix": ", AF_UNIX datagrams", "tap": ", write to a TAP",
    "memcpy": ", memcpy on one core",
}
BULK: Final = 65535                     # bytes: from here on bytes are counted instead of frames


def measure(windows: int, peers: bool, progress: Callable[[str], None]) -> Measured:
    """Every size over every path. There are no peers but these."""
    found = Measured()
    with tempfile.TemporaryDirectory(prefix="miniguest-bench-") as logs, net_paths.paths(Path(logs)) as (paths, left_out):
        ways = {
            f"net {size}{WAYS[way]}": partial(_window, path, size, count)
            for size, count in net_paths.WINDOWS.items() for way, path in paths.items()
        }
        values = interleave(ways, windows, progress)
    for name, seen in values.items():
        size = int(name.split(",")[0].split()[1])
        reference = f"net {size}{WAYS['memcpy' if size >= BULK else 'unix']}"
        others = values[reference]
        unit = "GB/s" if size >= BULK else "k/s"
        found.rows.append(row(name, unit, seen, "" if name == reference else reference, others))
    found.left_out = {f"net{WAYS[way]}": reason for way, reason in left_out.items()}
    return found


def _window(path: net_paths.Path, size: int, count: int) -> float:
    """Thousands of frames a second, or GB a second of the big ones."""
    rate = count / path.run(size, count)
    return rate * size / 1e9 if size >= BULK else rate / 1e3
