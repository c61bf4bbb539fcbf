/*
 * 02-hello-real: print a line, one byte at a time, on the serial port.
 *
 * Mode:        real mode, 16-bit
 * Loaded at:   0x8000
 * At entry:    CS:IP = 0000:8000, SP = 0x7c00, RFLAGS.IF = 0
 * Expected:    one KVM_EXIT_IO for each character, then KVM_EXIT_HLT; "Hello from real mode" on the serial port
 */

        .include "ports.inc"

        .code16
        .globl  _start
_start:
        xor     %ax, %ax
        mov     %ax, %ds                        # address = DS * 16 + offset: with DS = 0 an offset is the address
        mov     $message, %si
        mov     $SERIAL_THR, %dx                # port numbers above 0xff must be in DX
next:
        lodsb                                   # AL = the byte at DS:SI, SI += 1
        test    %al, %al
        jz      done                            # the zero at the end
        out     %al, (%dx)                      # send it: the CPU leaves the guest here (03-echo waits for THRE first)
        jmp     next
done:
        hlt                                     # nothing left to do

message:
        .asciz  "Hello from real mode\n"
