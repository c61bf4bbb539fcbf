/*
 * mode: long
 * ring: 0
 * page-size: 4K
 * proves: long mode runs on pages of 4 KiB (four levels)
 */
        .code64
        .globl  _start
_start:
        mov     $0x2a, %al
        out     %al, $0xf4                      # success
        hlt
