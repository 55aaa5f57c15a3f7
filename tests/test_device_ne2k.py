"""The RTL8029AS: drivers written by the DP8390's and NE2000's guides, polling as iPXE's and with interrupts as Linux's."""

import zlib

import pytest
from cards import BROADCAST, MAC, PEER, Bench, ether_crc, frame
from hypothesis import given, settings
from hypothesis import strategies as st

from miniguest.frontend.devices.ne2k_pci import Ne2kPci

CR, DATA, RESET = 0x00, 0x10, 0x1F
PSTART, PSTOP, BNRY, TPSR, TBCR, ISR, RSAR, RBCR, RCR, TCR, DCR, IMR = 1, 2, 3, 4, 5, 7, 8, 10, 12, 13, 14, 15
TSR, NCR, FIFO, RSR, CNTR = 4, 5, 6, 12, 13
PAR, CURR, MAR = 1, 7, 8
STP, STA, TXP, READ, WRITE, SEND, ABORT = 1, 2, 4, 8, 16, 24, 32
PRX, PTX, TXE, OVW, CNT, RDC, RST = 1, 2, 8, 16, 32, 64, 128
AB, AM, PRO, MON = 4, 8, 16, 32
TX_PAGE, FIRST, LAST = 0x40, 0x46, 0x80


