/*
 * gate-not-present: a gate with everything but the bit that makes it count.
 *
 * Mode:        64-bit long mode, ring 0, set up by the host
 * Loaded at:   0x100000
 * At entry:    RIP = 0x100000, RSP = 0x7c00, RFLAGS.IF = 0; 0 to 4 GiB mapped to itself; no IDT
 * Mistake:     P is 0 in the gates of #UD and #DF; in the one of #NP too.
 * Expected:    #UD, a gate with P = 0, which is #NP; the same again, so #DF, and the same again;
 *              shutdown
 */

        .include "layout.inc"
        .include "idt64.inc"

        .set    NOT_PRESENT, GATE_INTERRUPT & 0x7f  # an interrupt gate with P = 0

        .code64
        .globl  _start
_start:
        set_gate idt, 6, handler                # #UD
        set_gate idt, 8, handler                # #DF
        set_gate idt, 11, handler               # #NP
        movb    $NOT_PRESENT, idt + 16 * 6 + 5  # wrong: byte 5 is P, DPL and type
        movb    $NOT_PRESENT, idt + 16 * 8 + 5
        movb    $NOT_PRESENT, idt + 16 * 11 + 5
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
