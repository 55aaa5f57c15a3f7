"""Real processes killed with signal 9: their ports are raised, their channels closed, their grants released, their place free."""
import os
import struct
from signal import SIGKILL

import pytest

from miniguest.deploy.stress.workers import RAM_FRAMES, Workers, workers
from miniguest.ring._core import GrantTable, load64, store64
from miniguest.ring.abi.event_channel import EVTCHNSTAT_unbound
from miniguest.ring.abi.grant_table import GTF_permit_access, GTF_reading, GTF_writing
from miniguest.ring.grants import GRANT_ENTRIES, TRACK_ENTRIES, Grants, pins_path, track_path
from miniguest.ring.memory import Memory, domain_directory
from miniguest.ring.process import Process
from miniguest.ring.words import map_words

GRANTER, MAPPING = 1, 2
INTENT, HELD = 1, 3


def memory_of(ground: Workers, domid: int) -> Memory:
    return Memory(domain_directory(ground.runtime, domid) / "memory")


def table_of(ground: Workers) -> tuple[GrantTable, memoryview, memoryview]:
    """The granter's table, its pins and its entries."""
    memory = memory_of(ground, GRANTER)
    pins = map_words(pins_path(ground.runtime, GRANTER), GRANT_ENTRIES)
    return GrantTable(memory.grant_entries, pins, memory.nr_frames, GRANTER), pins, memory.grant_entries


def flags(entries: memoryview, gref: int) -> int:
    return int(struct.unpack_from("<H", entries, gref * 8)[0])


class Signal:
    """A pipe: `give` in a worker, `wait` in the test."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def give(self, data: bytes = b"x") -> None:
        os.write(self.writer, data)

    def wait(self) -> bytes:
        return os.read(self.reader, 4096)

    def close(self) -> None:
        os.close(self.reader)
        os.close(self.writer)


def test_a_killed_mapper_and_its_peer() -> None:
    """The peer sleeps; what wakes it is the burial, since the dead one never notified it."""
    with workers() as ground:
        port, ready = Signal(), Signal()
        memory = memory_of(ground, GRANTER)
        grants = Grants(memory)
        grefs = [grants.give(MAPPING, frame) for frame in range(4)]

        def peer(process: Process) -> None:
            mine = process.alloc_unbound(MAPPING)
            process.loop.on_port(mine, process.loop.stop)
            process.loop.upcall.spin_ns = 0
            port.give(mine.number.to_bytes(4, "little"))
            process.loop.run()

        def victim(process: Process) -> None:
            process.bind_interdomain(GRANTER, int.from_bytes(port.wait(), "little"))
            table = process.grant_table(GRANTER)
            for index, gref in enumerate(grefs):
                process.mapper.map(table, gref, index % 2 == 0)
                process.mapper.map(table, gref, True)
            ready.give()
            process.loop.run()

        ground.start("peer", GRANTER, 0, peer)
        doomed = ground.start("victim", MAPPING, 0, victim)
        ready.wait()
        table, _, entries = table_of(ground)
        assert [table.pinned(gref) for gref in grefs] == [(2, 0), (1, 1)] * 2
        assert flags(entries, grefs[1]) == GTF_permit_access | GTF_reading | GTF_writing
        ground.kill(doomed, 0)
        assert [table.pinned(gref) for gref in grefs] == [(0, 0)] * 4
        assert all(grants.end(gref) for gref in grefs)
        ground.finish(30)
        state = ground.hypercalls.call("evtchn_status", domid=GRANTER, port=1)
        assert state[0] in (0, EVTCHNSTAT_unbound), "unbound, or closed with the peer that ended since"
        assert ground.hypercalls.call("domain_info", domid=MAPPING)["vcpus"] == {}
        assert not track_path(ground.runtime, MAPPING, 0).exists()
        port.close()
        ready.close()


def test_a_successor_takes_the_place_at_once() -> None:
    """Whoever saw a process end may start the next: it is buried before the next one's first hypercall is answered."""
    with workers() as ground:
        for turn in range(10):
            ready = Signal()

            def main(process: Process, ready: Signal = ready) -> None:
                process.alloc_unbound(GRANTER)
                ready.give()
                process.loop.run()

            child = ground.start(f"turn{turn}", MAPPING, 5, main)
            assert ready.wait() == b"x"
            ground.kill(child, 0)
            ready.close()
        assert ground.hypercalls.call("evtchn_alloc_unbound", domid=MAPPING, vcpu=0, remote_domid=1) == 1, "all were closed"


