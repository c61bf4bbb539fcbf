/*
 * mode: long
 * ring: 0
 * proves: SYSENTER in ring 3 arrives at IA32_SYSENTER_EIP in ring 0 (AMD processors have none in long mode)
 */
        .include "layout.inc"
        .include "idt64.inc"
        .include "ring3.inc"

        .code64
        .globl  _start
_start:
        xor     %edx, %edx
        mov     $0x174, %ecx
        mov     $KERNEL_CODE, %eax
        wrmsr                                   # IA32_SYSENTER_CS
        mov     $0x175, %ecx
        mov     $0x7c00, %eax
        wrmsr                                   # IA32_SYSENTER_ESP
        mov     $0x176, %ecx
        mov     $fast_entry, %eax
        wrmsr                                   # IA32_SYSENTER_EIP
        enter_ring3 user, failed
user:
        sysenter
        ud2
fast_entry:
        mov     %cs, %eax
        test    $3, %al                         # the CPL
        jnz     failed
        mov     $0x2a, %al
        out     %al, $0xf4                      # success
failed:
        hlt

        end_of_probe
