"""The guest's clock: real, or a word between the vCPU and the device model."""
import time

import pytest

from miniguest.ring import _core
from miniguest.ring.guest_clock import OFFSET, SECOND, SIZE, GuestClock
from miniguest.ring.memory import FRAME_SIZE, SHUTDOWN_OFFSET


@pytest.fixture
def info() -> memoryview:
    return memoryview(bytearray(FRAME_SIZE))


def test_a_frame_that_nobody_touched_says_real_time(info: memoryview) -> None:
    clock = GuestClock(info)
    before = time.monotonic_ns()
    assert before <= clock.now() <= time.monotonic_ns()
    assert abs(clock.wall() - time.time()) < 3600
    assert (clock.stepped, clock.deadline) == (False, None)


def test_both_ends_of_a_stepped_clock_see_the_same(info: memoryview) -> None:
    GuestClock.create(info, 100 * SECOND)
    vcpu, device_model = GuestClock(info), GuestClock(info)
    assert (device_model.now(), device_model.wall(), device_model.stepped) == (0, 100.0, True)
    vcpu.set(3 * SECOND)
    assert (device_model.now(), device_model.wall()) == (3 * SECOND, 103.0)


def test_a_stepped_clock_does_not_go_back(info: memoryview) -> None:
    clock = GuestClock.create(info, 0)
    clock.set(20)
    clock.set(10)
    assert clock.now() == 20


@pytest.mark.parametrize(("set_to", "seen"), [(None, None), (0, 0), (77, 77), (-5, 0), (1 << 70, (1 << 64) - 2)])
def test_the_deadline_of_the_device_model(info: memoryview, set_to: int | None, seen: int | None) -> None:
    GuestClock.create(info, 0)
    GuestClock(info).deadline = set_to
    assert GuestClock(info).deadline == seen


def test_nothing_beside_the_words_is_touched(info: memoryview) -> None:
    info[:] = b"\xa5" * FRAME_SIZE
    clock = GuestClock.create(info, 1)
    clock.set(5)
    clock.deadline = 9
    assert bytes(info[:OFFSET]) == b"\xa5" * OFFSET
    assert bytes(info[OFFSET + SIZE :]) == b"\xa5" * (FRAME_SIZE - OFFSET - SIZE)
    assert OFFSET >= SHUTDOWN_OFFSET + 8
    assert _core.load64(info, OFFSET // 8) == 1
