"""Recording and replaying: in this process against a handler of our own, and as processes against the real devices."""
import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from guests import LIBRARY, LOADER, SECTOR, Ran, assemble, run
from machine import RAM, Exits, pattern
from test_guests import BUSMASTER, PROTECTED

from miniguest.frontend.engines import trace
from miniguest.frontend.engines.engine import Stop
from miniguest.frontend.engines.record import Recorder, RecordingEngine, RecordingHandler, RecordingPace
from miniguest.frontend.engines.replay import ReplayEngine, ReplayPace, Tape
from miniguest.frontend.engines.trace import Difference, Exit, Header, RecordingEnded, TraceReader, TraceWriter
from miniguest.ring.exits import ExitKind
from miniguest.ring.ram_notes import Noted

HEADER = Header(guest="g", memory=16, firmware="", boot="c", wall_ns=0)
Ask = Callable[[Any], object]
# One call of each exit, and the RAM that it reads.
SCRIPT: list[Ask] = [
    lambda h: h.pio_in(0x60, 1), lambda h: h.pio_out(0x61, 2, 0x1234), lambda h: h.mmio_read(0xFEB00000, 4),
    lambda h: h.mmio_write(0xFEB00004, 4, 7), lambda h: h.cpuid(1, 0), lambda h: h.cpuid(2, 9), lambda h: h.msr(0x1B, True, 5),
    lambda h: h.msr(0x1B, False, 0), lambda h: h.pio_in_string(0x1F0, 2, 4, 0x9000),
    lambda h: h.pio_out_string(0x80, 1, 3, 0xA000),
]


class ScriptedEngine:
    """Makes the exits of SCRIPT, then halts."""

    name = "scripted"

    def __init__(self, handler: object) -> None:
        self.handler = handler
        self.crash = ""
        self.ready = True
        self.taken: list[int] = []

    def run(self, deadline_ns: int) -> Stop:
        for ask in SCRIPT:
            ask(self.handler)
        return Stop.HALT

    def interruptible(self) -> bool:
        return self.ready

    def interrupt(self, vector: int) -> None:
        self.taken.append(vector)

    def reset(self) -> None:
        self.crash = ""

    def nothing(self, *_: object) -> None:
        pass

    want_interrupt = kick = forget_code = forget_all_code = show_memory = close = nothing


class CountingPace:
    """Every look at the clock takes a nanosecond."""

    def __init__(self) -> None:
        self.now = 0

    def at_exit(self) -> int:
        self.now += 1
        return self.now

    at_stop = at_exit

    def deadline(self, due: int) -> int:
        return due

    def idle(self, due: int, wait: object) -> None:
        pass

    def end(self, how: str) -> None:
        pass


def fresh_exits() -> Exits:
    ram = mmap.mmap(-1, RAM)
    return Exits(ram, answers={0x60: 0x1C, 0xFEB00000: 0xCAFE}, leaves={2: (1, 2, 3, 4)})


def drive(engine: Any, pace: Any, vector: int = 0x20) -> None:
    """What a run loop does: one run, a sleep, an interrupt, the end."""
    engine.reset()
    pace.at_exit()
    assert engine.run(0) is Stop.HALT
    pace.at_stop()
    pace.at_stop()
    assert engine.interruptible()
    engine.interrupt(vector)
    pace.end("POWEROFF")


@pytest.fixture
def recorded(tmp_path: Path) -> tuple[Path, Exits]:
    """A trace of SCRIPT, and what its handler saw."""
    path, exits = tmp_path / "t", fresh_exits()
    exits.ram[0xA000:0xA003] = b"abc"
    notes: Iterator[list[Noted]] = iter(
        [[], [(0x5000, b"first"), (0x5000, b"later")], *[[] for _ in SCRIPT[3:]], [(0xA000, b"abc"), (0xB000, b"prd")]]
    )
    recorder = Recorder(TraceWriter(path, HEADER), lambda: False)
    handler = RecordingHandler(exits, recorder, exits.ram, lambda: next(notes))
    engine = RecordingEngine(ScriptedEngine(handler), recorder)     # type: ignore[arg-type]
    drive(engine, RecordingPace(CountingPace(), recorder))          # type: ignore[arg-type]
    engine.close()
    return path, exits


def tape(path: Path) -> Tape:
    return Tape(TraceReader(path))


