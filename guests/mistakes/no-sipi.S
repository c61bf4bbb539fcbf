/*
 * no-sipi: waiting for a second CPU that nobody has started.
 *
 * Mode:        64-bit long mode, ring 0, set up by the host
 * Loaded at:   0x100000
 * At entry:    RIP = 0x100000, RSP = 0x7c00, RFLAGS.IF = 0; 0 to 4 GiB mapped to itself; the APICs in their reset
 *              state
 * Options:     --irqchip kernel --cpus 2 --timeout 0.5
 * Mistake:     an INIT without the SIPI that must follow it.
 * Expected:    the time limit; CPU 1 still waits for SIPI
 */

        .include "apic.inc"

        .set    CPU1, 1 << 24                   # APIC id 1, as ICR_HIGH has it

        .code64
        .globl  _start
_start:
        mov     $LAPIC, %ebx
        movl    $SVR_ENABLE | SPURIOUS_VECTOR, LAPIC_SVR(%rbx)  # this APIC may send once it is on
        movl    $CPU1, LAPIC_ICR_HIGH(%rbx)     # to whom
        movl    $ICR_ASSERT | ICR_INIT, LAPIC_ICR_LOW(%rbx)     # INIT: reset yourself, and wait
                                                # wrong: no SIPI follows
wait:
        pause                                   # a hint to the CPU: this is a waiting loop
        cmpb    $0, is_awake
        je      wait
        hlt

        .data
is_awake:
        .byte   0
