/*
 * mode: long
 * ring: 0
 * proves: POPCNT runs in ring 0
 */
        .code64
        .globl  _start
_start:
        mov     $0x3ffffffffff, %rax            # 42 bits
        popcnt  %rax, %rax
        out     %al, $0xf4                      # success if the instruction gave the right answer
        hlt
