/*
 * 23-nmi: an interrupt that RFLAGS.IF does not hold off, and what does.
 *
 * Mode:        64-bit long mode, ring 0, set up by the host
 * Loaded at:   0x100000
 * At entry:    RIP = 0x100000, RSP = 0x7c00, RFLAGS.IF = 0; 0 to 4 GiB mapped to itself, the APIC's page too; no IDT
 * Expected:    the CPU sends itself an NMI by its local APIC and takes it, though RFLAGS.IF is clear from the first
 *              instruction to the last; one sent from inside the handler waits until IRETQ has been executed; then
 *              HLT. Needs an irqchip in the kernel, for the APIC is a part of it.
 */

        .include "ports.inc"
        .include "layout.inc"
        .include "print.inc"
        .include "idt64.inc"
        .include "apic.inc"

        .set    NMI,            2               # its vector, whoever sends it
        .set    SAVED_RFLAGS,   32              # of what was interrupted, seen from RSP in the handler
        .set    RFLAGS_IF,      9               # the bit's number

        .code64
        .globl  _start
_start:
        set_gate idt, NMI, nmi
        lidt    idt_pointer                     # IDTR = where the gate is
        mov     $LAPIC, %ebx
        movl    $SVR_ENABLE | SPURIOUS_VECTOR, LAPIC_SVR(%rbx)  # the APIC is on

        mov     $sending, %esi
        call    print_string
        call    send_nmi
1:      cmpl    $2, count                       # both handlers done? An APIC may take a moment to deliver
        jb      1b
        mov     $back, %esi
        call    print_string
        hlt                                     # done: RFLAGS.IF = 0

/* send_nmi: send an NMI to this CPU. Needs RBX = LAPIC; changes RAX. */
send_nmi:
        mov     LAPIC_ID(%rbx), %eax            # bits 31-24: our own number ...
        mov     %eax, LAPIC_ICR_HIGH(%rbx)      # ... is where it is to go
        movl    $ICR_NMI | ICR_ASSERT, LAPIC_ICR_LOW(%rbx)      # this write sends it
        ret

/* Vector 2. The stack holds, from RSP up, after two pushes: RSI, RAX, RIP, CS, RFLAGS, RSP, SS. */
nmi:
        push    %rax
        push    %rsi
        incl    entered
        cmpl    $1, entered
        jne     second

        mov     SAVED_RFLAGS(%rsp), %rax
        shr     $RFLAGS_IF, %rax
        and     $1, %al
        add     %al, if_digit                   # "0" becomes "1" if interrupts were on
        mov     $first, %esi
        call    print_string
        call    send_nmi                        # this one is held off: the CPU is in an NMI handler
        mov     $waits, %esi
        jmp     leave
second:
        mov     $came, %esi
leave:
        call    print_string
        incl    count
        pop     %rsi
        pop     %rax
        iretq                                   # back, and NMIs are let in again

        define_print_string print_string

sending:
        .asciz  "interrupts are off; sending an NMI\n"
first:
        .ascii  "first NMI: it came with RFLAGS.IF = "
if_digit:
        .asciz  "0\n"
waits:
        .asciz  "first NMI: sent another, which has to wait for iretq\n"
came:
        .asciz  "second NMI\n"
back:
        .asciz  "back\n"

idt_pointer:
        .word   16 * 32 - 1                     # limit: 32 gates, the CPU's own exceptions
        .quad   idt                             # base

        .bss
        .balign 16
idt:
        .skip   16 * 32                         # a gate of zeros is not present
entered:
        .skip   4                               # how often the handler began ...
count:
        .skip   4                               # ... and how often it was through
