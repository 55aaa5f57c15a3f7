"""A network card between its vif, its pin and the bus; and several of them in the PC: slots, wires, names, ROMs, resets."""
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from cards import Memory

from miniguest.frontend import network_card
from miniguest.frontend.bus import MEMORY, PORT, Bus, InterruptLines
from miniguest.frontend.devices.device import nothing
from miniguest.frontend.devices.fw_cfg import FwCfg
from miniguest.frontend.devices.pci_function import COMMAND, ROM_BAR, Bar, Identity, PciFunction
from miniguest.frontend.network_card import CardPlan, NetworkCard, Unplugged, card_names
from miniguest.frontend.pc import Pc, Surroundings
from miniguest.ring.card_counters import CardCounters, card_counters_path, read_card_counters
from miniguest.ring.errors import HypercallError

MODELS = ("e1000", "rtl8139", "ne2k_pci")
MACS = [bytes.fromhex(f"00163e00000{n}") for n in range(1, 9)]
RAM = 16 << 20
FRAME = b"\xff" * 6 + bytes(54)
ROM_FRAME = 0x1234
BASE, ROM_BASE = 0xFE000000, 0xFEB00000
E1000_ICS, E1000_IMS, E1000_IMC, E1000_ICR, E1000_MSI = 0xC8, 0xD0, 0xD8, 0xC0, 0xF0


@dataclass
class Vif:
    """A vif by hand, as netfront is one."""

    mac: bytes = MACS[0]
    received: Callable[[bytes], bool] = field(default=lambda frame: True)
    ready: Callable[[], None] = field(default=nothing)
    kept: list[bytes] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)
    space: int = 1000
    resumed: int = 0

    @property
    def keeps(self) -> bool:
        return bool(self.kept)

    def resume(self) -> None:
        self.resumed += 1
        while self.kept and self.received(self.kept[0]):
            self.kept.pop(0)

    def room(self) -> bool:
        return self.space > 0

    def send(self, frame: bytes) -> None:
        assert self.space > 0
        self.space -= 1
        self.sent.append(frame)


class Nic:
    """A card without registers, that does as it is told."""

    IDENTITY: ClassVar = Identity(0x1234, 0x5678, 0x020000, interrupt_pin=1)
    BARS: ClassVar = (Bar(0, "io", 16), Bar(1, "memory", 4096))

    def __init__(self, mac: bytes, memory: object, wire: object, clock: object) -> None:
        self.mac, self.memory, self.wire, self.clock = mac, memory, wire, clock
        self.level = False
        self.idle = 0
        self.taking = 0
        self.got: list[bytes] = []
        self.readied = 0
        self.send_msi: Callable[[int, int], None] | None = None

    def windows(self) -> dict[tuple[int, str], Any]:
        return {(0, "io"): "ports", (1, "memory"): "registers", (2, "io"): "of no BAR"}

    def irq(self) -> bool:
        return self.level

    def receive(self, frame: bytes) -> bool:
        if self.taking:
            self.taking -= 1
            self.got.append(frame)
            return True
        return False

    def wire_ready(self) -> None:
        self.readied += 1


class MessageNic(Nic):
    def capabilities(self, function: PciFunction) -> None:
        self.function = function


class Bench:
    """A NetworkCard of such a Nic."""

    def __init__(self, directory: Path, model: str = "nic", rom: bytes = b"") -> None:
        self.vif = Vif()
        self.counters = directory / "card.counters"
        self.pins: list[bool] = []
        self.vectors: list[int] = []
        self.changes = 0
        plan = CardPlan(model, self.vif, CardCounters(self.counters), rom)      # type: ignore[arg-type]
        self.card = NetworkCard(plan, self, self.clock, self.mapping, self.pins.append, self.vectors.append)    # type: ignore[arg-type]
        self.card.changed = self.changed
        self.nic: Nic = self.card.nic

    def clock(self) -> int:
        return 7

    def mapping(self, *_: object) -> None: ...

    def changed(self) -> None:
        self.changes += 1
        self.card.settle()

    @property
    def counted(self) -> dict[str, int]:
        return read_card_counters(self.counters)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setitem(network_card.MODELS, "nic", Nic)
    monkeypatch.setitem(network_card.MODELS, "messages", MessageNic)
    return Bench(tmp_path)


# -- one card
def test_a_model_is_given_what_it_needs(bench: Bench) -> None:
    nic = bench.nic
    assert (nic.mac, nic.memory, nic.wire, nic.clock) == (MACS[0], bench, bench.vif, bench.clock)
    windows: object = bench.card.windows()
    assert windows == {(0, "io"): ("ports", 16), (1, "memory"): ("registers", 4096)}
    assert bench.card.function.bars == Nic.BARS and bench.card.rom is None


