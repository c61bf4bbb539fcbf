/*
 * mode: long
 * ring: 0
 * proves: INT n in ring 0 is delivered through the guest's IDT
 */
        .include "layout.inc"
        .include "idt64.inc"

        .code64
        .globl  _start
_start:
        set_gate idt, 32, handler
        lidt    idt_pointer
        xor     %ebx, %ebx
        int     $32                             # software interrupt
        mov     %ebx, %eax
        out     %al, $0xf4                      # success if the handler has run
        hlt
handler:
        mov     $0x2a, %ebx
        iretq                                   # a trap returns to the instruction after it
idt_pointer:
        .word   16 * 64 - 1
        .quad   idt

        .bss
        .balign 16
idt:    .skip   16 * 64
