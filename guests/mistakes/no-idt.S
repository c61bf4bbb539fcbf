/*
 * no-idt: an exception, and no table to look its handler up in.
 *
 * Mode:        64-bit long mode, ring 0, set up by the host
 * Loaded at:   0x100000
 * At entry:    RIP = 0x100000, RSP = 0x7c00, RFLAGS.IF = 0; 0 to 4 GiB mapped to itself; no IDT
 * Mistake:     a division by 0 before LIDT.
 * Expected:    #DE, no gate; #GP, so #DF, no gate; shutdown
 */

        .code64
        .globl  _start
_start:
        xor     %edx, %edx
        mov     $100, %eax
        xor     %ecx, %ecx
        div     %ecx                            # #DE: 100 / 0
        hlt
