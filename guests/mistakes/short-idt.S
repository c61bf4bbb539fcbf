/*
 * short-idt: the IDT is there, but its limit is in gates where it should be in bytes.
 *
 * Mode:        64-bit long mode, ring 0, set up by the host
 * Loaded at:   0x100000
 * At entry:    RIP = 0x100000, RSP = 0x7c00, RFLAGS.IF = 0; 0 to 4 GiB mapped to itself; no IDT
 * Mistake:     IDTR's limit is 31, which is not the last gate but the last byte of the second one.
 * Expected:    #UD, whose gate is beyond the limit; so is #GP's, and #DF's; shutdown
 */

        .include "layout.inc"
        .include "idt64.inc"

        .code64
        .globl  _start
_start:
        set_gate idt, 6, handler
        set_gate idt, 8, handler
        set_gate idt, 13, handler
        lidt    idt_pointer                     # IDTR = base and limit
        ud2                                     # #UD: vector 6 is at bytes 0x60 to 0x6f
        hlt

handler:
        hlt                                     # a handler that would do, if the CPU got here

idt_pointer:
        .word   32 - 1                          # wrong: the limit counts bytes, so 16 * 32 - 1
        .quad   idt                             # base

        .bss
        .balign 16
idt:
        .skip   16 * 32
