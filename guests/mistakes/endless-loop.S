/*
 * endless-loop: waiting for a byte that nobody will write.
 *
 * Mode:        64-bit long mode, ring 0, set up by the host
 * Loaded at:   0x100000
 * At entry:    RIP = 0x100000, RSP = 0x7c00, RFLAGS.IF = 0; 0 to 4 GiB mapped to itself; no IDT
 * Options:     --timeout 0.5
 * Mistake:     the flag is set by an interrupt handler, in a program without interrupts.
 * Expected:    the time limit; the report shows the loop
 */

        .code64
        .globl  _start
_start:
wait:
        pause                                   # a hint to the CPU: this is a waiting loop
        cmpb    $0, is_done
        je      wait                            # for ever
        hlt

        .data
is_done:
        .byte   0
