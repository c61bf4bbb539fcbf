/*
 * mode: long
 * ring: 0
 * proves: an exception in ring 0 (UD2) is delivered through the guest's IDT, and IRETQ returns from it
 */
        .include "layout.inc"
        .include "idt64.inc"

        .code64
        .globl  _start
_start:
        set_gate idt, 6, invalid_opcode
        lidt    idt_pointer
        xor     %ebx, %ebx
        ud2                                     # #UD
        mov     %ebx, %eax
        out     %al, $0xf4                      # success if the handler has run
        hlt
invalid_opcode:
        mov     $0x2a, %ebx
        addq    $2, (%rsp)                      # step over ud2, two bytes
        iretq
idt_pointer:
        .word   16 * 32 - 1
        .quad   idt

        .bss
        .balign 16
idt:    .skip   16 * 32
