/*
 * reserved-bit: a page-table entry with a bit that must be 0.
 *
 * Mode:        64-bit long mode, ring 0, set up by the host
 * Loaded at:   0x100000
 * At entry:    RIP = 0x100000, RSP = 0x7c00, RFLAGS.IF = 0; 0 to 4 GiB mapped to itself; no IDT
 * Mistake:     PS, "this entry is a page", in the PML4, whose entries are never pages.
 * Expected:    #PF with the bit RSVD in its error code, no gate; #GP, so #DF, no gate; shutdown
 */

        .set    ALIAS, 0x8000000000             # what PML4[1] maps begins here
        .set    PAGE_SIZE_BIT, 0x80             # PS

        .code64
        .globl  _start
_start:
        mov     %cr3, %rax                      # the PML4: each entry maps 512 GiB
        mov     (%rax), %rcx
        or      $PAGE_SIZE_BIT, %rcx            # wrong: a page of 512 GiB does not exist
        mov     %rcx, 8(%rax)                   # PML4[1]
        movabs  $ALIAS, %rbx
        mov     (%rbx), %eax                    # #PF: a read, reserved bit, by ring 0
        hlt
