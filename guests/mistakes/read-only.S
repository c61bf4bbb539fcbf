/*
 * read-only: a write to a page that may only be read.
 *
 * Mode:        64-bit long mode, ring 0, set up by the host
 * Loaded at:   0x100000
 * At entry:    RIP = 0x100000, RSP = 0x7c00, RFLAGS.IF = 0; 0 to 4 GiB mapped to itself; no IDT
 * Mistake:     W is 0 in the entry that maps the page; CR0.WP makes ring 0 obey that.
 * Expected:    #PF by the write, no gate; #GP, so #DF, no gate; shutdown
 */

        .set    ALIAS, 0x8000000000             # what PML4[1] maps begins here
        .set    WRITABLE, 0x02                  # W
        .set    WP, 16                          # the number of the bit CR0.WP

        .code64
        .globl  _start
_start:
        mov     %cr0, %rax
        bts     $WP, %rax
        mov     %rax, %cr0                      # ring 0 obeys W from here on
        mov     %cr3, %rax                      # the PML4: each entry maps 512 GiB
        mov     (%rax), %rcx
        and     $~WRITABLE, %rcx                # wrong, if anybody is to write there
        mov     %rcx, 8(%rax)                   # PML4[1] = PML4[0] without W
        movabs  $ALIAS + there, %rbx
        movb    $1, (%rbx)                      # #PF: a write, to a page that is present
        hlt

        .data
there:
        .byte   0
