"""A domain as the hypervisor knows it, and its files in the runtime directory."""
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from miniguest.ring import _core
from miniguest.ring.abi.event_channel import EVTCHN_2L_NR_CHANNELS
from miniguest.ring.events import table_path
from miniguest.ring.grants import GRANT_ENTRIES, pins_path
from miniguest.ring.memory import PAUSED_OFFSET, SHUTDOWN_OFFSET, Memory, domain_directory
from miniguest.ring.ranges import Range
from miniguest.ring.words import map_words


@dataclass(slots=True)
class Vcpu:
    """A process that registered as a vCPU. `owner` tells it from every other process of the topology."""

    pid: int
    name: str
    owner: int


@dataclass(slots=True)
class Domain:
    """A domain. `params` are HVM parameters by number; `channels` its event channel table (4096 u64), no port below
    `lowest_free` of which is closed."""

    domid: int
    name: str
    memory: Memory
    channels: memoryview
    grants: _core.GrantTable
    vcpus: dict[int, Vcpu] = field(default_factory=dict)
    params: dict[int, int] = field(default_factory=dict)
    ranges: list[Range] = field(default_factory=list)
    lowest_free: int = 1

    @classmethod
    def create(cls, runtime: Path, domid: int, name: str, ram_frames: int) -> "Domain":
        """Make a domain and its files. FileExistsError when the domid is taken."""
        directory = domain_directory(runtime, domid)
        directory.mkdir(mode=0o700)
        try:
            memory = Memory.create(directory / "memory", ram_frames)
            channels = map_words(table_path(runtime, domid), EVTCHN_2L_NR_CHANNELS, create=True)
            pins = map_words(pins_path(runtime, domid), GRANT_ENTRIES, create=True)
            return cls(domid, name, memory, channels, _core.GrantTable(memory.grant_entries, pins, memory.nr_frames, domid))
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise

    @property
    def shutdown(self) -> int:
        """0 while it runs, else 1 + the SHUTDOWN_ reason of sched.h."""
        return _core.load64(self.memory.frame(self.memory.special("hypervisor_info")), SHUTDOWN_OFFSET // 8)

    @shutdown.setter
    def shutdown(self, value: int) -> None:
        _core.store64(self.memory.frame(self.memory.special("hypervisor_info")), SHUTDOWN_OFFSET // 8, value)

    @property
    def paused(self) -> bool:
        """Whether its vCPUs wait to be let go."""
        return bool(_core.load64(self.memory.frame(self.memory.special("hypervisor_info")), PAUSED_OFFSET // 8))

    @paused.setter
    def paused(self, value: bool) -> None:
        _core.store64(self.memory.frame(self.memory.special("hypervisor_info")), PAUSED_OFFSET // 8, value)

    def destroy(self, runtime: Path) -> None:
        """Remove its files."""
        shutil.rmtree(domain_directory(runtime, self.domid), ignore_errors=True)
