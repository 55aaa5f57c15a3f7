"""What kvm_abi says, against the kernel's own header; and the probe's program, against its source."""
import subprocess
from ctypes import sizeof
from pathlib import Path
from struct import calcsize

from miniguest.frontend.engines import kvm_abi, kvm_probe

OFFSETS = {
    "REQUEST_INTERRUPT_WINDOW": "request_interrupt_window", "IMMEDIATE_EXIT": "immediate_exit", "EXIT_REASON": "exit_reason",
    "READY_FOR_INTERRUPT_INJECTION": "ready_for_interrupt_injection", "DETAILS": "io.direction", "MMIO_DATA": "mmio.data",
}
SIZES = {
    "struct kvm_regs": sizeof(kvm_abi.Regs), "struct kvm_sregs": sizeof(kvm_abi.Sregs),
    "struct kvm_segment": sizeof(kvm_abi.Segment),
    "struct kvm_translation": sizeof(kvm_abi.Translation), "struct kvm_userspace_memory_region": calcsize(kvm_abi.MEMORY_REGION),
    "struct kvm_cpuid2": calcsize(kvm_abi.CPUID_HEAD), "struct kvm_cpuid_entry2": calcsize(kvm_abi.CPUID_ENTRY),
    "struct kvm_fpu": kvm_abi.FPU_SIZE,
}
LAYOUTS = {
    ("io", "direction"): 0, ("io", "size"): 1, ("io", "port"): 2, ("io", "count"): 4, ("io", "data_offset"): 8,
    ("mmio", "phys_addr"): 0, ("mmio", "data"): 8, ("mmio", "len"): 16, ("mmio", "is_write"): 20,
}


def test_everything_is_as_in_the_kernels_header(tmp_path: Path) -> None:
    names = [name for name in dir(kvm_abi) if name.startswith("KVM_") and name != "KVM_API_VERSION"]
    checks = [f"_Static_assert({name} == {getattr(kvm_abi, name)}u, \"{name}\");" for name in names]
    checks += [f'_Static_assert(sizeof({name}) == {size}, "{name}");' for name, size in SIZES.items()]
    checks += [
        f'_Static_assert(offsetof(struct kvm_run, {field}) == {getattr(kvm_abi, name)}, "{name}");'
        for name, field in OFFSETS.items()
    ]
    checks += [
        f'_Static_assert(offsetof(struct kvm_run, {part}.{field}) == {kvm_abi.DETAILS + offset}, "{part}.{field}");'
        for (part, field), offset in LAYOUTS.items()
    ]
    checks.append(f'_Static_assert(KVM_EXIT_IO_IN == {kvm_abi.IO_IN} && KVM_API_VERSION == {kvm_abi.API_VERSION}, "constants");')
    checks += [
        f'_Static_assert(offsetof({struct}, {field}) == {getattr(cls, field).offset}, "{field}");'
        for struct, cls in (("struct kvm_regs", kvm_abi.Regs), ("struct kvm_sregs", kvm_abi.Sregs))
        for field, _ in cls._fields_
    ]
    source = tmp_path / "abi.c"
    source.write_text("#include <stddef.h>\n#include <linux/kvm.h>\n" + "\n".join(checks) + "\n")
    done = subprocess.run(["cc", "-fsyntax-only", str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_probes_code_is_its_source(tmp_path: Path) -> None:
    source = Path(__file__).with_name("kvmprobe.s")
    subprocess.run(["as", "--32", "-o", "probe.o", str(source)], cwd=tmp_path, check=True)
    link = ["ld", "-m", "elf_i386", "-Ttext=0", "--oformat=binary", "-o", "probe.bin", "probe.o"]
    subprocess.run(link, cwd=tmp_path, check=True)
    assert (tmp_path / "probe.bin").read_bytes() == kvm_probe.CODE
