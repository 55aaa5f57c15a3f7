"""Event channels as a process sees them: its vCPU's ports, sending, and waiting for them (xen/event_channel.h)."""
import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from miniguest.ring import _core
from miniguest.ring.abi.event_channel import EVTCHN_2L_NR_CHANNELS
from miniguest.ring.doorbell import Bells, Doorbell, FifoDoorbell, ZmqDoorbell, doorbell_path
from miniguest.ring.hypercalls import Hypercalls
from miniguest.ring.memory import FRAME_SIZE, Memory, domain_directory
from miniguest.ring.words import map_words

HYPERVISOR_SIDE: Final = 32             # vCPUs from here on are the hypervisor's side of vCPU - 32


def table_path(runtime: Path, domid: int) -> Path:
    """A domain's event channel table: 4096 u64 (state u8, vcpu u8, remote domid u16, remote port u32), the hypervisor's."""
    return domain_directory(runtime, domid) / "evtchn"


class Port:
    """One of this process's event channels. `number` is the local port."""

    def __init__(self, events: "Events", number: int) -> None:
        self.number = number
        self._events = events
        self._channel: _core.Channel | None = None
        self._retired = (0, 0)
        self._remote = 0

    def notify(self) -> None:
        """EVTCHNOP_send. Nothing happens while the other end is not bound, or is gone."""
        channel = self._channel
        woken = -1 if channel is None else channel.send()
        if woken:
            self.finish(woken)

    def finish(self, woken: int) -> None:
        """What is left to do after `channel.send()` said `woken`, or -1 where there was no channel: nothing after 0."""
        if woken < 0:
            # The channel is not what it was: the peer may have died and its successor be bound already, which has
            # looked at its ring before what this tells of. A successor that binds later starts out with an event.
            if self._channel is not None:
                self._retire()
            woken = self._send()
        if woken > 0:
            self._events.bells.ring(self._remote, woken - 1)

    @property
    def channel(self) -> _core.Channel | None:
        """The compiled sender, for compiled code to send by itself; None while the other end is not bound."""
        if self._channel is None:
            self._connect()
        return self._channel

    def _send(self) -> int:
        """What _core.Channel.send answers; -1, too, when there is no channel."""
        channel = self._channel or self.channel
        return -1 if channel is None else channel.send()

    def _retire(self) -> None:
        self._retired = (self.sent, self.saved)
        self._channel = None
        self._events.forget(self._remote)

    @property
    def sent(self) -> int:
        """Notifications that rang a doorbell."""
        return self._retired[0] + (self._channel.sent if self._channel else 0)

    @property
    def saved(self) -> int:
        """Notifications that needed none: the peer was awake, or had one pending."""
        return self._retired[1] + (self._channel.saved if self._channel else 0)

    def close(self) -> None:
        """EVTCHNOP_close; the peer's end becomes unbound."""
        self._events.close_port(self)

    def _connect(self) -> None:
        ends = self._events.interdomain(self.number)
        if ends is not None:
            self._remote, remote_port = ends
            with contextlib.suppress(FileNotFoundError):        # destroyed meanwhile: nobody to tell
                self._channel = self._events.channel(self.number, self._remote, remote_port)


