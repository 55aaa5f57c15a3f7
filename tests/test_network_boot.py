"""iPXE's unmodified ROMs, started by SeaBIOS from each card's ROM BAR, get a lease and load a file, which proves itself.

Once over a TAP in a network namespace of the test's own, with dnsmasq, and once over the socket link with passt and a
web server on loopback, which needs no privileges.
"""
import http.server
import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from guests import MINIGUEST, Conversation
from netboot import Netboot, build

MAC = "00:16:3e:00:00:01"
MODELS = ("e1000", "rtl8139", "ne2k_pci")
SECONDS = 300
# Where a card's driver starts a transmission: one access a frame. By the offset in the card's BAR.
TRANSMIT = {"e1000": {0x3818}, "rtl8139": {0x10, 0x14, 0x18, 0x1C, 0xD9}, "ne2k_pci": {0x04}}
GUEST = """
    [[guest]]
    name = "hvm0"
    vif = [{{ model = "{model}", mac = "{mac}", link = "lan0" }}]
    boot = "n"
    [link.lan0]
    capture = "lan0.pcap"
"""
TAP = GUEST + """
    kind = "tap"
    device = "mg0"
    address = "10.77.0.1/24"
"""
SOCKET = GUEST + """
    kind = "socket"
    path = "{path}"
"""
IN_NAMESPACE = """
    ip link set lo up
    dnsmasq --keep-in-foreground --conf-file=/dev/null --port=0 --interface=mg0 --bind-dynamic --user= --group= \\
        --dhcp-range=10.77.0.50,10.77.0.60,255.255.255.0 --dhcp-boot=boot.ipxe --dhcp-leasefile=/dev/null \\
        --enable-tftp --tftp-root="$1" --pid-file= 2> dnsmasq.log &
    server=$!
    shift
    "$@"
    status=$?
    kill $server
    wait $server
    exit $status
"""


@pytest.fixture(scope="module")
def netboot(tmp_path_factory: pytest.TempPathFactory) -> Netboot:
    return build(tmp_path_factory.mktemp("served"))


def tshark(capture: Path, display: str) -> list[str]:
    """The frames of a capture that a display filter leaves, a line each: source and length; checksums are looked at."""
    checks = [f"-o{protocol}.check_checksum:TRUE" for protocol in ("ip", "udp", "tcp")]
    checks.append("-otcp.desegment_tcp_streams:FALSE")          # frame by frame: what was sent twice is not malformed
    done = subprocess.run(
        ["tshark", "-r", capture, *checks, "-Y", display, "-T", "fields", "-e", "eth.src", "-e", "frame.len"],
        capture_output=True, text=True, check=True,
    )
    return done.stdout.splitlines()


def exits_per_packet(vif: dict[str, Any]) -> str:
    """A line of the README's table."""
    packets, kib = vif["tx_packets"] + vif["rx_packets"], (vif["tx_bytes"] + vif["rx_bytes"]) / 1024
    return (
        f"{vif['model']}: sent {vif['tx_packets']}, received {vif['rx_packets']}, exits {vif['exits_work']}, "
        f"per packet {vif['exits_work'] / packets:.1f}, per KiB {vif['exits_work'] / kib:.1f}, idle {vif['exits_idle']}, "
        f"interrupts {vif['interrupts']}"
    )


