/*
 * jump-to-data: a far jump that loads CS with the segment for data.
 *
 * Mode:        32-bit protected mode, ring 0, set up by the host
 * Loaded at:   0x100000
 * At entry:    EIP = 0x100000, ESP = 0x7c00, EFLAGS.IF = 0; GDT: 0x08 code, 0x10 data; no IDT
 * Mistake:     selector 0x10 where 0x08 was meant: the second entry, not the third.
 * Expected:    #GP with the selector as its error code, no gate; so #DF, no gate; shutdown
 */

        .include "layout.inc"

        .code32
        .globl  _start
_start:
        ljmp    $KERNEL_DATA, $next             # #GP(0x10): CS wants code
next:
        hlt