def test_the_pin_follows_and_its_edges_are_counted(bench: Bench) -> None:
    for level in (False, True, True, False, False, True):
        bench.nic.level = level
        bench.card.settle()
    assert bench.pins == [True, False, True]
    assert bench.counted == {"idle": 0, "interrupts": 2}


def test_idle_accesses_are_counted_once(bench: Bench) -> None:
    for idle in (0, 3, 3, 10):
        bench.nic.idle = idle
        bench.card.settle()
    assert bench.counted == {"idle": 10, "interrupts": 0}


def test_a_frame_is_offered_and_the_card_looked_at(bench: Bench) -> None:
    bench.nic.taking = 1
    bench.nic.level = True
    assert bench.vif.received(b"one")
    assert bench.pins == [True] and bench.nic.got == [b"one"]
    assert not bench.vif.received(b"two")
    assert bench.changes == 2, "one that it has no room for may raise its pin as well"


def test_what_is_kept_is_offered_after_each_access(bench: Bench) -> None:
    bench.vif.kept = [b"one", b"two", b"three"]
    bench.card.settle()
    assert bench.nic.got == [] and bench.vif.resumed == 1
    bench.nic.taking = 2
    bench.card.settle()
    assert bench.nic.got == [b"one", b"two"] and bench.vif.kept == [b"three"]
    assert bench.vif.resumed == 2, "not from within itself"
    bench.nic.taking = 5
    bench.card.settle()
    bench.card.settle()
    assert bench.nic.got == [b"one", b"two", b"three"] and bench.vif.resumed == 3


def test_the_wire_has_room_again(bench: Bench) -> None:
    bench.nic.level = True
    bench.vif.ready()
    assert bench.nic.readied == 1 and bench.changes == 1 and bench.pins == [True]


def test_messages_are_sent_and_counted_when_they_are_interrupts(bench: Bench, tmp_path: Path) -> None:
    assert bench.nic.send_msi is None, "a model without them has none"
    other = Bench(tmp_path, "messages")
    assert other.nic.send_msi is not None and other.nic.function is other.card.function     # type: ignore[attr-defined]
    for address, data in ((0xFEE00000, 0x41), (0xFED00000, 0x42), (0xFEE00000, 0x0443), (0xFEEFF000, 0x0144)):
        other.nic.send_msi(address, data)
    assert other.vectors == [0x41, 0x44] and other.counted["interrupts"] == 2
    assert other.pins == []


def test_its_configuration_may_change_the_pin(bench: Bench) -> None:
    bench.nic.level = True
    bench.card.function.write(0x3C, 1, 11)
    assert bench.pins == [True]


def test_counters_go_on_and_are_zero_without_a_card(bench: Bench, tmp_path: Path) -> None:
    bench.nic.idle = 5
    bench.card.settle()
    again = Bench(tmp_path)
    again.nic.idle = 2
    again.card.settle()
    assert again.counted == {"idle": 7, "interrupts": 0}
    assert read_card_counters(card_counters_path(tmp_path, 3, 1)) == {"idle": 0, "interrupts": 0}


@pytest.mark.parametrize(("models", "names"), [
    ([], []), (["e1000"], ["e1000"]), (["e1000", "rtl8139"], ["e1000", "rtl8139"]),
    (["e1000", "rtl8139", "e1000", "e1000"], ["e1000.0", "rtl8139", "e1000.1", "e1000.2"]),
])
def test_names_say_which_of_a_model(models: list[str], names: list[str]) -> None:
    assert card_names(models) == names


