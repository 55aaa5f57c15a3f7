"""Grants mapped by several processes at once, revoked under their hands, while now and then one of them is killed.

The granter takes back and gives out again whatever it may; the mappers map, copy and unmap at random, and check what
must hold while they have a mapping: the entry is in use, for writing if they write, and says the frame they were given.
In the end nothing may be mapped, in use or locked.
"""
import random
import struct
from functools import partial
from typing import Final

from miniguest.deploy.stress.workers import StressError, Workers, workers
from miniguest.ring import _core
from miniguest.ring.abi.grant_table import GTF_permit_access, GTF_reading, GTF_readonly, GTF_writing
from miniguest.ring.grants import GRANT_ENTRIES, pins_path
from miniguest.ring.memory import Memory, domain_directory
from miniguest.ring.process import Process
from miniguest.ring.words import map_words

GRANTER: Final = 1
MAPPING: Final = 2
GREFS: Final = range(8, 14)
ENTRY: Final = struct.Struct("<HHI")
MOST_HELD: Final = 24
MAX_KILL_S: Final = 0.3


def granter(process: Process, seed: int) -> None:
    """Revoke and give again until told to stop (word 0 of frame 0)."""
    chance = random.Random(seed)
    memory = process.memory(GRANTER)
    entries, stop = memory.grant_entries, memory.frame(0)
    for frame in range(memory.ram_frames):
        memory.frame(frame)[8:12] = struct.pack("<I", frame)
    while not _core.load64(stop, 0):
        gref = chance.choice(GREFS)
        if _core.end_access(entries, gref):
            _core.grant_access(entries, gref, MAPPING, chance.randrange(1, memory.ram_frames), chance.random() < 0.3)


class Mapping:
    """A mapper's life: `total` random steps."""

    def __init__(self, process: Process, seed: int) -> None:
        self.chance = random.Random(seed)
        self.mapper = process.mapper
        self.memory = process.memory(GRANTER)
        self.entries = self.memory.grant_entries
        self.table = process.grant_table(GRANTER)
        self.held: list[tuple[int, int, int, bool]] = []    # handle, gref, frame, read-only
        self.mapped = 0

    def run(self, total: int) -> None:
        """Steps, then everything unmapped."""
        for _ in range(total):
            self.step()
        while self.held:
            self.unmap()
        if self.mapper.mapped:
            raise StressError(f"{self.mapper.mapped} mappings after the last was unmapped")

    def step(self) -> None:
        """Map, unmap or copy, and look at one of the mappings held."""
        kind = self.chance.random()
        if kind < 0.2:
            self.copy()
        elif kind < 0.6 and len(self.held) < MOST_HELD:
            self.map()
        elif self.held:
            self.unmap()
        if self.held:
            self.check(*self.chance.choice(self.held))

    def map(self) -> None:
        """Map a gref, which may have been revoked or be read-only just now."""
        gref, readonly = self.chance.choice(GREFS), self.chance.random() < 0.5
        handle, frame = self.mapper.map(self.table, gref, readonly)
        if handle >= 0:
            self.mapped += 1
            self.held.append((handle, gref, frame, readonly))

    def unmap(self) -> None:
        """Unmap a random one."""
        item = self.held.pop(self.chance.randrange(len(self.held)))
        self.check(*item)
        handle, gref = item[:2]
        status = self.mapper.unmap(self.table, handle)
        if status:
            raise StressError(f"unmapping handle {handle} of gref {gref}: status {status}")

    def copy(self) -> None:
        """A grant copy out of a page, which says its own number."""
        buffer = bytearray(16)
        if _core.grant_copy(self.table, self.memory.map, self.chance.choice(GREFS), 0, buffer, False, self.mapper) == 0:
            number = int.from_bytes(buffer[8:12], "little")
            if not 0 < number < self.memory.ram_frames:
                raise StressError(f"copied {bytes(buffer).hex()}")

    def check(self, handle: int, gref: int, frame: int, readonly: bool) -> None:
        """What must hold of a grant that is mapped."""
        flags, domid, granted = ENTRY.unpack_from(self.entries, gref * ENTRY.size)
        wanted = GTF_permit_access | GTF_reading | (0 if readonly else GTF_writing)
        if flags & wanted != wanted or domid != MAPPING or granted != frame or (flags & GTF_readonly and not readonly):
            raise StressError(f"gref {gref} is mapped (frame {frame}, read-only: {readonly}), says {flags:#x} {domid} {granted}")


def nothing_left(ground: Workers) -> None:
    """StressError when a gref is mapped, in use or locked."""
    memory = Memory(domain_directory(ground.runtime, GRANTER) / "memory")
    pins = map_words(pins_path(ground.runtime, GRANTER), GRANT_ENTRIES)
    table = _core.GrantTable(memory.grant_entries, pins, memory.nr_frames, GRANTER)
    for gref in GREFS:
        flags = ENTRY.unpack_from(memory.grant_entries, gref * ENTRY.size)[0]
        if table.pinned(gref) != (0, 0) or table.holder(gref) or flags & (GTF_reading | GTF_writing):
            raise StressError(f"gref {gref}: {table.pinned(gref)} mappings, lock {table.holder(gref)}, flags {flags:#x}")


def map_and_unmap(mappers: int, steps: int, kills: int = 0, seed: int = 1, seconds: float = 120.0) -> None:
    """`mappers` processes take `steps` each; `kills` more are killed on their way. StressError when a rule is broken."""
    chance = random.Random(seed)
    with workers() as ground:

        def mapping(process: Process, number: int, total: int) -> None:
            Mapping(process, number).run(total)

        stop = Memory(domain_directory(ground.runtime, GRANTER) / "memory").frame(0)
        ground.start("granter", GRANTER, 0, lambda process: granter(process, seed))
        for index in range(mappers):
            ground.start(f"mapper{index}", MAPPING, index, partial(mapping, number=seed + index, total=steps))
        for kill in range(kills):
            victim = ground.start(f"victim{kill}", MAPPING, mappers, partial(mapping, number=-1 - kill, total=1 << 60))
            ground.kill(victim, chance.random() * MAX_KILL_S)
        ground.finish(seconds, but=("granter",))
        _core.store64(stop, 0, 1)
        ground.finish(seconds)
        nothing_left(ground)
