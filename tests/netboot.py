"""What boots over the network in tests: a kernel that says what it was given, a file of random bytes, and a script."""
import hashlib
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parent / "netboot_c/netboot.c"
SIZE = 1 << 20
FLAGS = (
    "-m32 -march=i686 -O2 -ffreestanding -fno-pic -fno-stack-protector -fno-asynchronous-unwind-tables -nostdlib -static "
    "-Wall -Werror -Wl,-N,-Ttext=0x100000,--build-id=none,-z,noexecstack,--no-warn-rwx-segments"
).split()


@dataclass(frozen=True)
class Netboot:
    """A directory to serve: `boot.ipxe` loads the kernel and the file; `proof` is what the kernel will then say."""

    directory: Path
    proof: str


def build(directory: Path) -> Netboot:
    """Make it, in an existing directory."""
    subprocess.run(["gcc", *FLAGS, "-o", directory / "netboot.elf", SOURCE], check=True)
    content = os.urandom(SIZE)
    (directory / "blob").write_bytes(content)
    (directory / "boot.ipxe").write_text("#!ipxe\nkernel netboot.elf\nmodule blob\nboot\n")
    for file in directory.iterdir():
        file.chmod(0o644)
    return Netboot(directory, f"module {SIZE} {hashlib.sha256(content).hexdigest()}")
