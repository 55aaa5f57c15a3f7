# What miniguest.frontend.engines.kvm_probe has as CODE: says on port 0x80 how far it came, and halts.
        .intel_syntax noprefix
        .code16
        .globl _start
_start: mov al, 1               # at 64 KiB - 0x200 of the firmware: F000:FE00
        out 0x80, al
        cli
        .att_syntax
        lgdtl %cs:0xfe00 + gdtr - _start
        .intel_syntax noprefix
        mov eax, cr0
        or al, 1
        and al, 0xf3            # EM and TS off: the x87 is there
        mov cr0, eax
        .att_syntax
        ljmpl $8, $0xffe00 + protected - _start
        .intel_syntax noprefix
        .code32
protected:
        mov ax, 16
        mov ds, ax
        mov ss, ax
        mov esp, 0x7000
        mov al, 2
        out 0x80, al
        pushfd
        push 8
        .att_syntax
        pushl $0xffe00 + returned - _start
        .intel_syntax noprefix
        iretd
returned:
        mov al, 3
        out 0x80, al
        fninit
        fld1
        fadd st(0), st(0)
        fistp dword ptr [0x6000]
        cmp dword ptr [0x6000], 2
        jne stop
        mov al, 4
        out 0x80, al
        mov eax, cr4
        or eax, 0x600           # OSFXSR, OSXMMEXCPT
        mov cr4, eax
        movd xmm0, esp
        paddd xmm0, xmm0
        movd ecx, xmm0
        cmp ecx, 0xe000
        jne stop
        mov al, 5
        out 0x80, al
        mov ecx, 1000000
1:      dec ecx
        jnz 1b
        mov al, 6
        out 0x80, al
stop:   hlt
        jmp stop
        .balign 8
gdt:    .quad 0
        .quad 0x00cf9a000000ffff
        .quad 0x00cf92000000ffff
gdtr:   .word gdtr - gdt - 1
        .long 0xffe00 + gdt - _start
