"""The parts of linux/kvm.h (API version 12) that the kvm engine uses: ioctls, structures, offsets in struct kvm_run.

What they mean: Linux, Documentation/virt/kvm/api.rst; section 4 for the ioctls, section 5 for struct kvm_run.
"""
import ctypes
from typing import Final

API_VERSION: Final = 12

KVM_GET_API_VERSION: Final = 0xAE00             # 4.1
KVM_CREATE_VM: Final = 0xAE01                   # 4.2
KVM_CHECK_EXTENSION: Final = 0xAE03             # 4.4
KVM_GET_VCPU_MMAP_SIZE: Final = 0xAE04          # 4.5
KVM_GET_SUPPORTED_CPUID: Final = 0xC008AE05     # 4.46
KVM_CREATE_VCPU: Final = 0xAE41                 # 4.7
KVM_SET_USER_MEMORY_REGION: Final = 0x4020AE46  # 4.35
KVM_SET_TSS_ADDR: Final = 0xAE47                # 4.36
KVM_SET_IDENTITY_MAP_ADDR: Final = 0x4008AE48   # 4.41
KVM_RUN: Final = 0xAE80                         # 4.10
KVM_GET_REGS: Final = 0x8090AE81                # 4.11
KVM_SET_REGS: Final = 0x4090AE82                # 4.12
KVM_GET_SREGS: Final = 0x8138AE83               # 4.13
KVM_SET_SREGS: Final = 0x4138AE84               # 4.14
KVM_TRANSLATE: Final = 0xC018AE85               # 4.15
KVM_INTERRUPT: Final = 0x4004AE86               # 4.16
KVM_SET_SIGNAL_MASK: Final = 0x4004AE8B         # 4.21
KVM_SET_CPUID2: Final = 0x4008AE90              # 4.20
KVM_GET_FPU: Final = 0x81A0AE8C                 # 4.22
KVM_SET_FPU: Final = 0x41A0AE8D                 # 4.23

KVM_CAP_READONLY_MEM: Final = 81
KVM_CAP_IMMEDIATE_EXIT: Final = 136
KVM_MEM_READONLY: Final = 2

KVM_EXIT_IO: Final = 2
KVM_EXIT_HLT: Final = 5
KVM_EXIT_MMIO: Final = 6
KVM_EXIT_IRQ_WINDOW_OPEN: Final = 7
KVM_EXIT_SHUTDOWN: Final = 8
KVM_EXIT_FAIL_ENTRY: Final = 9
KVM_EXIT_INTR: Final = 10
KVM_EXIT_INTERNAL_ERROR: Final = 17

# struct kvm_run
REQUEST_INTERRUPT_WINDOW: Final = 0             # u8
IMMEDIATE_EXIT: Final = 1                       # u8
EXIT_REASON: Final = 8                          # u32
READY_FOR_INTERRUPT_INJECTION: Final = 12       # u8
DETAILS: Final = 32                             # the union
IO_IN: Final = 0                                # its `io`: u8 direction, u8 size, u16 port, u32 count, u64 data_offset
IO: Final = "<BBHIQ"
MMIO: Final = "<Q8sIB"                          # its `mmio`: u64 address, data, u32 length, u8 is_write
MMIO_DATA: Final = DETAILS + 8

MEMORY_REGION: Final = "<IIQQQ"                 # slot, flags, guest-physical address, bytes, address here
CPUID_HEAD: Final = "<II"                       # entries, padding
CPUID_ENTRY: Final = "<7I12x"                   # function, index, flags, EAX, EBX, ECX, EDX
FPU_SIZE: Final = 416


class Regs(ctypes.Structure):
    """struct kvm_regs."""

    _fields_ = [(name, ctypes.c_uint64) for name in (
        "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13",
        "r14", "r15", "rip", "rflags",
    )]


class Segment(ctypes.Structure):
    """struct kvm_segment."""

    _fields_ = [("base", ctypes.c_uint64), ("limit", ctypes.c_uint32), ("selector", ctypes.c_uint16), *(
        (name, ctypes.c_uint8) for name in ("type", "present", "dpl", "db", "s", "l", "g", "avl", "unusable", "padding")
    )]


class Table(ctypes.Structure):
    """struct kvm_dtable."""

    _fields_ = [("base", ctypes.c_uint64), ("limit", ctypes.c_uint16), ("padding", ctypes.c_uint16 * 3)]


class Sregs(ctypes.Structure):
    """struct kvm_sregs."""

    _fields_ = [
        *((name, Segment) for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")), ("gdt", Table), ("idt", Table),
        *((name, ctypes.c_uint64) for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")),
        ("interrupt_bitmap", ctypes.c_uint64 * 4),
    ]


class Translation(ctypes.Structure):
    """struct kvm_translation."""

    _fields_ = [("linear_address", ctypes.c_uint64), ("physical_address", ctypes.c_uint64), ("valid", ctypes.c_uint8),
                ("writeable", ctypes.c_uint8), ("usermode", ctypes.c_uint8), ("pad", ctypes.c_uint8 * 5)]
