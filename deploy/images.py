"""The image of the README: GRUB 2 on a disk, that proves over the serial line that it has read every sector it should.

GRUB prints a line, computes the SHA-256 of a file of random bytes with its own `sha256sum`, prints it and switches the
machine off. Source: the GNU GRUB manual, sections 3.3 (grub-mkrescue) and 16 (commands).
"""
from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from miniguest.deploy.errors import ImageError

FIRST_LINE = "miniguest: first light"
FILE = "random.bin"
MODULES = "biosdisk iso9660 part_msdos normal echo serial terminal hashsum gcry_sha256 halt"
# What the first configuration that grub-mkrescue writes loads unasked: partition tables of all sorts.
PARTITIONS = (
    "part_acorn part_amiga part_apple part_bsd part_dfly part_dvh part_gpt part_msdos part_plan part_sun part_sunpc"
)

# The console of the BIOS would do for output, but only a serial terminal shows that the UART works both ways.
CONFIG = f"""\
serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
echo "{FIRST_LINE}"
sha256sum /{FILE}
halt
"""

# Program names and module directories differ: Debian, Arch and Alpine; Fedora and openSUSE.
_MKRESCUE = ("grub-mkrescue", "grub2-mkrescue")
_MODULE_DIRS = ("/usr/lib/grub/i386-pc", "/usr/share/grub/i386-pc", "/usr/share/grub2/i386-pc")


@dataclass(frozen=True, slots=True)
class FirstLight:
    """A bootable image, and what its console is to say about the file of `size` bytes inside."""

    image: Path
    sha256: str         # 64 hex digits
    size: int           # bytes


def build_first_light(directory: Path, size: int = 1 << 20) -> FirstLight:
    """Build `first-light.img` in an existing directory, around a new file of `size` random bytes.

    Takes less than a second; the image has some 2 MiB. Raises ImageError when a program is missing or fails.
    """
    content = os.urandom(size)
    image = build(directory, CONFIG, {FILE: content}, "first-light.img")
    return FirstLight(image, hashlib.sha256(content).hexdigest(), size)


def build(directory: Path, config: str, files: Mapping[str, bytes], name: str = "grub.img", modules: str = MODULES) -> Path:
    """A GRUB image with this grub.cfg and these files in its root, as `directory`/`name`. Raises ImageError."""
    mkrescue, from_directory = _tools()
    image = directory / name
    with tempfile.TemporaryDirectory(prefix="tree-", dir=directory) as root:
        tree = Path(root)
        (tree / "boot/grub").mkdir(parents=True)
        (tree / "boot/grub/grub.cfg").write_text(config)
        for file, content in files.items():
            (tree / file).write_bytes(content)
        _run([mkrescue, f"--directory={from_directory}", f"--output={image}", f"--install-modules={modules} {PARTITIONS}",
              f"--modules={modules}", "--locales=", "--fonts=", "--themes=", tree])
    return image


def _tools() -> tuple[str, str]:
    """grub-mkrescue and the directory of its modules for a BIOS machine."""
    mkrescue = next(filter(None, map(shutil.which, _MKRESCUE)), None)
    modules = next(filter(os.path.isdir, _MODULE_DIRS), None)
    wanted = {
        "grub-common": mkrescue,
        "grub-pc-bin": modules,
        "xorriso": shutil.which("xorriso"),
    }
    missing = [package for package, found in wanted.items() if not found]
    if missing or not (mkrescue and modules):
        raise ImageError(f"the GRUB image cannot be built without the packages {', '.join(missing)}: install them")
    return mkrescue, modules


def _run(command: list[str | Path]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        raise ImageError(f"{command[0]} ended with status {done.returncode}: {lines[-1].strip()}")
