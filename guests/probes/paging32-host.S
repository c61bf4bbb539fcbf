/*
 * mode: paged
 * ring: 0
 * proves: 32-bit paging works when the host sets it up (KVM_SET_SREGS with CR0.PG and without EFER.LME)
 */
        .code32
        .globl  _start
_start:
        mov     $0x2a, %al
        out     %al, $0xf4                      # success
        hlt