def look_at(guest: dict[str, Any], model: str, capture: Path, lossless: bool) -> None:
    """The report's vif against the capture, and the capture against tshark's idea of a good one. lossless: the other end
    waits for answers, so that every frame for the guest reaches it."""
    (vif,) = guest["vifs"]
    sent = [int(line.split()[1]) for line in tshark(capture, f"eth.src == {MAC}")]
    received = [int(line.split()[1]) for line in tshark(capture, f"eth.dst == {MAC}")]
    groups = [int(line.split()[1]) for line in tshark(capture, f"eth.src != {MAC} && eth.dst.ig == 1")]
    assert len(sent) > 20 and len(received) > 500
    assert (vif["model"], vif["mac"], vif["link"]) == (model, MAC, "lan0")
    assert (vif["tx_packets"], vif["tx_bytes"]) == (len(sent), sum(sent))
    # In the capture only is what the other end sent to all before the vif was there, and what it sent again and again while
    # the guest was slow (passt sends a whole window anew) or off.
    assert (len(received) if lossless else 501) <= vif["rx_packets"] <= len(received) + len(groups)
    assert not lossless or sum(received) <= vif["rx_bytes"]
    assert vif["rx_bytes"] <= sum(received) + sum(groups)
    bad = ["_ws.malformed", *(f"{protocol}.checksum.status == 0" for protocol in ("ip", "udp", "tcp"))]
    assert tshark(capture, " || ".join(bad)) == []
    rows = [row for row in guest["exits"]["rows"] if row["device"] == model]
    assert vif["exits_work"] + vif["exits_idle"] == sum(row["exits"] for row in rows)
    assert vif["exits_idle"] > 0
    base = min(row["address"] for row in rows) & ~0x1F          # the first register of each card is used
    out = [row for row in rows if row["kind"].endswith(("out", "write")) and row["address"] - base in TRANSMIT[model]]
    print(exits_per_packet(vif))
    # A few more: the registers are also written while the card is set up.
    assert 0 <= sum(row["exits"] for row in out) - len(sent) <= 10


@pytest.mark.parametrize("model", MODELS)
def test_tftp_over_a_tap(netboot: Netboot, tmp_path: Path, model: str) -> None:
    (tmp_path / "net.toml").write_text(TAP.format(model=model, mac=MAC))
    namespace = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--net", "--map-root-user"]
    command = [*MINIGUEST, "run", "net.toml", "--timeout", str(SECONDS), "--json", "report.json"]
    done = subprocess.run(
        [*namespace, "sh", "-c", IN_NAMESPACE, "sh", netboot.directory, *command], cwd=tmp_path, capture_output=True, text=True,
        stdin=subprocess.DEVNULL, timeout=SECONDS + 60,
    )
    assert done.returncode == 0, done.stderr + done.stdout[-3000:]
    guest = json.loads((tmp_path / "report.json").read_text())["guests"][0]
    assert "net0: 10.77.0.5" in guest["console"]
    assert netboot.proof in guest["console"]
    look_at(guest, model, tmp_path / "lan0.pcap", lossless=True)


@contextmanager
def passt() -> Iterator[Path]:
    """passt in the foreground; its socket. Run by root it becomes nobody, who must be able to make the socket."""
    directory = Path(tempfile.mkdtemp(prefix="miniguest-passt-"))
    try:
        directory.chmod(0o777)
        path = directory / "socket"
        network = "-4 -a 10.0.2.15 -n 24 -g 10.0.2.2 -m 1500".split()
        process = subprocess.Popen(
            ["passt", "-f", "-e", "-s", path, *network], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True,
        )
        try:
            assert process.stderr
            assert any("You can now start" in line for line in process.stderr)      # it listens
            yield path
        finally:
            process.terminate()
            process.communicate(timeout=30)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None: ...


@contextmanager
def web_server(directory: Path) -> Iterator[int]:
    """Serves a directory on a port of loopback's."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=directory)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def type_line(conversation: Conversation, line: str) -> None:
    """Type as a person does, looking at the echo: the BIOS keeps 15 keys at most."""
    for character in line:
        conversation.write(character.encode())
        conversation.read_until(character.encode())
    conversation.write(b"\r")


@pytest.mark.parametrize("model", MODELS)
def test_http_over_the_socket_link(netboot: Netboot, tmp_path: Path, model: str) -> None:
    report = tmp_path / "report.json"
    with passt() as path, web_server(netboot.directory) as port:
        (tmp_path / "net.toml").write_text(SOCKET.format(model=model, mac=MAC, path=path))
        arguments = [str(tmp_path / "net.toml"), "--timeout", str(SECONDS), "--json", str(report)]
        with Conversation(*arguments, seconds=SECONDS) as conversation:
            conversation.read_until(b"Press Ctrl-B for the iPXE command line")
            conversation.write(b"\x02")
            conversation.read_until(b"iPXE>")
            type_line(conversation, "dhcp")
            conversation.read_until(b"iPXE>")
            type_line(conversation, f"chain http://10.0.2.2:{port}/boot.ipxe")
            conversation.read_until(b"netboot ends")
            assert conversation.wait() == 0
    guest = json.loads(report.read_text())["guests"][0]
    assert netboot.proof in guest["console"]
    look_at(guest, model, tmp_path / "lan0.pcap", lossless=False)
