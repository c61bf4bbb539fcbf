/*
 * 03-echo: read from the serial port until the end of the line, and send every character back.
 *
 * Mode:        real mode, 16-bit
 * Loaded at:   0x8000
 * At entry:    CS:IP = 0000:8000, SP = 0x7c00, RFLAGS.IF = 0
 * Expected:    reads and writes of ports (KVM_EXIT_IO in both directions); the line comes back after "> "; the run
 *              ends by the debug-exit port with the number of characters, n, so that the status is (n << 1) | 1
 */

        .include "ports.inc"

        .code16
        .globl  _start
_start:
        xor     %cx, %cx                        # CX counts the characters of the line
        mov     $'>', %al
        call    send
        mov     $' ', %al
        call    send
next:
        call    receive
        cmp     $'\n', %al                      # a pipe or a file ends a line with LF
        je      end_of_line
        cmp     $'\r', %al                      # the Enter key of a terminal sends CR
        je      end_of_line
        call    send
        inc     %cx
        jmp     next
end_of_line:
        mov     $'\n', %al
        call    send
        mov     %cl, %al
        out     %al, $DEBUG_EXIT                # end the run; its status tells the count

/* receive: wait for a byte and return it in AL. Changes DX. */
receive:
        mov     $SERIAL_LSR, %dx
1:      in      (%dx), %al                      # LSR: has a byte arrived?
        test    $LSR_DR, %al
        jz      1b                              # not yet: ask again (an interrupt would be kinder to the host)
        mov     $SERIAL_RBR, %dx
        in      (%dx), %al                      # RBR: take it
        ret

/* send: send the byte in AL. Changes DX. */
send:
        push    %ax
        mov     $SERIAL_LSR, %dx
1:      in      (%dx), %al                      # LSR: can the UART take a byte?
        test    $LSR_THRE, %al
        jz      1b
        pop     %ax
        mov     $SERIAL_THR, %dx
        out     %al, (%dx)                      # THR: send it
        ret
