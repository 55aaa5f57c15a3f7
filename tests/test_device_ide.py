"""The ATA channel against ATA/ATAPI-6 and against a model disk, with disks that answer at once, later, or wrongly."""

import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniguest.frontend.devices.busmaster import BusMaster
from miniguest.frontend.devices.ide import IdeChannel
from miniguest.frontend.devices.saved import load, save

DATA, ERROR, COUNT, LOW, MID, HIGH, DEVICE, STATUS, CONTROL = range(9)
ERR, DRQ, DRDY, BSY = 0x01, 0x08, 0x40, 0x80
ABRT, IDNF, UNC, WP = 0x04, 0x10, 0x40, 0x40
READ, WRITE, READ_EXT, WRITE_EXT, READ_DMA, WRITE_DMA = 0x20, 0x30, 0x24, 0x34, 0xC8, 0xCA
IDENTIFY, SET_MULTIPLE, READ_MULTIPLE, WRITE_MULTIPLE, FLUSH, VERIFY = 0xEC, 0xC6, 0xC4, 0xC5, 0xE7, 0x40


class Disk:
    """Sector n holds its number repeated; `later` keeps answers until `answer()`."""

    def __init__(self, sectors: int = 3000, read_only: bool = False, later: bool = False) -> None:
        self.sectors = sectors
        self.read_only = read_only
        self.later = later
        self.broken = False
        self.data = bytearray(b"".join(struct.pack("<I", n) * 128 for n in range(min(sectors, 3000))))
        self.waiting: list[Callable[[], None]] = []
        self.asked: list[tuple[str, int, int]] = []

    def _answer(self, call: Callable[[], None]) -> None:
        if self.later:
            self.waiting.append(call)
        else:
            call()

    def answer(self, which: int = 0) -> None:
        self.waiting.pop(which)()

    def read(self, sector: int, count: int, done: Callable[[bytes | None], None]) -> None:
        self.asked.append(("read", sector, count))
        data = bytes(self.data[sector * 512 : (sector + count) * 512])
        self._answer(lambda: done(None if self.broken else data))

    def write(self, sector: int, data: bytes, done: Callable[[bool], None]) -> None:
        self.asked.append(("write", sector, len(data) // 512))
        if not self.broken:
            self.data[sector * 512 : sector * 512 + len(data)] = data
        self._answer(lambda: done(not self.broken))

    def flush(self, done: Callable[[bool], None]) -> None:
        self.asked.append(("flush", 0, 0))
        self._answer(lambda: done(not self.broken))


class Memory:
    def __init__(self) -> None:
        self.data = bytearray(1 << 20)

    def read(self, gpa: int, size: int) -> bytes:
        return bytes(self.data[gpa : gpa + size]).ljust(size, b"\xff")

    def write(self, gpa: int, data: bytes | memoryview) -> None:
        part = bytes(data)[: max(len(self.data) - gpa, 0)]
        self.data[gpa : gpa + len(part)] = part


def command(
    channel: IdeChannel, code: int, sector: int = 0, count: int = 1, ext: bool = False, unit: int = 0, feature: int = 0
) -> None:
    channel.write(DEVICE, 1, 0xE0 | unit << 4 | (0 if ext else sector >> 24 & 15))
    if ext:
        for register, value in ((COUNT, count >> 8), (LOW, sector >> 24), (MID, sector >> 32), (HIGH, sector >> 40)):
            channel.write(register, 1, value & 0xFF)
    channel.write(ERROR, 1, feature)
    channel.write(COUNT, 1, count & 0xFF)
    for register, shift in ((LOW, 0), (MID, 8), (HIGH, 16)):
        channel.write(register, 1, sector >> shift & 0xFF)
    channel.write(STATUS, 1, code)


def status(channel: IdeChannel) -> int:
    return channel.read(CONTROL, 1)


def read_block(channel: IdeChannel, sectors: int = 1) -> bytes:
    return channel.read_string(DATA, 2, 256 * sectors)


def number(data: bytes) -> list[int]:
    """The sector numbers that blocks from a fresh Disk carry."""
    return [struct.unpack_from("<I", data, at)[0] for at in range(0, len(data), 512)]


def registers(channel: IdeChannel) -> tuple[int, ...]:
    return tuple(channel.read(register, 1) for register in (ERROR, COUNT, LOW, MID, HIGH, DEVICE))


def test_read_sectors_interrupts_once_for_each_sector_and_not_at_the_end() -> None:
    disk = Disk()
    channel = IdeChannel((disk, None))
    command(channel, READ, sector=7, count=3)
    for n in (7, 8, 9):
        assert channel.irq()
        assert channel.read(STATUS, 1) == 0x58
        assert not channel.irq()
        assert number(read_block(channel)) == [n]
    assert not channel.irq()
    assert channel.read(STATUS, 1) == 0x50
    assert disk.asked == [("read", 7, 3)]
    assert channel.read(DATA, 2) == 0xFFFF


def test_write_sectors_does_not_interrupt_for_the_first_block() -> None:
    disk = Disk()
    channel = IdeChannel((disk, None))
    command(channel, WRITE, sector=5, count=2)
    assert status(channel) & DRQ
    assert not channel.irq()
    channel.write_string(DATA, 2, b"a" * 512)
    assert channel.irq()
    assert channel.read(STATUS, 1) & DRQ
    channel.write_string(DATA, 2, b"b" * 512)
    assert channel.irq()
    assert channel.read(STATUS, 1) == 0x50
    assert disk.data[5 * 512 : 7 * 512] == b"a" * 512 + b"b" * 512


def test_multiple_interrupts_once_for_each_block_and_for_the_rest() -> None:
    channel = IdeChannel((Disk(), None))
    command(channel, READ_MULTIPLE)
    assert channel.read(STATUS, 1) & ERR
    assert channel.read(ERROR, 1) == ABRT
    command(channel, SET_MULTIPLE, count=4)
    command(channel, READ_MULTIPLE, sector=100, count=10)
    got, interrupts = b"", 0
    while status(channel) & DRQ:
        interrupts += channel.irq()
        channel.read(STATUS, 1)
        got += read_block(channel, min(4, 10 - len(got) // 512))
    assert number(got) == list(range(100, 110))
    assert interrupts == 3


@pytest.mark.parametrize("count", [3, 32, 255])
def test_set_multiple_takes_powers_of_two_up_to_sixteen(count: int) -> None:
    channel = IdeChannel((Disk(), None))
    command(channel, SET_MULTIPLE, count=count)
    assert channel.read(ERROR, 1) == ABRT


def test_busy_while_the_disk_works_and_told_by_callback() -> None:
    disk = Disk(later=True)
    channel = IdeChannel((disk, None))
    told: list[bool] = []
    channel.changed = lambda: told.append(channel.irq())
    command(channel, READ, sector=1)
    assert status(channel) == BSY
    assert not channel.irq()
    channel.write(LOW, 1, 99)  # a busy drive does not listen
    disk.answer()
    assert told == [True]
    assert number(read_block(channel)) == [1]


def test_a_count_of_zero_is_the_most_and_is_fetched_in_chunks() -> None:
    disk = Disk()
    channel = IdeChannel((disk, None))
    command(channel, READ, sector=3, count=0)
    assert number(read_block(channel, 256)) == list(range(3, 259))
    big = Disk(sectors=70000)
    channel = IdeChannel((big, None))
    command(channel, 0x42, sector=1, count=0, ext=True)  # READ VERIFY EXT
    assert channel.read(STATUS, 1) & ERR  # the model disk keeps fewer bytes than it says: an I/O error at 2816
    assert [count for _, _, count in big.asked] == [256] * 12
    command(channel, READ_EXT, sector=70000 - 65535, count=0, ext=True)
    assert channel.read(ERROR, 1) == IDNF | ABRT


@pytest.mark.parametrize(("sector", "count", "good"), [(2999, 1, True), (2999, 2, False), (3000, 1, False)])
@pytest.mark.parametrize("code", [READ, READ_EXT, WRITE, WRITE_EXT, VERIFY])
def test_range_is_checked_before_anything_is_read(sector: int, count: int, good: bool, code: int) -> None:
    disk = Disk()
    channel = IdeChannel((disk, None))
    command(channel, code, sector, count, ext=code in (READ_EXT, WRITE_EXT))
    if good:
        assert not channel.read(STATUS, 1) & ERR
    else:
        assert channel.read(STATUS, 1) == 0x51
        assert channel.read(ERROR, 1) == IDNF | ABRT
        assert disk.asked == []


def test_chs_follows_initialize_device_parameters() -> None:
    disk = Disk()
    channel = IdeChannel((disk, None))

    def chs(cylinder: int, head: int, sector: int) -> None:
        for register, value in ((DEVICE, 0xA0 | head), (COUNT, 1), (LOW, sector), (MID, cylinder), (HIGH, 0)):
            channel.write(register, 1, value)
        channel.write(STATUS, 1, READ)

    chs(1, 2, 3)
    assert number(read_block(channel)) == [(1 * 16 + 2) * 63 + 2]
    channel.write(DEVICE, 1, 0xA0 | 3)
    channel.write(COUNT, 1, 10)
    channel.write(STATUS, 1, 0x91)
    chs(5, 3, 10)
    assert number(read_block(channel)) == [(5 * 4 + 3) * 10 + 9]
    for bad in ((5, 4, 1), (5, 0, 0), (5, 0, 11), (75, 0, 1)):
        chs(*bad)
        assert channel.read(ERROR, 1) == IDNF | ABRT
    assert [count for _, _, count in disk.asked] == [1, 1]


def test_lba48_registers_are_two_deep() -> None:
    channel = IdeChannel((Disk(), None))
    command(channel, READ_EXT, sector=0x010203040506, count=0x0708, ext=True)
    assert registers(channel)[1:5] == (0x08, 0x06, 0x05, 0x04)
    channel.write(CONTROL, 1, 0x80)
    assert registers(channel)[1:5] == (0x07, 0x03, 0x02, 0x01)
    channel.write(COUNT, 1, 1)  # any write to the command block clears HOB
    assert registers(channel)[1] == 1


def test_lba28_does_not_see_what_an_earlier_command_left_in_the_second_byte() -> None:
    channel = IdeChannel((Disk(), None))
    command(channel, READ_EXT, sector=0xFF0000000000, count=0xFF01, ext=True)
    command(channel, READ, sector=9)
    assert number(read_block(channel)) == [9]
    assert not status(channel) & (DRQ | ERR)


def test_a_read_only_disk_refuses_writes() -> None:
    disk = Disk(read_only=True)
    channel = IdeChannel((disk, None), BusMaster(Memory()).channels[0])
    for code in (WRITE, WRITE_EXT, WRITE_DMA):
        command(channel, code)
        assert channel.read(STATUS, 1) & ERR
        assert channel.read(ERROR, 1) == ABRT | WP
    assert disk.asked == []


def test_io_errors_name_the_sector() -> None:
    disk = Disk()
    channel = IdeChannel((disk, None))
    disk.broken = True
    command(channel, READ, sector=77, count=2)
    assert channel.irq()
    assert channel.read(STATUS, 1) & ERR
    assert registers(channel)[0] == UNC
    assert registers(channel)[2] == 77
    for code in (FLUSH, WRITE):
        command(channel, code, sector=5)
        if code == WRITE:
            channel.write_string(DATA, 2, bytes(512))
        assert channel.read(STATUS, 1) & ERR
        assert channel.read(ERROR, 1) == ABRT


def test_a_short_answer_of_the_disk_is_an_error() -> None:
    disk = Disk(sectors=4000)  # keeps 3000
    channel = IdeChannel((disk, None))
    command(channel, READ, sector=2999, count=2)
    assert channel.read(ERROR, 1) == UNC


def test_identify_says_what_the_disk_is() -> None:
    channel = IdeChannel((Disk(sectors=3000), None), BusMaster(Memory()).channels[0])
    command(channel, SET_MULTIPLE, count=8)
    command(channel, 0xEF, count=0x22, feature=3)
    command(channel, IDENTIFY)
    data = read_block(channel)
    words = struct.unpack("<256H", data)
    assert (words[1], words[3], words[6]) == (2, 16, 63)
    assert words[60] | words[61] << 16 == words[100] | words[101] << 16 == 3000
    assert words[59] == 0x108
    assert words[63] == 0x0407
    assert words[49] & 0x300 == 0x300
    assert words[83] & 0x0400
    assert data[510] == 0xA5
    assert sum(data) & 0xFF == 0
    assert bytes(data[i ^ 1] for i in range(54, 94)).rstrip() == b"miniguest disk"


@pytest.mark.parametrize("code", [0x00, 0x08, 0xA0, 0xA1, 0xB0, 0xFF, 0x01])
def test_unknown_and_refused_commands_abort(code: int) -> None:
    channel = IdeChannel((Disk(), None))
    command(channel, code)
    assert channel.irq()
    assert channel.read(STATUS, 1) == 0x51
    assert channel.read(ERROR, 1) == ABRT


@pytest.mark.parametrize("code", [0x10, 0x1F, 0x70, VERIFY, FLUSH, 0xEA, 0xE0, 0xE1, 0xE2, 0xE3, 0x91])
def test_commands_without_data_complete_with_an_interrupt(code: int) -> None:
    channel = IdeChannel((Disk(), None))
    command(channel, code)
    assert channel.irq()
    assert channel.read(STATUS, 1) == 0x50


def test_power_mode_and_sleep() -> None:
    channel = IdeChannel((Disk(), None))
    for code, mode in ((0xE0, 0x00), (0xE1, 0x80), (0x10, 0xFF)):
        command(channel, code)
        command(channel, 0xE5)
        assert channel.read(COUNT, 1) == mode
    command(channel, 0xE6)
    channel.read(STATUS, 1)
    command(channel, IDENTIFY)
    assert not status(channel) & DRQ
    channel.write(CONTROL, 1, 4)
    channel.write(CONTROL, 1, 0)
    command(channel, IDENTIFY)
    assert status(channel) & DRQ


def test_software_reset_leaves_the_signature_and_forgets_the_disk() -> None:
    disk = Disk(later=True)
    channel = IdeChannel((disk, Disk()))
    command(channel, READ, sector=3, count=2, unit=0)
    channel.write(CONTROL, 1, 0x04)
    assert status(channel) == BSY
    channel.write(STATUS, 1, IDENTIFY)  # held in reset
    channel.write(CONTROL, 1, 0x00)
    assert status(channel) == 0x50
    assert registers(channel) == (1, 1, 1, 0, 0, 0xA0)
    disk.answer()
    assert status(channel) == 0x50
    assert not channel.irq()


def test_a_reset_keeps_the_blocks_a_write_has_acknowledged() -> None:
    disk = Disk()
    channel = IdeChannel((disk, None))
    command(channel, WRITE, sector=0, count=4)
    channel.write_string(DATA, 2, b"x" * 1024 + b"y" * 100)
    channel.write(CONTROL, 1, 4)
    assert disk.asked == [("write", 0, 2)]
    assert disk.data[:1024] == b"x" * 1024


def test_diagnostic_is_for_both_and_drive_0_answers() -> None:
    channel = IdeChannel((Disk(), Disk()))
    channel.write(DEVICE, 1, 0xB0)
    channel.write(STATUS, 1, 0x90)
    assert channel.irq()
    assert registers(channel) == (1, 1, 1, 0, 0, 0xA0)
    assert channel.read(STATUS, 1) == 0x50


def test_absent_drives() -> None:
    alone = IdeChannel((Disk(), None))
    alone.write(DEVICE, 1, 0xB0)
    assert alone.read(STATUS, 1) == 0
    alone.write(COUNT, 1, 0x55)
    assert alone.read(COUNT, 1) == 0x55  # drive 0 answers for the registers
    alone.write(STATUS, 1, IDENTIFY)
    assert alone.read(STATUS, 1) == 0
    alone.write(DEVICE, 1, 0xA0)
    assert alone.read(STATUS, 1) == 0x50
    for empty in (IdeChannel((None, None)), IdeChannel((None, Disk()))):
        assert empty.read(STATUS, 1) == 0x7F
        assert empty.read(DATA, 2) == 0xFFFF
        empty.write(COUNT, 1, 0x55)
        assert empty.read(COUNT, 1) == 0xFF


def test_nien_floats_the_line_and_selection_chooses_whose_it_is() -> None:
    channel = IdeChannel((Disk(), Disk()))
    command(channel, IDENTIFY)
    channel.write(CONTROL, 1, 2)
    assert not channel.irq()
    channel.write(CONTROL, 1, 0)
    assert channel.irq()
    channel.write(DEVICE, 1, 0xB0)
    assert not channel.irq()
    channel.write(DEVICE, 1, 0xA0)
    assert channel.irq()
    assert channel.read(CONTROL, 1) & DRQ  # the alternate status leaves it
    assert channel.irq()


def test_both_drives_have_their_own_sectors() -> None:
    first, second = Disk(), Disk()
    channel = IdeChannel((first, second))
    command(channel, READ, sector=3, unit=1)
    assert number(read_block(channel)) == [3]
    assert first.asked == []


ACCESSES = st.lists(st.tuples(st.sampled_from(["one", "string"]), st.sampled_from([2, 4]), st.integers(1, 90)))


@settings(max_examples=60, deadline=None)
@given(plan=ACCESSES, sectors=st.integers(1, 6), multiple=st.sampled_from([1, 2, 4]))
def test_strings_and_single_reads_give_the_same_bytes(plan: list[tuple[str, int, int]], sectors: int, multiple: int) -> None:
    disk = Disk(sectors=10)
    disk.data[:] = bytes((i * 7 + i // 512) & 0xFF for i in range(len(disk.data)))
    channel = IdeChannel((disk, None))
    command(channel, SET_MULTIPLE, count=multiple)
    command(channel, READ_MULTIPLE, sector=1, count=sectors)
    got, left = b"", sectors * 512
    for how, size, count in [*plan, ("string", 2, left)]:
        count = min(count, left // size)
        if how == "string":
            got += channel.read_string(DATA, size, count)
        else:
            got += b"".join(channel.read(DATA, size).to_bytes(size, "little") for _ in range(count))
        left -= size * count
    assert got == disk.data[512 : 512 + sectors * 512]
    assert disk.asked == [("read", 1, sectors)]
    assert status(channel) == 0x50


@settings(max_examples=60, deadline=None)
@given(plan=ACCESSES, sectors=st.integers(1, 6), seed=st.integers(0, 255))
def test_strings_and_single_writes_store_the_same_bytes(plan: list[tuple[str, int, int]], sectors: int, seed: int) -> None:
    disk = Disk()
    channel = IdeChannel((disk, None))
    data = bytes(i * 13 + i // 512 + seed & 0xFF for i in range(sectors * 512))
    command(channel, WRITE, sector=4, count=sectors)
    at = 0
    for how, size, count in [*plan, ("string", 2, len(data))]:
        count = min(count, (len(data) - at) // size)
        part = data[at : at + size * count]
        if how == "string":
            channel.write_string(DATA, size, part)
        else:
            for i in range(0, len(part), size):
                channel.write(DATA, size, int.from_bytes(part[i : i + size], "little"))
        at += len(part)
    assert disk.data[4 * 512 : 4 * 512 + len(data)] == data
    assert status(channel) == 0x50


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["read", "write", "dma read", "dma write"]),
        st.integers(0, 1),
        st.integers(0, 2500),
        st.integers(1, 400),
        st.booleans(),
    ),
    max_size=8,
)


def prd(memory: Memory, buffer: int, size: int, piece: int = 0x10000) -> int:
    """A descriptor table at 0x1000 for a buffer, in pieces; gives its address."""
    at = 0x1000
    while size:
        part = min(piece, size)
        size -= part
        struct.pack_into("<IHH", memory.data, at, buffer, part & 0xFFFF, 0 if size else 0x8000)
        buffer += part
        at += 8
    return 0x1000


def finish(channel: IdeChannel, disk: Disk) -> None:
    while disk.waiting:
        disk.answer()


@settings(max_examples=40, deadline=None)
@given(operations=OPERATIONS, later=st.booleans(), piece=st.sampled_from([0x10000, 0x3000, 512, 94]))
def test_a_disk_behaves_like_a_byte_array(operations: list[tuple[str, int, int, int, bool]], later: bool, piece: int) -> None:
    """Reads and writes, PIO and DMA, 28 and 48 bits, completing at once or later, against a model."""
    memory = Memory()
    master = BusMaster(memory)
    disks = (Disk(later=later), Disk(later=later))
    models = tuple(bytearray(disk.data) for disk in disks)
    channel = IdeChannel(disks, master.channels[0])
    for index, (kind, unit, sector, count, ext) in enumerate(operations):
        count = count if ext else min(count, 256)
        disk, model, span = disks[unit], models[unit], slice(sector * 512, (sector + count) * 512)
        disk.asked.clear()
        data = bytes((index + i // 512 * 3 + i) & 0xFF for i in range(count * 512))
        code = {"read": (READ, READ_EXT), "write": (WRITE, WRITE_EXT), "dma read": (READ_DMA, 0x25)}
        code["dma write"] = (WRITE_DMA, 0x35)
        if kind.startswith("dma"):
            if kind == "dma write":
                memory.data[0x20000 : 0x20000 + len(data)] = data
                model[span] = data
            master.write(4, 4, prd(memory, 0x20000, len(data), piece))
            command(channel, code[kind][ext], sector, count, ext, unit)
            finish(channel, disk)
            master.write(0, 1, 1 | (8 if kind == "dma read" else 0))
            finish(channel, disk)
            assert master.read(2, 1) & 7 == 4
            master.write(0, 1, 0)
            master.write(2, 1, 4)
            if kind == "dma read":
                assert memory.data[0x20000 : 0x20000 + len(data)] == model[span]
        else:
            command(channel, code[kind][ext], sector, count, ext, unit)
            got = b""
            for n in range(count):
                finish(channel, disk)
                assert status(channel) & (DRQ | BSY) == DRQ
                if kind == "read":
                    got += read_block(channel)
                else:
                    channel.write_string(DATA, 4, data[n * 512 : (n + 1) * 512])
            finish(channel, disk)
            if kind == "read":
                assert got == model[span]
            else:
                model[span] = data
        assert channel.read(STATUS, 1) == 0x50
        assert sum(asked for _, _, asked in disk.asked) == count
        assert disk.data == model


def test_both_drives_of_two_channels_complete_in_any_order() -> None:
    disks = [Disk(later=True), Disk(later=True)]
    channels = [IdeChannel((disk, None)) for disk in disks]
    for channel, n in zip(channels, (11, 22), strict=True):
        command(channel, READ, sector=n)
    disks[1].answer()
    disks[0].answer()
    assert [number(read_block(channel)) for channel in channels] == [[11], [22]]


def test_a_late_answer_to_an_abandoned_request_is_not_taken_for_the_next() -> None:
    disk = Disk(later=True)
    channel = IdeChannel((disk, None))
    command(channel, READ, sector=1)
    channel.write(CONTROL, 1, 4)
    channel.write(CONTROL, 1, 0)
    command(channel, READ, sector=2)
    disk.answer(0)
    assert status(channel) == BSY
    disk.answer(0)
    assert number(read_block(channel)) == [2]


def test_what_was_in_flight_is_issued_again_after_a_restore() -> None:
    disk, other = Disk(later=True), Disk()
    channel, twin = IdeChannel((disk, None)), IdeChannel((other, None))
    command(channel, READ, sector=42, count=2)
    load(twin, save(channel))
    assert twin.irq()
    assert number(read_block(twin, 2)) == [42, 43]
    command(channel, 0xEF)  # busy: not taken
    disk.answer()
    assert number(read_block(channel, 2)) == [42, 43]


def dma_machine() -> tuple[IdeChannel, BusMaster, Memory, Disk]:
    memory, disk = Memory(), Disk()
    master = BusMaster(memory)
    return IdeChannel((disk, None), master.channels[0]), master, memory, disk


def test_bus_master_may_be_started_before_or_after_the_command() -> None:
    for first in ("command", "start"):
        channel, master, memory, _ = dma_machine()
        master.write(4, 4, prd(memory, 0x8000, 1024))
        told: list[bool] = []
        channel.changed = lambda c=channel, told=told: told.append(c.irq())  # type: ignore[misc]
        steps = [lambda c=channel: command(c, READ_DMA, 5, 2), lambda m=master: m.write(0, 1, 9)]
        for step in steps if first == "command" else reversed(steps):
            assert master.read(2, 1) & 4 == 0
            step()
        assert number(bytes(memory.data[0x8000:0x8400])) == [5, 6]
        assert master.read(2, 1) & 7 == 4
        assert told[-1]  # the line rose in an access to the bus master: the channel says so itself


def test_a_longer_table_stays_active_and_a_shorter_one_ends_without_interrupt() -> None:
    channel, master, memory, _ = dma_machine()
    master.write(4, 4, prd(memory, 0x8000, 4096))
    command(channel, READ_DMA, 5, 1)
    master.write(0, 1, 9)
    assert master.read(2, 1) & 7 == 5
    channel, master, memory, _ = dma_machine()
    master.write(4, 4, prd(memory, 0x8000, 512))
    command(channel, READ_DMA, 5, 2)
    master.write(0, 1, 9)
    assert master.read(2, 1) & 7 == 0
    assert status(channel) & DRQ
    master.write(0, 1, 0)  # the guest goes on with another table
    master.write(4, 4, prd(memory, 0x9000, 512))
    master.write(0, 1, 9)
    assert number(bytes(memory.data[0x9000:0x9200])) == [6]
    assert channel.irq()


def test_bad_tables_do_not_crash() -> None:
    channel, master, memory, disk = dma_machine()
    for table in (0xFFFFFFFC, 0x100000, 0x1000):
        struct.pack_into("<IHH", memory.data, 0x1000, 0xFFFFFFF0, 2, 0)
        master.write(4, 4, table)
        for code in (READ_DMA, WRITE_DMA):
            command(channel, code, 1, 1)
            master.write(0, 1, 1)
            master.write(0, 1, 0)
            channel.write(CONTROL, 1, 4)
            channel.write(CONTROL, 1, 0)
    memory.data[0x20000:0x30000] = struct.pack("<IHH", 0x8000, 2, 0) * 8192  # never ends
    master.write(4, 4, 0x20000)
    command(channel, READ_DMA, 1, 64)
    master.write(0, 1, 9)
    assert master.read(2, 1) & 3 == 2  # error: it would cross 64 KiB
    master.write(2, 1, 0x66)
    assert master.read(2, 1) == 0x60
    assert all(sector + count <= disk.sectors for _, sector, count in disk.asked)


def test_zero_length_is_64_kib_and_odd_bits_are_ignored() -> None:
    channel, master, memory, _ = dma_machine()
    struct.pack_into("<IHH", memory.data, 0x1000, 0x20001, 1, 0x8000)
    master.write(4, 4, 0x1003)
    assert master.read(4, 4) == 0x1000
    command(channel, READ_DMA, 0, 128)
    master.write(0, 1, 9)
    assert number(bytes(memory.data[0x20000:0x30000])) == list(range(128))
    assert master.read(2, 1) & 7 == 4


def test_without_a_bus_master_dma_aborts() -> None:
    channel = IdeChannel((Disk(), None))
    command(channel, READ_DMA)
    assert channel.read(ERROR, 1) == ABRT


def test_the_windows_take_strings_too() -> None:
    disk = Disk()
    channel = IdeChannel((disk, None))
    command(channel, READ, sector=7)
    assert number(channel.command_block.read_string(DATA, 2, 256)) == [7]
    assert channel.command_block.read_string(STATUS, 1, 3) == b"\x50" * 3
    assert channel.control_block.read_string(0, 2, 2) == b"\x50\xff" * 2
    command(channel, WRITE, sector=7)
    channel.command_block.write_string(DATA, 2, b"w" * 512)
    assert disk.data[7 * 512 : 8 * 512] == b"w" * 512
