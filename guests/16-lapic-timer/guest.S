/*
 * 16-lapic-timer: ten ticks of the timer that every CPU has for itself, in its local APIC.
 *
 * Mode:        64-bit long mode, ring 0, set up by the host
 * Loaded at:   0x100000
 * At entry:    RIP = 0x100000, RSP = 0x7c00, RFLAGS.IF = 0; 0 to 4 GiB mapped to itself, the APIC's page too; no IDT;
 *              the APIC in its reset state
 * Expected:    a line for each of ten interrupts; then HLT with RFLAGS.IF = 0. Needs an irqchip in the kernel, for
 *              the APIC is a part of it; the host sees the printing and nothing else.
 */

        .include "ports.inc"
        .include "layout.inc"
        .include "print.inc"
        .include "decimal.inc"
        .include "idt64.inc"
        .include "pic.inc"
        .include "apic.inc"

        .set    TIMER_VECTOR,   0x40            # any from 32 on; the upper four bits are its priority
        .set    BUS_CYCLES,     625000          # between two ticks, after the division: 10 ms at 1 GHz / 16
        .set    LAST_TICK,      10

        .code64
        .globl  _start
_start:
        set_gate idt, TIMER_VECTOR, timer
        set_gate idt, SPURIOUS_VECTOR, spurious
        lidt    idt_pointer                     # IDTR = where the gates are

        mov     $PIC_MASK_ALL, %al              # the 8259As stay quiet
        out     %al, $PIC1_DATA
        out     %al, $PIC2_DATA

        mov     $LAPIC, %ebx
        movl    $SVR_ENABLE | SPURIOUS_VECTOR, LAPIC_SVR(%rbx)
        movl    $LVT_MASKED, LAPIC_LVT_LINT0(%rbx)      # nobody asks the 8259A for a vector either
        movl    $DIVIDE_BY_16, LAPIC_TIMER_DIVIDE(%rbx)
        movl    $LVT_PERIODIC | TIMER_VECTOR, LAPIC_LVT_TIMER(%rbx)
        movl    $BUS_CYCLES, LAPIC_TIMER_INITIAL(%rbx)  # it starts
next:
        sti                                     # takes effect after the next instruction ...
        hlt                                     # ... so that no tick can slip in before the CPU sleeps
        cli
        cmpl    $LAST_TICK, ticks
        jb      next
        movl    $0, LAPIC_TIMER_INITIAL(%rbx)   # it stops
        hlt                                     # done: RFLAGS.IF = 0, this cannot end

/* The timer's interrupt. */
timer:
        push    %rax
        push    %rsi
        incl    ticks
        mov     $tick, %esi
        call    print_string
        mov     ticks, %eax
        call    print_decimal
        mov     $end_of_line, %esi
        call    print_string
        lapic_eoi                               # without it no vector of this priority or a lower one would come
        pop     %rsi
        pop     %rax
        iretq

/* A request that was gone when the CPU asked for its vector: nothing is in service, and so there is no EOI. */
spurious:
        iretq

        define_print_string print_string
        define_print_decimal print_decimal, print_string

tick:
        .asciz  "tick "
end_of_line:
        .asciz  "\n"

idt_pointer:
        .word   16 * 256 - 1                    # limit: all 256 gates
        .quad   idt                             # base

        .bss
        .balign 16
idt:
        .skip   16 * 256                        # a gate of zeros is not present
ticks:
        .skip   4