# -- in the PC
@dataclass
class Timer:
    fn: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class Machine:
    """A PC with cards, and all that it is plugged into by hand."""

    def __init__(self, directory: Path, models: list[str], rom: bytes = b"", boot: str = "c") -> None:
        self.claimed: dict[tuple[int, int, int], tuple[str, int]] = {}
        self.levels: list[tuple[int, bool]] = []
        self.messages: list[int] = []
        self.resets = 0
        self.now = 1_000_000
        self.ram = bytearray(RAM)
        self.timers: list[Timer] = []
        self.lines = InterruptLines(lambda line, level: self.levels.append((line, level)))
        self.bus = Bus(self, self.lines, self, self, lambda: self.now)          # type: ignore[arg-type]
        self.vifs = [Vif(mac) for mac in MACS[: len(models)]]
        self.counters = [directory / f"{index}.counters" for index in range(len(models))]
        self.plans = [
            CardPlan(model, vif, CardCounters(path), rom, ROM_FRAME + 32 * index if rom else 0)     # type: ignore[arg-type]
            for index, (model, vif, path) in enumerate(zip(models, self.vifs, self.counters, strict=True))
        ]
        self.boot = boot
        self.pc = self.make()

    def make(self) -> Pc:
        around = Surroundings(
            bus=self.bus, lines=self.lines, memory=self, clock=lambda: self.now, wall=lambda: 0.0, power_off=nothing,
            reset=self.reset, console=lambda data: None, debug=lambda line: None, message=self.messages.append,
        )
        return Pc(around, RAM, 1, {}, self.plans, self.boot)

    def reset(self) -> None:
        self.resets += 1

    def start_over(self) -> None:
        """As the mini-guest does when the machine is reset."""
        self.bus.clear()
        self.pc = self.make()

    # what it is plugged into
    def map(self, kind: int, start: int, end: int, name: str, frame: int = 0, buffered: bool = False) -> None:
        if any(k == kind and start <= e and s <= end for k, s, e in self.claimed):
            raise HypercallError("EEXIST", "claimed")
        self.claimed[kind, start, end] = name, frame

    def unmap(self, kind: int, start: int, end: int) -> None:
        del self.claimed[kind, start, end]

    def read(self, gpa: int, size: int) -> bytes:
        return bytes(self.ram[gpa : gpa + size]).ljust(size, b"\xff")

    def write(self, gpa: int, data: bytes | memoryview) -> None:
        self.ram[gpa : gpa + len(data)] = data

    def call_later(self, seconds: float, fn: Callable[[], None]) -> Timer:
        self.timers.append(Timer(fn))
        return self.timers[-1]

    # the guest
    def config(self, slot: int, offset: int, size: int = 4, function: int = 0) -> int:
        self.bus.write(PORT, 0xCF8, 4, 0x80000000 | slot << 11 | function << 8 | offset & 0xFC)
        return self.bus.read(PORT, 0xCFC + (offset & 3), size)

    def set_config(self, slot: int, offset: int, value: int, size: int = 4, function: int = 0) -> None:
        self.bus.write(PORT, 0xCF8, 4, 0x80000000 | slot << 11 | function << 8 | offset & 0xFC)
        self.bus.write(PORT, 0xCFC + (offset & 3), size, value)

    def place(self, index: int) -> int:
        """Give an e1000's first BAR an address and decode it; the address."""
        self.set_config(3 + index, 0x10, BASE + (index << 20))
        self.set_config(3 + index, COMMAND, 7, 2)
        return BASE + (index << 20)

    def at(self, name: str) -> list[tuple[int, int, int, int]]:
        """(kind, start, end, frame) of what a device has claimed."""
        return [(*where, frame) for where, (claimed, frame) in self.claimed.items() if claimed == name]


@pytest.mark.parametrize("model", MODELS)
def test_each_model_is_found_in_its_slot(tmp_path: Path, model: str) -> None:
    machine = Machine(tmp_path, [model])
    identity = network_card.MODELS[model].IDENTITY
    assert machine.config(3, 0) == identity.device << 16 | identity.vendor
    assert machine.config(3, 8) >> 8 == 0x020000 and machine.config(3, 0x3D, 1) == 1
    assert machine.config(2, 0) == machine.config(4, 0) == 0xFFFFFFFF
    assert machine.at(model) == [], "nothing is decoded before the firmware says so"
    machine.set_config(3, 0x10, 0xC000 if model != "e1000" else BASE)
    machine.set_config(3, COMMAND, 3, 2)
    (kind, start, end, frame), = machine.at(model)
    bar = network_card.MODELS[model].BARS[0]
    assert (kind, start, end - start + 1, frame) == ((MEMORY, BASE) if model == "e1000" else (PORT, 0xC000)) + (bar.size, 0)


