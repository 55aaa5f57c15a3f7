"""Grant table, version 1, and the operations on it: xen/grant_table.h."""
from typing import Final

from miniguest.ring.abi.layout import S16, U16, U32, U64, Layout, Union

HEADER: Final = "xen/grant_table.h"

GNTTAB_NR_RESERVED_ENTRIES: Final = 8
GNTTAB_RESERVED_CONSOLE: Final = 0
GNTTAB_RESERVED_XENSTORE: Final = 1

# Flags of an entry: its type, what the granting domain allows, and what the mapping domain is doing.
GTF_invalid: Final = 0
GTF_permit_access: Final = 1
GTF_accept_transfer: Final = 2
GTF_transitive: Final = 3
GTF_type_mask: Final = 3
GTF_readonly: Final = 4
GTF_reading: Final = 8
GTF_writing: Final = 16
GTF_PWT: Final = 32
GTF_PCD: Final = 64
GTF_PAT: Final = 128
GTF_sub_page: Final = 256
GTF_transfer_committed: Final = 4
GTF_transfer_completed: Final = 8

GNTTABOP_map_grant_ref: Final = 0
GNTTABOP_unmap_grant_ref: Final = 1
GNTTABOP_setup_table: Final = 2
GNTTABOP_copy: Final = 5
GNTTABOP_query_size: Final = 6

GNTMAP_device_map: Final = 1
GNTMAP_host_map: Final = 2
GNTMAP_readonly: Final = 4
GNTMAP_application_map: Final = 8
GNTMAP_contains_pte: Final = 16

GNTCOPY_source_gref: Final = 1
GNTCOPY_dest_gref: Final = 2

GNTST_okay: Final = 0
GNTST_general_error: Final = -1
GNTST_bad_domain: Final = -2
GNTST_bad_gntref: Final = -3
GNTST_bad_handle: Final = -4
GNTST_bad_virt_addr: Final = -5
GNTST_bad_dev_addr: Final = -6
GNTST_no_device_space: Final = -7
GNTST_permission_denied: Final = -8
GNTST_bad_page: Final = -9
GNTST_bad_copy_arg: Final = -10
GNTST_address_too_big: Final = -11
GNTST_eagain: Final = -12
GNTST_no_space: Final = -13

ENTRY_V1: Final = Layout("struct grant_entry_v1", flags=U16, domid=U16, frame=U32)

MAP_GRANT_REF: Final = Layout(
    "struct gnttab_map_grant_ref",
    host_addr=U64,
    flags=U32,
    ref=U32,
    dom=U16,
    status=S16,
    handle=U32,
    dev_bus_addr=U64,
)

UNMAP_GRANT_REF: Final = Layout(
    "struct gnttab_unmap_grant_ref",
    host_addr=U64,
    dev_bus_addr=U64,
    handle=U32,
    status=S16,
)

# One end of a copy: a grant reference or a frame number, and a byte offset into it.
COPY_PTR: Final = Layout("struct gnttab_copy_ptr", u=Union("union", ref=U32, gmfn=U64), domid=U16, offset=U16)
COPY: Final = Layout("struct gnttab_copy", source=COPY_PTR, dest=COPY_PTR, len=U16, flags=U16, status=S16)

QUERY_SIZE: Final = Layout("struct gnttab_query_size", dom=U16, nr_frames=U32, max_nr_frames=U32, status=S16)
