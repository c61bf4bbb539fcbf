/*
 * no-stack: a stack pointer that leads nowhere.
 *
 * Mode:        64-bit long mode, ring 0, set up by the host
 * Loaded at:   0x100000
 * At entry:    RIP = 0x100000, RSP = 0x7c00, RFLAGS.IF = 0; 0 to 4 GiB mapped to itself; no IDT
 * Mistake:     RSP points to addresses that the page tables do not map.
 * Expected:    #PF by the push; its handler needs a stack as well, so #PF again and #DF, which needs
 *              one too; shutdown
 */

        .include "layout.inc"
        .include "idt64.inc"

        .set    NOWHERE, 0x8000000000           # 512 GiB: PML4[1] is empty

        .code64
        .globl  _start
_start:
        set_gate idt, 8, handler                # #DF
        set_gate idt, 14, handler               # #PF
        lidt    idt_pointer                     # IDTR = where the gates are
        movabs  $NOWHERE, %rsp                  # wrong: nothing is mapped there, nor below it
        push    %rax                            # #PF: a write to RSP - 8
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
