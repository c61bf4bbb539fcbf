/*
 * mode: real
 * ring: 0
 * memory: 4M
 * proves: a 4 GiB segment limit loaded in protected mode survives the return to real mode ("unreal mode")
 */
        .set    FAR_AWAY, 0x200000

        .code16
        .globl  _start
_start:
        cli
        lgdtl   gdt_pointer
        mov     %cr0, %eax
        or      $1, %al
        mov     %eax, %cr0                      # CR0.PE on
        mov     $8, %bx
        mov     %bx, %ds                        # the hidden limit of DS becomes 4 GiB
        and     $0xfe, %al
        mov     %eax, %cr0                      # CR0.PE off
        xor     %bx, %bx
        mov     %bx, %ds                        # in real mode a load changes the base, not the limit
        mov     $FAR_AWAY, %ebx
        movb    $0x2a, (%ebx)                   # #GP if the limit is 64 KiB again
        mov     (%ebx), %al
        out     %al, $0xf4                      # success
        hlt

        .balign 8
gdt:
        .quad   0
        .quad   0x00cf93000000ffff              # flat data
gdt_pointer:
        .word   15
        .long   gdt
