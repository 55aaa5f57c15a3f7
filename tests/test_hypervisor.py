"""The hypervisor's operations: event channels, ranges, processes; and whatever bytes come instead of a hypercall."""
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from dom0 import runtime_directory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from miniguest.deploy.stress.workers import workers
from miniguest.ring._core import load64
from miniguest.ring.abi.event_channel import EVTCHNSTAT_closed, EVTCHNSTAT_interdomain, EVTCHNSTAT_unbound
from miniguest.ring.abi.xen import DOMID_SELF
from miniguest.ring.errors import HypercallError
from miniguest.ring.hypercalls import socket_path
from miniguest.ring.hypervisor.arguments import NUMBERS
from miniguest.ring.hypervisor.operations import OPERATIONS, Operations
from miniguest.ring.hypervisor.server import Server
from miniguest.ring.ranges import CAPACITY, MEMORY, PORT, Ranges

CLOSED, UNBOUND, INTERDOMAIN = EVTCHNSTAT_closed, EVTCHNSTAT_unbound, EVTCHNSTAT_interdomain


class Bells:
    """Who was rung."""

    def __init__(self) -> None:
        self.rung: list[tuple[int, int]] = []

    def forget(self, domid: int, vcpu: int) -> None: ...

    def ring(self, domid: int, vcpu: int) -> None:
        self.rung.append((domid, vcpu))


@pytest.fixture
def ops() -> Iterator[Operations]:
    """Domains 1 and 2 of 16 frames, no processes."""
    with runtime_directory() as runtime:
        operations = Operations(runtime, Bells())       # type: ignore[arg-type]
        for domid in (1, 2):
            operations.create_domain(domid, f"domain{domid}", 16)
        yield operations


@contextmanager
def refused(code: str) -> Iterator[None]:
    with pytest.raises(HypercallError) as caught:
        yield
    assert caught.value.code == code


# -- event channels
def test_alloc_bind_close_rebind(ops: Operations) -> None:
    first = ops.evtchn_alloc_unbound(1, 3, 2)
    assert ops.evtchn_status(1, first) == [UNBOUND, 3, 2, 0]
    second = ops.evtchn_bind_interdomain(2, 33, 1, first)
    assert ops.evtchn_status(1, first) == [INTERDOMAIN, 3, 2, second]
    assert ops.evtchn_status(2, second) == [INTERDOMAIN, 33, 1, first]
    ops.evtchn_close(2, second)
    assert ops.evtchn_status(2, second) == [CLOSED, 0, 0, 0]
    assert ops.evtchn_status(1, first) == [UNBOUND, 3, 2, 0], "for the same domain to bind again"
    assert ops.evtchn_bind_interdomain(2, 0, 1, first) == second, "the lowest free port"
    ops.evtchn_close(1, first)
    assert ops.evtchn_status(2, second) == [UNBOUND, 0, 1, 0]


def test_only_the_named_domain_binds_and_only_once(ops: Operations) -> None:
    port = ops.evtchn_alloc_unbound(1, 0, 1)
    with refused("EINVAL"):
        ops.evtchn_bind_interdomain(2, 0, 1, port)
    with refused("EINVAL"):
        ops.evtchn_bind_interdomain(2, 0, 1, port + 1)
    other = ops.evtchn_bind_interdomain(1, 0, DOMID_SELF, port)
    assert other != port and ops.evtchn_status(1, port) == [INTERDOMAIN, 0, 1, other]
    with refused("EINVAL"):
        ops.evtchn_bind_interdomain(1, 0, 1, port)
    ops.evtchn_close(1, other)
    assert ops.evtchn_status(1, port) == [UNBOUND, 0, 1, 0]


def test_refusals(ops: Operations) -> None:
    for port in (0, 4096):
        with refused("EINVAL"):
            ops.evtchn_status(1, port)
    for call in (ops.evtchn_close, ops.evtchn_status):
        with refused("ESRCH"):
            call(7, 1)
    with refused("EINVAL"):
        ops.evtchn_close(1, 5)
    for vcpu in (-1, 64):
        with refused("EINVAL"):
            ops.evtchn_alloc_unbound(1, vcpu, 2)
    with refused("EINVAL"):
        ops.evtchn_bind_vcpu(1, 5, 0)
    with refused("EEXIST"):
        ops.create_domain(1, "again", 16)
    with refused("ENOENT"):
        ops.get_param(1, 5)
    with refused("ENOENT"):
        ops.unmap_io_range(1, PORT, 1, 2)


