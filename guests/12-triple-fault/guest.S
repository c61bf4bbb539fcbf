/*
 * 12-triple-fault: crash on purpose, in the way every new kernel crashes by accident.
 *
 * Mode:        64-bit long mode, ring 0, set up by the host
 * Loaded at:   0x100000
 * At entry:    RIP = 0x100000, RSP = 0x7c00, RFLAGS.IF = 0; IDTR limit 0, that is no IDT
 * Expected:    "go" on the serial port, then KVM_EXIT_SHUTDOWN: every fault on the way is met by the same empty IDT,
 *              and after the double fault there is nothing left to try
 */

        .include "ports.inc"

        .code64
        .globl  _start
_start:
        mov     $SERIAL_THR, %edx
        mov     $'g', %al
        out     %al, (%dx)                      # THR: a sign of life
        mov     $'o', %al
        out     %al, (%dx)                      # THR
        mov     $'\n', %al
        out     %al, (%dx)                      # THR
        ud2                                     # #UD, no gate -> #GP, no gate -> #DF, no gate -> shutdown
