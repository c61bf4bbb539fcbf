/*
 * mode: long
 * ring: 0
 * page-size: 1G
 * proves: long mode runs on pages of 1 GiB (CPUID 0x80000001 EDX bit 26 claims them)
 */
        .code64
        .globl  _start
_start:
        mov     $0x2a, %al
        out     %al, $0xf4                      # success
        hlt