def test_a_port_moves_to_another_vcpu(ops: Operations) -> None:
    port = ops.evtchn_alloc_unbound(1, 0, 2)
    other = ops.evtchn_bind_interdomain(2, 0, 1, port)
    ops.evtchn_bind_vcpu(1, port, 40)
    assert ops.evtchn_status(1, port) == [INTERDOMAIN, 40, 2, other]


def test_ports_run_out(ops: Operations) -> None:
    ports = [ops.evtchn_alloc_unbound(1, 0, 2) for _ in range(4095)]
    assert ports == list(range(1, 4096))
    with refused("ENOSPC"):
        ops.evtchn_alloc_unbound(1, 0, 2)
    ops.evtchn_close(1, 77)
    assert ops.evtchn_alloc_unbound(1, 0, 2) == 77


# -- domains and processes
def test_a_destroyed_domain_leaves_nothing(ops: Operations) -> None:
    port = ops.evtchn_alloc_unbound(1, 0, 2)
    ops.evtchn_bind_interdomain(2, 0, 1, port)
    pages = ops.domains[1].memory.info_pages
    ops.destroy_domain(2)
    assert ops.evtchn_status(1, port) == [UNBOUND, 0, 2, 0]
    assert load64(pages, 256) == 1 << port and (1, 0) in ops.bells.rung       # type: ignore[attr-defined]
    assert not (ops.runtime / "dom2").exists()
    ops.create_domain(2, "again", 16)


def test_a_domain_with_processes_is_not_destroyed(ops: Operations) -> None:
    ops.register(2, 0, os.getpid(), "worker")
    with refused("EBUSY"):
        ops.destroy_domain(2)
    with refused("EBUSY"):
        ops.register(2, 0, os.getpid(), "another")
    assert ops.bury(os.getpid()) == ["worker"]
    assert ops.bury(os.getpid()) == []
    ops.destroy_domain(2)


def test_owners_differ(ops: Operations) -> None:
    owners = {ops.register(domid, vcpu, os.getpid(), "w") for domid in (1, 2) for vcpu in range(64)}
    assert len(owners) == 128 and 0 not in owners


def test_a_domain_that_cannot_be_made_leaves_nothing(ops: Operations) -> None:
    with pytest.raises((OSError, ValueError, OverflowError)):
        ops.create_domain(3, "huge", 1 << 60)
    assert not (ops.runtime / "dom3").exists()
    ops.create_domain(3, "small", 1)


def test_shutdown_keeps_its_first_reason_and_wakes(ops: Operations) -> None:
    ops.register(1, 32, os.getpid(), "vcpu")
    ops.shutdown(1, 3)
    ops.shutdown(1, 1)
    assert ops.domain_info(1)["shutdown"] == 4
    assert ops.bells.rung == [(1, 32), (1, 32)]     # type: ignore[attr-defined]
    assert ops.domains[1].memory.info_pages[4096] == 1


def test_ranges_are_published_or_refused(ops: Operations) -> None:
    memory = ops.domains[1].memory
    seen = Ranges(memory.frame(memory.special("ranges")))
    ops.map_io_range(1, PORT, 0x1F0, 0x1F7, "ide")
    ops.map_io_range(1, MEMORY, 0x1F0, 0x1F7, "bar")
    for start, end in ((0x1F7, 0x200), (0, 0x1F0), (0x1F1, 0x1F2), (0, 0xFFFF)):
        with refused("EEXIST"):
            ops.map_io_range(1, PORT, start, end, "other")
    for kind, start, end in ((2, 0, 1), (PORT, 2, 1), (PORT, 0, 1 << 64)):
        with refused("EINVAL"):
            ops.map_io_range(1, kind, start, end, "wrong")
    assert seen.refresh() and seen.find(PORT, 0x1F7).name == "ide" and seen.find(MEMORY, 0x1F0).name == "bar"  # type: ignore[union-attr]
    ops.unmap_io_range(1, PORT, 0x1F0, 0x1F7)
    assert seen.refresh() and seen.find(PORT, 0x1F7) is None


