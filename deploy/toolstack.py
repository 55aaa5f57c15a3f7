"""The toolstack: makes domains and their devices, as xl does. Hypercalls and xenstore, nothing else."""
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from miniguest.deploy import option_rom
from miniguest.deploy.topology import Disk, Guest, Link, Vif
from miniguest.frontend.network_card import MODELS
from miniguest.ring.abi.hvm_params import (
    HVM_PARAM_CONSOLE_EVTCHN,
    HVM_PARAM_CONSOLE_PFN,
    HVM_PARAM_DM_DOMAIN,
    HVM_PARAM_IOREQ_PFN,
    HVM_PARAM_STORE_EVTCHN,
    HVM_PARAM_STORE_PFN,
)
from miniguest.ring.abi.xenbus import XenbusState
from miniguest.ring.errors import HypercallError, XenstoreError
from miniguest.ring.guest_clock import GuestClock
from miniguest.ring.hypercalls import Call, Hypercalls
from miniguest.ring.memory import FRAME_SIZE, SPECIAL, Memory, domain_directory
from miniguest.ring.ram_notes import notes_path
from miniguest.ring.xenbus import write_keys
from miniguest.ring.xenstore import Xenstore
from miniguest.ring.xenstore.client import Value

MIB: Final = 1 << 20
STUB_MEMORY: Final = 16 * MIB           # of a mini-guest: rings and the pages of requests under way
VIF_MEMORY: Final = 3 * MIB             # and for each of its vifs: both rings' buffers
DOM0_MEMORY: Final = MIB
VDEVS: Final = {"hda": 768, "hdb": 832, "hdc": 5632, "hdd": 5696}      # Linux device numbers, as xl writes them
KINDS: Final = ("vbd", "vif", "console")            # of a mini-guest's devices
STUB_SUFFIX: Final = "-dm"
PLACES: Final = {HVM_PARAM_STORE_PFN: "xenstore", HVM_PARAM_CONSOLE_PFN: "console", HVM_PARAM_IOREQ_PFN: "ioreq"}


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain as the hypervisor has made it. frames: of RAM."""

    domid: int
    name: str
    frames: int
    store_port: int
    console_port: int


@dataclass(frozen=True, slots=True)
class Console:
    """Where a guest's serial line goes: "stdio", "pty" or a path; prefix: of each line; input: whether it gets the keys."""

    output: str
    prefix: str = ""
    input: bool = False


