/*
 * mode: pae
 * ring: 0
 * proves: PAE paging works when the host sets it up (CR0.PG and CR4.PAE, without EFER.LME)
 */
        .code32
        .globl  _start
_start:
        mov     $0x2a, %al
        out     %al, $0xf4                      # success
        hlt
