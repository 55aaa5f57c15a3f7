"""Small files of u64 words that the hypervisor shares with the processes: event channel tables, pins, map tracks."""
import mmap
import os
from pathlib import Path


def map_words(path: Path, words: int, create: bool = False) -> memoryview:
    """A file of `words` u64, mapped shared and writable; made full of zeros when `create`."""
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create else 0)
    fd = os.open(path, flags, 0o600)
    try:
        if create:
            os.ftruncate(fd, words * 8)
        return memoryview(mmap.mmap(fd, words * 8))
    finally:
        os.close(fd)
