"""Message-signalled interrupts in a frame: what is one, and that none is lost or told twice."""
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniguest.ring._core import load64, store64
from miniguest.ring.lines import ISA_LINES, LineDriver, LineWatcher
from miniguest.ring.messages import MessageSender, MessageWatcher, vector_of

FRAME = 4096


def frame() -> memoryview:
    return memoryview(bytearray(FRAME))


@pytest.mark.parametrize(("address", "data", "vector"), [
    (0xFEE00000, 0x0030, 0x30), (0xFEE00000, 0x0010, 0x10), (0xFEE00000, 0x00FF, 0xFF),
    (0xFEEFF00C, 0x0130, 0x30),                             # another destination, redirected, lowest priority
    (0xFEE00000, 0xC130, 0x30),                             # level triggered
    (0xFEE00000, 0x000F, None), (0xFEE00000, 0x0000, None),   # the exceptions' vectors
    (0xFEE00000, 0x0230, None), (0xFEE00000, 0x0330, None), (0xFEE00000, 0x0430, None), (0xFEE00000, 0x0530, None),
    (0xFEE00000, 0x0630, None), (0xFEE00000, 0x0730, None),   # SMI, NMI, INIT, ExtINT
    (0xFEDFFFFC, 0x0030, None), (0xFEF00000, 0x0030, None), (0, 0x0030, None), (0x1_FEE00000, 0x0030, None),
    ((1 << 64) - 4, 0x0030, None), (0xFEE00000, 0x1_0041, 0x41),
])
def test_what_is_an_interrupt(address: int, data: int, vector: int | None) -> None:
    assert vector_of(address, data) == vector


@given(steps=st.lists(st.integers(0, 255) | st.none(), max_size=60), before=st.lists(st.integers(0, 255), max_size=5))
def test_each_vector_is_told_once_a_look(steps: list[int | None], before: list[int]) -> None:
    """Messages of one vector between two looks are one; what came before the watcher is not its own."""
    page = frame()
    sender = MessageSender(page)
    for vector in before:
        sender.send(vector)
    watcher = MessageWatcher(page)
    sent: set[int] = set()
    for step in [*steps, None, None]:
        if step is None:
            assert watcher.take() == sorted(sent)
            sent.clear()
        else:
            sender.send(step)
            sent.add(step)
    assert load64(page, ISA_LINES) == len(before) + len(steps) - steps.count(None)


def test_a_sender_that_starts_anew_goes_on() -> None:
    page = frame()
    watcher = MessageWatcher(page)
    MessageSender(page).send(0x41)
    MessageSender(page).send(0x41)
    assert load64(page, ISA_LINES) == 2
    assert watcher.take() == [0x41] and watcher.take() == []
    MessageSender(page).send(0x41)
    assert watcher.take() == [0x41]


def test_a_message_that_is_being_sent_is_told_once() -> None:
    """The vector's count is there before the total: with another's total it may be told early, but not again."""
    page = frame()
    watcher, sender = MessageWatcher(page), MessageSender(page)
    counts = page[2048:]
    store64(counts, 0x41, 1)
    assert watcher.take() == [], "the total says that there is none"
    store64(page, ISA_LINES, 1)
    store64(counts, 0x52, 1)                        # the next is half sent
    assert watcher.take() == [0x41, 0x52]
    store64(page, ISA_LINES, 2)
    assert watcher.take() == []
    del sender


def test_lines_and_messages_share_a_frame() -> None:
    page = frame()
    lines, driver = LineWatcher(page), LineDriver(page)
    watcher, sender = MessageWatcher(page), MessageSender(page)
    driver.set(ISA_LINES - 1, True)
    assert watcher.take() == [] and list(lines.changes()) == [(ISA_LINES - 1, True)]
    sender.send(0)
    sender.send(255)
    assert list(lines.changes()) == [] and watcher.take() == [0, 255]
    driver.set(ISA_LINES - 1, False)
    assert list(lines.changes()) == [(ISA_LINES - 1, False)]
