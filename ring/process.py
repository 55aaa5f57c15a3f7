"""What every process of a topology has: its place (domain and vCPU), its loop, and the ways to the others."""
import ctypes
import gc
import logging
import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from miniguest.ring import _core
from miniguest.ring.abi.hvm_params import HVM_PARAM_STORE_EVTCHN
from miniguest.ring.events import Events, Port
from miniguest.ring.grants import GRANT_ENTRIES, TRACK_ENTRIES, pins_path, track_path
from miniguest.ring.hypercalls import Hypercalls
from miniguest.ring.loop import Loop
from miniguest.ring.memory import Memory, domain_directory
from miniguest.ring.words import map_words
from miniguest.ring.xenstore import PageTransport, SocketTransport, Xenstore

XENSTORED_SOCKET: Final = "xenstored.sock"

PR_SET_NAME: Final = 15
PR_SET_PDEATHSIG: Final = 1


def prctl(option: int, value: "int | bytes") -> None:
    """prctl(2), for the two options below that Python has no name for."""
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def die_with(parent: int) -> None:
    """This process gets SIGKILL when its parent dies, even when that has happened already."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class Process:
    """A process of the topology as vCPU `vcpu` of domain `domid`. `undo` runs when it ends, last in first out."""

    def __init__(self, runtime: Path, domid: int, vcpu: int, name: str, doorbell: str = "zmq") -> None:
        self.runtime = runtime
        self.domid = domid
        self.vcpu = vcpu
        self.name = name
        self.log = logging.getLogger(name)
        self.undo = ExitStack()
        self._memories: dict[int, Memory] = {}
        self._grant_tables: dict[int, _core.GrantTable] = {}
        self.hypercalls = Hypercalls(runtime)
        self.undo.callback(self.hypercalls.close)
        owner = self.hypercalls.call("register", domid=domid, vcpu=vcpu, pid=os.getpid(), name=name)
        track = map_words(track_path(runtime, domid, vcpu), TRACK_ENTRIES)
        self.mapper = _core.Mapper(track, domid, owner)
        self.events = Events(runtime, domid, vcpu, self.memory(domid), self.hypercalls, doorbell)
        self.loop = Loop(self.events)
        self.undo.callback(self.events.close)
        self.undo.callback(self.loop.close)
        self._wake_on_signals()
        signal.signal(signal.SIGTERM, lambda *_: self.loop.stop())

    def _wake_on_signals(self) -> None:
        """Let signals end a wait. One that comes after Python last looked for it, but before the wait sleeps, interrupts
        nothing; its byte in this pipe does."""
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

        def drain() -> None:
            os.read(reader, 4096)

        self.loop.on_fd(reader, drain)
        self.undo.callback(os.close, reader)
        self.undo.callback(os.close, writer)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self.undo.callback(signal.set_wakeup_fd, -1)

    def memory(self, domid: int) -> Memory:
        """A domain's memory, mapped once. FileNotFoundError when there is no such domain."""
        if domid not in self._memories:
            self._memories[domid] = Memory(domain_directory(self.runtime, domid) / "memory")
        return self._memories[domid]

    def grant_table(self, domid: int) -> _core.GrantTable:
        """A domain's grant table, to map its grants."""
        if domid not in self._grant_tables:
            memory = self.memory(domid)
            pins = map_words(pins_path(self.runtime, domid), GRANT_ENTRIES)
            self._grant_tables[domid] = _core.GrantTable(memory.grant_entries, pins, memory.nr_frames, domid)
        return self._grant_tables[domid]

    def forget(self, domid: int) -> None:
        """A domain is gone: its memory is not needed any more."""
        self._memories.pop(domid, None)
        self._grant_tables.pop(domid, None)

    def part(self, domid: int) -> None:
        """Nothing connects us to a domain any more: neither its memory nor its doorbells are needed."""
        self.forget(domid)
        self.events.forget(domid)
        # What served it may hold its memory in circles of references, which take no room that the collector would count.
        gc.collect()

    def alloc_unbound(self, remote_domid: int) -> Port:
        """A new port that `remote_domid` may bind to."""
        return self.events.alloc_unbound(remote_domid)

    def bind_interdomain(self, remote_domid: int, remote_port: int) -> Port:
        """A new port connected to a remote unbound one. HypercallError when it is not unbound, or not for us."""
        return self.events.bind_interdomain(remote_domid, remote_port)

    def xenstore(self) -> Xenstore:
        """A connection to xenstored: over the socket for dom0, over its xenstore page for any other domain."""
        if self.domid == 0:
            store = Xenstore(SocketTransport(self.runtime / XENSTORED_SOCKET), self.loop.call_soon)
            self.loop.on_fd(store.fileno(), store.dispatch)
        else:
            memory = self.memory(self.domid)
            port = self.events.adopt(self.hypercalls.call("get_param", domid=self.domid, index=HVM_PARAM_STORE_EVTCHN))
            frame = memory.frame(memory.special("xenstore"))
            store = Xenstore(PageTransport(frame, port.notify, lambda: self.loop.wait_port(port)), self.loop.call_soon)
            self.loop.on_port(port, store.dispatch)
        return store

    def close(self) -> None:
        """Undo everything."""
        self.undo.close()
