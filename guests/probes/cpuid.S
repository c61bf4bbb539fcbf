/*
 * mode: long
 * ring: 0
 * proves: CPUID runs and answers: leaf 0 knows leaf 1, leaf 0x80000001 claims long mode
 */
        .code64
        .globl  _start
_start:
        xor     %eax, %eax
        cpuid                                   # EAX = the highest basic leaf
        test    %eax, %eax
        jz      1f
        mov     $0x80000001, %eax
        cpuid
        bt      $29, %edx                       # LM
        jnc     1f
        mov     $0x2a, %al
        out     %al, $0xf4                      # success
1:      hlt
