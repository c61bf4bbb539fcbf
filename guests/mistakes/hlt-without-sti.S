/*
 * hlt-without-sti: waiting for an interrupt with interrupts off.
 *
 * Mode:        64-bit long mode, ring 0, set up by the host
 * Loaded at:   0x100000
 * At entry:    RIP = 0x100000, RSP = 0x7c00, RFLAGS.IF = 0; 0 to 4 GiB mapped to itself; no IDT; the PICs and the
 *              PIT in their reset state
 * Options:     --irqchip user
 * Mistake:     HLT while RFLAGS.IF is 0, as it is at entry and after CLI.
 * Expected:    the run ends: nothing can end that HLT. It is no crash, for many a guest ends like this
 *              on purpose; pykvm remarks on it, as an interrupt line is open
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
        hlt                                     # wrong: sti must come before it
        hlt

timer:
        incl    ticks
        pic_eoi
        iretq

idt_pointer:
        .word   16 * 48 - 1                     # limit: 48 gates, exceptions and the PICs' interrupts
        .quad   idt                             # base

        .bss
        .balign 16
idt:
        .skip   16 * 48
ticks:
        .skip   4
