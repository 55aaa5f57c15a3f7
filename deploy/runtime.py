"""The runtime directory: where a topology's memory, sockets and logs are while it lives.

It should be on a tmpfs, since a domain's memory is a file there. A lock on a file in it tells whether anyone still
lives in it: the processes of a topology inherit the lock, and it goes when the last of them has gone, however.
"""
from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from miniguest.deploy.errors import RuntimeDirError, TopologyError
from miniguest.deploy.topology import Topology

LOCK = "supervisor.pid"
LONGEST_NAME = "/dom10000/doorbell31"       # the longest socket below the directory
SOCKET_PATH_MAX = 107                       # bytes: sun_path without its NUL, unix(7)
OVERHEAD = 64                               # MiB for each guest's mini-guest, and as much for dom0


@contextmanager
def runtime_directory(topology: Topology, explicit: Path | None = None) -> Iterator[Path]:
    """A fresh directory of mode 0700, gone again at the end with all that is in it.

    `explicit` must be absent or empty; when it was there before, it stays, empty. Without it the directory is made on
    the first tmpfs of `candidates()` that has room for the memory of all guests. Raises RuntimeDirError.
    """
    directory, made = _claim(explicit) if explicit else (_fresh(topology), True)
    lock = _lock(directory)
    try:
        yield directory
    finally:
        _empty(directory)
        if made:
            directory.rmdir()
        os.close(lock)


def room_needed(topology: Topology) -> int:
    """Bytes of memory files when every page of every domain is touched."""
    return (topology.memory + OVERHEAD * (len(topology.guest) + 1)) << 20


def candidates() -> Iterator[tuple[Path, str]]:
    """Where the directory may go, best first: (parent, start of its name)."""
    if (named := os.environ.get("XDG_RUNTIME_DIR")) and os.path.isabs(named):
        yield Path(named), "miniguest-"
    if os.geteuid() == 0:
        yield Path("/run"), "miniguest-"
    yield Path("/dev/shm"), f"miniguest-{os.geteuid()}-"


def check_room(directory: Path, topology: Topology, file: Path) -> None:
    """Whether the memory of all guests, those of `file` among them, has room beside what others have on its file system.

    Raises TopologyError.
    """
    here = sum(path.lstat().st_blocks * 512 for path in directory.rglob("*"))
    if (needed := room_needed(topology)) > (free := free_bytes(directory) + here):
        raise TopologyError(file, "guest", f"{needed >> 20} MiB of room are needed, and {directory} has {free >> 20} MiB")


def find(word: str) -> Path:
    """The runtime directory of a topology that runs: by the directory itself, or by the topology's name.

    A name finds what runs in a directory of its own on a tmpfs, as it does without --runtime. Raises RuntimeDirError.
    """
    directory = Path(word)
    if is_live(directory):
        return directory
    if is_stale(directory):
        raise RuntimeDirError(f"{word}: left over from a run that was killed")
    running = _running()
    found = [directory for name, directory in running if name == word]
    if len(found) == 1:
        return found[0]
    if found:
        raise RuntimeDirError(f"{word}: several of that name run: give one's directory: {', '.join(map(str, found))}")
    known = ", ".join(sorted({name for name, _ in running}))
    raise RuntimeDirError(f"{word}: no such topology runs, and no such runtime directory is there"
                          + (f": what runs is {known}" if known else ""))


def _running() -> list[tuple[str, Path]]:
    """(topology's name, runtime directory) of what runs in directories that were made for it."""
    return [
        (directory.name.removeprefix(start)[:-9], directory)
        for parent, start in candidates()
        for directory in sorted(parent.glob(f"{start}*-????????"))
        if is_live(directory)
    ]


def _fresh(topology: Topology) -> Path:
    needed = room_needed(topology)
    refused = []
    for parent, start in candidates():
        prefix = f"{start}{topology.name}-"
        # mkdtemp adds eight characters.
        if trouble := _parent_trouble(parent, needed) or _length_trouble(parent / f"{prefix}12345678"):
            refused.append(f"{parent} {trouble}")
            continue
        remove_stale(parent, start)
        return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    raise RuntimeDirError(f"no tmpfs has {needed >> 20} MiB of room for the runtime directory: {'; '.join(refused)}: "
                          "use --runtime DIR")


def _parent_trouble(parent: Path, needed: int) -> str:
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        return "cannot be written"
    if not is_tmpfs(parent):
        return "is not a tmpfs"
    if (free := free_bytes(parent)) < needed:
        return f"has {free >> 20} MiB"
    return ""


def _claim(directory: Path) -> tuple[Path, bool]:
    directory = directory.absolute()
    if trouble := _length_trouble(directory):
        raise RuntimeDirError(f"{directory}: --runtime: {trouble}")
    try:
        directory.mkdir(mode=0o700)
        return directory, True
    except FileExistsError:
        pass
    except OSError as error:
        raise RuntimeDirError(f"{directory}: --runtime: cannot be made: {error.strerror}") from None
    try:
        if os.listdir(directory):
            raise RuntimeDirError(f"{directory}: --runtime: {_busy(directory)}")
        # 0700 for as long as it holds memory: the umask or whoever made it may have been more generous.
        directory.chmod(0o700)
    except OSError as error:
        raise RuntimeDirError(f"{directory}: --runtime: cannot be used: {error.strerror}") from None
    return directory, False


def _busy(directory: Path) -> str:
    lock = directory / LOCK
    if is_stale(directory):
        return "busy runtime directory: left over from a run that was killed, remove it"
    if lock.exists():
        return f"busy runtime directory: process {lock.read_text().strip()} uses it"
    return "busy runtime directory: it is not empty"


def _length_trouble(directory: Path) -> str:
    excess = len(os.fsencode(directory)) + len(LONGEST_NAME) - SOCKET_PATH_MAX
    return f"is {excess} bytes too long for the paths of UNIX sockets" if excess > 0 else ""


def _lock(directory: Path) -> int:
    """Take the directory. The lock is held before its file has its name, so that nobody sees it unlocked."""
    temporary = directory / f".{os.getpid()}.{LOCK}"
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, f"{os.getpid()}\n".encode())
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.link(temporary, directory / LOCK)        # not rename: of two that start at once only one may win
    except FileExistsError:
        os.close(fd)
        raise RuntimeDirError(f"{directory}: --runtime: {_busy(directory)}") from None
    finally:
        temporary.unlink()
    return fd


def is_stale(directory: Path) -> bool:
    """Whether this is a runtime directory whose processes are all gone."""
    return _is_locked(directory) is False


def is_live(directory: Path) -> bool:
    """Whether this is a runtime directory in which somebody lives."""
    return _is_locked(directory) is True


def _is_locked(directory: Path) -> bool | None:
    """None: there is no lock, and so no runtime directory."""
    try:
        fd = os.open(directory / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(fd)


def remove_stale(parent: Path, prefix: str) -> None:
    """Remove what runs left behind that were killed with SIGKILL: nobody else could have."""
    for directory in parent.glob(f"{prefix}*"):
        found = directory.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and is_stale(directory):
            shutil.rmtree(directory, ignore_errors=True)


def _empty(directory: Path) -> None:
    for entry in os.scandir(directory):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            os.unlink(entry.path)


def free_bytes(path: Path) -> int:
    """Bytes that this user may still write on the file system of `path`."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def is_tmpfs(path: Path) -> bool:
    """Whether `path` is on a tmpfs (or ramfs), by /proc/self/mountinfo; proc(5)."""
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, system = line.partition(" - ")
        if mount.split()[2] == number:
            return system.split()[0] in ("tmpfs", "ramfs")
    return False
