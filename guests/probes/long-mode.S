/*
 * mode: long
 * ring: 0
 * page-size: 2M
 * proves: 64-bit long mode runs, with pages of 2 MiB and 64-bit registers
 */
        .code64
        .globl  _start
_start:
        movabs  $0x2a00000000, %rax
        shr     $32, %rax                       # 0 in a 32-bit register
        out     %al, $0xf4                      # success
        hlt