@pytest.mark.parametrize("doorbell", ["zmq", "fifo"])
def test_a_peer_bound_anew_is_told_at_once(doorbell: str) -> None:
    """A notification on a channel whose other end was replaced reaches the successor, over its predecessor's doorbell."""
    with workers(doorbell) as ground:
        port, ready, killed = Signal(), Signal(), Signal()

        def sender(process: Process) -> None:
            mine = process.alloc_unbound(MAPPING)
            for _ in range(2):
                port.give(mine.number.to_bytes(4, "little"))
            mine.notify()
            killed.wait()
            mine.notify()           # connects to the first receiver
            ready.give()
            killed.wait()
            mine.notify()           # finds that it is gone, and the second there

        def receiver(process: Process, last: bool) -> None:
            process.loop.upcall.spin_ns = 0
            mine = process.bind_interdomain(GRANTER, int.from_bytes(port.wait()[:4], "little"))
            process.loop.on_port(mine, ready.give)
            process.loop.turn()     # a new end starts out pending
            process.loop.on_port(mine, process.loop.stop if last else ready.give)
            process.loop.run()

        ground.start("sender", GRANTER, 0, sender)
        first = ground.start("first", MAPPING, 0, lambda process: receiver(process, False))
        assert ready.wait() == b"x"
        killed.give()
        answers = ready.wait()
        while len(answers) < 2:     # the sender's word and the receiver's, in any order
            answers += ready.wait()
        ground.kill(first, 0)
        port.give((1).to_bytes(4, "little"))
        ground.start("second", MAPPING, 0, lambda process: receiver(process, True))
        assert ready.wait() == b"x"
        killed.give()
        ground.finish(30)
        for pipe in (port, ready, killed):
            pipe.close()


def test_locks_of_two_that_died_together_and_of_nobody() -> None:
    """Each holds a lock that the other's burial needs; a third lock is held by a number that is no process."""
    with workers() as ground:
        owners = []
        grants = Grants(memory_of(ground, GRANTER))
        grefs = [grants.give(MAPPING, frame) for frame in range(3)]
        pids = []
        for vcpu in range(2):
            ready = Signal()

            def main(process: Process, ready: Signal = ready) -> None:
                table = process.grant_table(GRANTER)
                for gref in grefs:
                    process.mapper.map(table, gref, True)
                ready.give(process.mapper.owner.to_bytes(4, "little"))
                process.loop.run()

            pids.append(ground.start(f"victim{vcpu}", MAPPING, vcpu, main))
            owners.append(int.from_bytes(ready.wait(), "little"))
            ready.close()
        table, pins, _ = table_of(ground)
        for gref, owner in zip(grefs, [*owners, 0x7777], strict=True):
            store64(pins, gref, load64(pins, gref) | owner << 32)
        for child in pids:
            child.kill(SIGKILL)
        for child in pids:
            ground.kill(child, 0)
        assert [table.pinned(gref) for gref in grefs] == [(0, 0)] * 3
        assert [table.holder(gref) for gref in grefs] == [0, 0, 0]
        assert all(grants.end(gref) for gref in grefs)


def test_a_lock_that_the_living_keep() -> None:
    """A stopped process has the lock: the hypervisor answers all the same, and releases once the lock is free."""
    with workers() as ground:
        ready = Signal()
        gref = Grants(memory_of(ground, GRANTER)).give(MAPPING, 3)

        def main(process: Process) -> None:
            process.mapper.map(process.grant_table(GRANTER), gref)
            ready.give(process.mapper.owner.to_bytes(4, "little"))
            process.loop.run()

        living = ground.start("living", MAPPING, 0, main)
        owner = int.from_bytes(ready.wait(), "little")
        doomed = ground.start("victim", MAPPING, 1, main)
        ready.wait()
        table, pins, _ = table_of(ground)
        store64(pins, gref, load64(pins, gref) | owner << 32)
        ground.kill(doomed, 0)
        assert table.pinned(gref) == (0, 2)
        again = ground.start("again", MAPPING, 1, lambda process: process.loop.run())
        store64(pins, gref, load64(pins, gref) & 0xFFFFFFFF)
        ground.hypercalls.call("domain_info", domid=0)
        assert table.pinned(gref) == (0, 1)
        ground.kill(living, 0)
        ground.kill(again, 0)
        assert table.pinned(gref) == (0, 0)
        ready.close()


def test_a_track_full_of_lies() -> None:
    """A mapper may write anything into its own track: burial takes back what there is, and lives."""
    with workers() as ground:
        ready = Signal()

        def main(process: Process) -> None:
            track = map_words(track_path(process.runtime, MAPPING, 0), TRACK_ENTRIES)
            for index in range(TRACK_ENTRIES):
                record = (index * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
                store64(track, index, record if index % 3 else 8 << 32 | GRANTER << 16 | HELD)
            ready.give()
            process.loop.run()

        gref = Grants(memory_of(ground, GRANTER)).give(MAPPING, RAM_FRAMES - 1)
        doomed = ground.start("liar", MAPPING, 0, main)
        ready.wait()
        ground.kill(doomed, 0)
        assert table_of(ground)[0].pinned(gref) == (0, 0)
        ready.close()