def test_two_cards_of_one_model_have_names_slots_and_wires_of_their_own(tmp_path: Path) -> None:
    machine = Machine(tmp_path, ["e1000", "ne2k_pci", "e1000"])
    for wire, irq in ((2, 11), (3, 10), (0, 5)):                # slots 3, 4 and 5: PIRQC, PIRQD, PIRQA
        machine.set_config(1, 0x60 + wire, irq, 1)
    bases = [machine.place(0), machine.place(2)]
    assert [machine.at(f"e1000.{n}")[0][1] for n in (0, 1)] == bases
    for base, irq in zip(bases, (11, 5), strict=True):
        machine.bus.write(MEMORY, base + E1000_IMS, 4, 4)
        machine.bus.write(MEMORY, base + E1000_ICS, 4, 4)
        assert machine.levels == [(irq, True)]
        assert machine.bus.read(MEMORY, base + E1000_ICR, 4) & 4
        assert machine.levels == [(irq, True), (irq, False)]
        machine.levels.clear()
    assert [read_card_counters(path)["interrupts"] for path in machine.counters] == [1, 0, 1]
    assert machine.bus.read(MEMORY, bases[0] + 0x5400, 4) == int.from_bytes(MACS[0][:4], "little")
    assert machine.bus.read(MEMORY, bases[1] + 0x5400, 4) == int.from_bytes(MACS[2][:4], "little")
    assert machine.bus.read(MEMORY, bases[1] + 0x5404, 2) == int.from_bytes(MACS[2][4:], "little")


def test_cards_share_a_line(tmp_path: Path) -> None:
    machine = Machine(tmp_path, ["e1000"] * 5)                  # slots 3 and 7 are on the same wire
    machine.set_config(1, 0x62, 11, 1)
    for index in (0, 4):
        machine.bus.write(MEMORY, machine.place(index) + E1000_IMS, 4, 4)
        machine.bus.write(MEMORY, BASE + (index << 20) + E1000_ICS, 4, 4)
    machine.bus.read(MEMORY, BASE + E1000_ICR, 4)
    assert machine.levels == [(11, True)]
    machine.bus.read(MEMORY, BASE + (4 << 20) + E1000_ICR, 4)
    assert machine.levels == [(11, True), (11, False)]


def test_messages_take_the_pins_place_at_once(tmp_path: Path) -> None:
    machine = Machine(tmp_path, ["e1000"])
    machine.set_config(1, 0x62, 11, 1)
    base = machine.place(0)
    machine.bus.write(MEMORY, base + E1000_IMS, 4, 4)
    machine.bus.write(MEMORY, base + E1000_ICS, 4, 4)
    machine.set_config(3, E1000_MSI + 4, 0xFEE00000)
    machine.set_config(3, E1000_MSI + 12, 0x55, 2)
    assert machine.levels == [(11, True)]
    machine.set_config(3, E1000_MSI + 2, 1, 2)
    assert machine.levels == [(11, True), (11, False)], "INTA# is quiet while interrupts are messages"
    machine.bus.read(MEMORY, base + E1000_ICR, 4)
    machine.bus.write(MEMORY, base + E1000_ICS, 4, 4)
    assert machine.messages == [0x55] and len(machine.levels) == 2
    assert read_card_counters(machine.counters[0])["interrupts"] == 2
    machine.set_config(3, E1000_MSI + 2, 0, 2)
    assert machine.levels[2:] == [(11, True)]


# -- ROMs
IMAGE = b"\x55\xaa" + bytes(range(256)) * 20                    # 5122 bytes: two frames


def test_a_rom_appears_where_the_guest_puts_it(tmp_path: Path) -> None:
    machine = Machine(tmp_path, ["e1000", "e1000"], IMAGE)
    machine.set_config(4, ROM_BAR, 0xFFFFFFFE)
    assert machine.config(4, ROM_BAR) == 0xFFFFE000, "8 KiB"
    machine.set_config(4, ROM_BAR, ROM_BASE)
    machine.set_config(4, COMMAND, 2, 2)
    assert machine.at("e1000.1-rom") == [], "not enabled"
    machine.set_config(4, ROM_BAR, ROM_BASE | 1)
    assert machine.at("e1000.1-rom") == [(MEMORY, ROM_BASE, ROM_BASE + 8191, ROM_FRAME + 32)]
    assert machine.at("e1000.0-rom") == []
    found = b"".join(machine.bus.read(MEMORY, ROM_BASE + at, 4).to_bytes(4, "little") for at in range(0, 8192, 4))
    assert found == IMAGE.ljust(8192, b"\xff")
    machine.bus.write(MEMORY, ROM_BASE, 4, 0)
    assert machine.bus.read(MEMORY, ROM_BASE, 2) == 0xAA55
    machine.set_config(4, ROM_BAR, ROM_BASE + 0x100000 | 1)
    assert machine.at("e1000.1-rom") == [(MEMORY, ROM_BASE + 0x100000, ROM_BASE + 0x101FFF, ROM_FRAME + 32)]
    machine.set_config(4, COMMAND, 0, 2)
    assert machine.at("e1000.1-rom") == []


