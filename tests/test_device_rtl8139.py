"""The RTL8139 as every RTL8139 is: a driver written by its programming guide, and its registers by the datasheet."""

import zlib

import pytest
from cards import BROADCAST, MAC, PEER, Bench, ether_crc, frame
from hypothesis import given, settings
from hypothesis import strategies as st

from miniguest.frontend.devices.rtl8139 import Rtl8139

IDR, MAR, TSD, TSAD, RBSTART, CR, CAPR, CBR, IMR, ISR = 0x00, 0x08, 0x10, 0x20, 0x30, 0x37, 0x38, 0x3A, 0x3C, 0x3E
TCR, RCR, TCTR, MPC, EECR, CONFIG0, CONFIG1, TIMERINT = 0x40, 0x44, 0x48, 0x4C, 0x50, 0x51, 0x52, 0x54
MSR, CONFIG3, CONFIG4, MULINT, TSADS, BMCR, BMSR = 0x58, 0x59, 0x5A, 0x5C, 0x60, 0x62, 0x64
ANAR, ANLPAR, CONFIG5 = 0x66, 0x68, 0xD8
RST, RE, TE, BUFE = 0x10, 8, 4, 1
ROK, RER, TOK, TER, RXOVW = 1, 2, 4, 8, 16
AAP, APM, AM, AB, AER, WRAP = 1, 2, 4, 8, 32, 128
RING, BUFFERS = 0x40000, 0x1000
OWN, SENT = 0x2000, 0x8000


class Driver(Bench):
    """Polls. `take` reads the ring as the guide says."""

    def __init__(self, size: int = 0, wrap: bool = False, accept: int = APM | AB) -> None:
        super().__init__(Rtl8139)
        self.length = 0x2000 << size
        self.position = self.turn = 0
        self.expected: list[bytes] = []
        self.put(CR, RST)
        assert not self.get(CR) & RST
        self.put(RBSTART, RING, 4)
        self.put(CR, RE | TE)
        self.put(TCR, 0x03000700, 4)
        self.put(RCR, 0xE700 | size << 11 | (WRAP if wrap else 0) | accept, 4)
        self.put(IMR, 0xFFFF, 2)

    def take(self) -> bytes | None:
        """The next frame without FCS, which is checked; None when the ring is empty."""
        if self.get(CR) & BUFE:
            return None
        status, length = (int.from_bytes(self.ring(at, 2), "little") for at in (0, 2))
        assert status & 0x3F == 1
        data = self.ring(4, length)
        assert zlib.crc32(data) == 0x2144DF1C
        self.position = (self.position + 4 + length + 3 & ~3) % self.length
        self.put(CAPR, self.position - 16 & 0xFFFF, 2)
        return data[:-4]

    def take_expected(self) -> None:
        if self.expected:
            assert self.take() == self.expected.pop(0)

    def ring(self, at: int, size: int) -> bytes:
        """Bytes of the ring from here on: as memory has them behind it when WRAP is set."""
        start = self.position + at
        if self.get(RCR, 4) & WRAP and self.length < 0x10000:
            return self.memory.read(RING + start, size)
        return bytes(self.memory.data[RING + (start + i) % self.length] for i in range(size))

    def send(self, data: bytes) -> None:
        self.memory.write(BUFFERS + 0x800 * self.turn, data)
        self.put(TSAD + 4 * self.turn, BUFFERS + 0x800 * self.turn, 4)
        self.put(TSD + 4 * self.turn, 0x30000 | len(data), 4)
        self.turn = (self.turn + 1) % 4

    def eeprom(self, address: int, address_bits: int = 6) -> int:
        """A word, through 9346CR."""
        word = 0
        self.put(EECR, 0x80)
        self.put(EECR, 0x88)
        for bit in f"{0b110 << address_bits | address:b}" + "0" * 16:
            self.put(EECR, 0x88 | int(bit) << 1)
            self.put(EECR, 0x8C | int(bit) << 1)
            word = word << 1 & 0xFFFF | self.get(EECR) & 1
        self.put(EECR, 0)
        return word


# Identification and configuration