class Driver(Bench):
    """Initialises as the DP8390 guide says; BNRY stays one page behind the next frame."""

    def __init__(self, accept: int = AB, width: int = 2, flow: bool = True, first: int = FIRST, last: int = LAST) -> None:
        super().__init__(Ne2kPci)
        self.width, self.first, self.last = width, first, last
        self.put(RESET, self.get(RESET))
        assert self.get(ISR) & RST
        if not flow:
            self.page3((5, 0x40), (6, 0x40))
        self.put(CR, STP | ABORT)
        self.put(DCR, 0x49 if width > 1 else 0x48)
        self.put(RBCR, 0, 2)
        self.put(RCR, MON)
        self.put(TCR, 2)
        self.put(PSTART, first)
        self.put(PSTOP, last)
        self.put(BNRY, last - 1)
        self.put(ISR, 0xFF)
        self.put(IMR, 0)
        self.put(CR, 0x40 | STP | ABORT)
        for i, byte in enumerate(MAC):
            self.put(PAR + i, byte)
        self.put(CURR, first)
        self.put(CR, STA | ABORT)
        self.put(TCR, 0)
        self.put(RCR, accept)

    def page3(self, *values: tuple[int, int]) -> None:
        """Write configuration registers."""
        self.put(CR, 0xC0 | STP | ABORT)
        self.put(1, 0xC0)
        for register, value in values:
            self.put(register, value)
        self.put(1, 0)
        self.put(CR, STP | ABORT)

    def remote(self, command: int, address: int, count: int) -> None:
        self.put(CR, STA | ABORT)
        self.put(ISR, RDC)
        self.put(RBCR, count, 2)
        self.put(RSAR, address, 2)
        self.put(CR, STA | command)

    def fetch(self, address: int, count: int) -> bytes:
        """Read memory through the data port."""
        self.remote(READ, address, count)
        elements = -(-count // self.width)
        data: bytes = self.card.read_string(DATA, self.width, elements)
        assert self.get(ISR) & RDC
        return data[:count]

    def fill(self, address: int, data: bytes) -> None:
        self.remote(WRITE, address, len(data))
        self.card.write_string(DATA, self.width, data.ljust(-(-len(data) // self.width) * self.width, b"\0"))
        assert self.get(ISR) & RDC

    def send(self, data: bytes) -> None:
        self.fill(TX_PAGE << 8, data)
        self.put(TPSR, TX_PAGE)
        self.put(TBCR, len(data), 2)
        self.put(CR, STA | ABORT | TXP)

    def found(self) -> int | None:
        """The page of the next frame, polled for as iPXE does; None when there is none."""
        self.get(ISR)
        if not self.get(RSR) & 1:
            return None
        following = self.get(BNRY) + 1
        if following >= self.last:
            following = self.first
        self.put(CR, 0x40)
        current = self.get(CURR)
        self.put(CR, 0)
        return None if current == following else following

    def take(self) -> bytes | None:
        """The next frame, whose FCS is checked."""
        page = self.found()
        if page is None:
            return None
        status, following, low, high = self.fetch(page << 8, 4)
        assert status & 0xDF == 1
        count = low | high << 8
        data = self.fetch((page << 8) + 4, count)  # remote DMA wraps by itself
        assert zlib.crc32(data) == 0x2144DF1C
        self.put(BNRY, (self.last if following == self.first else following) - 1)
        return data[:-4]

    def recover(self) -> list[bytes]:
        """From an overflow: stop, loopback, start, read everything, then acknowledge and go online."""
        self.put(CR, STP | ABORT)
        self.put(RBCR, 0, 2)
        self.put(TCR, 2)
        self.put(CR, STA | ABORT)
        frames = list(iter(self.take, None))
        self.put(ISR, OVW)
        self.put(TCR, 0)
        return frames


# What drivers probe


def test_prom_and_identification() -> None:
    driver = Driver()
    prom = driver.fetch(0, 32)
    assert prom[0:12:2] == prom[1:12:2] == MAC
    assert prom[28:] == b"WWWW"
    assert bytes((driver.get(10), driver.get(11))) == b"PC"
    driver.put(CR, 0xC0 | STA | ABORT)
    assert (driver.get(14), driver.get(15)) == (0x29, 0x80)
    assert (driver.get(5), driver.get(6)) == (0x60, 0x40)
    identity = driver.card.IDENTITY
    assert (identity.vendor, identity.device, identity.device_class) == (0x10EC, 0x8029, 0x020000)
    assert driver.card.windows() == {(0, "io"): driver.card}


def test_bytes_of_a_word_wide_port_move_words() -> None:
    driver = Driver()
    driver.remote(READ, 0, 32)
    assert bytes(driver.get(DATA) for _ in range(6)) == MAC
    driver.remote(WRITE, 0x4000, 4)
    driver.put(DATA, 0x12)
    driver.card.write_string(DATA, 1, b"\x34")
    assert driver.fetch(0x4000, 4) == b"\x12\x12\x34\x34"


def test_probe_by_memory_finds_16_kib_at_0x4000() -> None:
    driver = Driver(width=1)
    driver.fill(0x2000, b"NE*000 memory")
    assert driver.fetch(0x2000, 13) != b"NE*000 memory"
    driver.fill(0x4000, b"NE*000 memory")
    driver.fill(0x7FF8, b"the last")
    driver.fill(0x8000, b"beyond")
    assert driver.fetch(0x4000, 13) == b"NE*000 memory"
    driver.put(PSTOP, 0xA0)  # no wrap here
    assert driver.fetch(0x7FF8, 12) == b"the last" + b"\xff" * 4
    assert driver.fetch(0x3FFE, 4) == b"\xff\xffNE"


def test_reset_keeps_what_it_should() -> None:
    driver = Driver()
    driver.put(IMR, 0x7F)
    driver.put(CR, 0x40 | STA | ABORT)
    driver.put(MAR, 0x5A)
    driver.get(RESET)
    assert driver.get(CR) == STP | ABORT
    assert driver.get(ISR) & RST
    driver.put(ISR, 0xFF)
    assert driver.get(ISR) == RST  # not cleared by a one
    driver.put(CR, STA | ABORT)
    assert driver.get(ISR) == 0
    driver.put(CR, 0x80 | STA | ABORT)
    assert (driver.get(PSTART), driver.get(PSTOP), driver.get(TPSR), driver.get(IMR)) == (FIRST, LAST, 0, 0)
    assert (driver.get(RCR), driver.get(TCR) & 0xF9, driver.get(DCR)) == (0xC0 | AB, 0xE0, 0xCD)
    driver.put(CR, 0x40 | STA | ABORT)
    assert driver.get(MAR) == 0x5A


def test_configuration_needs_its_lock_opened() -> None:
    driver = Driver()
    driver.put(CR, 0xC0 | STA | ABORT)
    driver.put(6, 0)
    assert driver.get(6) == 0x40
    driver.put(1, 0xC0)
    driver.put(6, 0xFF)
    driver.put(5, 0)
    assert (driver.get(5), driver.get(6)) == (0, 0x46)
    driver.move_house()
    assert (driver.get(5), driver.get(6)) == (0, 0x46)
    driver.put(1, 0x40)  # from the EEPROM again
    assert (driver.get(1) & 0xC0, driver.get(5), driver.get(6)) == (0, 0x60, 0x40)


def test_the_eeprom_holds_the_address() -> None:
    driver = Driver()
    driver.put(CR, 0xC0 | STA | ABORT)
    driver.put(1, 0x88)
    word = 0
    for bit in f"{0b110 << 6 | 1:09b}" + "0" * 16:
        driver.put(1, 0x88 | int(bit) << 1)
        driver.put(1, 0x8C | int(bit) << 1)
        word = word << 1 & 0xFFFF | driver.get(1) & 1
    assert word.to_bytes(2, "little") == MAC[:2]


# Remote DMA


@given(width=st.sampled_from((1, 2, 4)), address=st.integers(0x4000, 0x7000), data=st.binary(min_size=1, max_size=600))
def test_remote_dma_moves_what_it_is_told(width: int, address: int, data: bytes) -> None:
    driver = Driver(width=width, first=0x7E)
    driver.fill(address, data)
    assert driver.fetch(address, len(data)) == data
    driver.remote(READ, address, len(data))
    one_by_one = b"".join(driver.get(DATA, width).to_bytes(width, "little") for _ in range(-(-len(data) // width)))
    assert one_by_one[: len(data)] == data
    assert driver.get(DATA, width) == (1 << 8 * width) - 1  # there is no more


def test_remote_dma_reads_wrap_at_pstop() -> None:
    driver = Driver()
    driver.fill(0x7F00, bytes(range(256)))
    driver.fill(FIRST << 8, b"first page")
    assert driver.fetch(0x7FFE, 12) == b"\xfe\xfffirst page"
    assert (driver.get(8), driver.get(9)) == (10, FIRST)


def test_remote_dma_says_when_it_is_done() -> None:
    driver = Driver()
    driver.remote(READ, 0x4000, 6)
    for done in (False, False, True):
        driver.get(DATA, 2)
        assert bool(driver.get(ISR) & RDC) == done
    driver.remote(WRITE, 0x4000, 0)
    assert driver.get(ISR) & RDC
    driver.remote(READ, 0x4000, 4)
    driver.put(CR, STA | ABORT)
    assert driver.get(DATA, 2) == 0xFFFF


def test_the_send_packet_command() -> None:
    driver = Driver()
    driver.put(BNRY, FIRST)  # here BNRY is the next frame's page
    driver.card.receive(frame(300, fill=1))
    driver.card.receive(frame(100, fill=2))
    for size, fill in ((300, 1), (100, 2)):
        driver.put(CR, STA | SEND)
        data = driver.card.read_string(DATA, 2, (size + 4) // 2)
        assert data[4:] == frame(size, fill=fill)
        driver.card.read_string(DATA, 2, 4)
    assert driver.get(BNRY) == FIRST + 3


# Transmission


@pytest.mark.parametrize("width", [1, 2, 4])
def test_transmit(width: int) -> None:
    driver = Driver(width=width)
    driver.put(IMR, PTX)
    for i, size in enumerate((60, 61, 1514, 20)):
        driver.send(frame(size, PEER, i))
        assert driver.wire.sent[-1] == frame(size, PEER, i)  # not padded: that is the driver's
        assert driver.get(CR) & TXP == 0
        assert driver.get(TSR) & 0xF9 == 1
        assert driver.get(NCR) == 0
        assert driver.card.irq()
        driver.put(ISR, PTX)
        assert not driver.card.irq()


def test_transmit_waits_for_the_wire() -> None:
    driver = Driver()
    driver.wire.limit = 0
    driver.send(frame(60, PEER))
    assert driver.get(CR) & TXP
    assert not driver.get(ISR) & PTX
    assert driver.idle_of(lambda: (driver.get(CR), driver.get(TSR), driver.get(ISR))) == 3
    driver.move_house()
    driver.wire.limit = 1
    driver.card.wire_ready()
    driver.card.wire_ready()
    assert driver.told == 1
    assert driver.wire.sent == [frame(60, PEER)]
    assert driver.get(CR) & TXP == 0
    assert driver.get(ISR) & PTX


def test_impossible_transmissions_fail() -> None:
    driver = Driver()
    driver.put(TPSR, 0x7F)
    driver.put(TBCR, 300, 2)
    driver.put(CR, STA | ABORT | TXP)
    assert driver.get(ISR) & (PTX | TXE) == TXE
    assert driver.get(TSR) & 9 == 8
    driver.send(b"x" * 13)  # a runt: sent, and nobody hears it
    assert driver.get(ISR) & PTX
    assert driver.wire.sent == []


def test_transmit_with_the_drivers_own_crc() -> None:
    driver = Driver()
    driver.put(TCR, 1)
    driver.send(frame(60, PEER) + zlib.crc32(frame(60, PEER)).to_bytes(4, "little"))
    driver.send(frame(60, PEER) + b"ouch")
    assert driver.wire.sent == [frame(60, PEER)]


@pytest.mark.parametrize("mode", [2, 4, 6])
def test_loopback_ends_in_the_fifo(mode: int) -> None:
    driver = Driver()
    driver.put(TCR, mode)
    driver.wire.limit = 0
    data = frame(69)
    driver.send(data)
    assert driver.get(ISR) & PTX
    assert bytes(driver.get(FIFO) for _ in range(8)) == bytes((73, 0, 0)) + data[-1:] + zlib.crc32(data).to_bytes(4, "little")
    assert driver.card.receive(frame())  # cut off
    assert driver.take() is None


# Reception


def test_receive() -> None:
    driver = Driver()
    driver.put(IMR, PRX)
    assert driver.take() is None
    assert driver.card.receive(frame(300))
    assert driver.told == 1
    assert driver.card.irq()
    assert driver.get(RSR) == 1
    assert driver.fetch(FIRST << 8, 4) == bytes((1, FIRST + 2, 304 & 0xFF, 304 >> 8))
    assert driver.take() == frame(300)
    assert driver.take() is None
    driver.card.receive(frame(20, BROADCAST))
    assert driver.get(RSR) == 0x21
    assert driver.take() == frame(20, BROADCAST).ljust(60, b"\0")


@pytest.mark.parametrize(
    ("accept", "mine", "other", "broadcast"), [(0, 1, 0, 0), (AB, 1, 0, 1), (PRO, 1, 1, 0), (PRO | AB, 1, 1, 1)]
)
def test_address_filters(accept: int, mine: int, other: int, broadcast: int) -> None:
    driver = Driver(accept)
    for destination, wanted in ((MAC, mine), (PEER, other), (BROADCAST, broadcast), (b"\1" * 6, 0)):
        assert driver.card.receive(frame(60, destination))
        assert (driver.take() is not None) == bool(wanted)


@given(st.binary(min_size=6, max_size=6).map(lambda raw: bytes((raw[0] | 1,)) + raw[1:]))
def test_multicast_hash(address: bytes) -> None:
    driver = Driver(AM)
    place = ether_crc(address) >> 26
    for table, wanted in ((1 << place, address != BROADCAST), (~(1 << place), False)):
        driver.put(CR, 0x40 | STA | ABORT)
        for i in range(8):
            driver.put(MAR + i, table >> 8 * i & 0xFF)
        driver.put(CR, STA | ABORT)
        driver.card.receive(frame(60, address))
        assert (driver.take() is not None) == wanted


def test_a_frame_takes_the_pages_that_it_needs_with_header_and_fcs() -> None:
    for size, pages in ((248, 1), (249, 2), (504, 2), (505, 3)):
        driver = Driver()
        driver.card.receive(frame(size))
        assert driver.fetch(FIRST << 8, 2) == bytes((1, FIRST + pages))


def test_one_event_leaves_the_others_in_isr() -> None:
    driver = Driver(flow=False)
    driver.send(frame(60, PEER))
    while driver.card.receive(frame(1000)):
        pass
    assert driver.get(ISR) == PRX | PTX | RDC | OVW | RST
    driver.put(ISR, RDC)
    driver.put(CR, STP | ABORT)
    assert driver.get(ISR) == PRX | PTX | OVW | RST
    driver.remote(READ, 0x4000, 0)
    assert driver.get(ISR) == PRX | PTX | OVW | RDC
    driver.put(ISR, PTX | OVW)
    assert driver.get(ISR) == PRX | RDC


def test_monitor_mode_counts() -> None:
    driver = Driver(MON)
    driver.put(IMR, CNT)
    for _ in range(128):
        assert not driver.card.irq()
        assert driver.card.receive(frame())
    assert driver.take() is None
    assert driver.get(RSR) & 0x10
    assert driver.card.irq()
    driver.put(ISR, CNT)
    assert driver.card.irq()  # until it is read
    for _ in range(100):
        driver.card.receive(frame())
    assert [driver.get(CNTR + i) for i in range(3)] == [0, 0, 192]
    assert driver.get(CNTR + 2) == 0
    driver.put(ISR, CNT)
    assert not driver.card.irq()


def test_a_stopped_card_takes_nothing() -> None:
    driver = Driver()
    driver.put(CR, STP | ABORT)
    assert driver.get(ISR) & RST
    assert driver.card.receive(frame())
    driver.put(CR, STA | ABORT)
    assert driver.take() is None
    driver.put(CR, 0x40)  # no STA, no STP: it goes on
    driver.put(CR, 0)
    driver.card.receive(frame())
    assert driver.take() == frame()


@settings(deadline=None)
@given(
    first=st.integers(0x40, 0x70), start=st.integers(0, 63), width=st.sampled_from((1, 2, 4)),
    sizes=st.lists(st.integers(14, 1514), min_size=1, max_size=50), greed=st.integers(1, 5),
)  # fmt: skip
def test_frames_of_any_size_come_out_whole_and_in_order(
    first: int, start: int, width: int, sizes: list[int], greed: int
) -> None:
    driver = Driver(width=width, first=first)
    page = first + start % (LAST - first)
    driver.put(BNRY, (LAST if page == first else page) - 1)
    driver.put(CR, 0x40 | STA | ABORT)
    driver.put(CURR, page)
    driver.put(CR, STA | ABORT)
    waiting: list[bytes] = []
    for number, size in enumerate(sizes):
        incoming = frame(size, fill=number)
        while not driver.card.receive(incoming):
            for _ in range(greed):
                assert driver.take() == (waiting.pop(0) if waiting else None)
        waiting.append(incoming.ljust(60, b"\0"))
    for each in waiting:
        assert driver.take() == each
    assert driver.take() is None


def test_flow_control_loses_nothing_and_tells_nobody() -> None:
    driver = Driver()
    count = 0
    while driver.card.receive(frame(1000, fill=count)):
        count += 1
    assert count == (LAST - FIRST - 2) // 4
    assert driver.get(ISR) & (PRX | OVW) == PRX
    driver.put(CR, 0xC0 | STA | ABORT)
    assert driver.get(5) & 0x10  # PF: the wire pauses
    driver.put(CR, STA | ABORT)
    for i in range(count):
        assert driver.take() == frame(1000, fill=i)
    assert driver.card.receive(frame(1000, fill=count))
    driver.put(CR, 0xC0 | STA | ABORT)
    assert not driver.get(5) & 0x10


def test_overflow_and_recovery() -> None:
    driver = Driver(flow=False)
    driver.put(IMR, OVW)
    count = 0
    while driver.card.receive(frame(1000, fill=count)):
        count += 1
    assert driver.card.irq()
    assert driver.get(ISR) & (OVW | RST) == OVW | RST
    assert driver.get(RSR) & 1  # the frames in the ring are still there
    assert not driver.card.receive(frame(1000, fill=count))
    assert driver.get(CNTR + 2) == 1  # one frame, however often it is offered
    driver.put(CR, STP | ABORT)
    assert not driver.card.receive(frame(1000, fill=count))  # it waits for the end of the recovery
    driver.move_house()
    assert driver.recover() == [frame(1000, fill=i) for i in range(count)]
    assert not driver.card.irq()
    assert driver.card.receive(frame(1000, fill=count))
    assert driver.take() == frame(1000, fill=count)


def test_a_frame_does_not_wait_for_a_ring_made_anew() -> None:
    driver = Driver()
    while driver.card.receive(frame(1000)):
        pass
    driver.put(CR, STP | ABORT)
    assert not driver.card.receive(frame(1000))
    driver.put(CR, 0x40 | STP | ABORT)
    driver.put(CURR, FIRST)
    assert driver.card.receive(frame(1000))


def test_frames_without_a_ring_are_lost() -> None:
    for first, last, size in ((0, 0, 60), (0x50, 0x46, 60), (0x46, 0x48, 1000), (FIRST, LAST, 65535)):
        driver = Driver(first=first, last=last)
        assert driver.card.receive(frame(size))
        assert driver.get(CNTR + 2) == 1
    outside = Driver(first=0x10, last=0x20)  # a ring where there is no memory
    assert outside.card.receive(frame())
    assert outside.fetch(0x1000, 4) == b"\xff" * 4


def test_a_driver_that_keeps_bnry_on_the_next_page() -> None:
    driver = Driver()
    driver.put(BNRY, FIRST)  # equal to CURR: empty
    assert driver.card.receive(frame(60))
    count = 1
    while driver.card.receive(frame(60)):
        count += 1
    assert count == LAST - FIRST - 1


# Idle polling


def test_polls_of_an_empty_ring_are_idle() -> None:
    driver = Driver()
    assert driver.idle_of(driver.found) == 2  # ISR and RSR
    driver.card.receive(frame())
    assert driver.idle_of(driver.take) == 0
    for _ in range(3):
        assert driver.idle_of(driver.found) == 6  # ISR, RSR, BNRY, CR, CURR, CR
    driver.card.receive(frame())
    assert driver.idle_of(driver.take) == 0
    assert driver.idle_of(lambda: driver.send(frame(60, PEER))) == 0
    assert driver.idle_of(driver.found) == 6


def test_a_status_that_goes_on_saying_the_same_is_idle() -> None:
    driver = Driver()
    driver.put(ISR, 0xFF)
    assert driver.idle_of(lambda: driver.get(ISR)) == 1
    driver.card.receive(frame())
    assert driver.idle_of(lambda: driver.get(ISR)) == 0
    assert driver.idle_of(lambda: driver.get(ISR)) == 1  # the one before led to nothing
    driver.put(ISR, PRX)
    assert driver.idle_of(lambda: driver.get(ISR)) == 1
