/*
 * 11-page-fault: write to an address that is not mapped, catch the fault, map the page, and let the write happen.
 *
 * Mode:        64-bit long mode, ring 0, set up by the host
 * Loaded at:   0x100000
 * At entry:    RIP = 0x100000, RSP = 0x7c00, RFLAGS.IF = 0; 0 to 4 GiB mapped to itself by PML4[0]; no IDT
 * Expected:    one page fault, of which KVM's user space hears nothing: the only exits are the printing and, at the
 *              end, KVM_EXIT_HLT. When the byte does not arrive, the debug-exit port gets 1.
 */

        .include "ports.inc"
        .include "layout.inc"
        .include "print.inc"
        .include "idt64.inc"

        .set    PF, 14                          # vector: page fault, with an error code
        .set    PHYSICAL, 0x180000              # a byte of RAM that nothing else uses
        .set    ALIAS, 0x8000000000 + PHYSICAL  # 512 GiB higher: the same byte, once PML4[1] equals PML4[0]

        .code64
        .globl  _start
_start:
        set_gate idt, PF, page_fault
        lidt    idt_pointer                     # IDTR = where the gate is
        mov     $before, %esi
        call    print_string

        mov     $ALIAS, %rbx
        movb    $'!', (%rbx)                    # faults, and is executed again when the handler returns

        cmpb    $'!', PHYSICAL                  # the byte, at its other address
        jne     lost
        mov     $after, %esi
        call    print_string
        hlt                                     # done
lost:
        mov     $1, %al
        out     %al, $DEBUG_EXIT                # end the run with status 3

/*
 * #PF. The stack holds, from RSP up: error code, RIP, CS, RFLAGS, RSP, SS; CR2 holds the address. The error code:
 *
 *      bit 0   P       0: not present, 1: present, but not allowed
 *      bit 1   W/R     1: a write
 *      bit 2   U/S     1: from ring 3
 */
page_fault:
        push    %rax
        push    %rsi
        mov     $at, %esi
        call    print_string
        mov     %cr2, %rax                      # the address that has no page
        call    print_hex
        mov     $error_code, %esi
        call    print_string
        mov     16(%rsp), %rax                  # the error code, above RSI and RAX
        call    print_hex
        mov     $end_of_line, %esi
        call    print_string
        mov     %cr3, %rax                      # the PML4: each entry maps 512 GiB
        mov     (%rax), %rsi
        mov     %rsi, 8(%rax)                   # PML4[1] = PML4[0]: everything can be seen again, 512 GiB higher
        pop     %rsi
        pop     %rax
        add     $8, %rsp                        # iretq does not know about the error code
        iretq                                   # to the instruction that faulted

        define_print_string print_string
        define_print_hex print_hex, print_string

before:
        .asciz  "writing\n"
at:
        .asciz  "page fault at 0x"
error_code:
        .asciz  ", error code 0x"
end_of_line:
        .asciz  "\n"
after:
        .asciz  "written\n"

idt_pointer:
        .word   16 * 32 - 1                     # limit: 32 gates, the CPU's own exceptions
        .quad   idt                             # base

        .bss
        .balign 16
idt:
        .skip   16 * 32                         # a gate of zeros is not present
