"""A virtual machine of one vCPU on /dev/kvm: ioctls and the page they share with the kernel, nothing of the guest.

No interrupt controller in the kernel: PIC, PIT and local APIC live beside the vCPU, as for every engine.
"""
import ctypes
import fcntl
import mmap
import os
import signal
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from miniguest.frontend.engines import kvm_abi as abi

DEVICE: Final = Path("/dev/kvm")
TSS: Final = 0xFEFFD000                 # three pages that real mode needs on some processors, away from RAM, APIC and ROM
IDENTITY_MAP: Final = 0xFEFFC000        # and one more
MOST_LEAVES: Final = 256
KICK: Final = signal.SIGALRM
FEATURES, EXTENDED_FEATURES = 1, 0x80000001
PARAVIRTUAL: Final = range(0x40000000, 0x40010000)      # KVM's own leaves: its clock is none of ours
HIDDEN: Final = {                       # leaf: bits of ECX and EDX that the guest is not to see
    FEATURES: (1 << 21 | 1 << 24 | 1 << 31, 0),         # x2APIC, TSC deadline, hypervisor present
    EXTENDED_FEATURES: (0, 1 << 29),                    # long mode
}


class KvmMachine:
    """The VM and its vCPU. OSError when /dev/kvm cannot be used or the kernel refuses something."""

    def __init__(self) -> None:
        with ExitStack() as undo:
            self._kvm = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
            undo.callback(os.close, self._kvm)
            version = fcntl.ioctl(self._kvm, abi.KVM_GET_API_VERSION, 0)
            if version != abi.API_VERSION:
                raise OSError(0, f"KVM's API has version {version}")
            for name, number in (("read-only memory", abi.KVM_CAP_READONLY_MEM), ("immediate exits", abi.KVM_CAP_IMMEDIATE_EXIT)):
                if not fcntl.ioctl(self._kvm, abi.KVM_CHECK_EXTENSION, number):
                    raise OSError(0, f"KVM has no {name}")
            self._vm = fcntl.ioctl(self._kvm, abi.KVM_CREATE_VM, 0)
            undo.callback(os.close, self._vm)
            fcntl.ioctl(self._vm, abi.KVM_SET_IDENTITY_MAP_ADDR, struct.pack("<Q", IDENTITY_MAP))
            fcntl.ioctl(self._vm, abi.KVM_SET_TSS_ADDR, TSS - (1 << 32))    # fcntl takes a C int
            self._vcpu = fcntl.ioctl(self._vm, abi.KVM_CREATE_VCPU, 0)
            undo.callback(os.close, self._vcpu)
            self.run = mmap.mmap(self._vcpu, fcntl.ioctl(self._kvm, abi.KVM_GET_VCPU_MMAP_SIZE, 0))
            undo.callback(self.run.close)
            self._set_cpuid()
            undo.callback(_unblock, KICK in self._set_signal_mask())
            self.close = undo.pop_all().close

    # -- set-up
    def _supported(self) -> Iterator[tuple[int, ...]]:
        raw = bytearray(struct.pack(abi.CPUID_HEAD, MOST_LEAVES, 0) + bytes(MOST_LEAVES * struct.calcsize(abi.CPUID_ENTRY)))
        fcntl.ioctl(self._kvm, abi.KVM_GET_SUPPORTED_CPUID, raw)
        count, _ = struct.unpack_from(abi.CPUID_HEAD, raw)
        head = struct.calcsize(abi.CPUID_HEAD)
        yield from list(struct.iter_unpack(abi.CPUID_ENTRY, raw[head:]))[:count]

    def _set_cpuid(self) -> None:
        """The host's processor, without what this machine has not: long mode above all."""
        entries = []
        for function, index, flags, eax, ebx, ecx, edx in self._supported():
            if function in PARAVIRTUAL:
                continue
            hidden_ecx, hidden_edx = HIDDEN.get(function, (0, 0))
            entries.append(struct.pack(abi.CPUID_ENTRY, function, index, flags, eax, ebx, ecx & ~hidden_ecx, edx & ~hidden_edx))
        raw = struct.pack(abi.CPUID_HEAD, len(entries), 0) + b"".join(entries)
        fcntl.ioctl(self._vcpu, abi.KVM_SET_CPUID2, bytearray(raw))

    def _set_signal_mask(self) -> set[int]:
        """KICK is blocked but for the time in KVM_RUN: one that comes just before is not lost, and no handler is called.

        What was blocked before.
        """
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {KICK})
        mask = sum(1 << number - 1 for number in blocked if number != KICK)
        fcntl.ioctl(self._vcpu, abi.KVM_SET_SIGNAL_MASK, struct.pack("<IQ", 8, mask))
        return set(blocked)

    def map(self, slot: int, gpa: int, size: int, address: int, read_only: bool = False) -> None:
        """Memory of this process at a guest-physical address; size 0: the slot is empty again."""
        flags = abi.KVM_MEM_READONLY if read_only and size else 0
        fcntl.ioctl(self._vm, abi.KVM_SET_USER_MEMORY_REGION, struct.pack(abi.MEMORY_REGION, slot, flags, gpa, size, address))

    # -- the vCPU
    def enter(self) -> int:
        """KVM_RUN: the exit reason, or KVM_EXIT_INTR when a signal ended it (or immediate_exit)."""
        try:
            fcntl.ioctl(self._vcpu, abi.KVM_RUN, 0)
        except InterruptedError:
            signal.sigtimedwait({KICK}, 0)      # it stays pending otherwise, and nothing would run any more
            return abi.KVM_EXIT_INTR
        return int.from_bytes(self.run[abi.EXIT_REASON : abi.EXIT_REASON + 4], "little")

    def regs(self) -> abi.Regs:
        """General registers. After an exit for IN or a load they are those before it."""
        regs = abi.Regs()
        fcntl.ioctl(self._vcpu, abi.KVM_GET_REGS, regs)
        return regs

    def sregs(self) -> abi.Sregs:
        """Segments and control registers."""
        sregs = abi.Sregs()
        fcntl.ioctl(self._vcpu, abi.KVM_GET_SREGS, sregs)
        return sregs

    def fpu(self) -> bytes:
        """struct kvm_fpu."""
        raw = bytearray(abi.FPU_SIZE)
        fcntl.ioctl(self._vcpu, abi.KVM_GET_FPU, raw)
        return bytes(raw)

    def restore(self, regs: abi.Regs, sregs: abi.Sregs, fpu: bytes) -> None:
        """Set all three. An interrupt that was about to be delivered goes with sregs.interrupt_bitmap."""
        fcntl.ioctl(self._vcpu, abi.KVM_SET_SREGS, sregs)
        fcntl.ioctl(self._vcpu, abi.KVM_SET_REGS, regs)
        fcntl.ioctl(self._vcpu, abi.KVM_SET_FPU, fpu)

    def interrupt(self, vector: int) -> None:
        """KVM_INTERRUPT: delivered at the next entry."""
        fcntl.ioctl(self._vcpu, abi.KVM_INTERRUPT, struct.pack("<I", vector))

    def translate(self, linear: int) -> int | None:
        """A linear address as a guest-physical one, None when the guest has no such page."""
        found = abi.Translation(linear_address=linear)
        fcntl.ioctl(self._vcpu, abi.KVM_TRANSLATE, found)
        return found.physical_address if found.valid else None


def _unblock(was_blocked: bool) -> None:
    """KICK as it was before. One that is pending would end the process."""
    while signal.sigtimedwait({KICK}, 0):
        pass
    if not was_blocked:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {KICK})


def address_of(memory: mmap.mmap) -> tuple[int, ctypes.Array[ctypes.c_char]]:
    """Where a mapping is in this process, and what keeps it from being unmapped."""
    anchor = (ctypes.c_char * len(memory)).from_buffer(memory)
    return ctypes.addressof(anchor), anchor