def test_reset_values_that_drivers_look_at() -> None:
    bench = Bench(Rtl8139)
    assert bytes(bench.get(IDR + i) for i in range(6)) == MAC
    assert bench.get(TCR, 4) & 0x7CC00000 == 0x74800000
    assert bench.get(TCR + 3) == 0x77  # a byte of it, as the version is read
    assert bench.get(CR) == BUFE
    assert [bench.get(TSD + 4 * i, 4) for i in range(4)] == [OWN] * 4
    assert bench.get(MSR) & 0x0C == 0  # the link is up, at 100 Mb/s
    assert bench.get(BMCR, 2) == 0x3100
    assert bench.get(BMSR, 2) & 0x24 == 0x24  # autonegotiated, link
    assert bench.get(ANAR, 2) & bench.get(ANLPAR, 2) & 0x100  # 100BASE-TX full duplex on both sides
    assert bench.get(CAPR, 2) == 0xFFF0
    assert bench.get(0xDA, 2) == 0  # not an RTL8169: no such register
    bench.put(0xDA, 0x600, 2)
    assert bench.get(0xDA, 2) == 0
    card = bench.card
    assert (card.IDENTITY.vendor, card.IDENTITY.device, card.IDENTITY.revision) == (0x10EC, 0x8139, 0x20)
    assert [(bar.index, bar.kind, bar.size) for bar in card.BARS] == [(0, "io", 256), (1, "memory", 256)]
    assert bench.get(CONFIG3) == 0x41
    assert {key: window.read(0, 2) for key, window in card.windows().items()} == {(0, "io"): 0x1600, (1, "memory"): 0x1600}


def test_eeprom_says_what_the_registers_say() -> None:
    driver = Driver()
    assert driver.eeprom(0) == 0x8129
    assert b"".join(driver.eeprom(7 + i).to_bytes(2, "little") for i in range(3)) == MAC
    assert driver.get(EECR) & 0xC0 == 0
    assert driver.eeprom(0, address_bits=8) != 0x8129  # as a driver finds out that it is no 93C56


def test_auto_load_puts_the_address_back() -> None:
    driver = Driver()
    driver.put(IDR, 0x11223344, 4)
    driver.put(IDR + 4, 0x5566)
    assert driver.get(IDR, 4) == 0x11223344
    driver.put(EECR, 0x40)
    assert driver.get(EECR) & 0xC0 == 0
    assert bytes(driver.get(IDR + i) for i in range(6)) == MAC


def test_configuration_is_locked() -> None:
    driver = Driver()
    for register, value in ((CONFIG1, 0x23), (CONFIG3, 0x60), (CONFIG4, 0x84)):
        before = driver.get(register)
        driver.put(register, value)
        assert driver.get(register) == before
        driver.put(EECR, 0xC0)
        driver.put(register, value)
        assert driver.get(register) & value == value
        driver.put(EECR, 0)
    driver.put(CONFIG5, 0x7E)  # never locked
    assert driver.get(CONFIG5) == 0x7E
    driver.put(CONFIG0, 0xFF)
    assert driver.get(CONFIG0) == 0
    assert driver.get(CONFIG1) & 0x0C == 0x0C  # both decoders stay
    driver.put(BMCR, 0, 2)
    assert driver.get(BMCR, 2) == 0x3100
    driver.put(EECR, 0xC0)
    driver.put(BMCR, 0x2100, 2)
    assert driver.get(BMCR, 2) == 0x2100
    driver.put(BMCR, 0x9200, 2)
    assert driver.get(BMCR, 2) == 0x3100


def test_plain_registers_keep_what_they_have_bits_for() -> None:
    driver = Driver()
    for register, size, written, kept in ((MULINT, 2, 0xFFFF, 0xFFF), (0x8C, 4, 0x12345678, 0x12345678), (0xD0, 4, 5, 5)):
        driver.put(register, written, size)
        assert driver.get(register, size) == kept
    driver.put(0x8D, 0xAB)
    assert driver.get(0x8C, 4) == 0x1234AB78


