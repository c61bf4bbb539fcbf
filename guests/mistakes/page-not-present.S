/*
 * page-not-present: a pointer to where nothing is mapped.
 *
 * Mode:        64-bit long mode, ring 0, set up by the host
 * Loaded at:   0x100000
 * At entry:    RIP = 0x100000, RSP = 0x7c00, RFLAGS.IF = 0; 0 to 4 GiB mapped to itself; no IDT
 * Mistake:     the address is 512 GiB, and the host has mapped 4.
 * Expected:    #PF, no gate; #GP, so #DF, no gate; shutdown
 */

        .set    NOWHERE, 0x8000000000           # 512 GiB: PML4[1] is empty

        .code64
        .globl  _start
_start:
        movabs  $NOWHERE, %rbx
        movb    $1, (%rbx)                      # #PF: a write, not present, by ring 0
        hlt
