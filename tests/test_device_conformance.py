"""Every device model against the rules of the interface: values fit, nothing raises, state survives a round trip."""

from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from cards import MAC, RAM, Clock, Memory
from hypothesis import given, settings
from hypothesis import strategies as st

from miniguest.frontend.devices.acpi_hotplug import AcpiHotplug
from miniguest.frontend.devices.acpi_pm import AcpiPm, Apm
from miniguest.frontend.devices.busmaster import BusMaster
from miniguest.frontend.devices.cmos import Cmos, cmos_map
from miniguest.frontend.devices.debug_port import DebugPort
from miniguest.frontend.devices.device import Model, Window
from miniguest.frontend.devices.e1000 import E1000
from miniguest.frontend.devices.fw_cfg import FwCfg
from miniguest.frontend.devices.fw_cfg_files import pc_files, pc_items
from miniguest.frontend.devices.i440fx import I440fx
from miniguest.frontend.devices.i8042 import I8042
from miniguest.frontend.devices.ide import IdeChannel
from miniguest.frontend.devices.ne2k_pci import Ne2kPci
from miniguest.frontend.devices.option_rom import OptionRom
from miniguest.frontend.devices.pci import PciBus
from miniguest.frontend.devices.piix3_ide import Piix3Ide
from miniguest.frontend.devices.piix3_isa import Piix3Isa
from miniguest.frontend.devices.piix4_pm import Piix4Pm
from miniguest.frontend.devices.port92 import Port92
from miniguest.frontend.devices.post_port import PostPort
from miniguest.frontend.devices.rtl8139 import Rtl8139
from miniguest.frontend.devices.saved import StateError, load, save
from miniguest.frontend.devices.uart import Uart
from miniguest.frontend.interrupts.ioapic import IoApic
from miniguest.frontend.interrupts.lapic import Lapic
from miniguest.frontend.interrupts.pic import Pic
from miniguest.frontend.interrupts.pit import Pit


class Disk:
    read_only = False

    def __init__(self, sectors: int) -> None:
        self.sectors = sectors
        self.data = bytearray(sectors * 512)

    def read(self, sector: int, count: int, done: Callable[[bytes | None], None]) -> None:
        assert sector >= 0
        assert sector + count <= self.sectors
        assert count <= 256
        done(bytes(self.data[sector * 512 : (sector + count) * 512]))

    def write(self, sector: int, data: bytes, done: Callable[[bool], None]) -> None:
        assert sector >= 0
        assert sector * 512 + len(data) <= len(self.data)
        assert len(data) % 512 == 0
        self.data[sector * 512 : sector * 512 + len(data)] = data
        done(True)

    def flush(self, done: Callable[[bool], None]) -> None:
        done(True)


class Wire:
    """One that always has room."""

    def room(self) -> bool:
        return True

    def send(self, frame: bytes) -> None:
        assert 14 <= len(frame) <= 65535


def ide(clock: Clock) -> IdeChannel:
    return IdeChannel((Disk(1000), Disk(70)), BusMaster(Memory()).channels[0])


def fw_cfg(clock: Clock) -> FwCfg:
    return FwCfg(Memory(), pc_files(RAM), pc_items(RAM))


MODELS: dict[str, tuple[Callable[[Clock], Any], int]] = {
    "acpi_pm": (lambda clock: AcpiPm(clock), 64),
    "busmaster": (lambda clock: BusMaster(Memory()), 16),
    "cmos": (lambda clock: Cmos(clock, lambda: 1_000_000_000 + clock() / 1e9, cmos_map(RAM)), 2),
    "debug_port": (lambda clock: DebugPort(lambda line: None), 1),
    "e1000": (lambda clock: E1000(MAC, Memory(), Wire(), clock), 0x6000),
    "fw_cfg": (fw_cfg, 12),
    "i440fx": (lambda clock: I440fx(), 256),
    "i8042": (lambda clock: I8042(clock), 2),
    "i8042 without mouse": (lambda clock: I8042(clock, with_mouse=False), 2),
    "ide": (ide, 9),
    "ide empty": (lambda clock: IdeChannel((None, None)), 9),
    "ide drive 1 alone": (lambda clock: IdeChannel((None, Disk(5))), 9),
    "ioapic": (lambda clock: IoApic(Lapic(clock)), 4096),
    "lapic": (lambda clock: Lapic(clock), 4096),
    "ne2k_pci": (lambda clock: Ne2kPci(MAC, Memory(), Wire(), clock), 32),
    "option_rom": (lambda clock: OptionRom(bytes(range(256)) * 20), 8192),
    "pci": (lambda clock: PciBus(), 8),
    "pic": (lambda clock: Pic(), 6),
    "piix3_ide": (lambda clock: Piix3Ide(), 256),
    "piix3_isa": (lambda clock: Piix3Isa(), 256),
    "piix4_pm": (lambda clock: Piix4Pm(), 256),
    "pit": (lambda clock: Pit(clock), 5),
    "port92": (lambda clock: Port92(), 1),
    "acpi_hotplug": (lambda clock: AcpiHotplug(3), 56),
    "post_port": (lambda clock: PostPort(), 1),
    "rtl8139": (lambda clock: Rtl8139(MAC, Memory(), Wire(), clock), 256),
    "uart": (lambda clock: Uart(lambda data: None, clock), 8),
}


