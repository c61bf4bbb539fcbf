/*
 * 01-hlt: the smallest guest, one instruction.
 *
 * Mode:        real mode, 16-bit
 * Loaded at:   0x8000
 * At entry:    CS:IP = 0000:8000, SP = 0x7c00, RFLAGS.IF = 0
 * Expected:    one exit, KVM_EXIT_HLT; nothing can wake the CPU, and so the run ends with status 0
 */

        .code16
        .globl  _start
_start:
        hlt                                     # stop until an interrupt comes; with IF = 0 none can