class Events:
    """The event channels of one process, which is vCPU `vcpu` of domain `domid`.

    memory: the domain's own memory. vcpu 32 and up: the hypervisor's side of vcpu - 32.
    """

    def __init__(self, runtime: Path, domid: int, vcpu: int, memory: Memory, hypercalls: Hypercalls, kind: str = "zmq") -> None:
        self.domid = domid
        self.vcpu = vcpu
        self.bells = Bells(runtime)
        self._runtime = runtime
        self._hypercalls = hypercalls
        self._tables: dict[int, memoryview] = {}
        self._memories: dict[int, Memory] = {domid: memory}
        self._ports: dict[int, Port] = {}
        path = doorbell_path(runtime, domid, vcpu)
        self.doorbell: Doorbell = FifoDoorbell(path) if kind == "fifo" else ZmqDoorbell(hypercalls.context, path)
        self._info = memory.info_pages[vcpu // HYPERVISOR_SIDE * FRAME_SIZE :][:FRAME_SIZE]

    def upcall(self, descriptor: int) -> _core.Upcall:
        """This vCPU's upcall, which also waits for `descriptor` to be readable."""
        self._upcall = _core.Upcall(self._info, self.vcpu % HYPERVISOR_SIDE, self.doorbell.fd, descriptor)
        self._upcall.drain = self.doorbell.drain
        return self._upcall

    def alloc_unbound(self, remote_domid: int) -> Port:
        """EVTCHNOP_alloc_unbound: a new port that `remote_domid` may bind to."""
        number = self._hypercalls.call("evtchn_alloc_unbound", domid=self.domid, vcpu=self.vcpu, remote_domid=remote_domid)
        return self._add(number)

    def bind_interdomain(self, remote_domid: int, remote_port: int) -> Port:
        """EVTCHNOP_bind_interdomain: a new port connected to a remote unbound one. HypercallError when it is not."""
        number = self._hypercalls.call(
            "evtchn_bind_interdomain",
            domid=self.domid, vcpu=self.vcpu, remote_domid=remote_domid, remote_port=remote_port,
        )
        port = self._add(number)
        # The new end starts out pending, as Xen does it: the remote may have sent before it was bound.
        self._upcall_bind(number)
        return port

    def adopt(self, number: int) -> Port:
        """A port that the toolstack allocated for this vCPU before the process started."""
        self._hypercalls.call("evtchn_bind_vcpu", domid=self.domid, port=number, vcpu=self.vcpu)
        return self._add(number)

    def _add(self, number: int) -> Port:
        port = Port(self, number)
        self._ports[number] = port
        self._upcall.bind(number)
        return port

    def _upcall_bind(self, number: int) -> None:
        pages = self._memories[self.domid].info_pages
        if _core.raise_port(pages, self.vcpu, number):
            self.bells.ring(self.domid, self.vcpu)

    def kick(self, domid: int, vcpu: int) -> None:
        """Have a vCPU look at its state, without any port."""
        if _core.kick_vcpu(self._memory(domid).info_pages, vcpu):
            self.bells.ring(domid, vcpu)

    def close_port(self, port: Port) -> None:
        """EVTCHNOP_close on one of our ports; closing twice is nothing."""
        if self._ports.pop(port.number, None) is not None:
            self._upcall.unbind(port.number)
            self._hypercalls.call("evtchn_close", domid=self.domid, port=port.number)

    def interdomain(self, number: int) -> tuple[int, int] | None:
        """(remote domid, remote port) of a port that is connected, else None."""
        entry = _core.load64(self._table(self.domid), number)
        return (entry >> 16 & 0xFFFF, entry >> 32) if entry & 0xFF == 2 else None

    def channel(self, number: int, remote_domid: int, remote_port: int) -> _core.Channel:
        """The compiled sender for a connected port."""
        pages = self._memory(remote_domid).info_pages
        local, remote = self._table(self.domid), self._table(remote_domid)
        return _core.Channel(local, number, self.domid, remote, remote_port, remote_domid, pages)

    def forget(self, domid: int) -> None:
        """Map another domain's files anew when they are next needed: there may be a new domain of that number."""
        if domid != self.domid:
            self.bells.forget(domid)
            self._tables.pop(domid, None)
            memory = self._memories.pop(domid, None)
            if memory is not None:
                memory.close()

    def _table(self, domid: int) -> memoryview:
        if domid not in self._tables:
            self._tables[domid] = map_words(table_path(self._runtime, domid), EVTCHN_2L_NR_CHANNELS)
        return self._tables[domid]

    def _memory(self, domid: int) -> Memory:
        if domid not in self._memories:
            self._memories[domid] = Memory(domain_directory(self._runtime, domid) / "memory")
        return self._memories[domid]

    @property
    def ports(self) -> Iterable[Port]:
        """The open ports."""
        return self._ports.values()

    def close(self) -> None:
        """Go to sleep for good: nobody takes this vCPU for awake, and its doorbell goes."""
        self._upcall.leave()
        self.bells.close()
        self.doorbell.close()
