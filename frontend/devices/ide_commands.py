"""ATA commands by number (ATA/ATAPI-6, chapter 8; the 9Xh power commands are ATA-3's). What is not here aborts."""

from __future__ import annotations

from collections.abc import Callable

from miniguest.frontend.devices import ide_registers as r
from miniguest.frontend.devices.ide_address import read_sector
from miniguest.frontend.devices.ide_drive import Drive

Command = Callable[[Drive], None]
ACTIVE, IDLE_POWER, STANDBY = 0xFF, 0x80, 0x00
PIO_MODES = frozenset((0x00, 0x01, *range(0x08, 0x0D)))
DMA_MODES = frozenset((*range(0x20, 0x23), *range(0x40, 0x46)))
DIAGNOSTIC = 0x90  # both drives obey it: the channel's business


def execute(drive: Drive, command: int) -> None:
    """Begin a command; it may be over when this returns. A drive that sleeps hears only resets."""
    s = drive.state
    if s.asleep:
        return
    drive.abandon()
    s.error, s.extended, s.power = 0, False, s.power if command in KEEP_POWER else ACTIVE
    action = COMMANDS.get(command)
    if action is None:
        drive.fail(r.ABRT)
    else:
        action(drive)


def _transfer(task: str, extended: bool = False, multiple: bool = False) -> Command:
    """A command that moves sectors."""
    by_dma, writes = task in (r.DMA_IN, r.DMA_OUT), task in (r.PIO_OUT, r.DMA_OUT)

    def run(drive: Drive) -> None:
        s = drive.state
        s.extended = extended
        if (multiple and not s.multiple) or (by_dma and drive.dma is None):
            drive.fail(r.ABRT)
        elif writes and drive.disk.read_only:
            drive.fail(r.ABRT | r.WP)
        else:
            _in_range(drive, task, s.multiple if multiple else 1)

    return run


def _in_range(drive: Drive, task: str, block: int) -> None:
    """Begin over the sectors that the task file names, if they all exist. A count of 0 is the most there can be."""
    s, sectors = drive.state, drive.disk.sectors
    count = (s.count if s.extended else s.count & 0xFF) or (65536 if s.extended else 256)
    sector = read_sector(s, sectors)
    if sector is None or sector + count > sectors:
        drive.fail(r.IDNF | r.ABRT)
    else:
        drive.start(task, sector, count, block)


def _flush(extended: bool) -> Command:
    def run(drive: Drive) -> None:
        drive.state.extended = extended
        drive.start_flush()

    return run


def _set_multiple(drive: Drive) -> None:
    """A power of two up to MULTIPLE_MAX, or 0 to turn it off."""
    count = drive.state.count & 0xFF
    if count > r.MULTIPLE_MAX or count & count - 1:
        drive.state.multiple = 0
        drive.fail(r.ABRT)
    else:
        drive.state.multiple = count
        drive.complete()


def _initialize_parameters(drive: Drive) -> None:
    """The translation of cylinder, head and sector from now on."""
    s = drive.state
    if not s.count & 0xFF:
        drive.fail(r.ABRT)
        return
    s.heads, s.sectors_per_track = (s.device & 15) + 1, s.count & 0xFF
    drive.complete()


def _seek(drive: Drive) -> None:
    sector = read_sector(drive.state, drive.disk.sectors)
    if sector is None or sector >= drive.disk.sectors:
        drive.fail(r.IDNF | r.ABRT)
    else:
        drive.complete()


def _set_features(drive: Drive) -> None:
    s = drive.state
    mode = s.count & 0xFF
    match s.feature & 0xFF:
        case 0x02 | 0x82 as feature:
            s.write_cache = feature == 0x02
        case 0xAA | 0x55 as feature:
            s.look_ahead = feature == 0xAA
        case 0x03 if mode in PIO_MODES or (mode in DMA_MODES and drive.dma is not None):
            if mode in DMA_MODES:  # a PIO mode leaves the DMA mode as it was
                s.transfer_mode = mode
        case 0x66 | 0xCC:  # whether a reset brings defaults back: the few settings here survive it either way
            pass
        case _:
            drive.fail(r.ABRT)
            return
    if s.feature & 0xFF == 0x82:
        drive.start_flush()  # turning the cache off writes what is in it
    else:
        drive.complete()


def _power(mode: int, sleep: bool = False) -> Command:
    def run(drive: Drive) -> None:
        drive.state.power = mode
        drive.complete()
        drive.state.asleep = sleep

    return run


def _check_power(drive: Drive) -> None:
    drive.state.count = drive.state.power
    drive.complete()


def _abort(drive: Drive) -> None:
    """NOP and the packet commands are known, and what they do is to abort."""
    drive.fail(r.ABRT)


COMMANDS: dict[int, Command] = {
    0x00: _abort,  # NOP
    0x08: _abort,  # DEVICE RESET: packet devices only
    0x20: _transfer(r.PIO_IN),
    0x21: _transfer(r.PIO_IN),
    0x24: _transfer(r.PIO_IN, extended=True),
    0x25: _transfer(r.DMA_IN, extended=True),
    0x29: _transfer(r.PIO_IN, extended=True, multiple=True),
    0x30: _transfer(r.PIO_OUT),
    0x31: _transfer(r.PIO_OUT),
    0x34: _transfer(r.PIO_OUT, extended=True),
    0x35: _transfer(r.DMA_OUT, extended=True),
    0x39: _transfer(r.PIO_OUT, extended=True, multiple=True),
    0x40: _transfer(r.VERIFY),
    0x41: _transfer(r.VERIFY),
    0x42: _transfer(r.VERIFY, extended=True),
    0x91: _initialize_parameters,
    0xA0: _abort,  # PACKET
    0xA1: _abort,  # IDENTIFY PACKET DEVICE
    0xC4: _transfer(r.PIO_IN, multiple=True),
    0xC5: _transfer(r.PIO_OUT, multiple=True),
    0xC6: _set_multiple,
    0xC8: _transfer(r.DMA_IN),
    0xC9: _transfer(r.DMA_IN),
    0xCA: _transfer(r.DMA_OUT),
    0xCB: _transfer(r.DMA_OUT),
    0xE7: _flush(extended=False),
    0xEA: _flush(extended=True),
    0xEC: Drive.start_identify,
    0xEF: _set_features,
}
for _code in range(0x10, 0x20):
    COMMANDS[_code] = Drive.complete  # RECALIBRATE
for _code in range(0x70, 0x80):
    COMMANDS[_code] = _seek
for _base in (0x94, 0xE0):
    COMMANDS[_base] = COMMANDS[_base + 2] = _power(STANDBY)
    COMMANDS[_base + 1] = COMMANDS[_base + 3] = _power(IDLE_POWER)
COMMANDS[0x98] = COMMANDS[0xE5] = _check_power
COMMANDS[0x99] = COMMANDS[0xE6] = _power(STANDBY, sleep=True)
KEEP_POWER = frozenset((0x98, 0xE5))
