"""The compiled way of an exit (ExitPath) and the device model's end of the ioreq page (IoreqServer), a step at a time."""
import threading

import pytest

from miniguest.deploy.stress.exits import ask_and_halt
from miniguest.frontend.bus import access_key
from miniguest.ring import _core
from miniguest.ring._core import (
    EXIT_DONE,
    EXIT_NEWS,
    EXIT_STARTED,
    EXIT_UNKNOWN,
    Channel,
    ExitPath,
    ExitTable,
    IoreqServer,
    IoreqSlot,
    Upcall,
    store64,
)
from miniguest.ring.abi.ioreq import IOREQ_READ, IOREQ_TYPE_COPY, IOREQ_TYPE_PIO, IOREQ_WRITE
from miniguest.ring.exits import ExitKind
from miniguest.ring.loop import WATCHED

FRAME = 4096
PORT = 7                        # both ends' number
STATE = 30                      # offset in a slot
NONE, READY, INPROCESS, RESP_READY = range(4)


class FakePort:
    """A port without a channel: what is left to do after each answer is noted."""

    channel: Channel | None = None

    def __init__(self) -> None:
        self.finished: list[int] = []

    def finish(self, woken: int) -> None:
        self.finished.append(woken)


class Ends:
    """Both ends of one vCPU's slot, in this process."""

    def __init__(self) -> None:
        self.page, self.lines, self.modified, self.ranges, self.info, self.buffered = (bytearray(FRAME) for _ in range(6))
        self.vcpu_pages, self.model_pages = bytearray(2 * FRAME), bytearray(2 * FRAME)
        self.slot = IoreqSlot(self.page, 0)
        self.upcall = Upcall(memoryview(self.vcpu_pages)[FRAME:], 0)
        self.upcall.spin_ns = 0                     # nobody answers while we wait
        self.table = ExitTable(bytearray(64 * 64))
        self.path = ExitPath(self.slot, self.upcall, self.table, self.lines, self.modified, self.ranges, self.info, self.buffered)
        self.path.clear(0)
        local, remote = bytearray(4096 * 8), bytearray(4096 * 8)
        store64(local, PORT, PORT << 32 | 2 << 16 | 2)
        store64(remote, PORT, PORT << 32 | 1 << 16 | 2)
        self.channel = Channel(local, PORT, 1, remote, PORT, 2, self.model_pages)
        self.model_upcall = Upcall(memoryview(self.model_pages)[:FRAME], 0)
        self.model_upcall.bind(PORT)
        self.server = IoreqServer(self.page, self.buffered, 1)
        self.port = FakePort()
        self.server.connect(0, self.port)
        self.seen: list[tuple[object, ...]] = []
        self.other: int | None = None

    def row(self, kind: ExitKind, address: int, size: int, claimed: bool = True) -> int:
        row = self.table.add_row(kind, size, address, b"device")
        self.path.add(kind, address, size, row, claimed)
        return row

    def serve(self, answer: int = 0) -> int:
        def read(*what: int) -> int:
            assert self.server.answering
            self.seen.append(("read", *what))
            return answer

        def other(vcpu: int, request: object) -> int | None:
            self.seen.append(("other", vcpu, request))
            return self.other

        def write(*what: int) -> None:
            self.seen.append(("write", *what))

        return self.server.serve(self.model_upcall, read, write, other)

    def state(self) -> int:
        return self.page[STATE] & 15


@pytest.fixture
def ends() -> Ends:
    return Ends()


def test_an_exit_that_was_not_added_is_the_interpreters(ends: Ends) -> None:
    ends.row(ExitKind.PIO_IN, 0x80, 1)
    ends.path.channel = ends.channel
    for kind, address, size in ((ExitKind.PIO_IN, 0x81, 1), (ExitKind.PIO_IN, 0x80, 2), (ExitKind.PIO_OUT, 0x80, 1),
                                (ExitKind.MMIO_READ, 0x80, 1)):
        assert ends.path.run(kind, address, size)[0] == EXIT_UNKNOWN
    assert ends.state() == NONE


def test_without_a_channel_it_is_the_interpreters(ends: Ends) -> None:
    ends.row(ExitKind.PIO_IN, 0x80, 1)
    assert ends.path.run(ExitKind.PIO_IN, 0x80, 1)[0] == EXIT_UNKNOWN


