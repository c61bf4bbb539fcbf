/*
 * 20-spinlock: four CPUs count to 100,000 together, one at a time.
 *
 * Mode:        64-bit long mode, ring 0, set up by the host: CPU 0. The others wait for INIT and SIPI
 * Loaded at:   0x100000
 * At entry:    RIP = 0x100000, RSP = 0x7c00, RFLAGS.IF = 0; 0 to 4 GiB mapped to itself; the APICs in their reset state
 * Expected:    each CPU adds 1 to the total 25,000 times; none of it is lost, as a spinlock lets one CPU at a time do
 *              so. CPU 0 prints the total; all halt with RFLAGS.IF = 0, which nothing can end.
 */

        .include "ports.inc"
        .include "layout.inc"
        .include "print.inc"
        .include "decimal.inc"
        .include "apic.inc"
        .include "smp.inc"

        .set    CPUS, 4
        .set    EACH, 25000                     # how often each of them adds 1
        .set    CACHE_LINE, 64                  # bytes that caches move as one piece

        .code64
        .globl  _start
_start:
        start_other_cpus trampoline
gathering:
        pause
        cmpl    $CPUS - 1, awake                # nobody counts before all are there
        jne     gathering
        movl    $1, go
        call    count
counting:
        pause
        cmpl    $CPUS, finished
        jne     counting
        mov     total, %eax
        call    print_decimal
        mov     $end_of_line, %esi
        call    print_string
        hlt                                     # done: RFLAGS.IF = 0, this cannot end

/* CPUs 1 to 3 arrive here, in 64-bit mode, all at the same time, and without a stack. */
other_cpu:
        mov     $1, %eax
        lock xadd %eax, awake                   # EAX = how many were here before: 0, 1 or 2, each of them once
        inc     %eax
        shl     $8, %eax                        # 256 bytes of stack for each
        lea     stacks(%rax), %esp
ready:
        pause
        cmpl    $0, go
        je      ready
        call    count
        cli
        hlt                                     # done

/*
 * Add 1 to the total, EACH times, and say so. Every CPU runs this. Bit 0 of `spinlock` is set while somebody is between
 * `locked` and the release; whoever sets it finds out, in the same step, whether it was clear. Changes RCX.
 */
count:
        mov     $EACH, %ecx
acquire:
        lock btsl $0, spinlock                  # the carry flag = bit 0; bit 0 = 1. One step, for all CPUs
        jnc     locked                          # it was clear: the lock is ours
held:
        pause                                   # somebody has it: look, without writing, until it seems free ...
        testl   $1, spinlock
        jnz     held
        jmp     acquire                         # ... and try again, for others have seen that too
locked:
        incl    total                           # reads, adds, writes: three steps, and no other CPU in between
        movl    $0, spinlock                    # release. x86 shows a CPU's writes in order: the total before this
        dec     %ecx
        jnz     acquire
        lock incl finished
        ret

        define_print_string print_string
        define_print_decimal print_decimal, print_string
        define_trampoline trampoline, other_cpu

end_of_line:
        .asciz  "\n"

        .bss
        .balign CACHE_LINE                      # what many CPUs write stands alone in its line
spinlock:
        .skip   CACHE_LINE                      # bit 0: somebody has it
total:
        .skip   CACHE_LINE
awake:
        .skip   4                               # how many CPUs beside CPU 0 have started
go:
        .skip   4
finished:
        .skip   4
        .balign 16
stacks:
        .skip   CPUS * 256