def test_a_replayed_run_is_the_recorded_one(recorded: tuple[Path, Exits]) -> None:
    path, before = recorded
    exits, played = fresh_exits(), tape(path)
    engine = ReplayEngine(played, exits.ram, RAM, exits)
    drive(engine, ReplayPace(played))
    engine.close()
    assert exits.seen == before.seen
    assert exits.ram[0x9000:0x9008] == pattern(8)
    assert exits.ram[0x5000:0x5005] == b"first"        # as it was when the device first looked
    assert exits.ram[0xB000:0xB003] == b"prd"


def test_what_is_recorded_of_an_exit(recorded: tuple[Path, Exits]) -> None:
    reader = TraceReader(recorded[0])
    exits = [event for event in reader if isinstance(event, Exit)]
    reader.close()
    assert [event.kind for event in exits] == [
        ExitKind.PIO_IN, ExitKind.PIO_OUT, ExitKind.MMIO_READ, ExitKind.MMIO_WRITE, *[ExitKind.CPUID] * 2, *[ExitKind.MSR] * 2,
        ExitKind.PIO_IN, ExitKind.PIO_OUT,
    ]
    assert exits[0].value == 0x1C
    assert exits[1].reads == ((0x5000, b"first"), (0x5000, b"later"))
    assert (exits[4].answer, exits[5].answer) == (None, (1, 2, 3, 4))
    assert (exits[8].count, exits[8].gpa, exits[8].data) == (4, 0x9000, pattern(8))
    assert (exits[9].data, exits[9].reads) == (b"abc", ((0xB000, b"prd"),))     # its own string is not told twice


@pytest.mark.parametrize(("change", "line"), [
    (lambda e: e.answers.update({0x60: 0x1D}),
     "event 1: recorded: pio_in 0x60, 1 bytes gave 0x1c; replayed: it gave 0x1d"),
    (lambda e: e.answers.update({0xFEB00000: 0}),
     "event 3: recorded: mmio_read 0xfeb00000, 4 bytes gave 0xcafe; replayed: it gave 0x0"),
    (lambda e: e.leaves.clear(), "event 6: recorded: cpuid 0x2, 0 bytes gave 0x1 0x2 0x3 0x4; replayed: it gave nothing"),
    (lambda e: setattr(e, "strings", False),
     "event 9: recorded: pio_in 0x1f0, 2 bytes x 4 at 0x9000; replayed: not taken as a string"),
])
def test_the_first_other_answer_is_told(
    recorded: tuple[Path, Exits], change: Callable[[Exits], object], line: str
) -> None:
    exits, played = fresh_exits(), tape(recorded[0])
    change(exits)
    with pytest.raises(Difference) as caught:
        drive(ReplayEngine(played, exits.ram, RAM, exits), ReplayPace(played))
    assert str(caught.value) == line


def test_other_data_of_a_string_is_told(recorded: tuple[Path, Exits], monkeypatch: pytest.MonkeyPatch) -> None:
    exits, played = fresh_exits(), tape(recorded[0])
    monkeypatch.setattr("machine.pattern", lambda size: b"\x01\x08\x0f\xff" + pattern(size)[4:])
    with pytest.raises(Difference, match=r"event 9: .* gave 161d242b32 at byte 3; replayed: it gave ff1d242b32$"):
        drive(ReplayEngine(played, exits.ram, RAM, exits), ReplayPace(played))


@pytest.mark.parametrize(("deed", "line"), [
    (lambda e, p: e.run(0), "event 0: recorded: reset; replayed: the engine ran"),
    (lambda e, p: p.at_stop(), "event 0: recorded: reset; replayed: time passed"),
    (lambda e, p: (e.reset(), e.interrupt(9)), "event 1: recorded: the clock was set 1 times more; replayed: interrupt 0x9"),
    (lambda e, p: (e.reset(), p.at_stop(), e.reset()), "event 1: recorded: pio_in 0x60, 1 bytes; replayed: reset"),
    (lambda e, p: p.end("HALT"), "event 0: recorded: reset; replayed: the end, halt"),
    (lambda e, p: drive(e, p, 0x21), "event 13: recorded: interrupt 0x20; replayed: interrupt 0x21"),
    (lambda e, p: (drive(e, p), e.run(0)), "event 14: recorded: the end, poweroff; replayed: the engine ran"),
    (lambda e, p: (drive(e, p), p.at_exit()), "event 14: recorded: the end, poweroff; replayed: time passed"),
    (lambda e, p: (drive(e, p), p.end("CRASH")), "event 14: recorded: the end, poweroff; replayed: the end, crash"),
])
def test_another_way_than_the_recorded_one(
    recorded: tuple[Path, Exits], deed: Callable[[ReplayEngine, ReplayPace], object], line: str
) -> None:
    exits, played = fresh_exits(), tape(recorded[0])
    with pytest.raises(Difference) as caught:
        deed(ReplayEngine(played, exits.ram, RAM, exits), ReplayPace(played))
    assert str(caught.value) == line


