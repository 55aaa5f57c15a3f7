"""The hypervisor: domains, event channels, grants' records, ioreq servers and who died. One process."""
