/*
 * no-long-mode: the way into long mode without the step that asks for it.
 *
 * Mode:        32-bit protected mode, ring 0, set up by the host
 * Loaded at:   0x100000
 * At entry:    EIP = 0x100000, ESP = 0x7c00, EFLAGS.IF = 0; no paging; no IDT
 * Mistake:     EFER.LME is not set. So CR0.PG switches PAE paging on, for which CR3 must point to a table of four entries
 *              with bits 1, 2 and 5 to 8 clear. It points to a PML4, whose entries have W set.
 * Expected:    #GP by the write to CR0, no gate; so #DF, no gate; shutdown
 */

        .set    CR0_PG, 0x80000000              # Paging
        .set    CR4_PAE, 0x20                   # Physical Address Extension: 8-byte entries
        .set    TABLE, 0x03                     # an entry's bits: P, W
        .set    PAGE_2M, 0x83                   # P, W, PS

        .code32
        .globl  _start
_start:
        movl    $pdpt + TABLE, pml4             # PML4[0] -> PDPT[0] -> PD[0] -> 0x0 (2 MiB)
        movl    $pd + TABLE, pdpt
        movl    $PAGE_2M, pd
        mov     %cr4, %eax
        or      $CR4_PAE, %eax
        mov     %eax, %cr4                      # 1. page-table entries of 8 bytes
        mov     $pml4, %eax
        mov     %eax, %cr3                      # 2. where they start
                                                # 3. wrong: nothing sets EFER.LME
        mov     %cr0, %eax
        or      $CR0_PG, %eax
        mov     %eax, %cr0                      # 4. #GP: PAE paging with a wrong table
        hlt

        .bss
        .balign 4096
pml4:
        .skip   4096
pdpt:
        .skip   4096
pd:
        .skip   4096