@pytest.mark.parametrize(("size", "ones"), [(1, 0xFF), (2, 0xFFFF), (4, 0xFFFFFFFF), (8, 0xFFFFFFFFFFFFFFFF)])
def test_what_nobody_claims_reads_ones_and_is_counted(ends: Ends, size: int, ones: int) -> None:
    ends.row(ExitKind.MMIO_READ, 0xFEB00000, size, claimed=False)
    assert ends.path.run(ExitKind.MMIO_READ, 0xFEB00000, size) == (EXIT_DONE, ones)
    assert ends.path.run(ExitKind.MMIO_READ, 0xFEB00000, size) == (EXIT_DONE, ones)
    assert ends.state() == NONE


def test_changed_ranges_make_every_exit_the_interpreters(ends: Ends) -> None:
    ends.row(ExitKind.PIO_IN, 0x80, 1, claimed=False)
    store64(ends.ranges, 0, 1)                      # being written
    assert ends.path.run(ExitKind.PIO_IN, 0x80, 1)[0] == EXIT_UNKNOWN
    store64(ends.ranges, 0, 2)
    assert ends.path.run(ExitKind.PIO_IN, 0x80, 1)[0] == EXIT_UNKNOWN
    ends.path.clear(2)
    assert ends.path.run(ExitKind.PIO_IN, 0x80, 1)[0] == EXIT_UNKNOWN       # forgotten
    ends.row(ExitKind.PIO_IN, 0x80, 1, claimed=False)
    assert ends.path.run(ExitKind.PIO_IN, 0x80, 1) == (EXIT_DONE, 0xFF)


@pytest.mark.parametrize(("kind", "type_", "reads"), [
    (ExitKind.PIO_IN, IOREQ_TYPE_PIO, True), (ExitKind.PIO_OUT, IOREQ_TYPE_PIO, False),
    (ExitKind.MMIO_READ, IOREQ_TYPE_COPY, True), (ExitKind.MMIO_WRITE, IOREQ_TYPE_COPY, False),
])
def test_a_request_is_served_and_answered(ends: Ends, kind: ExitKind, type_: int, reads: bool) -> None:
    ends.row(kind, 0x1F0, 2)
    ends.path.channel = ends.channel
    assert ends.path.run(kind, 0x1F0, 2, 0xABCDEF)[0] == EXIT_STARTED
    assert ends.path.woken == 0 and ends.state() == READY
    assert ends.serve(answer=0x1234) == 1
    assert ends.seen == [("read", type_, 0x1F0, 2) if reads else ("write", type_, 0x1F0, 2, 0xCDEF)]
    assert ends.state() == RESP_READY and not ends.server.answering
    assert ends.port.finished == [-1]               # it had no channel to send through
    assert ends.path.finish() == (0x1234 if reads else 0)
    assert ends.state() == NONE


@pytest.mark.parametrize(("kind", "type_"), [
    (ExitKind.PIO_IN, IOREQ_TYPE_PIO), (ExitKind.PIO_OUT, IOREQ_TYPE_PIO),
    (ExitKind.MMIO_READ, IOREQ_TYPE_COPY), (ExitKind.MMIO_WRITE, IOREQ_TYPE_COPY),
])
@pytest.mark.parametrize("address", [0x1F0, (1 << 48) - 4])
def test_a_known_access_is_called_in_the_place_of_all_others(ends: Ends, kind: ExitKind, type_: int, address: int) -> None:
    key = access_key(type_, address, 2)
    ends.server.readers[key] = lambda: 0x4321
    ends.server.writers[key] = lambda value: ends.seen.append((value,))
    ends.path.channel = ends.channel
    for size in (2, 1):                             # the same port, and not the same access
        ends.row(kind, address, size)
        assert ends.path.run(kind, address, size, 0xABCDEF)[0] == EXIT_STARTED
        assert ends.serve(answer=0x12) == 1
        reads = kind in (ExitKind.PIO_IN, ExitKind.MMIO_READ)
        assert ends.path.finish() == (0 if not reads else 0x4321 if size == 2 else 0x12)
        if size == 2:
            assert ends.seen == ([] if reads else [(0xCDEF,)])
            ends.seen.clear()
    assert len(ends.seen) == 1 and ends.seen[0][0] in ("read", "write")


