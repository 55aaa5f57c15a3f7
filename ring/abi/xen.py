"""The page a domain shares with the hypervisor, and special domain numbers: xen/xen.h."""
from typing import Final

from miniguest.ring.abi.layout import S8, U8, U32, U64, Layout

HEADER: Final = "xen/xen.h"

XEN_LEGACY_MAX_VCPUS: Final = 32        # vCPUs that have their vcpu_info in the shared page
NR_VIRQS: Final = 24

DOMID_FIRST_RESERVED: Final = 0x7FF0
DOMID_SELF: Final = 0x7FF0
DOMID_IO: Final = 0x7FF1
DOMID_XEN: Final = 0x7FF2
DOMID_COW: Final = 0x7FF3
DOMID_INVALID: Final = 0x7FF4
DOMID_IDLE: Final = 0x7FFF
DOMID_MASK: Final = 0x7FFF

VIRQ_TIMER: Final = 0
VIRQ_DEBUG: Final = 1
VIRQ_CONSOLE: Final = 2
VIRQ_DOM_EXC: Final = 3                 # a domain has gone or crashed; xenstored listens

XEN_PVCLOCK_TSC_STABLE_BIT: Final = 1
XEN_PVCLOCK_GUEST_STOPPED: Final = 2

ARCH_VCPU_INFO: Final = Layout("struct arch_vcpu_info", cr2=U64, pad=U64)

VCPU_TIME_INFO: Final = Layout(
    "struct vcpu_time_info",
    version=U32,
    pad0=U32,
    tsc_timestamp=U64,
    system_time=U64,
    tsc_to_system_mul=U32,
    tsc_shift=S8,
    flags=U8,
    pad1=U8 * 2,
)

VCPU_INFO: Final = Layout(
    "struct vcpu_info",
    evtchn_upcall_pending=U8,
    evtchn_upcall_mask=U8,
    evtchn_pending_sel=U64,
    arch=ARCH_VCPU_INFO,
    time=VCPU_TIME_INFO,
)

ARCH_SHARED_INFO: Final = Layout(
    "struct arch_shared_info",
    max_pfn=U64,
    pfn_to_mfn_frame_list_list=U64,
    nmi_reason=U64,
    p2m_cr3=U64,
    p2m_vaddr=U64,
    p2m_generation=U64,
)

SHARED_INFO: Final = Layout(
    "struct shared_info",
    vcpu_info=VCPU_INFO * XEN_LEGACY_MAX_VCPUS,
    evtchn_pending=U64 * 64,
    evtchn_mask=U64 * 64,
    wc_version=U32,
    wc_sec=U32,
    wc_nsec=U32,
    wc_sec_hi=U32,
    arch=ARCH_SHARED_INFO,
)
