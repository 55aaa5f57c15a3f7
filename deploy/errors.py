"""What ends a run: mistakes of the user, as one line each that says what, where and what to do, and accidents.

    MiniguestError
    +-- UserError            exit status 2, and nothing was started
    |   +-- TopologyError    a topology file, or a file it names
    |   +-- FirmwareError    no firmware, or a file that cannot be one
    |   +-- ImageError       the README's GRUB image cannot be built here
    |   +-- RuntimeDirError  nowhere to put the runtime directory, or it is in use
    +-- ProcessDied          exit status 1
    |   +-- StartFailed      of a process that was just started
    +-- AskedInVain          exit status 1, of who asked: a topology that runs could not do it, and goes on
    +-- Interrupted          exit status 128 + the signal's number
"""
from __future__ import annotations

import signal
from pathlib import Path

from miniguest.ring.errors import MiniguestError, UserError


class TopologyError(UserError):
    """`file` (the topology, or the file an option named), the `key` in it (dotted; may be empty) and what is wrong."""

    def __init__(self, file: Path | str, key: str, message: str) -> None:
        super().__init__(": ".join(part for part in (str(file), key, message) if part))
        self.file = file
        self.key = key
        self.message = message


class FirmwareError(UserError):
    """No firmware was found, or the file cannot be one."""


class ImageError(UserError):
    """The GRUB image cannot be built: a program is missing, or failed."""


class RuntimeDirError(UserError):
    """No place for the runtime directory, or the one asked for is in use."""


class ProcessDied(MiniguestError):
    """A process of the topology ended that should not have; the message names it (exit status 1)."""


class StartFailed(ProcessDied):
    """A process, or one that it was started with, is not going to be up."""


class AskedInVain(MiniguestError):
    """A topology that runs could not do what it was asked for; it goes on as before."""


class Interrupted(MiniguestError):
    """The run was ended by a signal (exit status 128 + its number)."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number
