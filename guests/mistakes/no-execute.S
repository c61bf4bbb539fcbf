/*
 * no-execute: code on a page that is for data.
 *
 * Mode:        64-bit long mode, ring 0, set up by the host
 * Loaded at:   0x100000
 * At entry:    RIP = 0x100000, RSP = 0x7c00, RFLAGS.IF = 0; 0 to 4 GiB mapped to itself; no IDT
 * Mistake:     NX is set in the entry that maps the code; EFER.NXE, set by the host, makes it count.
 * Expected:    #PF by the fetch of the next instruction, no gate; #GP, so #DF, no gate; shutdown
 */

        .set    ALIAS, 0x8000000000             # what PML4[1] maps begins here
        .set    NX, 63                          # the number of the bit No eXecute

        .code64
        .globl  _start
_start:
        mov     %cr3, %rax                      # the PML4: each entry maps 512 GiB
        mov     (%rax), %rcx
        bts     $NX, %rcx                       # wrong, if code is to run there
        mov     %rcx, 8(%rax)                   # PML4[1] = PML4[0] and NX
        movabs  $ALIAS + there, %rbx
        jmp     *%rbx                           # #PF: a fetch, from a page that is present
there:
        hlt
