/*
 * mode: long
 * ring: 0
 * proves: 32-bit code runs under long mode's paging (a code segment with L = 0)
 */
        .code64
        .globl  _start
_start:
        lgdt    gdt_pointer
        ljmp    *far_pointer
        .code32
compatibility:
        mov     $0x29, %eax
        .byte   0x40                            # inc %eax in 32-bit code, a REX prefix in 64-bit code
        nop
        out     %al, $0xf4                      # success
        hlt

        .balign 8
gdt:
        .quad   0
        .quad   0x00cf9b000000ffff              # 32-bit code
        .quad   0x00cf93000000ffff              # data
gdt_pointer:
        .word   23
        .quad   gdt
far_pointer:
        .long   compatibility
        .word   8
