/*
 * 08-long-mode: from real mode to 64-bit long mode by one's own hand.
 *
 * Mode:        starts in real mode, 16-bit; goes to 64-bit long mode
 * Loaded at:   0x8000
 * At entry:    CS:IP = 0000:8000, SP = 0x7c00, RFLAGS.IF = 0; RAM beyond the code is zero
 * Expected:    a line printed from each mode; a sum that needs 64-bit registers; KVM_EXIT_HLT. When the sum is wrong,
 *              the debug-exit port gets 1.
 */

        .include "ports.inc"
        .include "print.inc"

        .set    CR0_PE, 0x00000001              # Protection Enable
        .set    CR0_PG, 0x80000000              # Paging
        .set    CR4_PAE, 0x20                   # Physical Address Extension: 8-byte entries
        .set    MSR_EFER, 0xc0000080            # Extended Feature Enable Register
        .set    EFER_LME, 0x100                 # Long Mode Enable
        .set    PRESENT, 0x01                   # bits of a page-table entry
        .set    WRITABLE, 0x02
        .set    PS, 0x80                        # Page Size: this directory entry maps 2 MiB itself
        .set    PML4, 0x10000                   # three tables of 4 KiB, in RAM that is still zero
        .set    PDPT, 0x11000
        .set    PD, 0x12000
        .set    CODE64, 0x08                    # selector: offset into the GDT below

        .code16
        .globl  _start
_start:
        cli                                     # from here to the end of the switch no interrupt has a handler
        xor     %ax, %ax
        mov     %ax, %ds
        mov     $in_real_mode, %si
        call    print_string16

/*
 * Long mode cannot run without paging. One entry in each table maps the first 2 MiB to themselves:
 *      PML4[0] -> PDPT[0] -> PD[0] -> 0x0 (2 MiB)
 */
        mov     $PML4 >> 4, %ax
        mov     %ax, %es                        # the tables lie above 64 KiB: only a segment register gets there
        movl    $PDPT + (PRESENT | WRITABLE), %es:0
        movl    $PD + (PRESENT | WRITABLE), %es:PDPT - PML4
        movl    $PRESENT | WRITABLE | PS, %es:PD - PML4

        mov     %cr4, %eax
        or      $CR4_PAE, %eax
        mov     %eax, %cr4                      # 1. page-table entries of 8 bytes
        mov     $PML4, %eax
        mov     %eax, %cr3                      # 2. where they start
        mov     $MSR_EFER, %ecx
        rdmsr
        or      $EFER_LME, %eax
        wrmsr                                   # 3. long mode is asked for ...
        lgdtl   gdt_pointer                     # GDTR = where the segment descriptors are
        mov     %cr0, %eax
        or      $CR0_PG | CR0_PE, %eax
        mov     %eax, %cr0                      # 4. ... and begins: the CPU sets EFER.LMA
        ljmp    $CODE64, $long_mode             # load CS with the 64-bit code segment

        .code64
long_mode:
        xor     %eax, %eax
        mov     %ax, %ds                        # 64-bit code needs no data segments: the null selector will do
        mov     %ax, %es
        mov     %ax, %ss
        mov     $0x7c00, %esp
        mov     $0xffffffff, %ecx
        lea     1(%rcx), %rax                   # 2^32 takes 33 bits
        shr     $32, %rax
        cmp     $1, %rax
        jne     wrong
        mov     $in_long_mode, %esi
        call    print_string64
        hlt                                     # done
wrong:
        mov     $1, %al
        out     %al, $DEBUG_EXIT                # end the run with status 3

        .code16
        define_print_string print_string16
        .code64
        define_print_string print_string64

/*
 * In a 64-bit code segment base and limit are ignored; L = 1 and D = 0 make it 64-bit:
 *
 *      63      56 55     52 51        48 47           40 39      16 15      0
 *      base 31:24  G D L -  limit 19:16  P DPL S type    base 23:0  limit 15:0
 *           00     1 0 1 0       f       1 00  1 1011     000000      ffff       = 0x00af9b000000ffff
 */
        .balign 8
gdt:
        .quad   0                               # selector 0: the null selector
        .quad   0x00af9b000000ffff              # CODE64
gdt_end:
gdt_pointer:
        .word   gdt_end - gdt - 1               # limit: the offset of the last byte
        .long   gdt                             # base

in_real_mode:
        .asciz  "real mode: 16 bits\n"
in_long_mode:
        .asciz  "long mode: 64 bits\n"