def test_two_roms_in_one_place(tmp_path: Path) -> None:
    """A guest may try: the first has it, and nothing else happens."""
    machine = Machine(tmp_path, ["e1000", "rtl8139"], IMAGE)
    for slot in (3, 4):
        machine.set_config(slot, COMMAND, 2, 2)
        machine.set_config(slot, ROM_BAR, ROM_BASE | 1)
    assert machine.at("e1000-rom") and not machine.at("rtl8139-rom")
    machine.set_config(4, ROM_BAR, 0)
    machine.set_config(3, ROM_BAR, 0)
    assert not machine.at("e1000-rom")


def test_a_card_without_a_rom_has_no_rom_bar(tmp_path: Path) -> None:
    machine = Machine(tmp_path, ["e1000"])
    machine.set_config(3, ROM_BAR, 0xFFFFFFFF)
    assert machine.config(3, ROM_BAR) == 0


@pytest.mark.parametrize(("boot", "roms", "wanted"), [
    ("n", [True, True], ["/pci@i0cf8/ethernet@3/ethernet-phy@0", "/pci@i0cf8/ethernet@4/ethernet-phy@0"]),
    ("cn", [False, True], ["/pci@i0cf8/ethernet@4/ethernet-phy@0"]), ("c", [True, True], []),
])
def test_the_firmware_is_told_what_to_boot_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boot: str, roms: list[bool], wanted: list[str]
) -> None:
    given: list[dict[str, bytes]] = []

    class Told(FwCfg):
        def __init__(self, memory: Any, files: dict[str, bytes], *rest: Any) -> None:
            given.append(files)
            super().__init__(memory, files, *rest)

    monkeypatch.setattr("miniguest.frontend.pc.FwCfg", Told)
    machine = Machine(tmp_path, ["e1000", "e1000"], IMAGE, boot)
    machine.plans = [replace(plan, rom=IMAGE if has else b"") for plan, has in zip(machine.plans, roms, strict=True)]
    machine.start_over()
    assert given[-1].get("bootorder", b"\0") == "\n".join(wanted).encode() + b"\0"


# -- reset
def test_a_reset_machine_has_new_cards_on_the_same_vifs(tmp_path: Path) -> None:
    machine = Machine(tmp_path, ["e1000", "e1000"], IMAGE)
    machine.set_config(1, 0x62, 11, 1)
    machine.bus.write(MEMORY, machine.place(0) + E1000_IMS, 4, 4)
    machine.bus.write(MEMORY, BASE + E1000_ICS, 4, 4)
    machine.set_config(3, ROM_BAR, ROM_BASE | 1)
    before = machine.vifs[0].received
    machine.bus.write(PORT, 0xCF9, 1, 6)
    assert machine.resets == 1
    machine.vifs[0].kept = [FRAME]
    machine.start_over()
    assert machine.levels == [(11, True), (11, False)]
    assert machine.at("e1000.0") == machine.at("e1000.0-rom") == []
    assert machine.config(3, COMMAND, 2) == 0 and machine.config(3, ROM_BAR) == 0
    assert machine.vifs[0].received != before
    assert machine.vifs[0].kept == [], "a receiver that is off wants nothing of it"
    machine.set_config(1, 0x62, 11, 1)
    base = machine.place(0)
    assert machine.bus.read(MEMORY, base + E1000_IMS, 4) == 0
    machine.bus.write(MEMORY, base + E1000_IMS, 4, 4)
    machine.bus.write(MEMORY, base + E1000_ICS, 4, 4)
    assert read_card_counters(machine.counters[0])["interrupts"] == 2, "they go on"
    machine.vifs[0].ready()


@pytest.mark.parametrize("model", MODELS)
def test_frames_that_came_while_it_was_off_are_not_kept(tmp_path: Path, model: str) -> None:
    machine = Machine(tmp_path, [model])
    assert machine.vifs[0].received(FRAME)
    machine.vifs[0].space = 0
    machine.vifs[0].ready()
    assert machine.vifs[0].sent == []


def test_a_card_without_a_vif_keeps_its_slot_and_hears_nothing(tmp_path: Path) -> None:
    vif = Unplugged(MACS[1])
    card = NetworkCard(
        CardPlan("rtl8139", vif, CardCounters(tmp_path / "counters")), Memory(), lambda: 0, lambda *_: None,
        lambda level: None, lambda vector: None,
    )
    windows = card.windows()
    registers = windows[1, "memory"][0]
    assert bytes(registers.read(index, 1) for index in range(6)) == MACS[1]
    assert vif.room() and not vif.keeps
    vif.send(FRAME)
    vif.resume()
    card.settle()
