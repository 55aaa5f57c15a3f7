"""A frontend in C that knows only Xen's headers: compiled, made a domain's, and spoken to in lines."""
import subprocess
from contextlib import suppress
from pathlib import Path

from peer import Domain

from miniguest.ring.events import table_path
from miniguest.ring.memory import Memory, domain_directory

HERE = Path(__file__).parent


def build(source: str, program: Path, *flags: str) -> Path:
    """Compile a source of this directory; the program."""
    strict = ["-O2", "-Wall", "-Wextra", "-Werror", f"-I{HERE / 'xen_domain_c'}"]
    subprocess.run(["cc", *strict, *flags, "-o", program, HERE / source], check=True)
    return program


def alloc_port(domain: Domain) -> int:
    """A port for dom0 to bind, of a domain whose events are the program's."""
    return int(domain.hypercalls.call("evtchn_alloc_unbound", domid=domain.domid, vcpu=0, remote_domid=0))


class CFrontend:
    """The program, run as the domain; `bells` is what comes before the vCPU's number in dom0's doorbells."""

    def __init__(self, program: Path, domain: Domain, bells: str = "", **arguments: int | str) -> None:
        runtime = domain.runtime
        mine, dom0 = domain_directory(runtime, domain.domid), domain_directory(runtime, 0)
        places = {
            "memory": mine / "memory", "dom0-memory": dom0 / "memory",
            "channels": table_path(runtime, domain.domid), "dom0-channels": table_path(runtime, 0),
            "bell": mine / "doorbell0", "bells": bells or dom0 / "doorbell",
            "shared-info": domain.memory.special("shared_info"), "grants": domain.memory.special("grants"),
            "dom0-shared-info": Memory(dom0 / "memory").special("shared_info"),
        }
        own = {name.replace("_", "-"): value for name, value in arguments.items()}
        self.process = subprocess.Popen(
            [program, *(f"{name}={value}" for name, value in (places | own).items())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        word, *grefs = self.line().split()
        assert word == "grefs"
        self.grefs = [int(gref) for gref in grefs]

    def line(self) -> str:
        """Its next line."""
        assert self.process.stdout
        return self.process.stdout.readline()

    def say(self, word: str) -> None:
        assert self.process.stdin
        with suppress(BrokenPipeError):         # it died: end() says of what
            self.process.stdin.write(word + "\n")
            self.process.stdin.flush()

    def end(self, patience: float) -> dict[str, int]:
        """Wait for its end; what it counted."""
        out, err = self.process.communicate(timeout=patience)
        assert self.process.returncode == 0, err
        words = out.split()
        return {name: int(value) for name, value in zip(words[::2], words[1::2], strict=True)}
