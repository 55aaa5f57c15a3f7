"""The 82540EM's control registers, EEPROM, PHY, resets and ports (317453, chapters 5, 8, 13, 14)."""

import pytest
from e1000_driver import (
    BAM,
    CTRL,
    CTRL_EXT,
    EECD,
    EERD,
    EN,
    ICR,
    IMS,
    LSC,
    MAC,
    MDAC,
    MDIC,
    MTA,
    RA,
    RCTL,
    RDT,
    SECRC,
    STATUS,
    TCTL,
    TDH,
    TDT,
    TX_RING,
    VFTA,
    Card,
    frame_to,
)

from miniguest.frontend.devices.device import Device
from miniguest.frontend.devices.e1000 import E1000
from miniguest.frontend.devices.pci_function import PciFunction
from miniguest.frontend.devices.saved import load, save

SK, CS, DI, DO, REQ, GNT, PRES = 1, 2, 4, 8, 0x40, 0x80, 0x100
PBA, LEDCTL, TPR, GORCL, GORCH, GPRC = 0x1000, 0xE00, 0x40D0, 0x4088, 0x408C, 0x4074


def eerd(card: Card, word: int) -> int:
    card.put(EERD, word << 8 | 1)
    value = card.get(EERD)
    assert value & 0x10
    return value >> 16


def bang(card: Card, bits: str) -> str:
    """Clock bits in, most significant first; gives the data out after each rising clock."""
    out = ""
    for bit in bits:
        card.put(EECD, REQ | CS | (DI if bit == "1" else 0))
        card.put(EECD, REQ | CS | SK | (DI if bit == "1" else 0))
        out += "1" if card.get(EECD) & DO else "0"
    card.put(EECD, REQ | CS)
    return out


def banged_read(card: Card, word: int) -> int:
    card.put(EECD, REQ)
    assert card.get(EECD) & GNT
    out = bang(card, "110" + f"{word:06b}" + "0" * 16)
    card.put(EECD, 0)
    assert out[8] == "0"  # the dummy bit
    return int(out[9:], 2)


def phy(card: Card, register: int, value: int | None = None) -> int:
    card.put(MDIC, (2 << 26 if value is None else 1 << 26 | value) | 1 << 21 | register << 16)
    answer = card.get(MDIC)
    assert answer >> 28 & 1
    assert not answer >> 30 & 1
    return answer & 0xFFFF


def test_the_eeprom_by_both_ways_has_the_address_and_sums_to_baba() -> None:
    card = Card()
    words = [eerd(card, n) for n in range(64)]
    assert words == [banged_read(card, n) for n in range(64)]
    assert b"".join(word.to_bytes(2, "little") for word in words[:3]) == MAC
    assert sum(words) & 0xFFFF == 0xBABA
    assert words[0x0D:0x0F] == [0x100E, 0x8086]
    assert words[0x0A] >> 14 == 1  # or the part takes the EEPROM for absent
    assert card.get(EECD) & PRES
    assert not card.get(EECD) & GNT


def test_the_eeprom_is_written_when_writes_are_enabled() -> None:
    card = Card()
    for enable, expected in (("100000000", 0), ("100110000", 0x1234)):
        card.put(EECD, REQ)
        bang(card, enable)
        card.put(EECD, REQ)
        bang(card, "101" + f"{0x20:06b}" + f"{0x1234:016b}")
        card.put(EECD, REQ)
        card.put(EECD, REQ | CS)
        assert card.get(EECD) & DO  # ready
        card.put(EECD, 0)
        assert banged_read(card, 0x20) == expected
    assert eerd(card, 0x20) == 0x1234


def test_a_read_that_goes_on_gives_the_next_words() -> None:
    card = Card()
    out = bang(card, "110" + "000000" + "0" * 48)
    assert [int(out[9 + 16 * n : 25 + 16 * n], 2) for n in range(3)] == [eerd(card, n) for n in range(3)]