def test_a_range_with_frames_is_read_without_an_exit(ops: Operations) -> None:
    memory = ops.domains[1].memory
    seen = Ranges(memory.frame(memory.special("ranges")))
    first, last = memory.special("roms"), memory.nr_frames - 1
    ops.map_io_range(1, MEMORY, 0xFEB00000, 0xFEB01FFF, "two", first)
    ops.map_io_range(1, MEMORY, 0xFEC00000, 0xFEC00FFF, "last", last)
    ops.map_io_range(1, MEMORY, 0xFED00000, 0xFEDFFFFF, "all", first)
    ops.map_io_range(1, MEMORY, (1 << 64) - 4096, (1 << 64) - 1, "top", first + 1)
    ops.map_io_range(1, MEMORY, 0xFEB02000, 0xFEB02001, "none")
    assert seen.refresh()
    shown = [(item.start, item.end, item.frame) for item in seen.read_only_memory()]
    assert shown == [
        (0xFEB00000, 0xFEB01FFF, first), (0xFEC00000, 0xFEC00FFF, last), (0xFED00000, 0xFEDFFFFF, first),
        ((1 << 64) - 4096, (1 << 64) - 1, first + 1),
    ]
    ops.unmap_io_range(1, MEMORY, 0xFEC00000, 0xFEC00FFF)
    assert seen.refresh() and [item.name for item in seen.read_only_memory()] == ["two", "all", "top"]


@pytest.mark.parametrize(("kind", "start", "end", "frame"), [
    (PORT, 0xC000, 0xCFFF, 0), (MEMORY, 0x1800, 0x27FF, 0), (MEMORY, 0x1000, 0x17FF, 0), (MEMORY, 0x1001, 0x1FFF, 0),
    (MEMORY, 0x1000, 0x2000, 0), (MEMORY, 0x1000, 0x100FFF, 1), (MEMORY, 0x1000, 0x101FFF, 0),
    (MEMORY, 0x1000, 0x1FFF, 256), (MEMORY, 0x1000, 0x2FFF, 255), (MEMORY, 0x1000, 0x1FFF, -1), (MEMORY, 0, (1 << 64) - 1, 0),
])
def test_frames_that_are_not_roms_are_not_shown(ops: Operations, kind: int, start: int, end: int, frame: int) -> None:
    """Only whole frames, of those that are there to be shown: else a device model could hand out the grant table, say."""
    memory = ops.domains[1].memory
    seen = Ranges(memory.frame(memory.special("ranges")))
    with refused("EINVAL"):
        ops.map_io_range(1, kind, start, end, "rom", memory.special("roms") + frame)
    assert seen.refresh() and seen.find(kind, start) is None and seen.read_only_memory() == []
    ops.map_io_range(1, kind, start, end, "no rom")


def test_a_frame_of_the_guests_own_is_not_shown(ops: Operations) -> None:
    memory = ops.domains[1].memory
    for frame in (1, memory.ram_frames, memory.special("grants"), memory.nr_frames, (1 << 32) - 1):
        with refused("EINVAL"):
            ops.map_io_range(1, MEMORY, 0x1000, 0x1FFF, "rom", frame)


def test_one_range_too_many_changes_nothing(ops: Operations) -> None:
    memory = ops.domains[1].memory
    seen = Ranges(memory.frame(memory.special("ranges")))
    for index in range(CAPACITY):
        ops.map_io_range(1, PORT, index, index, "x")
    with pytest.raises(Exception, match="room"):
        ops.map_io_range(1, PORT, 5000, 5000, "x")
    ops.unmap_io_range(1, PORT, 3, 3)
    ops.map_io_range(1, PORT, 5000, 5000, "y")
    assert seen.refresh() and seen.find(PORT, 5000).name == "y" and seen.find(PORT, 3) is None      # type: ignore[union-attr]


def test_an_ioreq_server_has_a_port_for_each_vcpu(ops: Operations) -> None:
    ports = ops.create_ioreq_server(1, 2, 3)
    page = ops.domains[1].memory.frame(ops.domains[1].memory.special("ioreq"))
    assert [int.from_bytes(page[v * 32 + 24 : v * 32 + 28], "little") for v in range(3)] == ports
    assert [ops.evtchn_status(1, port) for port in ports] == [[UNBOUND, 32 + v, 2, 0] for v in range(3)]
    with refused("EINVAL"):
        ops.create_ioreq_server(1, 2, 33)
    assert ops.evtchn_alloc_unbound(1, 0, 2) == ports[-1] + 1, "refused before any port was taken"


# -- anything but a hypercall
@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with runtime_directory() as runtime:
        made = Server(runtime, os.getpid())
        made.operations.create_domain(1, "domain1", 16)
        yield made
        made.close()


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


def answered(server: Server, request: bytes) -> Any:
    reply = msgpack.unpackb(msgpack.packb(server.answer(request)), strict_map_key=False)
    assert "result" in reply or re.fullmatch("E[A-Z0-9]+", reply["error"])
    return reply


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(request=st.binary() | ANYTHING.map(msgpack.packb))
def test_any_bytes_are_answered(server: Server, request: bytes) -> None:
    assert "error" in answered(server, request)


