/*
 * mode: long
 * ring: 0
 * proves: a write watchpoint in the guest's own debug registers traps in ring 0
 */
        .include "layout.inc"
        .include "idt64.inc"

        .code64
        .globl  _start
_start:
        set_gate idt, 1, caught
        lidt    idt_pointer
        mov     $watched, %eax
        mov     %rax, %dr0
        mov     $0xd0002, %eax                  # G0; R/W0 = 01: writes; LEN0 = 11: 4 bytes
        mov     %rax, %dr7
        movl    $1, watched                     # a trap: #DB after this instruction
        hlt
caught:
        mov     $0x2a, %al
        out     %al, $0xf4                      # success

idt_pointer:
        .word   16 * 32 - 1
        .quad   idt

        .bss
        .balign 16
idt:
        .skip   16 * 32
watched:
        .skip   4