def test_the_station_address_is_there_after_a_reset_and_after_an_eeprom_reset() -> None:
    card = Card()
    for register, reset in ((CTRL, 1 << 26), (CTRL_EXT, 1 << 13)):
        card.put(RA, 0x11111111)
        card.put(RA + 4, 0)
        card.put(register, reset)
        assert not card.get(register) & reset
        assert card.get(RA) == int.from_bytes(MAC[:4], "little")
        assert card.get(RA + 4) == int.from_bytes(MAC[4:], "little") | 1 << 31


def test_a_software_reset_stops_everything_and_keeps_phy_and_packet_buffer() -> None:
    card = Card()
    phy(card, 16, 0x0070)
    card.put(PBA, 0x20)
    card.put(IMS, LSC)
    card.put(MTA + 4, 5)
    card.nic.receive(frame_to(MAC))
    assert card.get(TPR) == 1
    card.nic.receive(frame_to(MAC))
    card.put(CTRL, 1 << 26)
    assert [card.get(register) for register in (RCTL, TCTL, RDT, TDT, TDH, IMS, ICR, TPR, MTA + 4)] == [0] * 9
    assert card.get(PBA) == 0x20
    assert phy(card, 16) == 0x0070
    assert card.nic.receive(frame_to(MAC))  # the receiver is off: taken and gone
    card.start(EN | SECRC)
    assert card.nic.receive(frame_to(MAC))
    assert [data for data, *_ in card.receive_all()] == [frame_to(MAC)]


def test_a_driver_may_rely_on_initial_values() -> None:
    """Heads are 0, the link is set up, and nothing is half done."""
    card = Card()
    card.nic = E1000(MAC, card.memory, card.wire, lambda: card.now)
    assert card.get(CTRL) & 0x1B41 == 0x241
    for register, value in ((0x3800, TX_RING), (0x3808, 128), (TCTL, EN)):
        card.put(register, value)
    card.legacy(frame_to(MAC))
    assert card.go() == [frame_to(MAC)]


def test_the_phy_is_an_m88e1011_that_has_a_gigabit_link() -> None:
    card = Card()
    assert (phy(card, 2), phy(card, 3) & 0xFFF0) == (0x0141, 0x0C20)
    assert phy(card, 1) & 0x24 == 0x24  # negotiated, link
    assert phy(card, 17) & 0xEC00 == 0xAC00  # 1000 Mb/s, full duplex, resolved, link
    assert phy(card, 10) & 0x3C00 == 0x3C00
    assert card.get(STATUS) & 0xC3 == 0x83
    phy(card, 1, 0xFFFF)
    assert phy(card, 1) & 0x24 == 0x24  # read only


def test_another_phy_address_is_an_error() -> None:
    card = Card()
    card.put(MDIC, 2 << 26 | 3 << 21 | 2 << 16)
    assert card.get(MDIC) >> 28 & 5 == 5


def test_the_phy_tells_when_it_is_done() -> None:
    card = Card()
    card.put(MDIC, 1 << 29 | 2 << 26 | 1 << 21 | 2 << 16)
    assert card.get(ICR) == MDAC
    phy(card, 0, 0x1340)  # negotiate again
    assert card.get(ICR) == LSC
    assert phy(card, 0) == 0x1140
    phy(card, 0, 0x1140)
    phy(card, 0, 0x0340)  # nothing to negotiate
    assert card.get(ICR) == 0
    phy(card, 16, 0x0070)
    phy(card, 0, 0xA100)  # the PHY's own reset makes settings take effect
    assert card.get(ICR) == LSC
    assert (phy(card, 0), phy(card, 16), phy(card, 17) >> 13) == (0x2100, 0x0070, 3)
    phy(card, 19)
    card.put(CTRL, card.get(CTRL) | 1 << 31)
    assert not card.get(CTRL) >> 31
    assert card.get(ICR) == LSC
    assert (phy(card, 0), phy(card, 16)) == (0x1140, 0x0068)
    assert [phy(card, 19) for _ in range(2)] == [0x0800, 0]


