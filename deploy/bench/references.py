"""The C programs of `reference/`: what this machine can do, with Xen's own macros where there are any. Built when needed."""
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from miniguest.ring.errors import MiniguestError

SOURCES: Final = Path(__file__).parent / "reference"
FLAGS: Final = ("-std=gnu11", "-O2", "-Wall")
COMPILERS: Final = ("cc", "gcc", "clang")
XEN_HEADER: Final = Path("/usr/include/xen/io/ring.h")
CACHE: Final = Path(tempfile.gettempdir()) / f"miniguest-bench-{os.geteuid()}"


class MissingReferenceError(MiniguestError):
    """A reference cannot be had here; says in one line what is missing."""


def build(name: str) -> Path:
    """The program made of `reference`/`name`.c; made before, if nothing has changed since. MissingReferenceError."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise MissingReferenceError("no C compiler: install the package gcc")
    if not XEN_HEADER.exists():
        raise MissingReferenceError(f"no {XEN_HEADER}: install the package libxen-dev")
    content = b"".join(file.read_bytes() for file in sorted(SOURCES.iterdir()))
    program = _cache() / f"{name}-{hashlib.sha256(content).hexdigest()[:16]}"
    if not program.exists():
        unfinished = program.with_suffix(f".{os.getpid()}")
        done = subprocess.run(
            [compiler, *FLAGS, "-o", unfinished, SOURCES / f"{name}.c"], capture_output=True, text=True, errors="replace"
        )
        if done.returncode:
            why = next((line for line in done.stderr.splitlines() if "error" in line), "no reason given")
            raise MissingReferenceError(f"{name}.c cannot be compiled: {why.strip()}")
        unfinished.rename(program)
    return program


def _cache() -> Path:
    """A directory that nobody else can put a program into."""
    CACHE.mkdir(mode=0o700, exist_ok=True)
    found = CACHE.lstat()
    if not CACHE.is_dir() or CACHE.is_symlink() or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise MissingReferenceError(f"{CACHE} is somebody else's")
    return CACHE


class Program:
    """A reference that runs: every line of seconds that it reads is a window, and answered with a line of numbers."""

    def __init__(self, name: str, *arguments: str | int) -> None:
        self._name = name
        self._process = subprocess.Popen(
            [build(name), *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def window(self, seconds: float) -> list[float]:
        """Run a window. MissingReferenceError when the program dies."""
        assert self._process.stdin and self._process.stdout
        try:
            print(f"{seconds:.6f}", file=self._process.stdin, flush=True)
        except BrokenPipeError:
            pass                                # the next line says it
        answer = self._process.stdout.readline()
        if not answer:
            raise MissingReferenceError(f"the reference {self._name} ended with status {self._process.wait()}")
        return [float(word) for word in answer.split()]

    def close(self) -> None:
        """End it. Closing its input would not do: processes that were forked since have that open, too."""
        self._process.kill()
        self._process.communicate()
