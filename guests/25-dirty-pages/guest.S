/*
 * 25-dirty-pages: write one byte into each page of a pattern; the host can see the pattern without reading a byte.
 *
 * Mode:        64-bit long mode, ring 0, set up by the host
 * Loaded at:   0x100000
 * At entry:    RIP = 0x100000, RSP = 0x7c00, RFLAGS.IF = 0; 0 to 4 GiB mapped to itself
 * Expected:    from 2 MiB on, 8 rows of 32 pages: those are written whose bit in `rows` is set, and no other. KVM
 *              notes the pages that were written; user space hears of none until it asks. KVM_EXIT_HLT.
 */

        .include "ports.inc"
        .include "print.inc"
        .include "decimal.inc"

        .set    CANVAS, 0x200000                # 256 pages that nothing else uses
        .set    PAGE, 4096                      # KVM takes note by pages of this size
        .set    ROW, 32                         # pages

        .code64
        .globl  _start
_start:
        mov     $CANVAS, %edi                   # the first page of a row
        mov     $rows, %esi
        xor     %ebp, %ebp                      # pages written so far
next_row:
        mov     (%rsi), %eax                    # a bit for each page of the row, the leftmost first
        mov     %edi, %ebx
next_page:
        shl     $1, %eax                        # the carry flag = the leftmost bit
        jnc     skip
        movb    $1, (%rbx)                      # one byte, but KVM will say: this page
        inc     %ebp
skip:
        add     $PAGE, %ebx
        test    %eax, %eax                      # any bit left?
        jnz     next_page
        add     $ROW * PAGE, %edi
        add     $4, %esi
        cmp     $rows_end, %esi
        jne     next_row

        mov     $pages_written, %esi
        call    print_string
        mov     %ebp, %eax
        call    print_decimal
        mov     $end_of_line, %esi
        call    print_string
        hlt                                     # done

        define_print_string print_string
        define_print_decimal print_decimal, print_string

rows:
        .long   0b00000000000001000000000000000000
        .long   0b00000000000001001000000000000000
        .long   0b00011100100101010010001011110000
        .long   0b00010010100101100010001010101000
        .long   0b00010010100101010001010010101000
        .long   0b00011100011101001000100010101000
        .long   0b00010000000100000000000000000000
        .long   0b00010000111000000000000000000000
rows_end:

pages_written:
        .asciz  "pages written: "
end_of_line:
        .asciz  "\n"
