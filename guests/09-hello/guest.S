/*
 * 09-hello: long mode without the climb. The host sets up everything that 08-long-mode does for itself.
 *
 * Mode:        64-bit long mode, ring 0, set up by the host
 * Loaded at:   0x100000
 * At entry:    RIP = 0x100000, RSP = 0x7c00, RFLAGS.IF = 0; 0 to 4 GiB mapped to itself; no IDT
 * Expected:    a line on the serial port; KVM_EXIT_HLT
 */

        .include "ports.inc"

        .code64
        .globl  _start
_start:
        lea     message(%rip), %rsi             # RIP-relative: only 64-bit code can do that
        mov     $SERIAL_THR, %edx
next:
        lodsb
        test    %al, %al
        jz      done
        out     %al, (%dx)                      # THR: send a byte (03-echo shows how to wait for a slow UART)
        jmp     next
done:
        hlt                                     # done

message:
        .asciz  "Hello from long mode\n"
