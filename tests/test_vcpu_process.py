"""A mini-guest whose vCPU is played by the test, step by step: it tells the truth, and lies."""
import random
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dom0 import dom0

from miniguest.deploy.children import Child
from miniguest.deploy.supervisor import Supervisor
from miniguest.deploy.toolstack import Console
from miniguest.deploy.topology import Guest
from miniguest.frontend import miniguest, vcpu
from miniguest.ring import _core
from miniguest.ring.abi.ioreq import (
    IOREQ,
    IOREQ_READ,
    IOREQ_TYPE_COPY,
    IOREQ_TYPE_PIO,
    IOREQ_WRITE,
    STATE_IORESP_READY,
)
from miniguest.ring.abi.sched import SHUTDOWN_crash, SHUTDOWN_poweroff, SHUTDOWN_reboot
from miniguest.ring.events import HYPERVISOR_SIDE
from miniguest.ring.loop import PENDING
from miniguest.ring.memory import SHUTDOWN_OFFSET
from miniguest.ring.process import Process

SECONDS = 30.0              # a watchdog
DOMID, STUB = 1, 2
POST, PCI_ADDRESS, PCI_DATA, IDE_STATUS = 0x80, 0xCF8, 0xCFC, 0x1F7
BUSMASTER_BAR = 0x80000920  # 00:01.1
CRASHED = 1 + SHUTDOWN_crash
ALL_ONES = 0xFFFFFFFFFFFFFFFF


class PlayedVcpu:
    """The hypervisor's side of vCPU 0 of domain 1, in the test's own process."""

    def __init__(self, supervisor: Supervisor, runtime: Path, device_model: Child) -> None:
        self.supervisor = supervisor
        self.device_model = device_model
        self.process = Process(runtime, DOMID, HYPERVISOR_SIDE, "played")
        self.memory = self.process.memory(DOMID)
        self.page = self.memory.frame(self.memory.special("ioreq"))
        self.info = self.memory.frame(self.memory.special("hypervisor_info"))
        self.slot = _core.IoreqSlot(self.page, 0)
        at = IOREQ.offset["vp_eport"]
        self.port = self.process.events.adopt(int.from_bytes(self.page[at : at + 4], "little"))

    @property
    def shutdown(self) -> int:
        return self.info[SHUTDOWN_OFFSET]

    def wait(self) -> int | None:
        """Until the request is answered, or the guest shut down: the answer, or None."""
        deadline = time.monotonic() + SECONDS
        while self.slot.state != STATE_IORESP_READY:
            assert time.monotonic() < deadline, "no answer"
            if self.process.loop.upcall.wait(100_000_000, self.slot) & PENDING:
                self.process.loop.collect()
            if self.shutdown not in (0, 1 + SHUTDOWN_reboot):
                return None
        return self.slot.finish()

    def ask(
        self, address: int, size: int = 1, data: int = 0, write: bool = False, type_: int = IOREQ_TYPE_PIO, count: int = 1,
        pointer: bool = False, down: bool = False,
    ) -> int | None:
        self.slot.start(type_, address, data, count, size, IOREQ_WRITE if write else IOREQ_READ, pointer, down)
        self.port.notify()
        return self.wait()

    def out(self, port: int, value: int, size: int = 1) -> None:
        assert self.ask(port, size, value, write=True) is not None

    def revive(self) -> None:
        """The toolstack would end the domain now; the test goes on with the next lie."""
        self.info[SHUTDOWN_OFFSET] = 0

    def check(self) -> None:
        """The device model answers, and nobody died."""
        self.out(POST, 0x42)
        assert self.ask(POST) == 0x42
        assert self.shutdown == 0
        assert self.supervisor._children.wait(0) == []
        assert self.supervisor.store.exists("/local/domain/0")
        assert self.device_model.exit_code is None


@pytest.fixture(scope="module")
def played() -> Iterator[PlayedVcpu]:
    with dom0() as (supervisor, runtime):
        guest = Guest(name="g", memory=16)
        domains = supervisor.toolstack.create_guest(guest, DOMID, STUB)
        supervisor.toolstack.describe_guest(supervisor.store, guest, domains, {}, Console(str(runtime / "serial")))
        child = supervisor._spawn("g-dm", STUB, 0, lambda process: miniguest.main(process, DOMID, 1))
        supervisor._wait_for_device_model(child, DOMID, STUB)
        made = PlayedVcpu(supervisor, runtime, child)
        yield made
        made.process.close()


@pytest.fixture(autouse=True)
def _alive(played: PlayedVcpu) -> Iterator[None]:
    played.check()
    yield
    played.revive()
    played.check()


@pytest.mark.parametrize("lie", [
    {"type_": 3}, {"type_": 255}, {"type_": 8}, {"type_": 7},
    {"size": 0}, {"size": 3}, {"size": 16}, {"size": 0xFFFFFFFF}, {"size": 8},
    {"count": 0}, {"count": 0xFFFFFFFF}, {"count": (1 << 20) + 1, "pointer": True}, {"count": 0, "pointer": True, "write": True},
    {"type_": IOREQ_TYPE_COPY, "size": 16}, {"type_": IOREQ_TYPE_COPY, "count": 0xFFFFFFFF, "pointer": True},
])
def test_a_request_that_cannot_be_ends_the_guest(played: PlayedVcpu, lie: dict[str, int]) -> None:
    assert played.ask(POST, **lie) is None              # type: ignore[arg-type]
    assert played.shutdown == CRASHED


@pytest.mark.parametrize("state", [2, 4, 7, 15])
def test_a_state_that_cannot_be_ends_the_guest(played: PlayedVcpu, state: int) -> None:
    played.page[30] = state
    played.port.notify()
    assert played.wait() is None
    assert played.shutdown == CRASHED


