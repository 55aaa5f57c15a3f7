"""Xen's stub-domain architecture as ordinary Linux processes.

The parts are `miniguest.ring` (what any two processes share), `miniguest.frontend` (the guest's side),
`miniguest.backend` (dom0's side) and `miniguest.deploy` (what starts and watches them).
"""
from importlib.metadata import version

__version__ = version("miniguest")