def test_software_reset_keeps_addresses_and_configuration() -> None:
    driver = Driver()
    driver.put(MAR, 0x01020304, 4)
    driver.card.receive(frame())
    assert driver.card.irq()
    driver.put(IDR, 0xAABBCCDD, 4)
    driver.put(0xE0, 0x2B, 2)
    driver.put(CR, RST | RE | TE)
    assert driver.get(CR) == BUFE
    assert (driver.get(ISR, 2), driver.get(IMR, 2), driver.get(0xE0, 2)) == (0, 0, 0)
    assert not driver.card.irq()
    assert (driver.get(MAR, 4), driver.get(IDR, 4)) == (0x01020304, 0xAABBCCDD)
    assert driver.get(TCR, 4) & 0x7CC00000 == 0x74800000


# Transmission


def test_transmit_takes_the_descriptors_in_turn() -> None:
    driver = Driver()
    frames = [frame(60 + 100 * i, PEER, i) for i in range(9)]
    for i, data in enumerate(frames):
        driver.send(data)
        status = driver.get(TSD + 4 * (i % 4), 4)
        assert status & (OWN | SENT) == OWN | SENT
        assert status & 0x1FFF == len(data)
        assert driver.get(ISR, 2) == TOK
        assert driver.card.irq()
        driver.put(ISR, TOK, 2)
        assert not driver.card.irq()
    assert driver.wire.sent == frames


def test_a_descriptor_out_of_turn_waits() -> None:
    driver = Driver()
    driver.turn = 2
    driver.send(frame(70, PEER, 2))
    assert driver.wire.sent == []
    driver.turn = 0
    driver.send(frame(70, PEER, 0))
    driver.send(frame(70, PEER, 1))
    assert driver.wire.sent == [frame(70, PEER, i) for i in range(3)]


def test_transmit_stops_while_the_wire_is_full() -> None:
    driver = Driver()
    driver.wire.limit = 1
    for i in range(3):
        driver.send(frame(60, PEER, i))
    assert driver.get(TSADS, 2) == 0x1009
    assert driver.idle_of(lambda: driver.get(TSD + 4, 4)) == 1
    driver.put(ISR, TOK, 2)
    driver.move_house()
    driver.wire.limit = 0
    driver.card.wire_ready()
    assert driver.told == 0
    driver.wire.limit = 2
    driver.card.wire_ready()
    assert driver.told == 1
    assert driver.wire.sent == [frame(60, PEER, i) for i in range(3)]
    assert driver.get(TSADS, 2) == 0x700F


def test_a_transmitter_that_is_off_sends_when_it_is_turned_on() -> None:
    driver = Driver()
    driver.put(CR, RE)
    driver.send(frame(60, PEER))
    assert driver.wire.sent == []
    driver.put(CR, RE | TE)
    assert driver.wire.sent == [frame(60, PEER)]


def test_runts_go_nowhere_and_an_own_crc_is_taken_off() -> None:
    driver = Driver()
    driver.send(b"x" * 13)
    assert driver.wire.sent == []
    assert driver.get(TSD, 4) & SENT
    driver.send(frame(14, PEER))  # a header is a frame, and padding it is the driver's
    assert driver.wire.sent.pop() == frame(14, PEER)
    driver.put(TCR, 1 << 16, 4)
    data = frame(80, PEER)
    driver.send(data + zlib.crc32(data).to_bytes(4, "little"))
    driver.send(data + b"ouch")
    assert driver.wire.sent == [data]


# Reception


def test_receive_and_its_interrupt() -> None:
    driver = Driver()
    assert driver.take() is None
    assert driver.card.receive(frame(100))
    assert driver.told == 1
    assert driver.card.irq()
    assert driver.get(ISR, 2) == ROK
    driver.put(ISR, ROK, 2)
    assert not driver.card.irq()
    assert driver.get(CBR, 2) == 4 + 104
    assert driver.memory.read(RING, 4) == bytes((1, 0x40, 104, 0))  # ROK, PAM, length with FCS
    assert driver.take() == frame(100)
    assert driver.take() is None


def test_short_frames_are_padded() -> None:
    driver = Driver()
    driver.card.receive(frame(20))
    assert driver.take() == frame(20).ljust(60, b"\0")


