/*
 * mode: long
 * ring: 0
 * proves: the guest can set its time stamp counter by WRMSR
 */
        .code64
        .globl  _start
_start:
        mov     $0x10, %ecx
        xor     %eax, %eax
        mov     $0x40000000, %edx               # 2^62: no machine has run that long
        wrmsr                                   # IA32_TIME_STAMP_COUNTER
        rdtsc
        cmp     $0x40000000, %edx
        jne     1f                              # the write was ignored
        mov     $0x2a, %al
        out     %al, $0xf4                      # success
1:      hlt