@pytest.mark.parametrize(("control", "speed", "full"), [(0x0140, 2, 1), (0x2100, 1, 1), (0x2000, 1, 0), (0x0000, 0, 0)])
def test_a_speed_that_the_phy_is_forced_to(control: int, speed: int, full: int) -> None:
    card = Card()
    phy(card, 0, control)
    assert phy(card, 17) >> 13 == speed << 1 | full
    assert card.get(STATUS) & 0xC1 == speed << 6 | full
    assert not phy(card, 1) & 0x20


def test_a_speed_that_is_all_that_is_advertised() -> None:
    card = Card()
    phy(card, 9, 0)
    assert card.get(STATUS) >> 6 & 3 == 1
    phy(card, 4, 0x61)
    assert card.get(STATUS) >> 6 & 3 == 0
    card.put(CTRL, 0x1B41)  # the MAC may be forced too: 1000, full duplex
    card.put(CTRL, 0x1A41)
    assert card.get(STATUS) & 0xC1 == 0x81
    card.put(CTRL, 0x1A40)
    assert card.get(STATUS) & 0xC1 == 0x80


def test_a_cable_that_is_pulled() -> None:
    card = Card()
    told = []
    card.nic.changed = lambda: told.append(card.nic.irq())
    card.put(IMS, LSC)
    card.nic.set_link(False)
    card.nic.set_link(False)
    assert told == [True]
    assert card.get(ICR) == LSC
    assert not card.get(STATUS) & 2
    assert not phy(card, 1) & 0x24
    assert phy(card, 19) & 0x400
    assert card.nic.receive(frame_to(MAC))
    assert not card.receive_all()
    card.wire.space = 0
    card.legacy(frame_to(MAC))
    assert card.go() == []
    assert card.get(TDH) == card.get(TDT)
    card.nic.set_link(True)
    assert card.get(ICR) & LSC
    assert card.get(STATUS) & 2
    assert [phy(card, 1) & 4 for _ in range(2)] == [4, 4]
    phy(card, 19)
    phy(card, 0, 0x1340)
    card.nic.set_link(False)
    card.nic.set_link(True)
    assert phy(card, 19) == 0x0C00  # changed, and negotiated before that
    assert [phy(card, 1) & 4 for _ in range(2)] == [0, 4]  # a lost link is told of once


def test_a_phy_that_is_powered_down_has_no_link() -> None:
    card = Card()
    phy(card, 0, 0x1940)
    assert not card.get(STATUS) & 2
    assert card.get(ICR) == LSC
    phy(card, 0, 0x1140)
    assert card.get(STATUS) & 2


@pytest.mark.parametrize(
    ("register", "bits"),
    [
        (0x28, 0xFFFFFFFF), (0x2C, 0xFFFF), (0x30, 0xFFFF), (0x38, 0xFFFF), (0x170, 0xFFFF), (0x178, 0xC000FFFF),
        (0x410, 0x3FFFFFFF), (0x2168, 0xFFF8), (0x2800, 0xFFFFFFF0), (0x2804, 0xFFFFFFFF), (0x2808, 0xFFF80),
        (0x2810, 0xFFFF), (0x2818, 0xFFFF), (0x2820, 0xFFFF), (0x3800, 0xFFFFFFF0), (0x3804, 0xFFFFFFFF), (0x3808, 0xFFF80),
        (0x3810, 0xFFFF),
        (0x3820, 0xFFFF), (RA + 8, 0xFFFFFFFF), (RA + 12, 0x8003FFFF), (RA + 124, 0x8003FFFF), (MTA, 0xFFFFFFFF),
        (MTA + 508, 0xFFFFFFFF), (VFTA + 508, 0xFFFFFFFF), (0x5F00, 0x7FF), (0x9800, 0xFFFFFFFF), (0x9BF8, 0xFFFFFFFF),
    ],
)
def test_registers_that_a_driver_tests_with_patterns(register: int, bits: int) -> None:
    card = Card()
    card.put(RCTL, 0)
    card.put(TCTL, 0)
    for pattern in (0x5A5A5A5A, 0xA5A5A5A5, 0x00000000, 0xFFFFFFFF):
        card.put(register, pattern)
        assert card.get(register) == pattern & bits


