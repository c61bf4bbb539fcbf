/*
 * 15-timer: ten ticks of the 8254 timer, brought by the 8259A interrupt controllers.
 *
 * Mode:        64-bit long mode, ring 0, set up by the host
 * Loaded at:   0x100000
 * At entry:    RIP = 0x100000, RSP = 0x7c00, RFLAGS.IF = 0; 0 to 4 GiB mapped to itself; no IDT; the PICs and the
 *              PIT in their reset state
 * Expected:    a line for each of ten interrupts, 10 ms apart, with the CPU halted in between; then HLT with
 *              RFLAGS.IF = 0, which nothing can end. The same text from a PIC in user space and from the kernel's.
 */

        .include "ports.inc"
        .include "layout.inc"
        .include "print.inc"
        .include "decimal.inc"
        .include "idt64.inc"
        .include "pic.inc"

        .set    PIT_CHANNEL0,   0x40            # the counter whose output is IRQ 0
        .set    PIT_CONTROL,    0x43
        .set    PIT_RATE,       0b00110100      # channel 0; low byte, then high byte; mode 2; binary
        .set    PIT_FREQUENCY,  1193182         # Hz, on every PC
        .set    TICKS_PER_SECOND, 100
        .set    RELOAD,         (PIT_FREQUENCY + TICKS_PER_SECOND / 2) / TICKS_PER_SECOND

        .set    TIMER_VECTOR,   PIC_VECTOR + IRQ_TIMER
        .set    LAST_TICK,      10

        .code64
        .globl  _start
_start:
        set_gate idt, TIMER_VECTOR, timer
        lidt    idt_pointer                     # IDTR = where the gate is
        pic_init ~(1 << IRQ_TIMER) & 0xff, PIC_MASK_ALL
        mov     $PIT_RATE, %al                  # the 8254's control word
        out     %al, $PIT_CONTROL
        mov     $RELOAD & 0xff, %al             # count down from here, again and again
        out     %al, $PIT_CHANNEL0
        mov     $RELOAD >> 8, %al
        out     %al, $PIT_CHANNEL0              # with the high byte it starts
next:
        sti                                     # takes effect after the next instruction ...
        hlt                                     # ... so that no tick can slip in before the CPU sleeps
        cli
        cmpl    $LAST_TICK, ticks
        jb      next
        mov     $PIC_MASK_ALL, %al              # no more of them
        out     %al, $PIC1_DATA
        hlt                                     # done: RFLAGS.IF = 0, this cannot end

/* IRQ 0. The stack holds RIP, CS, RFLAGS, RSP and SS of what was interrupted; RFLAGS.IF is clear. */
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
        pic_eoi                                 # without it the PIC would send no other
        pop     %rsi
        pop     %rax
        iretq                                   # to the instruction after hlt, with RFLAGS.IF = 1 again

        define_print_string print_string
        define_print_decimal print_decimal, print_string

tick:
        .asciz  "tick "
end_of_line:
        .asciz  "\n"

idt_pointer:
        .word   16 * 48 - 1                     # limit: 48 gates, exceptions and the PICs' interrupts
        .quad   idt                             # base

        .bss
        .balign 16
idt:
        .skip   16 * 48                         # a gate of zeros is not present
ticks:
        .skip   4
