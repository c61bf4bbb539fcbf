/*
 * mode: real
 * ring: 0
 * proves: 16-bit real mode runs: segments, a near call and its stack
 */
        .code16
        .globl  _start
_start:
        xor     %ax, %ax
        mov     %ax, %ds
        call    1f                              # pushes and pops through SS:SP
        mov     value, %al                      # a read through DS
        out     %al, $0xf4                      # success
        hlt
1:      ret
value:
        .byte   0x2a
