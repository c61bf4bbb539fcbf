/*
 * no-eoi: a timer that ticks once.
 *
 * Mode:        64-bit long mode, ring 0, set up by the host
 * Loaded at:   0x100000
 * At entry:    RIP = 0x100000, RSP = 0x7c00, RFLAGS.IF = 0; 0 to 4 GiB mapped to itself; no IDT; the PICs and the
 *              PIT in their reset state
 * Options:     --irqchip user --timeout 0.5
 * Mistake:     the handler does not tell the 8259A that it is done, and that sends no other interrupt
 *              meanwhile.
 * Expected:    the time limit: the CPU waits for the second of three ticks
 */

        .include "layout.inc"
        .include "idt64.inc"
        .include "pic.inc"

        .set    PIT_CHANNEL0,   0x40            # the counter whose output is IRQ 0
        .set    PIT_CONTROL,    0x43
        .set    PIT_RATE,       0b00110100      # channel 0; low byte, then high byte; mode 2; binary
        .set    RELOAD,         11932           # 1193182 Hz / 11932: 100 ticks a second
        .set    TIMER_VECTOR,   PIC_VECTOR + IRQ_TIMER

        .code64
        .globl  _start
_start:
        set_gate idt, TIMER_VECTOR, timer
        lidt    idt_pointer                     # IDTR = where the gate is
        pic_init ~(1 << IRQ_TIMER) & 0xff, PIC_MASK_ALL
        mov     $PIT_RATE, %al                  # the 8254's control word
        out     %al, $PIT_CONTROL
        mov     $RELOAD & 0xff, %al
        out     %al, $PIT_CHANNEL0
        mov     $RELOAD >> 8, %al
        out     %al, $PIT_CHANNEL0              # with the high byte it starts
next:
        sti
        hlt                                     # until the next tick
        cmpl    $3, ticks
        jb      next
        cli
        hlt                                     # three ticks: done

timer:
        incl    ticks
        iretq                                   # wrong: no pic_eoi before it

idt_pointer:
        .word   16 * 48 - 1                     # limit: 48 gates, exceptions and the PICs' interrupts
        .quad   idt                             # base

        .bss
        .balign 16
idt:
        .skip   16 * 48
ticks:
        .skip   4