def test_addresses_too_high_for_a_key_are_no_others(ends: Ends) -> None:
    ends.server.readers[access_key(IOREQ_TYPE_COPY, 0x1000, 4)] = lambda: 0
    slot = _core.IoreqSlot(ends.page, 0)
    slot.start(IOREQ_TYPE_COPY, 1 << 59 | 0x1000, 0, 1, 4, IOREQ_READ)
    assert ends.serve(answer=0x55) == 1
    assert ends.seen == [("read", IOREQ_TYPE_COPY, 1 << 59 | 0x1000, 4)] and slot.finish() == 0x55


def test_what_is_to_be_done_before_the_answer_is_done_once(ends: Ends) -> None:
    def reset() -> None:
        assert ends.state() == INPROCESS
        ends.seen.append(("reset",))

    def write(value: int) -> None:
        ends.server.before_answer = reset

    ends.row(ExitKind.PIO_OUT, 0x64, 1)
    ends.path.channel = ends.channel
    for _ in range(2):
        ends.server.writers[access_key(IOREQ_TYPE_PIO, 0x64, 1)] = write
        assert ends.path.run(ExitKind.PIO_OUT, 0x64, 1, 0xFE)[0] == EXIT_STARTED
        assert ends.serve() == 1
        ends.path.finish()
        write = print                               # nothing asked for the second time
    assert ends.seen == [("reset",)]


def test_a_vcpu_within_an_exit_looks_later(ends: Ends) -> None:
    ends.row(ExitKind.PIO_IN, 0x80, 1)
    ends.path.channel = ends.channel
    later: list[bool] = []

    def read() -> int:
        later.append(ends.server.looks_later(0))
        return 1

    ends.server.readers[access_key(IOREQ_TYPE_PIO, 0x80, 1)] = read
    assert not ends.server.looks_later(0)
    ends.path.run(ExitKind.PIO_IN, 0x80, 1)
    assert ends.server.looks_later(0), "it has asked"
    ends.serve()
    assert later == [True] and ends.server.looks_later(0), "it has not taken the answer"
    ends.path.finish()
    assert not ends.server.looks_later(0)
    with pytest.raises(IndexError):
        ends.server.looks_later(1)


BUFFERED = [(ExitKind.PIO_OUT, IOREQ_TYPE_PIO), (ExitKind.MMIO_WRITE, IOREQ_TYPE_COPY)]


@pytest.mark.parametrize(("kind", "type_"), BUFFERED)
def test_a_buffered_write_is_not_waited_for(ends: Ends, kind: ExitKind, type_: int) -> None:
    row = ends.row(kind, 0x402, 2)
    ends.path.add(kind, 0x402, 2, row, True, True)
    ends.path.channel = ends.channel
    ends.model_upcall.hush(ends.server, PORT)
    for value in (0x11234, 0x5678):
        assert ends.path.run(kind, 0x402, 2, value) == (EXIT_DONE, value)
    assert ends.state() == NONE and ends.path.unrung == 0 and ends.model_upcall.wait(0, ends.server) & WATCHED
    ends.server.writers[access_key(type_, 0x402, 2)] = lambda value: ends.seen.append((value,))
    assert ends.serve() == 2 and ends.seen == [(0x1234,), (0x5678,)]
    assert ends.serve() == 0 and not ends.model_upcall.wait(0, ends.server) & WATCHED


def test_what_was_buffered_comes_before_what_is_asked_then(ends: Ends) -> None:
    ends.path.add(ExitKind.PIO_OUT, 0x80, 1, ends.row(ExitKind.PIO_OUT, 0x80, 1), True, True)
    ends.row(ExitKind.PIO_IN, 0x80, 1)
    ends.path.channel = ends.channel
    ends.path.run(ExitKind.PIO_OUT, 0x80, 1, 7)
    assert ends.path.run(ExitKind.PIO_IN, 0x80, 1)[0] == EXIT_STARTED
    assert ends.serve() == 2
    assert ends.seen == [("write", IOREQ_TYPE_PIO, 0x80, 1, 7), ("read", IOREQ_TYPE_PIO, 0x80, 1)]


def test_a_buffered_write_wakes_a_device_model_that_sleeps(ends: Ends) -> None:
    ends.path.add(ExitKind.PIO_OUT, 0x80, 1, ends.row(ExitKind.PIO_OUT, 0x80, 1), True, True)
    ends.path.channel = ends.channel
    ends.model_upcall.leave()
    assert ends.path.run(ExitKind.PIO_OUT, 0x80, 1, 7)[0] == EXIT_NEWS and ends.path.unrung == 1
    ends.path.unrung = 0
    assert ends.path.run(ExitKind.PIO_OUT, 0x80, 1, 8)[0] == EXIT_DONE and ends.path.unrung == 0, "it was told already"
    assert ends.serve() == 2


