"""Counters of a split device, in a small shared file that outlives its process: who wrote it, and anybody who reads."""
from pathlib import Path
from typing import Final

from miniguest.ring.memory import domain_directory
from miniguest.ring.words import map_words

FIELDS: Final = (               # of a vbd; the order is _blkback.pxi's
    "requests", "responses", "notifications_sent", "notifications_saved", "bytes_read", "bytes_written", "errors",
)

VIF_FIELDS: Final = (           # tx is what the guest transmitted, rx what it received; the order is _netback.pxi's
    "tx_requests", "tx_responses", "tx_notifications_sent", "tx_notifications_saved",
    "rx_requests", "rx_responses", "rx_notifications_sent", "rx_notifications_saved",
    "tx_packets", "tx_bytes", "rx_packets", "rx_bytes", "tx_dropped", "rx_dropped", "errors",
)

LINK_FIELDS: Final = (          # what crossed a link, and what of it went through its uplink; the order is _switch.pxi's
    "frames", "bytes", "flooded", "filtered", "uplink_sent_frames", "uplink_sent_bytes",
    "uplink_received_frames", "uplink_received_bytes", "uplink_dropped",
)


def statistics_path(runtime: Path, kind: str, domid: int, device: int) -> Path:
    """Where the backend of a domain's device counts; kind is "vbd" or "vif"."""
    return domain_directory(runtime, domid) / f"{kind}{device}.statistics"


def vbd_counters(path: Path) -> memoryview:
    """One u64 for each of FIELDS, for the compiled path to count in. One writer."""
    return map_words(path, len(FIELDS), create=not path.exists())


def read_statistics(path: Path) -> dict[str, int]:
    """Every counter by name; zeros when the device was never connected."""
    return _read(path, FIELDS)


def vif_counters(path: Path) -> memoryview:
    """One u64 for each of VIF_FIELDS, for the compiled path to count in. One writer."""
    return map_words(path, len(VIF_FIELDS), create=not path.exists())


def read_vif_statistics(path: Path) -> dict[str, int]:
    """Every counter of a vif by name; zeros when it was never connected."""
    return _read(path, VIF_FIELDS)


def link_statistics_path(runtime: Path, name: str) -> Path:
    """Where netback counts what crosses a link."""
    return runtime / f"link-{name}.statistics"


def link_counters(path: Path) -> memoryview:
    """One u64 for each of LINK_FIELDS, for the compiled path to set. One writer."""
    return map_words(path, len(LINK_FIELDS), create=not path.exists())


def read_link_statistics(path: Path) -> dict[str, int]:
    """Every counter of a link by name, since netback was last started; zeros before."""
    return _read(path, LINK_FIELDS)


def _read(path: Path, fields: tuple[str, ...]) -> dict[str, int]:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raw = b""
    raw = raw.ljust(len(fields) * 8, b"\0")
    return {name: int.from_bytes(raw[i * 8 : i * 8 + 8], "little") for i, name in enumerate(fields)}