@pytest.mark.parametrize("state", [0, 3])
def test_an_event_with_nothing_to_do_is_nothing(played: PlayedVcpu, state: int) -> None:
    played.page[30] = state
    played.port.notify()
    played.page[30] = 0


RAM = 16 << 20


@pytest.mark.parametrize("gpa", [RAM, RAM - 3, ALL_ONES, ALL_ONES - 3, 1 << 63, 0])
@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("type_", [IOREQ_TYPE_PIO, IOREQ_TYPE_COPY])
def test_pointers_anywhere_are_answered(played: PlayedVcpu, gpa: int, down: bool, write: bool, type_: int) -> None:
    address = POST if type_ == IOREQ_TYPE_PIO else ALL_ONES
    assert played.ask(address, 4, gpa, write, type_, 64, True, down) == 0


def test_strings_in_both_directions(played: PlayedVcpu) -> None:
    played.out(POST, 0x77)
    for down, first in ((False, 0x5000), (True, 0x5003)):
        played.memory.write(0x4FFF, bytes(6))
        assert played.ask(POST, 1, first, count=4, pointer=True, down=down) == 0
        assert played.memory.read(0x4FFF, 6) == b"\0\x77\x77\x77\x77\0"
    played.memory.write(0x6000, b"\x01\x02\x03")
    played.ask(POST, 1, 0x6000, write=True, count=3, pointer=True)
    assert played.ask(POST) == 3
    played.ask(POST, 1, 0x6002, write=True, count=3, pointer=True, down=True)
    assert played.ask(POST) == 1


def test_mmio_that_nobody_claims_by_pointer_reads_ones(played: PlayedVcpu) -> None:
    played.memory.write(0x5000, bytes(40))
    assert played.ask(0xFEB00000, 8, 0x5000, type_=IOREQ_TYPE_COPY, count=4, pointer=True) == 0
    assert played.memory.read(0x5000, 33) == b"\xff" * 32 + b"\0"


@pytest.mark.parametrize("address", [0x10000, ALL_ONES, 1 << 32])
def test_addresses_beyond_all_spaces(played: PlayedVcpu, address: int) -> None:
    assert played.ask(address, 4) == 0xFFFFFFFF
    played.out(address, 1, 4)
    assert played.ask(address, 8, type_=IOREQ_TYPE_COPY) == ALL_ONES


@pytest.mark.parametrize("base", [0x1F0, 0x170, 0x3F0, 0x80, 0xCF0, 0xFFF0, 0xB000])
def test_a_pci_range_moved_over_another_device_ends_nothing(played: PlayedVcpu, base: int) -> None:
    played.out(PCI_ADDRESS, 0x80000904, 4)
    played.out(PCI_DATA, 5, 2)
    played.out(PCI_ADDRESS, 0x80000940, 4)              # IDETIM: both channels decoded
    played.out(PCI_DATA, 0x80008000, 4)
    status = played.ask(IDE_STATUS)
    assert status == 0x7F                               # decoded, and no drive behind it
    played.out(PCI_ADDRESS, BUSMASTER_BAR, 4)
    played.out(PCI_DATA, base, 4)
    assert played.ask(IDE_STATUS) == status
    played.out(PCI_DATA, 0xC000, 4)
    assert played.ask(0xC004, 4) == 0
    assert played.shutdown == 0


def test_a_reset_is_asked_for_before_its_request_is_answered(played: PlayedVcpu) -> None:
    played.out(0xCF9, 2)
    played.out(0xCF9, 6)
    assert played.shutdown == 1 + SHUTDOWN_reboot


@pytest.mark.parametrize("unpaused", [True, False])
@pytest.mark.parametrize(("reason", "ended"), [(SHUTDOWN_crash, vcpu.Ended.CRASH), (SHUTDOWN_poweroff, vcpu.Ended.POWEROFF)])
def test_a_vcpu_that_runs_or_may_not_ends_as_its_domain_was_told_to(
    tmp_path: Path, reason: int, ended: vcpu.Ended, unpaused: bool
) -> None:
    firmware = tmp_path / "bios.bin"
    firmware.write_bytes(b"\xeb\xfe".rjust(0xFFF0 + 2, b"\0").ljust(0x10000, b"\0"))      # 1: jmp 1b
    with dom0() as (supervisor, _):
        supervisor.toolstack.create_guest(Guest(name="g", memory=16), DOMID, STUB)
        if unpaused:
            supervisor.toolstack.unpause(DOMID)
        child = supervisor._spawn("g-vcpu0", DOMID, HYPERVISOR_SIDE, lambda process: int(vcpu.main(process, 0, firmware)))
        supervisor._hypercalls.call("shutdown", domid=DOMID, reason=reason)
        assert supervisor._children.wait(SECONDS) == [child]
        assert child.exit_code == ended


def test_a_request_of_random_bytes_ends_at_most_the_guest(played: PlayedVcpu) -> None:
    source = random.Random(5)
    for _ in range(300):
        kind = source.choice([IOREQ_TYPE_PIO, IOREQ_TYPE_COPY, source.randrange(256)])
        words = struct.pack("<QQII", source.getrandbits(source.choice([12, 16, 64])), source.getrandbits(64),
                            source.choice([1, 2, 1000, source.getrandbits(32)]) & 0xFFF, source.choice([1, 2, 4, 8, 3]))
        played.page[:24] = words
        bits = source.getrandbits(3) << 4
        if int.from_bytes(words[:8], "little") in (0xB004, 0xB005):       # no power-off by chance
            continue
        played.page[31] = kind
        played.page[30] = 1 | bits
        played.port.notify()
        played.wait()
        played.revive()