class Toolstack:
    """Makes the domains of a topology."""

    def __init__(self, runtime: Path, hypercalls: Hypercalls) -> None:
        self._runtime = runtime
        self._call = hypercalls.call
        self._multicall = hypercalls.multicall

    def create_dom0(self) -> None:
        """dom0, before any of its processes starts."""
        self._call("create_domain", domid=0, name="Domain-0", ram_frames=DOM0_MEMORY // FRAME_SIZE)

    def create_guest(self, guest: Guest, domid: int, stub: int) -> tuple[Domain, Domain]:
        """An HVM guest, paused, and its mini-guest. Their processes may start: the vCPUs wait for `unpause`, and the
        mini-guest until xenstored serves it, which is the end of `describe_guest`."""
        domains = (
            self._create(domid, guest.name, guest.memory * MIB),
            self._create(stub, guest.name + STUB_SUFFIX, STUB_MEMORY + len(guest.vif) * VIF_MEMORY),
        )
        self._multicall(
            ("pause_domain", {"domid": domid}),
            ("create_ioreq_server", {"domid": domid, "dm_domid": stub, "vcpus": guest.vcpus}),
            _set_param(domid, HVM_PARAM_DM_DOMAIN, stub),
        )
        return domains

    def describe_guest(
        self, store: Xenstore, guest: Guest, domains: tuple[Domain, Domain], links: Mapping[str, Link], console: Console
    ) -> None:
        """Everything in xenstore that a guest's processes look for; then xenstored serves its domains."""
        domid, stub = (domain.domid for domain in domains)
        for domain in domains:
            _describe(store, domain)
        self.add_console(store, stub, console)
        path = f"/local/domain/{stub}/device-model/{domid}"
        store.write_all({path: "", f"{path}/boot": guest.boot}, {path: [f"n{stub}", "r0"]})
        for disk in guest.disk:
            self.add_disk(store, stub, disk)
        memory = Memory(domain_directory(self._runtime, domid) / "memory")
        frame = memory.special("roms")
        for handle, vif in enumerate(guest.vif):
            self.add_vif(store, stub, handle, vif, links[vif.link])
            identity = MODELS[vif.model].IDENTITY
            image = option_rom.fitted(option_rom.read(Path(vif.rom)), identity.vendor, identity.device) if vif.rom else b""
            write_keys(store, f"{path}/card/{handle}", {"model": vif.model, "rom-frame": frame, "rom-size": len(image)})
            frame = _place_rom(memory, frame, image)
        memory.close()
        for domain in domains:
            _introduce(store, domain)
        store.set_target(stub, domid)

    def unpause(self, domid: int) -> None:
        """Let a guest run, now that everything about it is there."""
        self._call("unpause_domain", domid=domid)

    def step_clock(self, domid: int, wall_ns: int, recorded: bool) -> None:
        """Make a guest's clock one that its vCPU steps, before anything runs. wall_ns: since the epoch, at its start.
        recorded: its device model notes what it reads."""
        memory = Memory(domain_directory(self._runtime, domid) / "memory")
        GuestClock.create(memory.frame(memory.special("hypervisor_info")), wall_ns)
        memory.close()
        if recorded:
            notes_path(self._runtime, domid).touch(mode=0o600)

    def create_domain(self, store: Xenstore, domid: int, name: str, memory: int) -> None:
        """A domain of `memory` bytes of RAM, its ports for xenstore and console, and its directory in xenstore."""
        domain = self._create(domid, name, memory)
        _describe(store, domain)
        _introduce(store, domain)

    def _create(self, domid: int, name: str, memory: int) -> Domain:
        frames = memory // FRAME_SIZE
        alloc: Call = ("evtchn_alloc_unbound", {"domid": domid, "vcpu": 0, "remote_domid": 0})
        _, store_port, console_port, *_ = self._multicall(
            ("create_domain", {"domid": domid, "name": name, "ram_frames": frames}), alloc, alloc,
            *(_set_param(domid, index, frames + SPECIAL[place]) for index, place in PLACES.items()),
        )
        self._multicall(
            _set_param(domid, HVM_PARAM_STORE_EVTCHN, store_port), _set_param(domid, HVM_PARAM_CONSOLE_EVTCHN, console_port)
        )
        return Domain(domid, name, frames, store_port, console_port)

    def add_disk(self, store: Xenstore, domid: int, disk: Disk) -> None:
        """A vbd: both directories, each readable by the other end, in one transaction."""
        device = VDEVS[disk.vdev]
        self._add_device(store, "vbd", domid, device, {"virtual-device": device, "device-type": "disk"}, {
            "bootable": 1, "dev": disk.vdev, "type": "phy", "mode": "r" if disk.access == "ro" else "w",
            "device-type": "disk", "removable": 0, "params": str(disk.image),
        })

    def add_vif(self, store: Xenstore, domid: int, handle: int, vif: Vif, link: Link) -> None:
        """A vif: both directories, each readable by the other end, in one transaction."""
        both: dict[str, Value] = {"handle": handle, "mac": vif.mac, "mtu": link.mtu}
        rate: dict[str, Value] = {"rate": vif.rate} if vif.rate else {}
        self._add_device(store, "vif", domid, handle, both, {**both, "bridge": vif.link, "type": "vif", **rate})

    def _add_device(
        self, store: Xenstore, kind: str, domid: int, device: int, front_keys: Mapping[str, Value], back_keys: Mapping[str, Value]
    ) -> None:
        """Both directories of a device, each readable by the other end, in one transaction."""
        front = f"/local/domain/{domid}/device/{kind}/{device}"
        back = f"/local/domain/0/backend/{kind}/{domid}/{device}"
        with store.transaction() as t:
            state = int(XenbusState.Initialising)
            ours = {"backend": back, "backend-id": 0, "state": state, **front_keys}
            theirs = {"frontend-id": domid, "online": 1, **back_keys, "state": state, "frontend": front}
            nodes: dict[str, Value] = {front: "", back: ""}
            for path, keys in ((front, ours), (back, theirs)):
                nodes |= {f"{path}/{name}": value for name, value in keys.items()}
            t.write_all(nodes, {front: [f"n{domid}", "r0"], back: ["n0", f"r{domid}"]})

    def close_devices(self, store: Xenstore, stub: int) -> list[str]:
        """Ask the backends to let go of a mini-guest's devices, as libxl does: offline and Closing. Their directories."""
        paths = []
        for kind in KINDS:
            with suppress(XenstoreError):           # it has none
                root = f"/local/domain/0/backend/{kind}/{stub}"
                paths += [f"{root}/{device}" for device in store.directory(root)]
        for path in paths:
            leaving: dict[str, Value] = {"online": 0, "state": int(XenbusState.Closing)}
            store.retry(partial(write_keys, path=path, keys=leaving))
        return paths

    def release_guest(self, store: Xenstore, domid: int, stub: int) -> None:
        """A guest has ended: its devices go, and whoever watches @releaseDomain hears of it. Its memory stays."""
        for kind in KINDS:
            path = f"/local/domain/0/backend/{kind}/{stub}"
            if store.exists(path):
                store.rm(path)
        for each in (stub, domid):
            if store.is_introduced(each):
                store.release(each)
            store.rm(f"/local/domain/{each}")

    def destroy_guest(self, store: Xenstore, domid: int, stub: int) -> None:
        """Take back all of a guest, however far its start came. Its processes have ended."""
        self.release_guest(store, domid, stub)
        for each in (stub, domid):
            with suppress(HypercallError):          # it came not even that far
                self._call("destroy_domain", domid=each)

    def add_console(self, store: Xenstore, stub: int, console: Console) -> None:
        """The mini-guest's console: its guest's serial line."""
        back = f"/local/domain/0/backend/console/{stub}/0"
        with store.transaction() as t:
            write_keys(t, back, {
                "output": console.output, "prefix": console.prefix, "input": int(console.input),
                "copy": str(console_copy(self._runtime, stub)), "frontend": f"/local/domain/{stub}/console",
            })


def console_copy(runtime: Path, stub: int) -> Path:
    """Where everything that a mini-guest's console printed is kept while the topology lives."""
    return domain_directory(runtime, stub) / "console"


def _describe(store: Xenstore, domain: Domain) -> None:
    """Its directory in xenstore."""
    domid, path = domain.domid, f"/local/domain/{domain.domid}"
    own = [f"{path}/{directory}" for directory in ("device", "data", "control", "error")]
    nodes: dict[str, Value] = {
        path: "", f"{path}/name": domain.name, f"{path}/domid": domid, f"{path}/vm": f"/vm/{domid}",
        f"{path}/memory/target": domain.frames * FRAME_SIZE >> 10, **dict.fromkeys(own, ""),
        f"{path}/console/ring-ref": domain.frames + SPECIAL["console"], f"{path}/console/port": domain.console_port,
        f"{path}/console/type": "xenconsoled",
    }
    store.write_all(nodes, {path: ["n0", f"r{domid}"], **{each: [f"n{domid}"] for each in own}})


def _introduce(store: Xenstore, domain: Domain) -> None:
    """Have xenstored serve it, which hears then what it has asked already."""
    store.introduce(domain.domid, domain.frames + SPECIAL["xenstore"], domain.store_port)


def _set_param(domid: int, index: int, value: int) -> Call:
    return "set_param", {"domid": domid, "index": index, "value": value}


def _place_rom(memory: Memory, frame: int, image: bytes) -> int:
    """Put an image into the frames from `frame` on, ones behind it; the next free frame."""
    if not image:
        return frame
    count = option_rom.frames(image)
    memory.frames(frame, count)[:] = image.ljust(count * FRAME_SIZE, b"\xff")
    return frame + count