def test_status_is_read_only_and_what_is_no_register_reads_as_zero() -> None:
    card = Card()
    before = card.get(STATUS)
    card.put(STATUS, ~before & 0xFFFFFFFF)
    assert card.get(STATUS) == before
    card.put(0x1FFFC, 0x12345678)
    assert card.get(0x1FFFC) == 0


def test_statistics_clear_when_read_and_stick() -> None:
    card = Card()
    for _ in range(2):
        card.nic.receive(frame_to(MAC, 100))
    assert card.get(GORCL) == 208
    assert card.get(GORCL) == 208
    assert card.get(GORCH) == 0
    assert card.get(GORCL) == 0  # the upper half clears both
    assert card.get(GPRC) == 2
    assert card.get(GPRC) == 0
    card.nic.state.counters[29] = 1 << 40
    card.nic.state.counters[34] = 0x1_2345_6789 + (5 << 64)
    assert card.get(GPRC) == 0xFFFFFFFF
    assert (card.get(GORCL), card.get(GORCH)) == (0xFFFFFFFF, 0xFFFFFFFF)


def test_the_two_ports_reach_every_register() -> None:
    card = Card()
    ports: Device = card.nic.windows()[2, "io"]
    assert card.nic.windows()[0, "memory"] is card.nic
    ports.write(0, 4, VFTA)
    ports.write(4, 4, 0xCAFE0001)
    assert card.get(VFTA) == 0xCAFE0001
    assert ports.read(4, 4) == 0xCAFE0001
    assert ports.read(6, 2) == 0xCAFE
    ports.write(0, 2, STATUS)  # only a dword is heard
    assert ports.read(0, 4) == VFTA
    ports.write(0, 4, 0xFFF00000 | STATUS)
    assert ports.read(0, 4) == STATUS
    assert ports.read(4, 4) == card.get(STATUS)
    for beyond in (0x20000, 0x1FFFE, 0xFFFFF):
        ports.write(0, 4, beyond)
        ports.write(4, 4, 1)
        assert ports.read(4, 4) == 0
    assert ports.read(6, 4) == 0


def test_an_icr_that_has_nothing_is_an_idle_poll() -> None:
    card = Card()
    for _ in range(3):
        card.get(ICR)
    assert card.nic.idle == 3
    card.nic.receive(frame_to(MAC))
    card.get(STATUS)
    assert card.get(ICR)
    card.put(RDT, 0)
    assert card.nic.idle == 3


def test_the_bars_are_where_the_part_has_them() -> None:
    function = PciFunction(E1000.IDENTITY, E1000.BARS)
    for bar, read in ((0x10, 0xFFFE0000), (0x14, 0), (0x18, 0xFFFFFFF9)):
        function.write(bar, 4, 0xFFFFFFFF)
        assert function.read(bar, 4) == read
    assert function.read(0, 4) == 0x100E8086
    assert function.read(9, 2) == 0x0000
    assert function.read(11, 1) == 0x02
    assert function.read(0x3D, 1) == 1


def test_saved_in_the_middle_of_everything() -> None:
    """Half a packet gathered, an interrupt held back, half a command in the EEPROM: the copy goes on with all of it."""
    card, twin = Card(rctl=EN | BAM), Card()
    frame = frame_to(MAC, 200)
    card.legacy(frame[:50], 0)
    card.put(TDT, card.tx_next)
    bang(card, "110000")
    card.put(0xC4, 4000)
    card.put(IMS, 0xFFFF)
    card.nic.receive(frame_to(MAC))
    assert card.nic.irq()
    card.get(ICR)
    card.nic.receive(frame_to(MAC))
    assert not card.nic.irq()
    twin.now = 77
    twin.memory.data[:] = card.memory.data
    load(twin.nic, save(card.nic))
    twin.tx_next = card.tx_next
    assert twin.nic.deadline() == 77 + 4000 * 256
    twin.tick_at(77 + 4000 * 256)
    assert twin.nic.irq()
    twin.legacy(frame[50:])
    assert twin.go() == [frame]
    assert int(bang(twin, "001" + "0" * 16)[3:], 2) == eerd(twin, 1)
    assert len(twin.receive_all()) == 2