@pytest.mark.parametrize(("address", "size", "times"), [(0x80, 1, 511), (1 << 20, 4, 0), (0x80, 8, 0)])
def test_what_does_not_fit_the_page_is_waited_for(ends: Ends, address: int, size: int, times: int) -> None:
    ends.path.add(ExitKind.MMIO_WRITE, address, size, ends.row(ExitKind.MMIO_WRITE, address, size), True, True)
    ends.path.channel = ends.channel
    for _ in range(times):
        assert ends.path.run(ExitKind.MMIO_WRITE, address, size, 1)[0] == EXIT_DONE
    assert ends.path.run(ExitKind.MMIO_WRITE, address, size, 1)[0] == EXIT_STARTED
    assert ends.serve() == times + 1 and len(ends.seen) == times + 1


def test_reads_are_waited_for_wherever_they_are(ends: Ends) -> None:
    ends.path.add(ExitKind.PIO_IN, 0x80, 1, ends.row(ExitKind.PIO_IN, 0x80, 1), True, True)
    ends.path.channel = ends.channel
    assert ends.path.run(ExitKind.PIO_IN, 0x80, 1)[0] == EXIT_STARTED


def test_a_server_that_sleeps_is_to_be_rung_for(ends: Ends) -> None:
    ends.row(ExitKind.PIO_IN, 0x80, 1)
    ends.path.channel = ends.channel
    ends.model_upcall.leave()                       # its upcall is not masked: it sleeps
    assert ends.path.run(ExitKind.PIO_IN, 0x80, 1)[0] == EXIT_STARTED
    assert ends.path.woken == 1


def test_an_awake_server_is_not_even_told(ends: Ends) -> None:
    ends.row(ExitKind.PIO_IN, 0x80, 1)
    ends.path.channel = ends.channel
    ends.model_upcall.hush(ends.server, PORT)
    assert ends.path.run(ExitKind.PIO_IN, 0x80, 1)[0] == EXIT_STARTED
    assert ends.model_pages[0] == 0                 # evtchn_upcall_pending
    assert ends.model_upcall.wait(0, ends.server) == 8 and ends.model_upcall.take() == []


def test_hushed_ports_are_heard_while_asleep_only(ends: Ends) -> None:
    masks = memoryview(ends.model_pages)[2560 : 2560 + 8]
    ends.model_upcall.hush(ends.server, PORT)
    ends.model_upcall.spin_ns = 0
    assert masks[0] == 1 << PORT
    ends.channel.send()
    assert ends.model_upcall.wait(1000, ends.server) == 0       # what was pending told of nothing
    assert masks[0] == 1 << PORT
    assert ends.model_pages[2048] == 0


def test_a_watch_has_room_for_so_many_ports(ends: Ends) -> None:
    for port in range(32):
        ends.upcall.hush(ends.slot, port)
    with pytest.raises(ValueError, match="too many"):
        ends.upcall.hush(ends.slot, 32)


@pytest.mark.parametrize("news", ["line", "message", "frame", "shutdown"])
def test_news_are_told_once(ends: Ends, news: str) -> None:
    ends.row(ExitKind.PIO_IN, 0x80, 1)
    ends.path.channel = ends.channel
    where = {"line": (ends.lines, 5), "message": (ends.lines, 16), "frame": (ends.modified, 0), "shutdown": (ends.info, 448)}
    ends.upcall.spin_ns = ends.upcall.late_yield_ns = 30_000_000_000
    for told in (EXIT_NEWS, EXIT_DONE):
        if told == EXIT_NEWS:
            store64(*where[news], 1)
        assert answered_meanwhile(ends) == (EXIT_NEWS if news == "shutdown" else told)


def answered_meanwhile(ends: Ends) -> int:
    """What `run` says when a thread answers meanwhile."""
    def answer() -> None:
        while ends.serve() == 0:
            pass

    thread = threading.Thread(target=answer)
    thread.start()
    how = EXIT_UNKNOWN
    try:
        how = ends.path.run(ExitKind.PIO_IN, 0x80, 1)[0]
        if how == EXIT_STARTED:
            pytest.fail("nobody answered")
    finally:
        thread.join()
    return how


