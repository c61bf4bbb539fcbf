/*
 * 19-second-cpu: CPU 0 wakes CPU 1, which begins in real mode as every PC processor does.
 *
 * Mode:        64-bit long mode, ring 0, set up by the host: CPU 0. CPU 1 waits for INIT and SIPI
 * Loaded at:   0x100000
 * At entry:    RIP = 0x100000, RSP = 0x7c00, RFLAGS.IF = 0; 0 to 4 GiB mapped to itself; the APICs in their reset state
 * Expected:    a line from CPU 0, one from CPU 1, one from CPU 0; then both halt with RFLAGS.IF = 0, which nothing can
 *              end. KVM tells user space nothing of the two messages by which CPU 1 is started.
 */

        .include "ports.inc"
        .include "layout.inc"
        .include "print.inc"
        .include "apic.inc"

        .set    START, 0x8000                   # where CPU 1 is to begin: a page below 1 MiB
        .set    AWAKE, START + awake - real_mode  # the byte by which CPU 1 says so, in the copy of its code
        .set    CPU1, 1 << 24                   # APIC id 1, as ICR_HIGH has it

        .code64
        .globl  _start
_start:
        mov     $waking, %esi
        call    print_string

/* 1. Put CPU 1's code where real mode can reach it. */
        mov     $real_mode, %esi
        mov     $START, %edi
        mov     $real_mode_end - real_mode, %ecx
        rep movsb

/* 2. INIT, then SIPI: two messages from this CPU's APIC to that of CPU 1. */
        mov     $LAPIC, %ebx
        movl    $SVR_ENABLE | SPURIOUS_VECTOR, LAPIC_SVR(%rbx)  # this APIC may send once it is on
        movl    $CPU1, LAPIC_ICR_HIGH(%rbx)     # to whom; it stays for both messages
        movl    $ICR_ASSERT | ICR_INIT, LAPIC_ICR_LOW(%rbx)     # INIT: reset yourself, and wait
sending:
        testl   $ICR_PENDING, LAPIC_ICR_LOW(%rbx)
        jnz     sending                         # INIT has not left yet
        movl    $ICR_ASSERT | ICR_STARTUP | START >> 12, LAPIC_ICR_LOW(%rbx)  # SIPI: begin at page 8

/* 3. Wait for the byte that CPU 1 writes. There is one memory for both. */
waiting:
        pause                                   # a hint to the CPU: this is a waiting loop
        cmpb    $0, AWAKE
        je      waiting
        mov     $is_awake, %esi
        call    print_string
        hlt                                     # done: RFLAGS.IF = 0, this cannot end

        define_print_string print_string

waking:
        .asciz  "CPU 0: CPU 1, wake up\n"
is_awake:
        .asciz  "CPU 0: it is awake\n"

/*
 * CPU 1. It runs in the copy at 0x8000: SIPI has set CS = 0x0800 and IP = 0, and all other segments are 0. With DS = CS
 * everything is addressed from the start of the copy. It has no stack until SS:SP says where.
 */
        .code16
real_mode:
        mov     %cs, %ax
        mov     %ax, %ds
        xor     %ax, %ax
        mov     %ax, %ss
        mov     $0x7000, %sp                    # CPU 0's stack begins at 0x7c00: stay clear of it
        mov     $1, %eax
        cpuid                                   # leaf 1: bits 31-24 of EBX are this CPU's APIC id
        shr     $24, %ebx
        add     %bl, number - real_mode
        mov     $from_cpu1 - real_mode, %si
        call    print_string16
        incb    awake - real_mode
        cli
        hlt                                     # done; only INIT could wake it

        define_print_string print_string16

from_cpu1:
        .ascii  "CPU "
number:
        .asciz  "0: here, in real mode\n"
awake:
        .byte   0
real_mode_end:
