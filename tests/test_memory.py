"""A domain's memory: bounds, special frames, frames side by side in any order."""
from collections.abc import Iterator
from pathlib import Path

import pytest
from dom0 import runtime_directory
from hypothesis import given
from hypothesis import strategies as st

from miniguest.ring._core import BackRing, Frames, FrontRing
from miniguest.ring.memory import FRAME_SIZE, SPECIAL, SPECIAL_FRAMES, Memory

RAM_FRAMES = 8
RAM = RAM_FRAMES * FRAME_SIZE


@pytest.fixture(scope="module")
def memory() -> Iterator[Memory]:
    with runtime_directory() as runtime:
        made = Memory.create(runtime / "memory", RAM_FRAMES)
        yield made
        made.close()


def test_there_is_one_of_a_path(memory: Memory, tmp_path: Path) -> None:
    Memory.create(tmp_path / "memory", 1).close()
    with pytest.raises(FileExistsError):
        Memory.create(tmp_path / "memory", 1)
    with pytest.raises(FileNotFoundError):
        Memory(tmp_path / "none")


def test_special_frames_follow_ram_and_do_not_overlap(memory: Memory) -> None:
    frames = {name: memory.special(name) for name in SPECIAL}
    assert frames.pop("roms") == RAM_FRAMES + SPECIAL_FRAMES - 256
    assert list(frames.values()) == list(range(RAM_FRAMES, RAM_FRAMES + len(frames)))
    assert frames["grants"] + 64 == memory.special("roms")
    assert memory.nr_frames == RAM_FRAMES + SPECIAL_FRAMES
    assert len(memory.info_pages) == 2 * FRAME_SIZE and len(memory.grant_entries) == 64 * FRAME_SIZE


@given(gpa=st.integers(0, RAM + 100_000) | st.integers(0, 1 << 64), data=st.binary(max_size=9000))
def test_reads_and_writes_end_with_ram(memory: Memory, gpa: int, data: bytes) -> None:
    special = bytes(memory.view[RAM:])
    memory.write(gpa, data)
    inside = max(0, min(len(data), RAM - gpa))
    assert memory.read(gpa, len(data)) == data[:inside] + b"\xff" * (len(data) - inside)
    assert bytes(memory.view[RAM:]) == special


@given(number=st.integers(-2, RAM_FRAMES + SPECIAL_FRAMES + 2), count=st.integers(-1, 90))
def test_frames_are_bounded(memory: Memory, number: int, count: int) -> None:
    if number >= 0 and count >= 1 and number + count <= memory.nr_frames:
        assert len(memory.frames(number, count)) == count * FRAME_SIZE
    else:
        with pytest.raises(IndexError):
            memory.frames(number, count)


@given(numbers=st.lists(st.integers(0, RAM_FRAMES - 1), min_size=1, max_size=16))
def test_side_by_side_is_the_same_memory(memory: Memory, numbers: list[int]) -> None:
    view = memoryview(memory.side_by_side(numbers))
    for number in range(RAM_FRAMES):
        memory.frame(number)[:4] = number.to_bytes(4, "little")
    assert [int.from_bytes(view[i * FRAME_SIZE :][:4], "little") for i in range(len(numbers))] == numbers
    view[4:8] = b"hers"
    assert memory.frame(numbers[0])[4:8] == b"hers"


@pytest.mark.parametrize("numbers", [[RAM_FRAMES + SPECIAL_FRAMES], [0, -1], [0, 1 << 40]])
def test_side_by_side_is_bounded(memory: Memory, numbers: list[int]) -> None:
    with pytest.raises(IndexError):
        memory.side_by_side(numbers)


def test_side_by_side_needs_a_frame(memory: Memory) -> None:
    with pytest.raises(ValueError, match="no frames"):
        memory.side_by_side([])


def test_frames_without_write_permission(memory: Memory) -> None:
    frames = Frames(memory.fd, [3, 1], False)
    memory.frame(3)[:2] = b"r!"
    view = memoryview(frames)
    assert view.readonly and bytes(view[:2]) == b"r!"
    with pytest.raises(BufferError):
        BackRing(frames, 112, 16)


def test_frames_of_a_closed_file() -> None:
    with pytest.raises(OSError, match="cannot map frame"):
        Frames(-1, [0])


def test_frames_are_unmapped_with_their_last_view(memory: Memory) -> None:
    def maps() -> int:
        return sum("memory" in line for line in Path("/proc/self/maps").read_text().splitlines())

    before = maps()
    view = memoryview(memory.side_by_side([5, 2, 7]))
    assert maps() > before
    view[0] = 1
    view.release()
    assert maps() == before


def test_a_ring_over_frames_that_are_not_contiguous(memory: Memory) -> None:
    """Both ends map the pages on their own; the slots run on over the pages in the order of the numbers."""
    numbers = [6, 1, 4, 3]
    front = FrontRing(memory.side_by_side(numbers), 112, 16, index=0xFFFFFFF0)
    back = BackRing(memory.side_by_side(numbers), 112, 16, index=0xFFFFFFF0)
    assert front.slots == 128
    for turn in range(5):
        front.requests[:] = bytes((turn + i) % 251 for i in range(len(front.requests)))
        assert front.put(128) == 128
        front.push()
        assert back.take() == 128
        assert back.requests == front.requests
        back.responses[:] = back.requests[: len(back.responses)]
        back.put(128)
        back.push()
        assert front.take() == 128
        assert front.responses == front.requests[: len(front.responses)]
    slot = 0xFFFFFFF0 & 127
    at = 64 + slot * 112
    assert bytes(memory.frame(numbers[at // FRAME_SIZE])[at % FRAME_SIZE :][:16]) == bytes(back.responses[:16])


def test_a_descriptor_lives_as_long_as_its_memory(tmp_path: Path) -> None:
    Memory.create(tmp_path / "memory", 1).close()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        Memory(tmp_path / "memory")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_closing_leaves_what_is_in_use(tmp_path: Path) -> None:
    made = Memory.create(tmp_path / "memory", 1)
    frame = made.frame(0)
    made.close()
    frame[0] = 7
    assert frame[0] == 7
    with pytest.raises(ValueError):
        made.frame(0)
