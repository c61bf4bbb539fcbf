/*
 * not-canonical: an address that is none.
 *
 * Mode:        64-bit long mode, ring 0, set up by the host
 * Loaded at:   0x100000
 * At entry:    RIP = 0x100000, RSP = 0x7c00, RFLAGS.IF = 0; 0 to 4 GiB mapped to itself; no IDT
 * Mistake:     bits 63 to 47 of an address must be equal; 0x800000000000 has bit 47 alone.
 * Expected:    #GP, not #PF: the page tables are not even asked; no gate; so #DF, no gate; shutdown
 */

        .set    HIGHER_HALF, 0x800000000000     # wrong: the higher half begins at 0xffff800000000000

        .code64
        .globl  _start
_start:
        movabs  $HIGHER_HALF, %rbx
        movb    $1, (%rbx)                      # #GP: 128 TiB is not canonical
        hlt
