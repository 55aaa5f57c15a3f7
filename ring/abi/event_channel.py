"""Event channels, the 2-level kind, and the operations on them: xen/event_channel.h."""
from typing import Final

from miniguest.ring.abi.layout import U16, U32, Layout, Union

HEADER: Final = "xen/event_channel.h"

EVTCHN_2L_NR_CHANNELS: Final = 4096     # ports of a domain: 64 selector bits, each for a word of 64

EVTCHNOP_bind_interdomain: Final = 0
EVTCHNOP_bind_virq: Final = 1
EVTCHNOP_bind_pirq: Final = 2
EVTCHNOP_close: Final = 3
EVTCHNOP_send: Final = 4
EVTCHNOP_status: Final = 5
EVTCHNOP_alloc_unbound: Final = 6
EVTCHNOP_bind_ipi: Final = 7
EVTCHNOP_bind_vcpu: Final = 8
EVTCHNOP_unmask: Final = 9
EVTCHNOP_reset: Final = 10

EVTCHNSTAT_closed: Final = 0
EVTCHNSTAT_unbound: Final = 1
EVTCHNSTAT_interdomain: Final = 2
EVTCHNSTAT_pirq: Final = 3
EVTCHNSTAT_virq: Final = 4
EVTCHNSTAT_ipi: Final = 5

ALLOC_UNBOUND: Final = Layout("struct evtchn_alloc_unbound", dom=U16, remote_dom=U16, port=U32)
BIND_INTERDOMAIN: Final = Layout("struct evtchn_bind_interdomain", remote_dom=U16, remote_port=U32, local_port=U32)
BIND_VIRQ: Final = Layout("struct evtchn_bind_virq", virq=U32, vcpu=U32, port=U32)
BIND_IPI: Final = Layout("struct evtchn_bind_ipi", vcpu=U32, port=U32)
BIND_VCPU: Final = Layout("struct evtchn_bind_vcpu", port=U32, vcpu=U32)
CLOSE: Final = Layout("struct evtchn_close", port=U32)
SEND: Final = Layout("struct evtchn_send", port=U32)
UNMASK: Final = Layout("struct evtchn_unmask", port=U32)
RESET: Final = Layout("struct evtchn_reset", dom=U16)

STATUS: Final = Layout(
    "struct evtchn_status",
    dom=U16,
    port=U32,
    status=U32,
    vcpu=U32,
    u=Union(
        "union",
        unbound=Layout("struct", dom=U16),
        interdomain=Layout("struct", dom=U16, port=U32),
        pirq=U32,
        virq=U32,
    ),
)