every_model = pytest.mark.parametrize("name", MODELS)


def accesses(size: int) -> st.SearchStrategy[list[tuple[int, int, int | None, int]]]:
    """(offset, size, value or None for a read, nanoseconds to wait before it), also just outside the range."""
    offsets = st.integers(-1, size + 1)
    one = st.tuples(offsets, st.sampled_from((1, 1, 2, 4)), st.none() | st.integers(0, 2**32 - 1), st.integers(0, 10**8))
    small = st.tuples(offsets, st.just(1), st.none() | st.integers(0, 255), st.integers(0, 10**5))
    return st.lists(one | small, max_size=60)


def drive(device: Any, clock: Clock, steps: list[tuple[int, int, int | None, int]]) -> list[int]:
    """Carry out accesses, ticking at every deadline on the way; gives what was read."""
    seen = []
    for offset, size, value, wait in steps:
        clock.now += wait
        if hasattr(device, "tick"):
            due = device.deadline()
            assert due is None or isinstance(due, int)
            device.tick()
        if value is None:
            got = device.read(offset, size)
            assert isinstance(got, int)
            assert 0 <= got < 1 << 8 * size
            seen.append(got)
        else:
            device.write(offset, size, value & (1 << 8 * size) - 1)
        for line in ("irq", "irq_keyboard", "irq_aux", "pending"):
            if hasattr(device, line):
                getattr(device, line)()
    return seen


@every_model
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_access_is_answered_in_its_size(name: str, data: st.DataObject) -> None:
    make, size = MODELS[name]
    clock = Clock()
    drive(make(clock), clock, data.draw(accesses(size)))


@every_model
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_saved_state_behaves_as_the_device_it_came_from(name: str, data: st.DataObject) -> None:
    """Save after random accesses, through msgpack, into a device whose clock stands elsewhere: same answers after."""
    make, size = MODELS[name]
    clock, other = Clock(), Clock()
    device = make(clock)
    drive(device, clock, data.draw(accesses(size)))
    packed = msgpack.packb(save(device))
    # The wall clock, the refresh toggle and a bus clock's phase follow the new clock: a whole number of their periods.
    other.now = clock.now + 15_085 * 2 * 88_000
    twin = make(other)
    if isinstance(device, Cmos):
        twin.wall = device.wall
    if hasattr(twin, "memory"):
        twin.memory.data[:] = device.memory.data
    if isinstance(device, IdeChannel):
        for mine, its in zip(device.drives, twin.drives, strict=True):
            if mine is not None:
                its.disk.data[:] = mine.disk.data
    load(twin, msgpack.unpackb(packed))
    after = data.draw(accesses(size))
    for step in after:
        before = clock.now
        expected = drive(device, clock, [step])
        other.now += clock.now - before - step[3]
        assert drive(twin, other, [step]) == expected


@every_model
def test_state_of_another_kind_or_version_is_refused(name: str) -> None:
    make, _ = MODELS[name]
    device = make(Clock())
    good = save(device)
    for bad in ({**good, "kind": "sundial"}, {**good, "version": 99}, {**good, "state": None}):
        with pytest.raises(StateError):
            load(device, bad)
    if good["state"]:                   # a ROM has none
        with pytest.raises(StateError):
            load(device, {**good, "state": {}})
    for field in good["state"]:
        with pytest.raises(StateError, match=field):
            load(device, {**good, "state": {**good["state"], field: object()}})
    assert save(device)["state"].keys() == good["state"].keys()


def test_a_string_of_reads_is_as_many_reads() -> None:
    one, other = fw_cfg(Clock()), fw_cfg(Clock())
    for device in (one, other):
        device.write(0, 2, 0x19)
    assert one.read_string(1, 1, 80) == bytes(other.read(1, 1) for _ in range(80))


def test_a_window_shows_only_its_part() -> None:
    post = PostPort()
    pic = Pic()
    pic.write(1, 1, 0x12)
    pic.write(2 + 1, 1, 0x34)
    window = Window(pic, 1, 1)
    assert window.read(0, 1) == 0x12
    assert window.read(0, 2) == 0xFF12
    window.write(0, 2, 0x5678)
    assert (pic.read(1, 1), pic.read(3, 1)) == (0x78, 0x34)
    post.write(0, 1, 0xAB)
    assert Window(post, 0, 1).read(0, 1) == 0xAB


def test_apm_turns_acpi_on_and_off() -> None:
    pm = AcpiPm(Clock())
    apm = Apm(pm)
    apm.write(0, 1, 0xF1)
    assert pm.read(4, 2) & 1
    assert apm.read(0, 1) == 0xF1
    apm.write(0, 1, 0xF0)
    assert not pm.read(4, 2) & 1
    apm.write(1, 1, 7)
    assert apm.read(1, 1) == 7


def test_every_model_is_covered() -> None:
    """A new model has to be put into MODELS: found by its class."""
    clock = Clock()
    covered = {type(make(clock)) for make, _ in MODELS.values()} | {Apm}

    def leaves(kind: type) -> set[type]:
        below = kind.__subclasses__()
        return {kind} if not below else set().union(*map(leaves, below))

    ours = {kind for kind in leaves(Model) if kind.__module__.startswith("miniguest.frontend")}
    known = {"devices", "interrupts"}
    assert {kind for kind in ours - covered if kind.__module__.split(".")[2] in known} == set()
