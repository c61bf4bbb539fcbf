/*
 * 10-ring3: go down to ring 3, come back by a fault, and return to ring 3 with iretq.
 *
 * Mode:        64-bit long mode, ring 0, set up by the host (2 MiB pages, for ring 0 only)
 * Loaded at:   0x100000
 * At entry:    RIP = 0x100000, RSP = 0x7c00, RFLAGS.IF = 0; GDT and TSS as in lib/layout.inc; no IDT
 * Expected:    ring 3 executes hlt, which only ring 0 may: #GP; the handler prints the line that ring 3 points at,
 *              steps over the hlt and returns. Ring 3 does so twice and then executes ud2: #UD, whose handler ends
 *              the run by KVM_EXIT_HLT, for in ring 0 hlt is allowed
 */

        .include "ports.inc"
        .include "layout.inc"
        .include "print.inc"
        .include "idt64.inc"

        .set    UD, 6                           # vectors: invalid opcode, no error code
        .set    GP, 13                          # general protection, with an error code
        .set    USER, 0x04                      # U/S bit of a page-table entry: ring 3 may use the page
        .set    RFLAGS_FIXED, 0x02              # bit 1 of RFLAGS is always 1

        .code64
        .globl  _start
_start:
        mov     $in_ring0, %esi
        call    print_string

/* 1. Let ring 3 use the 2 MiB page that this code is in: the U/S bit is needed in every level on the way. */
        mov     %cr3, %rax                      # the PML4
        orl     $USER, (%rax)
        mov     (%rax), %eax
        and     $0xfffff000, %eax               # the PDPT (below 4 GiB, as all that the host made)
        orl     $USER, (%rax)
        mov     (%rax), %eax
        and     $0xfffff000, %eax               # the page directory
        orl     $USER, (%rax)
        mov     %cr3, %rax
        mov     %rax, %cr3                      # forget what the TLB remembers of the old entries

/* 2. A way back: gates for the two faults, and a stack for ring 0. */
        set_gate idt, UD, invalid_opcode
        set_gate idt, GP, general_protection
        lidt    idt_pointer                     # IDTR = where the gates are
        mov     %rsp, TSS_RSP0                  # a fault in ring 3 begins on this stack

/* 3. Down: iretq pops what a fault from ring 3 would have pushed. */
        pushq   $USER_DATA                      # SS
        pushq   $user_stack_top                 # RSP
        pushq   $RFLAGS_FIXED                   # RFLAGS
        pushq   $USER_CODE64                    # CS: its low two bits become the CPL
        pushq   $user                           # RIP
        iretq                                   # ring 3 begins

/* Ring 3. It has no way to print: a port is as forbidden as hlt is. */
user:
        mov     $first, %edi
        hlt                                     # forbidden: #GP
        mov     $second, %edi
        hlt                                     # forbidden: #GP
        ud2                                     # not an instruction at all: #UD

/*
 * #GP. The stack holds, from RSP up: error code, RIP, CS, RFLAGS, RSP, SS.
 */
general_protection:
        push    %rax
        push    %rsi
        mov     $fault_gp, %esi
        call    print_string
        mov     32(%rsp), %eax                  # the saved CS, above RSI, RAX, the error code and RIP
        and     $3, %al                         # the CPL that the fault interrupted
        add     $'0', %al
        mov     %al, digit
        mov     $digit, %esi
        call    print_string
        mov     %rdi, %rsi                      # the line that ring 3 points at
        call    print_string
        pop     %rsi
        pop     %rax
        add     $8, %rsp                        # iretq does not know about the error code
        incq    (%rsp)                          # step over hlt, one byte: a fault returns to the instruction itself
        iretq                                   # back to ring 3

/* #UD. No error code. Ring 3 is not continued. */
invalid_opcode:
        mov     $fault_ud, %esi
        call    print_string
        hlt                                     # ring 0 may: done

        define_print_string print_string

in_ring0:
        .asciz  "ring 0: going down\n"
fault_gp:
        .asciz  "ring 0: #GP from ring "
digit:
        .asciz  "?"
first:
        .asciz  ", which says: hello\n"
second:
        .asciz  ", which says: hello again\n"
fault_ud:
        .asciz  "ring 0: #UD, enough\n"

idt_pointer:
        .word   16 * 32 - 1                     # limit: 32 gates, the CPU's own exceptions
        .quad   idt                             # base

        .bss
        .balign 16
idt:
        .skip   16 * 32                         # a gate of zeros is not present
        .skip   512
user_stack_top:
