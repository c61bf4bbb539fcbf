/*
 * mode: long
 * ring: 0
 * proves: ring 3 code runs, may not read CR0, and comes back to ring 0 by a fault
 */
        .include "layout.inc"
        .include "idt64.inc"
        .include "ring3.inc"

        .code64
        .globl  _start
_start:
        set_gate idt, 13, protection
        xor     %ebx, %ebx
        enter_ring3 user, done
user:
        mov     %cr0, %rax                      # #GP in ring 3
        ud2                                     # back to ring 0
protection:
        mov     16(%rsp), %ebx                  # the saved CS
        add     $8, %rsp                        # the error code
        addq    $3, (%rsp)                      # step over the three bytes of mov %cr0, %rax
        iretq                                   # to ring 3 once more
done:
        cmp     $USER_CODE64, %ebx
        jne     1f
        mov     $0x2a, %al
        out     %al, $0xf4                      # success
1:      hlt

        end_of_probe