@settings(max_examples=400, deadline=None)
@given(
    op=st.sampled_from(sorted(OPERATIONS)),
    args=ANYTHING | st.dictionaries(st.sampled_from([*NUMBERS, "name"]), ANYTHING, max_size=6),
)
def test_any_arguments_are_answered(server: Server, op: str, args: Any) -> None:
    answered(server, msgpack.packb({"op": op, "args": args}))


SMALL = {name: st.integers(-1, 3) | st.sampled_from([63, 64, 4095, 4096, 1 << 31, (1 << 64) - 1]) for name in NUMBERS}
SMALL |= {"ram_frames": st.integers(-1, 4), "pid": st.just(os.getpid()), "name": st.text(max_size=30)}


def arguments(op: str) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    """The operation's own arguments, near the edges, now and then something else in one's place."""
    code = getattr(Operations, op).__code__
    names = code.co_varnames[1 : code.co_argcount]
    return st.fixed_dictionaries({name: SMALL[name] for name in names}).map(lambda args: (op, args))


@settings(max_examples=600, deadline=None)
@given(call=st.sampled_from(sorted(OPERATIONS)).flatmap(arguments))
def test_calls_near_the_edges_leave_the_tables_whole(server: Server, call: tuple[str, dict[str, Any]]) -> None:
    op, args = call
    answered(server, msgpack.packb({"op": op, "args": args}))
    ops = server.operations
    for domid in ops.domains:
        for port in range(1, 12):
            state, vcpu, remote, remote_port = ops.evtchn_status(domid, port)
            assert state in (CLOSED, UNBOUND, INTERDOMAIN) and vcpu < 64
            if state == INTERDOMAIN:
                assert ops.evtchn_status(remote, remote_port)[::2] == [INTERDOMAIN, domid]
                assert ops.evtchn_status(remote, remote_port)[3] == port


def test_one_needs_a_name() -> None:
    """Every argument of every operation is either a number with a range or a name."""
    for op in OPERATIONS:
        code = getattr(Operations, op).__code__
        for name in code.co_varnames[1 : code.co_argcount]:
            assert name in NUMBERS or name == "name", (op, name)


@pytest.mark.parametrize(
    "frames",
    [[b"x"], [b""], [b"", b""], [b"", b"\xc1"], [b"a", b"b", b"c", b"d"], [b"", b"\x80"], [b"", b"\xdd\xff\xff\xff\xff"]],
)
def test_a_living_hypervisor_survives_any_message(frames: list[bytes]) -> None:
    with workers() as ground:
        raw = zmq.Context.instance().socket(zmq.DEALER)
        raw.linger = 0
        raw.connect(f"ipc://{socket_path(ground.runtime)}")
        raw.send_multipart(frames)
        assert "error" in msgpack.unpackb(raw.recv_multipart()[-1])
        raw.close()
        assert ground.hypercalls.call("domain_info", domid=1)["domid"] == 1


def test_a_call_that_is_not_answered_does_not_spoil_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from miniguest.ring import hypercalls

    monkeypatch.setattr(hypercalls, "TIMEOUT_MS", 50)
    caller = hypercalls.Hypercalls(tmp_path)
    for _ in range(2):
        with refused("ETIMEDOUT"):
            caller.call("domain_info", domid=0)
    caller.close()


def test_a_multicall_does_all_and_raises_the_first_error() -> None:
    """In order; one within another is none."""
    with workers() as ground:
        call = ("evtchn_alloc_unbound", {"domid": 1, "vcpu": 0, "remote_domid": 0})
        first, info, second = ground.hypercalls.multicall(call, ("domain_info", {"domid": 1}), call)
        assert second == first + 1 and info["domid"] == 1
        with refused("ESRCH"):
            ground.hypercalls.multicall(call, ("domain_info", {"domid": 77}), ("multicall", {"calls": []}), call)
        assert ground.hypercalls.call("evtchn_alloc_unbound", **call[1]) == second + 3
        with refused("ENOSYS"):
            ground.hypercalls.multicall(("multicall", {"calls": [call]}))
        for nonsense in (5, [5], [["domain_info"]], None):
            with refused("EINVAL"):
                ground.hypercalls.call("multicall", calls=nonsense)
        (reply,) = ground.hypercalls.call("multicall", calls=[["domain_info", 5]])
        assert reply["error"] == "EINVAL"


def test_the_lowest_closed_port_is_taken(ops: Operations) -> None:
    ports = [ops.evtchn_alloc_unbound(1, 0, 2) for _ in range(5)]
    for port in (ports[3], ports[1]):
        ops.evtchn_close(1, port)
    assert [ops.evtchn_alloc_unbound(1, 0, 2) for _ in range(3)] == [ports[1], ports[3], ports[4] + 1]
