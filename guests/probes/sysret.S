/*
 * mode: long
 * ring: 0
 * proves: SYSRET goes to ring 3, at RCX and with the flags in R11
 */
        .include "layout.inc"
        .include "idt64.inc"
        .include "ring3.inc"

        .code64
        .globl  _start
_start:
        enter_ring3 first, second               # only to open the pages and to load the IDT
first:
        ud2
second:
        set_gate idt, 6, done
        mov     $0xc0000080, %ecx
        rdmsr
        or      $1, %eax
        wrmsr                                   # EFER.SCE
        mov     $0xc0000081, %ecx
        xor     %eax, %eax
        mov     $USER_CODE32 << 16 | KERNEL_CODE, %edx
        wrmsr                                   # STAR
        mov     $user, %ecx
        mov     $2, %r11d
        sysretq
user:
        ud2                                     # back to ring 0
done:
        cmpl    $USER_CODE64, 8(%rsp)           # the saved CS
        jne     1f
        mov     $0x2a, %al
        out     %al, $0xf4                      # success
1:      hlt

        end_of_probe
