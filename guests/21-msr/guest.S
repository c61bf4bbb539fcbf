/*
 * 21-msr: read a register that only the host knows, change it, and ask for one that nobody knows.
 *
 * Mode:        64-bit long mode, ring 0, set up by the host
 * Loaded at:   0x100000
 * At entry:    RIP = 0x100000, RSP = 0x7c00, RFLAGS.IF = 0; 0 to 4 GiB mapped to itself; no IDT; the host answers for
 *              MSR 0x1234, with 42 at first
 * Expected:    42 is read, 43 is written and read back: KVM_EXIT_X86_RDMSR and KVM_EXIT_X86_WRMSR. The read of MSR
 *              0x1235 is refused: #GP, which the handler steps over. KVM_EXIT_HLT.
 */

        .include "ports.inc"
        .include "layout.inc"
        .include "print.inc"
        .include "decimal.inc"
        .include "idt64.inc"

        .set    GP, 13                          # vector: general protection, with an error code
        .set    RFLAGS_CF, 0x01                 # carry flag
        .set    MSR_SIZE, 2                     # bytes of an rdmsr or wrmsr instruction

        .set    KNOWN, 0x1234                   # no CPU has this MSR: the host makes it up
        .set    UNKNOWN, 0x1235                 # nor this one; nobody makes it up

        .code64
        .globl  _start
_start:
        set_gate idt, GP, general_protection
        lidt    idt_pointer                     # IDTR = where the gate is

        mov     $read_known, %esi
        call    print_string
        mov     $KNOWN, %ecx
        call    show_msr

        inc     %eax                            # the value that show_msr has left in EDX:EAX, plus 1
        wrmsr                                   # MSR ECX = EDX:EAX; the host takes it
        mov     $read_again, %esi
        call    print_string
        call    show_msr

        mov     $read_unknown, %esi
        call    print_string
        mov     $UNKNOWN, %ecx
        call    show_msr
        hlt                                     # done

/* Print MSR ECX, or that it was refused. EDX:EAX = its value. Changes RSI. */
show_msr:
        clc
        rdmsr                                   # EDX:EAX = MSR ECX, or #GP, whose handler sets the carry flag
        jc      refused
        push    %rax
        shl     $32, %rdx
        or      %rdx, %rax                      # one number of 64 bits
        shr     $32, %rdx
        call    print_decimal
        pop     %rax
        jmp     line_end
refused:
        mov     $was_refused, %esi
        call    print_string
line_end:
        push    %rax
        mov     $end_of_line, %esi
        call    print_string
        pop     %rax
        ret

/* #GP. The stack holds, from RSP up: error code, RIP, CS, RFLAGS, RSP, SS. */
general_protection:
        add     $8, %rsp                        # iretq does not know about the error code
        addq    $MSR_SIZE, (%rsp)               # step over the instruction; a fault would return to it
        orq     $RFLAGS_CF, 16(%rsp)            # the carry flag, as the one who asked will see it
        iretq

        define_print_string print_string
        define_print_decimal print_decimal, print_string

read_known:
        .asciz  "MSR 0x1234: "
read_again:
        .asciz  "MSR 0x1234, after adding 1: "
read_unknown:
        .asciz  "MSR 0x1235: "
was_refused:
        .asciz  "#GP, there is no such register"
end_of_line:
        .asciz  "\n"

idt_pointer:
        .word   16 * 32 - 1                     # limit: 32 gates, the CPU's own exceptions
        .quad   idt                             # base

        .bss
        .balign 16
idt:
        .skip   16 * 32                         # a gate of zeros is not present
