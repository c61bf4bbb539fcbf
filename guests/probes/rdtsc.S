/*
 * mode: long
 * ring: 0
 * proves: the time stamp counter runs, read by RDTSC and by RDMSR
 */
        .code64
        .globl  _start
_start:
        rdtsc
        shl     $32, %rdx
        or      %rax, %rdx
        mov     %rdx, %rbx                      # the first reading
        mov     $0x10, %ecx
        rdmsr                                   # IA32_TIME_STAMP_COUNTER
        shl     $32, %rdx
        or      %rax, %rdx
        cmp     %rbx, %rdx
        jbe     1f                              # it stood still or ran backwards
        mov     $0x2a, %al
        out     %al, $0xf4                      # success
1:      hlt
