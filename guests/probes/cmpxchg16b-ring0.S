/*
 * mode: long
 * ring: 0
 * proves: CMPXCHG16B runs in ring 0
 */
        .code64
        .globl  _start
_start:
        lea     1f(%rip), %rsi
        xor     %eax, %eax
        xor     %edx, %edx
        mov     $0x2a, %ebx
        xor     %ecx, %ecx
        cmpxchg16b (%rsi)                       # equal to RDX:RAX, so RCX:RBX is stored
        mov     (%rsi), %al
        out     %al, $0xf4                      # success if the instruction gave the right answer
        hlt

        .balign 16
1:      .quad   0, 0
