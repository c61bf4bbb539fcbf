/*
 * mode: long
 * ring: 0
 * proves: ring 3 reads its own selector from CS (a host that runs ring 3 directly may show its own instead)
 */
        .include "layout.inc"
        .include "idt64.inc"
        .include "ring3.inc"

        .code64
        .globl  _start
_start:
        enter_ring3 user, done
user:
        mov     %cs, %ebx
        ud2                                     # back to ring 0
done:
        cmp     $USER_CODE64, %ebx
        jne     1f
        mov     $0x2a, %al
        out     %al, $0xf4                      # success
1:      hlt

        end_of_probe