@pytest.mark.parametrize(
    ("accept", "mine", "other", "broadcast"),
    [(0, 0, 0, 0), (APM, 0x4000, 0, 0), (AB, 0, 0, 0x2000), (AAP, 0x4000, 1, 0), (AAP | AB, 0x4000, 1, 0x2000), (AM, 0, 0, 0)],
)
def test_address_filters(accept: int, mine: int, other: int, broadcast: int) -> None:
    for destination, kind in ((MAC, mine), (b"\x00" * 6, other), (BROADCAST, broadcast)):
        driver = Driver(accept=accept)
        assert driver.card.receive(frame(60, destination))
        assert driver.get(CR) & BUFE == (0 if kind else BUFE)
        if kind:
            assert int.from_bytes(driver.memory.read(RING, 2), "little") == kind & 0xE000 | 1


@given(st.binary(min_size=6, max_size=6).map(lambda raw: bytes((raw[0] | 1,)) + raw[1:]))
def test_multicast_hash(address: bytes) -> None:
    driver = Driver(accept=AM)
    place = ether_crc(address) >> 26
    driver.put(MAR + place // 32 * 4, 1 << place % 32, 4)
    driver.card.receive(frame(60, address))
    wanted = address != BROADCAST
    assert (driver.take() is not None) == wanted
    driver.put(MAR, ~driver.get(MAR, 4) & 0xFFFFFFFF, 4)
    driver.put(MAR + 4, ~driver.get(MAR + 4, 4) & 0xFFFFFFFF, 4)
    driver.card.receive(frame(60, address))
    assert driver.take() is None


def test_a_receiver_that_is_off_takes_nothing_and_starts_with_an_empty_ring() -> None:
    driver = Driver()
    driver.card.receive(frame())
    driver.put(CR, TE)
    assert driver.card.receive(frame())
    driver.put(CR, RE | TE)
    assert driver.get(CR) & BUFE
    driver.position = 0
    driver.card.receive(frame(90))
    assert driver.take() == frame(90)


@pytest.mark.parametrize("size", [0, 1, 2, 3])
@pytest.mark.parametrize("wrap", [False, True])
def test_overflow_and_recovery(size: int, wrap: bool) -> None:
    driver = Driver(size, wrap)
    count = 0
    while driver.card.receive(frame(1000, fill=count)):
        count += 1
    assert count == driver.length // 1008 - (driver.length % 1008 == 0)
    assert driver.get(ISR, 2) == ROK | RXOVW
    assert driver.get(MPC, 4) == 1
    driver.put(ISR, ROK | RXOVW, 2)
    assert not driver.card.receive(frame(1000, fill=count))  # offered again: it is not another one
    assert (driver.get(ISR, 2), driver.get(MPC, 4)) == (0, 1)
    assert driver.take() == frame(1000, fill=0)
    driver.move_house()
    assert driver.card.receive(frame(1000, fill=count))
    for i in range(1, count + 1):
        assert driver.take() == frame(1000, fill=i)
    assert driver.take() is None
    driver.put(MPC, 0, 4)
    assert driver.get(MPC, 4) == 0


@settings(deadline=None)
@given(
    size=st.integers(0, 3), wrap=st.booleans(), skew=st.integers(0, 0xFFFF),
    sizes=st.lists(st.integers(14, 4092), min_size=1, max_size=40), greed=st.integers(1, 5),
)  # fmt: skip
def test_frames_of_any_size_come_out_whole_and_in_order(size: int, wrap: bool, skew: int, sizes: list[int], greed: int) -> None:
    """From anywhere in the ring: those that find room, and those that had to wait for it."""
    driver = Driver(size, wrap)
    driver.card.state.cbr = driver.position = skew % driver.length & ~3
    driver.put(CAPR, driver.position - 16 & 0xFFFF, 2)
    for number, length in enumerate(sizes):
        incoming = frame(length, fill=number)
        while not driver.card.receive(incoming):
            for _ in range(greed):
                driver.take_expected()
        driver.expected.append(incoming.ljust(60, b"\0"))
    while driver.expected:
        driver.take_expected()
    assert driver.take() is None


def test_frames_beyond_4096_bytes_are_errors() -> None:
    driver = Driver()
    assert driver.card.receive(frame(4093))
    assert driver.take() is None
    driver.put(RCR, driver.get(RCR, 4) | AER, 4)
    assert driver.card.receive(frame(4093))
    assert driver.get(ISR, 2) & (ROK | RER) == RER
    assert driver.memory.read(RING, 2) == bytes((8, 0x40))
    for length in (8184, 65535):  # never fits, however long it waits
        assert driver.card.receive(frame(length))


def test_loopback() -> None:
    driver = Driver()
    driver.put(TCR, 3 << 17, 4)
    assert driver.card.receive(frame())  # cut off the wire
    assert driver.take() is None
    driver.wire.limit = 0
    driver.send(frame(200))
    driver.send(frame(200, PEER))
    assert driver.get(ISR, 2) == ROK | TOK
    assert driver.take() == frame(200)
    assert driver.take() is None
    assert driver.wire.sent == []


# Timer, interrupts, idle polling


def test_the_timer_counts_pci_clocks_and_interrupts() -> None:
    driver = Driver()
    driver.put(TCTR, 1, 4)
    assert driver.get(TCTR, 4) == 0
    assert driver.card.deadline() is None
    driver.put(TIMERINT, 1000, 4)
    due = driver.card.deadline()
    assert due == driver.clock.now + 30_000
    driver.clock.now = due - 1
    driver.card.tick()
    assert (driver.get(TCTR, 4), driver.get(ISR, 2)) == (999, 0)
    driver.clock.now = due
    driver.card.tick()
    assert (driver.get(TCTR, 4), driver.get(ISR, 2)) == (1000, 0x4000)
    assert driver.card.deadline() == due + (30 << 32)  # when it comes round
    driver.put(TCTR, 0, 4)
    assert driver.card.deadline() == due + 30_000
    driver.clock.now += 15_000
    driver.move_house()
    assert driver.get(TCTR, 4) == 500
    assert driver.card.deadline() == driver.clock.now + 15_000
    driver.put(TIMERINT, 0, 4)
    assert driver.card.deadline() is None


def test_the_mask_decides_and_writing_ones_clears() -> None:
    driver = Driver()
    driver.put(IMR, TOK, 2)
    driver.card.receive(frame())
    assert not driver.card.irq()
    driver.send(frame())
    assert driver.card.irq()
    driver.put(ISR, ROK, 2)
    assert driver.card.irq()
    assert driver.get(IMR, 4) == TOK << 16 | TOK
    driver.put(IMR, 0xFFFF, 2)
    assert driver.get(IMR, 2) == 0xE1FF


def test_each_byte_of_the_interrupt_status_is_cleared_alone() -> None:
    driver = Driver()
    driver.put(0xD9, 1)  # a software interrupt, in the high byte
    driver.card.receive(frame())
    driver.put(ISR, 0xFF)
    assert driver.get(ISR, 2) == 0x100
    driver.card.receive(frame())
    driver.put(ISR + 1, 1)
    assert driver.get(ISR, 2) == ROK
    driver.put(IMR, 0x0001_8000, 4)
    assert (driver.get(ISR, 2), driver.get(IMR, 2)) == (0, 0x8000)


def test_idle_status_reads() -> None:
    driver = Driver()
    assert driver.idle_of(lambda: driver.get(ISR, 2)) == 1
    driver.card.receive(frame())
    assert driver.idle_of(lambda: driver.get(ISR, 2)) == 0
    assert driver.idle_of(lambda: driver.get(ISR, 2)) == 1  # again, and nobody did anything
    driver.card.receive(frame())
    assert driver.idle_of(lambda: driver.get(ISR, 2)) == 0
    assert driver.idle_of(lambda: (driver.take(), driver.take(), driver.take())) == 0  # the third one ends the work
    assert driver.idle_of(driver.take) == 1
    driver.card.receive(frame())
    assert driver.idle_of(driver.take) == 0
    assert driver.idle_of(lambda: (driver.send(frame()), driver.get(TSD, 4), driver.get(ISR, 2))) == 0
