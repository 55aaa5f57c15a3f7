"""What lives beside the vCPU: 8259A pair, 8254 timer and local APIC."""
