/*
 * 26-vga-colours: every colour of the VGA's text mode on every other, and the cursor in a place of its own.
 *
 * Mode:        64-bit long mode, ring 0, set up by the host
 * Loaded at:   0x100000
 * At entry:    RIP = 0x100000, RSP = 0x7c00, RFLAGS.IF = 0; 0 to 4 GiB mapped to itself; 80 columns and 25 rows of
 *              text at 0xb8000
 * Expected:    a heading and 16 rows of 16 numbers, each number drawn in the colours that it stands for; the cursor at
 *              the start of row 20; a line on the serial port; KVM_EXIT_HLT
 */

        .include "ports.inc"
        .include "print.inc"

        .set    SCREEN, 0xb8000                 # a cell is two bytes: the character, then its attribute
        .set    COLUMNS, 80
        .set    ROWS, 25
        .set    LINE, COLUMNS * 2               # bytes
        .set    FIRST_ROW, 2                    # of the chart
        .set    CHART_COLUMN, 8                 # 16 fields of 4 cells begin here
        .set    CURSOR_ROW, 20

/*
 * attribute:   7   6   5   4   3   2   1   0
 *              background      foreground
 *                  R   G   B   I   R   G   B           bit 7: blink, or a bright background (attribute controller)
 */
        .set    GREY_ON_BLACK, 0x07
        .set    WHITE_ON_BLUE, 0x1f

        .set    CRTC_INDEX, 0x3d4               # which register of the CRT controller ...
        .set    CRTC_DATA, 0x3d5                # ... this port is
        .set    CRTC_CURSOR_HIGH, 0x0e          # the cell of the cursor, counted from the start of the memory
        .set    CRTC_CURSOR_LOW, 0x0f

        .code64
        .globl  _start
_start:
        mov     $SCREEN, %edi
        mov     $GREY_ON_BLACK << 8 | ' ', %eax
        mov     $COLUMNS * ROWS, %ecx
        rep stosw                               # an empty screen

        mov     $SCREEN + 2 * CHART_COLUMN, %edi
        mov     $heading, %esi
        mov     $WHITE_ON_BLUE, %ah
        call    put_string

        xor     %ebx, %ebx                      # BL: the attribute, from 0x00 to 0xff
        mov     $SCREEN + FIRST_ROW * LINE + 2 * CHART_COLUMN, %edi
next_field:
        mov     %bl, %ah                        # drawn in the colours that it stands for
        mov     $' ', %al
        stosw
        mov     %bl, %al
        shr     $4, %al                         # the left digit: the background
        call    put_digit
        mov     %bl, %al
        and     $15, %al                        # the right digit: the foreground
        call    put_digit
        mov     $' ', %al
        stosw
        inc     %bl
        jz      drawn                           # 0xff was the last
        test    $15, %bl
        jnz     next_field
        add     $LINE - 16 * 4 * 2, %edi        # the next row
        jmp     next_field

/* The cursor: a cell's number in two registers of the CRT controller, one byte each. */
drawn:
        mov     $CURSOR_ROW * COLUMNS, %ebx
        mov     $CRTC_INDEX, %edx
        mov     $CRTC_CURSOR_HIGH, %al
        out     %al, (%dx)                      # index: which register
        inc     %edx                            # CRTC_DATA
        mov     %bh, %al
        out     %al, (%dx)                      # data: bits 15-8
        dec     %edx
        mov     $CRTC_CURSOR_LOW, %al
        out     %al, (%dx)
        inc     %edx
        mov     %bl, %al
        out     %al, (%dx)                      # bits 7-0

        mov     $done, %esi
        call    print_string
        hlt                                     # done

/* Put AL, 0 to 15, as a hexadecimal digit with attribute AH at RDI. Changes RAX; RDI moves to the next cell. */
put_digit:
        add     $'0', %al
        cmp     $'9', %al
        jbe     1f
        add     $'a' - '9' - 1, %al
1:      stosw                                   # character and attribute in one write
        ret

/* Put the string at RSI with attribute AH at RDI. Changes AL and RSI; RDI moves behind it. */
put_string:
        lodsb
        test    %al, %al
        jz      1f
        stosw
        jmp     put_string
1:      ret

        define_print_string print_string

heading:
        .asciz  " background and foreground, from 00 to ff "
done:
        .asciz  "256 pairs of colours are on the screen\n"
