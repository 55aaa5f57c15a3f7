"""Which engine a vCPU runs on, whether its run is recorded, and how its time goes on: decided before its process starts."""
import logging
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from miniguest.frontend.engines.engine import Engine, ExitHandler
from miniguest.frontend.engines.record import Recorder, RecordingEngine, RecordingHandler, RecordingPace
from miniguest.frontend.engines.replay import ReplayEngine, ReplayPace, Tape
from miniguest.frontend.engines.trace import Header, TraceReader, TraceWriter
from miniguest.frontend.pace import Pace, RealPace, VirtualPace
from miniguest.ring import _core
from miniguest.ring.ram_notes import NoteReader

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """engine: unicorn, kvm or replay; reason: why it is this one. trace: what replay plays. record: where to, and what is
    said there of the guest. virtual: time goes on with the guest's work."""

    engine: str
    reason: str = ""
    trace: Path | None = None
    record: tuple[Path, Header] | None = None
    virtual: bool = False


DEFAULT: Final = Plan("unicorn")


@runtime_checkable
class Counting(Protocol):
    """An engine whose work virtual time can go by. counts_blocks: Engine.run is then given blocks instead of a time;
    blocks: of code, executed so far, a u32 that wraps."""

    counts_blocks: bool

    @property
    def blocks(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Seat:
    """What an engine is plugged into. upcall: address of the byte that stops a guest; path: the way of frequent exits;
    stepped: whether the guest's clock is; notes: where the device model notes what it read; stopped: whether the guest was told
    from outside to end."""

    ram: mmap.mmap
    ram_size: int
    firmware: bytes
    handler: ExitHandler
    upcall: int
    path: _core.ExitPath
    stepped: bool
    notes: Path
    stopped: Callable[[], bool]


def load(engine: str) -> None:
    """Import, and find out, what an engine needs: in the process that all others are forked from, so that none does it again."""
    if engine == "unicorn":
        from miniguest.frontend.engines import unicorn  # noqa: F401
        from miniguest.frontend.engines.unicorn_processor import prepare

        prepare()
    elif engine == "kvm":
        from miniguest.frontend.engines import kvm  # noqa: F401


def assemble(plan: Plan, seat: Seat) -> tuple[Engine, Pace | None]:
    """The engine, and the pace of a stepped clock."""
    log.info("engine %s%s", plan.engine, f": {plan.reason}" if plan.reason else "")
    recorder = None
    handler = seat.handler
    if plan.record:
        recorder = Recorder(TraceWriter(*plan.record), seat.stopped)
        handler = RecordingHandler(handler, recorder, seat.ram, NoteReader(seat.notes).take)
    engine, pace = _engine(plan, seat, handler)
    if recorder:
        engine = RecordingEngine(engine, recorder)
        pace = RecordingPace(pace, recorder) if pace else None
    return engine, pace


def _engine(plan: Plan, seat: Seat, handler: ExitHandler) -> tuple[Engine, Pace | None]:
    if plan.engine == "replay" and plan.trace:
        tape = Tape(TraceReader(plan.trace))
        return ReplayEngine(tape, seat.ram, seat.ram_size, handler), ReplayPace(tape)
    engine = _processor(plan, seat, handler)
    if not seat.stepped:
        return engine, None
    if plan.virtual and isinstance(engine, Counting):
        engine.counts_blocks = True
        return engine, VirtualPace(lambda: engine.blocks)
    return engine, RealPace(_core.now_ns)


def _processor(plan: Plan, seat: Seat, handler: ExitHandler) -> Engine:
    # Imported here: a replayed guest needs neither.
    if plan.engine == "kvm":
        from miniguest.frontend.engines.kvm import KvmEngine

        return KvmEngine(seat.ram, seat.ram_size, seat.firmware, handler, seat.upcall)
    from miniguest.frontend.engines.unicorn import UnicornEngine

    # An exit that is recorded, or steps the clock, is the handler's.
    path = None if plan.record or seat.stepped else seat.path
    return UnicornEngine(seat.ram, seat.ram_size, seat.firmware, handler, seat.upcall, path)
