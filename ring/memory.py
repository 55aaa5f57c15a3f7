"""A domain's memory: one file, frame N at byte N * 4096, mapped shared by whoever may see it.

RAM comes first; the special frames follow it, so that nothing in the guest's own map of RAM is taken away:

    shared_info      xen.h shared_info, the domain's own event channels (vCPUs 0..31)
    hypervisor_info  the same layout for the channels the hypervisor's side of the domain consumes (vCPUs 32..63),
                     as Xen keeps its own consumers' channels out of the guest's bitmap; and the words shutdown and paused
    xenstore         xs_wire.h xenstore_domain_interface
    console          console.h xencons_interface
    ioreq, bufioreq  hvm/ioreq.h shared_iopage and buffered_iopage
    ranges           the I/O ranges that ioreq servers claimed (miniguest.ring.ranges)
    irq_lines        levels of the interrupt lines that device models drive (miniguest.ring.lines)
    modified         frames that a device model wrote to (miniguest.ring.modified), XEN_DMOP_modified_memory's task
    grants           64 frames of grant_entry_v1
    roms             256 frames for what device models let the guest read without an exit: option ROMs, say. A range of
                     `ranges` names the first of its frames
"""
import mmap
import os
import weakref
from pathlib import Path
from typing import Final

from miniguest.ring._core import Frames

FRAME_SIZE: Final = 4096
GRANT_FRAMES: Final = 64
ROM_FRAMES: Final = 256
SPECIAL: Final = {
    name: index
    for index, name in enumerate(
        ("shared_info", "hypervisor_info", "xenstore", "console", "ioreq", "bufioreq", "ranges", "irq_lines", "modified",
         "grants")
    )
}
SPECIAL["roms"] = SPECIAL["grants"] + GRANT_FRAMES
SPECIAL_FRAMES: Final = SPECIAL["roms"] + ROM_FRAMES
SHUTDOWN_OFFSET: Final = 3584           # in hypervisor_info, behind struct shared_info: u32, 0 or 1 + a SHUTDOWN_ reason
PAUSED_OFFSET: Final = 3592             # u64, not 0 while the vCPUs are not to run


def domain_directory(runtime: Path, domid: int) -> Path:
    """Where a domain's files are in the topology's runtime directory."""
    return runtime / f"dom{domid}"


class Memory:
    """A domain's memory file, mapped read and write. FileNotFoundError when there is no such domain.

    Guest-physical reads and writes are bounded by RAM: what lies beyond reads ones and drops writes, as an address
    that nobody decodes.
    """

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._close_fd = weakref.finalize(self, os.close, self.fd)
        self.map = mmap.mmap(self.fd, 0)
        self.view = memoryview(self.map)
        self.nr_frames = len(self.map) // FRAME_SIZE
        self.ram_frames = self.nr_frames - SPECIAL_FRAMES
        self.ram_size = self.ram_frames * FRAME_SIZE

    @classmethod
    def create(cls, path: Path, ram_frames: int) -> "Memory":
        """Make a domain's memory, all zeros; it takes up space only as frames are written."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, (ram_frames + SPECIAL_FRAMES) * FRAME_SIZE)
        finally:
            os.close(fd)
        return cls(path)

    def special(self, name: str) -> int:
        """The frame number of a special frame (the first one, for "grants" and "roms")."""
        return self.ram_frames + SPECIAL[name]

    def frame(self, number: int) -> memoryview:
        """One frame, 4096 writable bytes. IndexError beyond the domain's memory."""
        return self.frames(number, 1)

    def frames(self, number: int, count: int) -> memoryview:
        """`count` frames from `number` on. IndexError beyond the domain's memory."""
        if number < 0 or count < 1 or number + count > self.nr_frames:
            raise IndexError(f"frame {number} of {self.nr_frames}")
        return self.view[number * FRAME_SIZE : (number + count) * FRAME_SIZE]

    def side_by_side(self, numbers: list[int]) -> Frames:
        """Frames in any order as one contiguous writable buffer. IndexError beyond the domain's memory."""
        for number in numbers:
            if not 0 <= number < self.nr_frames:
                raise IndexError(f"frame {number} of {self.nr_frames}")
        return Frames(self.fd, numbers)

    def joined(self, numbers: list[int]) -> memoryview:
        """Frames in rising order as one contiguous buffer: a mapping of their own only where they are not neighbours."""
        if numbers[-1] - numbers[0] == len(numbers) - 1:
            return self.frames(numbers[0], len(numbers))
        return memoryview(self.side_by_side(numbers))

    @property
    def info_pages(self) -> memoryview:
        """shared_info and hypervisor_info, side by side."""
        return self.frames(self.special("shared_info"), 2)

    @property
    def grant_entries(self) -> memoryview:
        """The grant table: 64 frames of v1 entries."""
        return self.frames(self.special("grants"), GRANT_FRAMES)

    def read(self, gpa: int, size: int) -> bytes:
        """`size` bytes of RAM at a guest-physical address; all ones where there is no RAM."""
        part = bytes(self.view[gpa : max(gpa, min(gpa + size, self.ram_size))]) if 0 <= gpa < self.ram_size else b""
        return part if len(part) == size else part.ljust(size, b"\xff")

    def write(self, gpa: int, data: bytes | memoryview) -> None:
        """Put bytes into RAM; what falls outside is dropped."""
        room = self.ram_size - gpa if gpa >= 0 else 0
        if room >= len(data):
            self.view[gpa : gpa + len(data)] = data
        elif room > 0:
            self.view[gpa : self.ram_size] = data[:room]

    def close(self) -> None:
        """Unmap. A view that is still in use keeps the mapping until it goes."""
        self._close_fd()
        self.view.release()
        try:
            self.map.close()
        except BufferError:             # somebody still holds a slice: the interpreter unmaps with the last one
            return
