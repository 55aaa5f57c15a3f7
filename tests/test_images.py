"""The GRUB image: its layout, and what is said when it cannot be built."""
from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from miniguest.deploy import images
from miniguest.deploy.errors import ImageError


def test_image_boots_as_a_disk_and_holds_the_file(tmp_path: Path) -> None:
    made = images.build_first_light(tmp_path, size=64 << 10)
    content = made.image.read_bytes()
    assert content[510:512] == b"\x55\xaa"              # a master boot record
    assert len(content) % 512 == 0
    assert images.FIRST_LINE.encode() in content        # grub.cfg lies in the image as it is
    # ISO 9660 keeps a file in one piece, from a sector of 2048 bytes on.
    starts = range(0, len(content) - made.size + 1, 2048)
    assert any(hashlib.sha256(content[at : at + made.size]).hexdigest() == made.sha256 for at in starts)
    assert [entry.name for entry in tmp_path.iterdir()] == [made.image.name]


def test_no_two_images_hold_the_same(tmp_path: Path) -> None:
    first = images.build_first_light(tmp_path, size=4096).sha256
    assert images.build_first_light(tmp_path, size=4096).sha256 != first


def test_configuration_is_serial_and_ends_by_itself() -> None:
    lines = images.CONFIG.splitlines()
    assert lines[0] == "serial --unit=0 --speed=115200"
    assert f"sha256sum /{images.FILE}" in lines
    assert lines[-1] == "halt"


def test_missing_programs_are_named_by_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImageError, match="without the packages grub-common, xorriso: install them"):
        images.build_first_light(tmp_path)


def test_missing_modules_are_named_by_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_MODULE_DIRS", (str(tmp_path / "no"),))
    with pytest.raises(ImageError, match="without the packages grub-pc-bin: install them"):
        images.build_first_light(tmp_path)


def test_a_program_that_fails_is_quoted_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    for name in ("grub-mkrescue", "xorriso"):
        (bin_dir / name).write_text("#!/bin/sh\necho first >&2\necho 'no space left' >&2\nexit 7\n")
        (bin_dir / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(bin_dir))
    with pytest.raises(ImageError, match=r"ended with status 7: no space left$"):
        images.build_first_light(tmp_path)
    assert list(tmp_path.iterdir()) == [bin_dir]