@pytest.mark.parametrize("event", [
    Exit((), ExitKind.PIO_IN, 0x60, 0), Exit((), ExitKind.PIO_IN, 0x60, 3), Exit((), ExitKind.MMIO_WRITE, 0xFEB00000, 0, 1),
    Exit((), ExitKind.HLT, 0, 1),
    Exit((), ExitKind.IRQ_WINDOW, 0, 1),
])
def test_an_exit_that_cannot_be_is_told(tmp_path: Path, event: Exit) -> None:
    writer = TraceWriter(tmp_path / "t", HEADER)
    writer.write(event)
    writer.close()
    exits = fresh_exits()
    with pytest.raises(Difference, match="no such exit can be played"):
        ReplayEngine(tape(tmp_path / "t"), exits.ram, RAM, exits).run(0)
    assert exits.seen == []


def test_a_trace_writes_to_nothing_but_ram(tmp_path: Path) -> None:
    """What lies behind RAM in the mapping are rings and pages that other processes share."""
    writer = TraceWriter(tmp_path / "t", HEADER)
    beyond = ((RAM // 2 - 1, b"in and out"), (RAM // 2, b"out"), ((1 << 64) - 1, b"far out"))
    writer.write(Exit((), ExitKind.PIO_OUT, 0x80, 1, 1, reads=beyond))
    writer.write(trace.Stopped((), trace.StopKind.HALT))
    writer.close()
    exits = fresh_exits()
    assert ReplayEngine(tape(tmp_path / "t"), exits.ram, RAM // 2, exits).run(0) is Stop.HALT
    assert exits.ram[RAM // 2 - 1 : RAM // 2] == b"i"
    assert not any(exits.ram[RAM // 2 :])


def test_a_recording_that_was_stopped_ends_there(tmp_path: Path) -> None:
    stopped = False
    recorder = Recorder(TraceWriter(tmp_path / "t", HEADER), lambda: stopped)
    recorder.time(5)
    stopped = True
    recorder.write(Exit(recorder.times(), ExitKind.PIO_IN, 0x60, 1, 0xFF))      # that nobody answered any more
    recorder.time(6)
    recorder.end("TIMEOUT")
    recorder.close()
    exits, played = fresh_exits(), tape(tmp_path / "t")
    assert ReplayPace(played).at_stop() == 1
    with pytest.raises(RecordingEnded, match="the recorded run ended here: TIMEOUT"):
        ReplayEngine(played, exits.ram, RAM, exits).run(0)


# -- as processes

PROGRAM = """
        xor ax, ax
        mov ds, ax
        mov es, ax
        mov ss, ax
        mov sp, 0x7c00
        mov si, offset text
        call puts                       # before the BIOS prints, at the next tick, what it still has to say
        mov cx, 3
1:      push cx                         # sleeps that a timer ends
        sti
        hlt
        pop cx
        loop 1b
        mov ah, 0x42                    # a read by the BIOS, and a write
        mov dl, 0x80
        mov si, offset packet
        int 0x13
        mov ah, 0x43
        xor al, al
        mov si, offset packet
        int 0x13
        mov ah, 2                       # the clock of the machine
        int 0x1a
        mov al, dh
        call hex
        jmp poweroff
text:   .asciz "recorded "
        .balign 4
packet: .byte 16, 0
        .word 2, 0x9000, 0
        .quad 8
"""
GUEST = '[[guest]]\nname = "g"\nmemory = 16\ndisk = [{ image = "disk.img", vdev = "hda" }]\n'
REPLAY = GUEST + 'engine = "replay"\ntrace = "trace"\n'


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a disk, a topology that was recorded, its trace and one that replays it."""
    directory = tmp_path_factory.mktemp("recorded")
    disk = assemble(directory, f"cli\n{PROGRAM}\n{LIBRARY}").ljust(8 * SECTOR, b"\0") + pattern(1 << 14)
    (directory / "disk.img").write_bytes(disk.ljust(1 << 20, b"\0"))
    (directory / "record.toml").write_text(GUEST)
    (directory / "replay.toml").write_text(REPLAY)
    return directory


@pytest.fixture(scope="module")
def first(place: Path) -> Ran:
    ran = run(place, str(place / "record.toml"), "--record", str(place / "trace"), "--timeout", "60")
    assert (ran.status, ran.guest["ended"], ran.guest["engine"]) == (0, "poweroff", "unicorn"), ran.stderr
    return ran


def counted(ran: Ran) -> list[tuple[object, ...]]:
    names = ("kind", "device", "address", "size", "exits", "elements")
    return [tuple(row[name] for name in names) for row in ran.guest["exits"]["rows"]]


def test_a_seabios_boot_replayed_without_unicorn(place: Path, first: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same exits in the same order, and every answer the same: the trace of the replay is the trace that it replays."""
    nowhere = place / "no-unicorn"
    nowhere.mkdir()
    (nowhere / "unicorn.py").write_text('raise ImportError("a replay needs no Unicorn")\n')
    monkeypatch.setenv("PYTHONPATH", str(nowhere))
    again = run(place, str(place / "replay.toml"), "--record", str(place / "again"), "--timeout", "60")
    assert (again.status, again.guest["ended"], again.guest["engine"]) == (0, "poweroff", "replay"), again.stderr
    assert counted(again) == counted(first)
    assert first.guest["exits"]["total"] > 3000
    assert first.guest["exits"]["by_kind"]["hlt"] >= 3
    assert again.console == first.console
    assert "recorded " in first.console
    assert again.guest["disks"] == first.guest["disks"]
    assert first.guest["disks"][0]["bytes_written"] == 2 * SECTOR
    assert (place / "again").read_bytes() == (place / "trace").read_bytes()


def rewritten(place: Path, name: str, change: Callable[[list[Any]], None]) -> Path:
    """A topology that replays the trace with something changed."""
    reader = TraceReader(place / "trace")
    events = list(reader)
    reader.close()
    change(events)
    writer = TraceWriter(place / name, reader.header)
    for event in events:
        writer.write(event)
    writer.close()
    topology = place / f"{name}.toml"
    topology.write_text(REPLAY.replace('"trace"', f'"{name}"'))
    return topology


def test_an_answer_that_differs_is_a_crash_with_one_line(place: Path, first: Ran) -> None:
    where = []

    def change(events: list[Any]) -> None:
        index = next(i for i, e in enumerate(events) if isinstance(e, Exit) and e.address == 0x1F7 and e.kind is ExitKind.PIO_IN)
        where.append(index)
        events[index] = trace.msgspec.structs.replace(events[index], value=0x99)

    ran = run(place, str(rewritten(place, "changed", change)), "--timeout", "60")
    assert (ran.status, ran.guest["ended"]) == (1, "crash")
    (line,) = ran.stderr.splitlines()
    assert f"event {where[0]}: recorded: pio_in 0x1f7, 1 bytes gave 0x99; replayed: it gave 0x" in line


def test_a_recording_that_timed_out_times_out_again(place: Path) -> None:
    (place / "spin.img").write_bytes(assemble(place, "1: hlt\njmp 1b").ljust(1 << 20, b"\0"))
    (place / "spin.toml").write_text(GUEST.replace("disk.img", "spin.img"))
    (place / "respin.toml").write_text(REPLAY.replace("disk.img", "spin.img").replace('"trace"', '"spin"'))
    ran = run(place, str(place / "spin.toml"), "--record", str(place / "spin"), "--timeout", "5")
    assert (ran.status, ran.guest["ended"]) == (3, "timeout"), ran.stderr
    again = run(place, str(place / "respin.toml"), "--timeout", "60")
    assert (again.status, again.guest["ended"]) == (3, "timeout"), again.stderr
    # All but the sleep in which it was told to stop.
    assert [row for row in counted(again) if row[0] != "hlt"] == [row for row in counted(ran) if row[0] != "hlt"]


def line_of(place: Path, *arguments: str) -> str:
    (place / "report.json").unlink(missing_ok=True)
    ran = run(place, *arguments)
    assert (ran.status, ran.report) == (2, {})
    (line,) = ran.stderr.splitlines()
    return line


@pytest.mark.parametrize(("content", "words"), [
    (lambda whole: whole[: len(whole) // 2], "is cut off"), (lambda whole: b"garbage", "is no trace, or a damaged one"),
    (lambda whole: b"", "is no trace"), (None, "cannot be read: No such file or directory"),
])
def test_a_tampered_trace_is_one_line(
    place: Path, first: Ran, content: Callable[[bytes], bytes] | None, words: str
) -> None:
    (place / "bad").unlink(missing_ok=True)
    if content:
        (place / "bad").write_bytes(content((place / "trace").read_bytes()))
    (place / "bad.toml").write_text(REPLAY.replace('"trace"', '"bad"'))
    assert line_of(place, str(place / "bad.toml")).startswith(
        f"miniguest: {place / 'bad.toml'}: guest[0].trace: {place / 'bad'}: {words}"
    )


@pytest.mark.parametrize(("topology", "words"), [
    (REPLAY.replace("memory = 16", "memory = 32"), "guest[0].trace: TRACE: was recorded with other MiB of memory: 16, here 32"),
    (REPLAY.replace('"hda"', '"hdb"'),
     "guest[0].trace: TRACE: was recorded with other disks: hda rw of 2048 sectors, here hdb rw"),
    (REPLAY.replace('trace = "trace"', ""), 'guest[0].trace: missing: engine = "replay" plays a trace'),
    (GUEST + 'trace = "trace"', 'guest[0].trace: only engine = "replay" plays a trace'),
    (REPLAY + 'serial = "pty"', 'guest[0].serial: what is typed is not in a trace: give "stdio" or a file'),
    (REPLAY + "vif = [{}]\n[link.lan0]\n", "guest[0].vif: what comes from a network is not in a trace"),
    (REPLAY + 'serial = "trace"', "guest[0].trace: TRACE: guest[0].serial writes there"),
])
def test_a_topology_that_cannot_replay_is_one_line(place: Path, first: Ran, topology: str, words: str) -> None:
    (place / "other.toml").write_text(topology)
    line = line_of(place, str(place / "other.toml"))
    assert line.startswith(f"miniguest: {place / 'other.toml'}: {words.replace('TRACE', str(place / 'trace'))}")


@pytest.mark.parametrize(("topology", "file", "words"), [
    (GUEST + '[[guest]]\nname = "h"\n', "new", "a trace is of one guest, and record has 2"),
    (GUEST + 'serial = "pty"', "new", "guest[0].serial: what is typed is not in a trace"),
    (GUEST, "no/such/place", "cannot be written: No such file or directory"), (GUEST, ".", "cannot be written: Is a directory"),
    (GUEST, "disk.img", "the guest reads this file"),
])
def test_what_cannot_be_recorded_is_one_line(tmp_path: Path, topology: str, file: str, words: str) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    (tmp_path / "record.toml").write_text(topology)
    line = line_of(tmp_path, str(tmp_path / "record.toml"), "--record", str(tmp_path / file))
    assert line.startswith(f"miniguest: {tmp_path / file}: --record: {words}")
    assert not (tmp_path / "new").exists()


def test_in_virtual_time_every_boot_makes_the_same_exits(place: Path) -> None:
    """At the same times, with the same answers: the traces of two boots are one."""
    (place / "virtual.toml").write_text('clock = "virtual"\n' + GUEST)
    traces = []
    for name in ("one", "two"):
        ran = run(place, str(place / "virtual.toml"), "--record", str(place / name), "--timeout", "60")
        assert (ran.status, ran.guest["ended"]) == (0, "poweroff"), ran.stderr
        assert ran.guest["exits"]["by_kind"]["hlt"] >= 3
        traces.append((place / name).read_bytes())
    assert traces[0] == traces[1]
    (place / "again.toml").write_text('clock = "virtual"\n' + REPLAY.replace('"trace"', '"one"'))
    again = run(place, str(place / "again.toml"), "--timeout", "60")
    assert (again.status, again.guest["ended"]) == (0, "poweroff"), again.stderr
    assert counted(again) == counted(ran)


def test_what_devices_read_of_ram_by_dma_is_there_again(tmp_path: Path) -> None:
    """A guest computes data, which the bus master writes to the disk: in a replay nobody computes it again."""
    body = BUSMASTER + """
        mov edi, 0x800000
        mov eax, 0x12345678
        mov ecx, 1024
1:      stosd
        imul eax, eax, 1103515245
        add eax, 12345
        loop 1b
        mov dword ptr [0x3000], 0x00800000
        mov dword ptr [0x3004], 0x80001000
        mov byte ptr [sectors], 8
        mov ebx, 512
        mov ax, 0x0035
        call dma
        jmp poweroff32
    """
    program = assemble(tmp_path, LOADER + PROTECTED + body, sectors=8).ljust(1 << 20, b"\0")
    image = tmp_path / "disk.img"
    image.write_bytes(program)
    (tmp_path / "record.toml").write_text(GUEST)
    (tmp_path / "replay.toml").write_text(REPLAY)
    ran = run(tmp_path, str(tmp_path / "record.toml"), "--record", str(tmp_path / "trace"), "--timeout", "60")
    assert (ran.status, ran.guest["ended"]) == (0, "poweroff"), ran.stderr
    written = image.read_bytes()[512 * SECTOR : 520 * SECTOR]
    assert written[:4] == b"\x78\x56\x34\x12"
    image.write_bytes(program)
    again = run(tmp_path, str(tmp_path / "replay.toml"), "--timeout", "60")
    assert (again.status, again.guest["ended"]) == (0, "poweroff"), again.stderr
    assert image.read_bytes()[512 * SECTOR : 520 * SECTOR] == written


@pytest.mark.parametrize("clock", ["real", "virtual"])
def test_a_reset_is_replayed(tmp_path: Path, clock: str) -> None:
    """A word on the disk outlives the reset: the second time round the program powers off."""
    program = assemble(tmp_path, """
        cli
        xor ax, ax
        mov ds, ax
        mov es, ax
        mov ss, ax
        mov sp, 0x7c00
        mov ax, 0x0201
        mov bx, 0x8000
        mov cx, 2
        mov dx, 0x80
        int 0x13
        cmp word ptr [0x8000], 0x5a5a
        je poweroff
        mov word ptr [0x8000], 0x5a5a
        mov ax, 0x0301
        int 0x13
        cli
        mov dx, 0xcf9
        mov al, 2
        out dx, al
        mov al, 6
        out dx, al
1:      hlt
        jmp 1b
    """ + LIBRARY).ljust(1 << 20, b"\0")
    for name, guest in (("record", GUEST), ("replay", REPLAY)):
        (tmp_path / f"{name}.toml").write_text(f'clock = "{clock}"\n{guest}')
    (tmp_path / "disk.img").write_bytes(program)
    ran = run(tmp_path, str(tmp_path / "record.toml"), "--record", str(tmp_path / "trace"), "--timeout", "60")
    assert (ran.status, ran.guest["ended"]) == (0, "poweroff"), ran.stderr
    assert ran.console.count("SeaBIOS") == 2
    (tmp_path / "disk.img").write_bytes(program)
    again = run(tmp_path, str(tmp_path / "replay.toml"), "--timeout", "60")
    assert (again.status, again.guest["ended"]) == (0, "poweroff"), again.stderr
    assert counted(again) == counted(ran)


def test_in_virtual_time_a_guest_that_polls_has_its_timer(tmp_path: Path) -> None:
    """The time of a poll is that of its exit, far more than that of the few blocks between two of them."""
    program = assemble(tmp_path, """
        xor ax, ax
        mov ds, ax
        mov ss, ax
        mov sp, 0x7c00
        sti
        mov bx, [0x46c]                 # ticks, 18.2 a second
        xor cx, cx
        mov dx, 0x3fb
1:      in al, dx                       # 65,536 times, a microsecond each
        loop 1b
        mov ax, [0x46c]
        sub ax, bx
        call hex
        jmp poweroff
    """ + LIBRARY)
    (tmp_path / "disk.img").write_bytes(program.ljust(1 << 20, b"\0"))
    (tmp_path / "virtual.toml").write_text('clock = "virtual"\n' + GUEST)
    ran = run(tmp_path, str(tmp_path / "virtual.toml"), "--timeout", "60")
    assert (ran.status, ran.guest["ended"]) == (0, "poweroff"), ran.stderr
    assert int(ran.console[-2:], 16) in (1, 2)
