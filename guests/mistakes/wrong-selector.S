/*
 * wrong-selector: gates whose code segment is not in the GDT.
 *
 * Mode:        64-bit long mode, ring 0, set up by the host
 * Loaded at:   0x100000
 * At entry:    RIP = 0x100000, RSP = 0x7c00, RFLAGS.IF = 0; 0 to 4 GiB mapped to itself; no IDT
 * Mistake:     the selector is the number of an entry, 8, times 8; the GDT has entries 0 to 7.
 * Expected:    #UD, whose handler would run in a segment beyond the GDT, which is #GP; the same again,
 *              so #DF, and again; shutdown
 */

        .include "layout.inc"
        .include "idt64.inc"

        .set    KERNEL_CODE, 8 * 8              # wrong: the code segment is entry 1, selector 8

        .code64
        .globl  _start
_start:
        set_gate idt, 6, handler                # #UD
        set_gate idt, 8, handler                # #DF
        set_gate idt, 13, handler               # #GP
        lidt    idt_pointer                     # IDTR = where the gates are
        ud2                                     # #UD
        hlt

handler:
        hlt                                     # a handler that would do, if the CPU got here

idt_pointer:
        .word   16 * 32 - 1                     # limit: 32 gates, the CPU's exceptions
        .quad   idt                             # base

        .bss
        .balign 16
idt:
        .skip   16 * 32                         # a gate of zeros is no gate
