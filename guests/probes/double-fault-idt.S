/*
 * mode: long
 * ring: 0
 * proves: an exception without a gate becomes a double fault, which the guest's IDT can catch
 */
        .include "layout.inc"
        .include "idt64.inc"

        .code64
        .globl  _start
_start:
        set_gate idt, 8, double_fault
        lidt    idt_pointer
        ud2                                     # #UD, no gate -> #GP, no gate -> #DF
        hlt
double_fault:
        mov     $0x2a, %al
        out     %al, $0xf4                      # success
        hlt
idt_pointer:
        .word   16 * 32 - 1
        .quad   idt

        .bss
        .balign 16
idt:    .skip   16 * 32
