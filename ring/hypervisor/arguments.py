"""What a hypercall's arguments may be: every name means the same in each, so one table says it."""
from typing import Any, Final

from miniguest.ring.abi.event_channel import EVTCHN_2L_NR_CHANNELS
from miniguest.ring.abi.xen import DOMID_SELF
from miniguest.ring.errors import HypercallError

_DOMIDS: Final = range(DOMID_SELF + 1)
_PORTS: Final = range(EVTCHN_2L_NR_CHANNELS)
_ANY: Final = range(1 << 64)
NUMBERS: Final[dict[str, range]] = {
    "domid": _DOMIDS, "remote_domid": _DOMIDS, "dm_domid": _DOMIDS,
    "vcpu": _ANY, "vcpus": _ANY, "port": _PORTS, "remote_port": _PORTS,
    "ram_frames": range(1, 1 << 32), "pid": range(1, 1 << 31), "reason": range(256), "index": _ANY, "value": _ANY,
    "kind": _ANY, "start": _ANY, "end": _ANY,
    "frame": range(1 << 32), "buffered": range(2),
}
MOST_NAME: Final = 255


def check_arguments(op: str, args: Any) -> None:
    """HypercallError (EINVAL) unless every argument is of its type and range, so that an operation is done or not begun.

    Numbers are those of NUMBERS, the rest are names. Whether they are the operation's own, Python says.
    """
    if not isinstance(args, dict):
        raise HypercallError("EINVAL", f"{op} takes named arguments, not {args!r:.80}")
    for name, value in args.items():
        if name in NUMBERS:
            if type(value) is not int or value not in NUMBERS[name]:
                raise HypercallError("EINVAL", f"{op}: {name} is {value!r:.80}")
        elif not isinstance(value, str) or len(value) > MOST_NAME:
            raise HypercallError("EINVAL", f"{op}: {name!r:.80} is {value!r:.80}, not a name")
