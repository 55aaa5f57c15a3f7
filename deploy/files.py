"""Which files a topology reads and writes: one that is written is nobody else's."""
import os
from pathlib import Path


class Files:
    """Remembers files by what they are, under whatever name: a path through a link is the same file."""

    def __init__(self) -> None:
        self._readers: dict[object, str] = {}
        self._writers: dict[object, str] = {}

    def read(self, key: str, path: Path) -> str:
        """`key` names a file that is read; why it cannot be, or "" when it can."""
        found = _identity(path)
        self._readers.setdefault(found, key)
        return f"{path}: {self._writers[found]} writes there" if found in self._writers else ""

    def write(self, key: str, path: Path) -> str:
        """`key` names a file that is written, which may not be there yet; why it cannot be, or "" when it can."""
        found = _identity(path)
        if found in self._readers:
            return f"{path}: {self._readers[found]} is read from there"
        other = self._writers.setdefault(found, key)
        return f"{path}: {other} writes there already" if other != key else ""


def _identity(path: Path) -> object:
    try:
        found = path.stat()
    except OSError:
        return os.path.realpath(path)
    return found.st_dev, found.st_ino
