/*
 * mode: long
 * ring: 0
 * proves: SYSCALL in ring 3 arrives at LSTAR in ring 0
 */
        .include "layout.inc"
        .include "idt64.inc"
        .include "ring3.inc"

        .code64
        .globl  _start
_start:
        mov     $0xc0000080, %ecx
        rdmsr
        or      $1, %eax
        wrmsr                                   # EFER.SCE
        mov     $0xc0000081, %ecx
        xor     %eax, %eax
        mov     $USER_CODE32 << 16 | KERNEL_CODE, %edx
        wrmsr                                   # STAR
        mov     $0xc0000082, %ecx
        mov     $system_call, %eax
        xor     %edx, %edx
        wrmsr                                   # LSTAR
        enter_ring3 user, failed
user:
        syscall
        ud2
system_call:
        mov     %cs, %eax
        test    $3, %al                         # the CPL
        jnz     failed
        mov     $0x2a, %al
        out     %al, $0xf4                      # success
failed:
        hlt

        end_of_probe
