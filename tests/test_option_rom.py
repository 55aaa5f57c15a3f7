"""Option ROMs: where they are found, how they are fitted to a card, how much room they take, and how a card shows them."""
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniguest.deploy import option_rom, toolstack
from miniguest.deploy.errors import FirmwareError
from miniguest.frontend.devices.option_rom import OptionRom
from miniguest.frontend.network_card import MODELS
from miniguest.ring.memory import FRAME_SIZE, ROM_FRAMES, Memory

PCIR_AT = 0x1C
REAL = [Path(place) / f"pxe-{model}.rom" for place in option_rom.PLACES for model in MODELS]


def rom(size: int = 1024, ids: tuple[int, int] = (0, 0), at: int = PCIR_AT, fill: int = 0x5A) -> bytes:
    """An image whose bytes add up to 0."""
    image = bytearray([fill]) * size
    image[:6] = b"\x55\xaa" + bytes([size // 512 & 0xFF]) + b"\xeb\x10\0"
    image[0x18:0x1A] = at.to_bytes(2, "little")
    struct.pack_into("<4sHHHHB", image, at, b"PCIR", *ids, 0, 24, 0)
    image[6] = 0
    image[6] = -sum(image) & 0xFF
    return bytes(image)


def ids(image: bytes) -> tuple[int, int]:
    at = int.from_bytes(image[0x18:0x1A], "little")
    found: tuple[int, int] = struct.unpack_from("<HH", image, at + 4)
    return found


# -- fitted
@given(vendor=st.integers(0, 0xFFFF), device=st.integers(0, 0xFFFF), fill=st.integers(0, 255), at=st.sampled_from([28, 64, 999]))
def test_a_rom_for_any_card_gets_the_cards_ids_and_keeps_its_checksum(vendor: int, device: int, fill: int, at: int) -> None:
    image = rom(fill=fill, at=at)
    made = option_rom.fitted(image, vendor, device)
    assert ids(made) == (vendor, device)
    assert sum(made) & 0xFF == 0 and len(made) == len(image)
    changed = [index for index, (one, other) in enumerate(zip(image, made, strict=True)) if one != other]
    assert set(changed) <= {6, *range(at + 4, at + 8)}


@pytest.mark.parametrize("own", [(0x8086, 0x100E), (0, 1), (1, 0), (0xFFFF, 0xFFFF)])
def test_a_rom_for_some_card_stays_as_it_is(own: tuple[int, int]) -> None:
    image = rom(ids=own)
    assert option_rom.fitted(image, 0x10EC, 0x8139) == image


@pytest.mark.parametrize("model", MODELS)
def test_the_roms_of_this_machine_are_for_their_cards(model: str) -> None:
    """Those that are installed; as many of them as there are."""
    identity = MODELS[model].IDENTITY
    for path in (path for path in REAL if path.name == f"pxe-{model}.rom" and path.is_file()):
        assert option_rom.find(str(path), model, Path()) == path
        made = option_rom.fitted(option_rom.read(path), identity.vendor, identity.device)
        assert ids(made) == (identity.vendor, identity.device)
        assert sum(made[: made[2] * 512]) & 0xFF == 0
        assert option_rom.frames(made) <= ROM_FRAMES


# -- find
def test_none_is_none_and_paths_start_at_the_file(tmp_path: Path) -> None:
    assert option_rom.find("none", "e1000", tmp_path) is None
    (tmp_path / "x.rom").write_bytes(rom())
    assert option_rom.find("x.rom", "e1000", tmp_path) == tmp_path / "x.rom"
    assert option_rom.find(str(tmp_path / "x.rom"), "e1000", Path("/nowhere")) == tmp_path / "x.rom"


def test_the_environment_comes_instead_of_the_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pxe-e1000.rom").write_bytes(rom())
    monkeypatch.setattr(option_rom, "PLACES", (str(tmp_path / "none"), str(tmp_path / "two"), str(tmp_path / "one")))
    monkeypatch.delenv(option_rom.ENVIRONMENT, raising=False)
    assert option_rom.find("auto", "e1000", tmp_path) == tmp_path / "two/pxe-e1000.rom"
    monkeypatch.setenv(option_rom.ENVIRONMENT, str(tmp_path / "one"))
    assert option_rom.find("auto", "e1000", tmp_path) == tmp_path / "one/pxe-e1000.rom"
    monkeypatch.setenv(option_rom.ENVIRONMENT, str(tmp_path / "none"))
    with pytest.raises(FirmwareError, match="no iPXE ROM for e1000"):
        option_rom.find("auto", "e1000", tmp_path)


@pytest.mark.parametrize(("image", "trouble"), [
    (b"", "does not begin with 55 aa"), (b"\x55\xaa", "does not begin"), (rom()[:511], "does not begin"),
    (b"\xaa\x55" + rom()[2:], "does not begin"), (rom().replace(b"PCIR", b"PCIX"), "no PCI data structure"),
    (rom(at=1001)[:1024], "no PCI data structure"), (rom()[:0x18] + b"\xff\xff" + rom()[0x1A:], "no PCI data structure"),
])
def test_what_is_no_option_rom(tmp_path: Path, image: bytes, trouble: str) -> None:
    (tmp_path / "x.rom").write_bytes(image)
    with pytest.raises(FirmwareError, match=trouble):
        option_rom.find("x.rom", "e1000", tmp_path)


@given(data=st.binary(max_size=600))
def test_whatever_is_found_can_be_fitted(data: bytes) -> None:
    """`fitted` is for images that `find` accepted: those never make it raise."""
    image = (b"\x55\xaa" + data).ljust(512, b"\0")
    for at in (0, 6, 505, 488, 489, len(image) - 4, len(image) - 24, len(image) - 23):
        made = bytearray(image)
        made[0x18:0x1A] = at.to_bytes(2, "little")
        made[at : at + 4] = b"PCIR"
        if not option_rom._trouble(bytes(made)):
            assert len(option_rom.fitted(bytes(made), 0x8086, 0x100E)) == len(made)


# -- room
@pytest.mark.parametrize(("size", "frames"), [
    (1, 1), (512, 1), (4096, 1), (4097, 2), (8192, 2), (8193, 4), (1 << 17, 32), ((1 << 17) + 1, 64), (1 << 20, 256),
])
def test_frames_are_a_power_of_two_and_the_cards_bar(size: int, frames: int) -> None:
    assert option_rom.frames(bytes(size)) == frames
    assert OptionRom(bytes(size)).size == frames * FRAME_SIZE


def test_room_is_for_all_of_a_guests(tmp_path: Path) -> None:
    for name, size in (("large", 512 << 10), ("little", 1024)):
        (tmp_path / name).write_bytes(rom(size))
    large, little = tmp_path / "large", tmp_path / "little"
    assert option_rom.room_trouble([]) == option_rom.room_trouble([large, large]) == ""
    assert option_rom.room_trouble([large, *[little] * 128]) == ""
    assert option_rom.room_trouble([large, large, little]).startswith("1028 KiB of option ROMs, of 1024 KiB there is room for")


def test_roms_are_placed_one_behind_the_other(tmp_path: Path) -> None:
    memory = Memory.create(tmp_path / "memory", 16)
    first = memory.special("roms")
    images = [rom(5 << 10), b"", rom(1024), rom(1 << 19)]
    frame, places = first, []
    for image in images:
        places.append(frame)
        frame = toolstack._place_rom(memory, frame, image)
    assert [place - first for place in places] == [0, 2, 2, 3] and frame - first == 131
    for place, image in zip(places, images, strict=True):
        count = option_rom.frames(image) if image else 0
        if count:
            assert bytes(memory.frames(place, count)) == image.ljust(count * FRAME_SIZE, b"\xff")
    assert not any(memory.frames(frame, first + ROM_FRAMES - frame))
    memory.close()


# -- the device
@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_rom_reads_as_its_image_and_ones_behind_it(size: int) -> None:
    image = bytes(range(1, 255)) * 17
    device = OptionRom(image)
    assert device.size == 8192 and device.content == image.ljust(8192, b"\xff")
    for offset in (0, 1, len(image) - 1, len(image), 8192 - size, 8191, 8192, 1 << 40):
        wanted = image.ljust(8192, b"\xff")[offset : offset + size].ljust(size, b"\xff")
        assert device.read(offset, size) == int.from_bytes(wanted, "little")
    assert device.read(-1, size) == (1 << 8 * size) - 1
    device.write(0, size, 0)
    assert device.read(0, size) == int.from_bytes(image[:size], "little")