@pytest.mark.parametrize(("type_", "size", "count", "pointer", "down"), [
    (IOREQ_TYPE_PIO, 8, 1, False, False), (IOREQ_TYPE_PIO, 3, 1, False, False), (IOREQ_TYPE_PIO, 1, 0, False, False),
    (IOREQ_TYPE_PIO, 1, 2, False, False), (IOREQ_TYPE_COPY, 4, 1, True, False), (IOREQ_TYPE_COPY, 4, 1, False, True),
    (7, 4, 1, False, False), (255, 1, 1, False, False),
])
@pytest.mark.parametrize("direction", [IOREQ_READ, IOREQ_WRITE])
def test_any_other_request_is_handed_on(
    ends: Ends, type_: int, size: int, count: int, pointer: bool, down: bool, direction: int
) -> None:
    ends.other = 0x55
    ends.slot.start(type_, 0x80, 0x1000, count, size, direction, pointer, down)
    assert ends.serve() == 1
    assert ends.seen == [("other", 0, (type_, 0x80, 0x1000, count, size, direction, int(pointer), int(down)))]
    assert ends.state() == RESP_READY and ends.slot.finish() == 0x55


def test_a_request_that_gets_no_answer(ends: Ends) -> None:
    ends.slot.start(9, 0, 0, 1, 1, IOREQ_READ)
    assert ends.serve() == 1
    assert ends.state() == NONE and ends.port.finished == []


@pytest.mark.parametrize("state", [INPROCESS, 4, 9, 15])
def test_a_state_that_cannot_be_is_told_once(ends: Ends, state: int) -> None:
    ends.page[STATE] = state
    assert ends.serve() == 1 and ends.serve() == 0
    assert ends.seen == [("other", 0, state)]


@pytest.mark.parametrize("state", [NONE, RESP_READY])
def test_quiet_states_are_nothing(ends: Ends, state: int) -> None:
    ends.page[STATE] = state
    assert ends.serve() == 0 and ends.seen == []
    assert ends.page[STATE] == state


def test_a_device_that_raises_leaves_nobody_answering(ends: Ends) -> None:
    def read(*_: int) -> int:
        raise RuntimeError("broken")

    ends.slot.start(IOREQ_TYPE_PIO, 0x80, 0, 1, 1, IOREQ_READ)
    with pytest.raises(RuntimeError, match="broken"):
        ends.server.serve(ends.model_upcall, read, lambda *_: None, lambda *_: None)
    assert not ends.server.answering


def test_slots_beyond_the_page() -> None:
    with pytest.raises(ValueError, match="129"):
        IoreqServer(bytearray(FRAME), bytearray(FRAME), 129)


def test_rows_and_sizes_that_are_not_there(ends: Ends) -> None:
    with pytest.raises(ValueError, match="row"):
        ends.path.add(ExitKind.PIO_IN, 0x80, 1, ends.table.capacity, True)
    with pytest.raises(ValueError, match="3 bytes"):
        ends.path.run(ExitKind.PIO_IN, 0x80, 3)
    with pytest.raises(ValueError, match="frame"):
        ExitPath(ends.slot, ends.upcall, ends.table, bytearray(8), ends.modified, ends.ranges, ends.info, ends.buffered)


def test_a_full_table_leaves_the_rest_to_the_interpreter(ends: Ends) -> None:
    for address in range(5000):
        ends.path.add(ExitKind.MMIO_WRITE, address << 12, 4, 0, False)
    known = sum(ends.path.run(ExitKind.MMIO_WRITE, address << 12, 4)[0] == EXIT_DONE for address in range(5000))
    assert known == 4096


@pytest.mark.parametrize(("doorbell", "hogs"), [("zmq", 0), ("fifo", 0), ("fifo", 2)])
def test_no_exit_and_no_kick_is_lost(doorbell: str, hogs: int) -> None:
    ask_and_halt(20_000, doorbell, seed=31, hogs=hogs)


def test_the_kinds_are_what_the_core_takes_them_for() -> None:
    assert [ExitKind.PIO_IN, ExitKind.PIO_OUT, ExitKind.MMIO_READ, ExitKind.MMIO_WRITE] == [0, 1, 2, 3]
    assert (_core.EXIT_DONE, _core.EXIT_NEWS, _core.EXIT_STARTED, _core.EXIT_UNKNOWN) == (0, 1, 2, 3)
