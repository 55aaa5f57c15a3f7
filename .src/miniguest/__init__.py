"""Xen's stub-domain architecture as ordinary Linux processes.

The parts are `miniguest.ring` (what any two processes share), `miniguest.frontend` (the guest's side),
`miniguest.backend` (dom0's side) and `miniguest.deploy` (what starts and watches them).
"""
from importlib import metadata

__version__: str


def __getattr__(name: str) -> str:
    # Looked up when asked for: every process of a topology imports this package, and few want to know.
    if name == "__version__":
        return metadata.version("miniguest")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
