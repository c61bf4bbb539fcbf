/*
 * 06-protected-mode: leave real mode by one's own hand, as every PC's boot loader does.
 *
 * Mode:        starts in real mode, 16-bit; goes to 32-bit protected mode
 * Loaded at:   0x8000
 * At entry:    CS:IP = 0000:8000, SP = 0x7c00, RFLAGS.IF = 0
 * Expected:    a line printed from each mode; in protected mode a byte above 1 MiB is written and read back;
 *              KVM_EXIT_HLT. When the byte is lost, the debug-exit port gets 1.
 */

        .include "ports.inc"
        .include "print.inc"

        .set    CR0_PE, 1                       # Protection Enable
        .set    CODE32, 0x08                    # selectors: offsets into the GDT below
        .set    DATA32, 0x10
        .set    FAR_AWAY, 0x200000              # 2 MiB: no segment:offset of real mode gets there

        .code16
        .globl  _start
_start:
        cli                                     # from here to the end of the switch no interrupt has a handler
        xor     %ax, %ax
        mov     %ax, %ds
        mov     $in_real_mode, %si
        call    print_string16

        lgdtl   gdt_pointer                     # GDTR = where the segment descriptors are
        mov     %cr0, %eax
        or      $CR0_PE, %eax
        mov     %eax, %cr0                      # protected mode begins; CS still holds its 16-bit real-mode segment
        ljmp    $CODE32, $protected             # load CS with the 32-bit code segment

        .code32
protected:
        mov     $DATA32, %ax
        mov     %ax, %ds                        # the other segments still have real-mode limits: load them all
        mov     %ax, %es
        mov     %ax, %ss
        mov     $0x7c00, %esp
        movb    $'!', FAR_AWAY                  # an address that needs 22 bits
        cmpb    $'!', FAR_AWAY
        jne     lost
        mov     $in_protected_mode, %esi
        call    print_string32
        hlt                                     # done
lost:
        mov     $1, %al
        out     %al, $DEBUG_EXIT                # end the run with status 3

        .code16
        define_print_string print_string16
        .code32
        define_print_string print_string32

/*
 * Three descriptors of 8 bytes. Each of the two segments begins at 0, is 4 GiB long and differs in its type only:
 *
 *      63      56 55     52 51        48 47           40 39      16 15      0
 *      base 31:24  G D L -  limit 19:16  P DPL S type    base 23:0  limit 15:0
 *           00     1 1 0 0       f       1 00  1 1011     000000      ffff       = 0x00cf9b000000ffff
 */
        .balign 8
gdt:
        .quad   0                               # selector 0 must not be used
        .quad   0x00cf9b000000ffff              # CODE32: readable code, 32-bit (D), limit in pages (G)
        .quad   0x00cf93000000ffff              # DATA32: writable data
gdt_end:
gdt_pointer:
        .word   gdt_end - gdt - 1               # limit: the offset of the last byte
        .long   gdt                             # base

in_real_mode:
        .asciz  "real mode: 16 bits, 1 MiB\n"
in_protected_mode:
        .asciz  "protected mode: 32 bits, 4 GiB\n"
