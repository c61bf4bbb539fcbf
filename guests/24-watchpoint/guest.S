/*
 * 24-watchpoint: somebody overwrites a variable; find out who.
 *
 * Mode:        64-bit long mode, ring 0, set up by the host
 * Loaded at:   0x100000
 * At entry:    RIP = 0x100000, RSP = 0x7c00, RFLAGS.IF = 0; 0 to 4 GiB mapped to itself; no IDT
 * Expected:    the debug registers watch `victim`, and the handler of #DB names the routine that changed it. Some
 *              hosts' KVM delivers no data breakpoints (`pykvm doctor --probe` tells); there the guest steps through
 *              its own code, one trap an instruction, and compares. The same lines are printed. KVM_EXIT_HLT.
 */

        .include "ports.inc"
        .include "layout.inc"
        .include "print.inc"
        .include "decimal.inc"
        .include "idt64.inc"

        .set    DB, 1                           # vector: debug exception, no error code
        .set    RFLAGS_TF, 0x100                # Trap Flag: a #DB after every instruction

/*
 * DR7:     31 30  29 28  27 26  25 24  23 22  21 20  19 18  17 16       7  6  5  4  3  2  1  0
 *           LEN3   R/W3   LEN2   R/W2   LEN1   R/W1   LEN0   R/W0  ...  G3 L3 G2 L2 G1 L1 G0 L0
 */
        .set    DR7_G0, 1 << 1                  # DR0 is in use
        .set    DR7_WRITE0, 1 << 16             # R/W0 = 01: stop at writes
        .set    DR7_4BYTES0, 3 << 18            # LEN0 = 11: four bytes long
        .set    DR6_QUIET, 0xffff0ff0           # DR6 when nothing has happened

        .code64
        .globl  _start
_start:
        set_gate idt, DB, debug
        lidt    idt_pointer                     # IDTR = where the gate is

        mov     $victim, %eax
        mov     %rax, %dr0                      # DR0 = the linear address to watch
        mov     $DR7_G0 | DR7_WRITE0 | DR7_4BYTES0, %eax
        mov     %rax, %dr7                      # on

        movl    $0, victim                      # a try: does the CPU tell of a write?
        cmpl    $0, traps
        jne     watching
        pushfq                                  # no. Then it has to tell of every instruction
        orl     $RFLAGS_TF, (%rsp)
        popfq                                   # RFLAGS.TF takes effect after the next instruction

watching:
        call    careful
        call    careless

        pushfq
        andl    $~RFLAGS_TF, (%rsp)
        popfq                                   # no more steps
        xor     %eax, %eax
        mov     %rax, %dr7                      # off
        hlt                                     # done

/* Two routines that fill an array of eight numbers. */
careful:
        mov     $8, %ecx
1:      movl    $7, array - 4(, %rcx, 4)        # array[7] ... array[0]
        dec     %ecx
        jnz     1b
        ret

careless:
        mov     $9, %ecx
1:      movl    $7, array - 4(, %rcx, 4)        # array[8] ... array[0], and there are only eight
        dec     %ecx
        jnz     1b
        ret

/*
 * #DB, a trap: the write has been done. The stack holds, from RSP up: RIP of the next instruction, CS, RFLAGS, RSP, SS.
 */
debug:
        push    %rax
        push    %rsi
        incl    traps
        mov     $DR6_QUIET, %eax
        mov     %rax, %dr6                      # the CPU sets bits in DR6 and never clears one
        mov     victim, %eax
        cmp     %eax, value
        je      back                            # a step, or a write that has changed nothing
        mov     %eax, value
        mov     $was_set_to, %esi
        call    print_string
        mov     value, %eax
        call    print_decimal
        mov     $by_careful, %esi
        cmpq    $careless, 16(%rsp)             # RIP, above RSI and RAX
        jb      1f
        mov     $by_careless, %esi
1:      call    print_string
back:
        pop     %rsi
        pop     %rax
        iretq                                   # with the RFLAGS from the stack: TF stays as it was

        define_print_string print_string
        define_print_decimal print_decimal, print_string

was_set_to:
        .asciz  "victim was set to "
by_careful:
        .asciz  " by careful\n"
by_careless:
        .asciz  " by careless\n"

idt_pointer:
        .word   16 * 32 - 1                     # limit: 32 gates, the CPU's own exceptions
        .quad   idt                             # base

        .bss
        .balign 16
idt:
        .skip   16 * 32                         # a gate of zeros is not present
array:
        .skip   4 * 8
        .globl  victim
victim:
        .skip   4                               # right behind the array
value:
        .skip   4                               # what victim was when it was looked at last
        .globl  traps
traps:
        .skip   4                               # how many #DB there were
