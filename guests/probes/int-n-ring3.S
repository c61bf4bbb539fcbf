/*
 * mode: long
 * ring: 0
 * proves: INT n in ring 3 is delivered through the guest's IDT
 */
        .include "layout.inc"
        .include "idt64.inc"
        .include "ring3.inc"

        .code64
        .globl  _start
_start:
        set_gate idt, 32, handler
        movb    $0xee, idt + 16 * 32 + 5        # DPL 3: ring 3 may use this gate
        xor     %ebx, %ebx
        enter_ring3 user, done
user:
        int     $32                             # software interrupt
        ud2                                     # back to ring 0
handler:
        mov     $0x2a, %ebx
        iretq                                   # to ring 3 once more
done:
        mov     %ebx, %eax
        out     %al, $0xf4                      # success if the handler has run
        hlt

        end_of_probe
