/*
 * 27-doorbell: ring a thousand times without leaving the guest for it.
 *
 * Mode:        64-bit long mode, ring 0, set up by the host
 * Loaded at:   0x100000
 * At entry:    RIP = 0x100000, RSP = 0x7c00, RFLAGS.IF = 0; 0 to 4 GiB mapped to itself; the device "doorbell"
 * Expected:    1000 writes to the bell, none of which is an exit: KVM adds 1 to an eventfd for each. The read of the
 *              count is one. KVM_EXIT_HLT.
 */

        .include "ports.inc"
        .include "print.inc"
        .include "decimal.inc"

        .set    DOORBELL, 0x5d0                 # write 32 bits, any value: ring
        .set    DOORBELL_COUNT, 0x5d4           # read 32 bits: how many rings were heard so far
        .set    RINGS, 1000

        .code64
        .globl  _start
_start:
        mov     $RINGS, %ecx
        mov     $DOORBELL, %edx
ring:
        out     %eax, (%dx)                     # the host sleeps on, KVM alone has seen it
        dec     %ecx
        jnz     ring

        mov     $DOORBELL_COUNT, %edx
waiting:
        in      (%dx), %eax                     # an exit: only the host knows
        cmp     $RINGS, %eax
        jb      waiting                         # it has not heard all of them yet

        call    print_decimal
        mov     $rings_heard, %esi
        call    print_string
        hlt                                     # done

        define_print_string print_string
        define_print_decimal print_decimal, print_string

rings_heard:
        .asciz  " rings were heard\n"
