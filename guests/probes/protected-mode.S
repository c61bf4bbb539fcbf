/*
 * mode: protected
 * ring: 0
 * proves: 32-bit protected mode without paging runs, and reloads a segment register from the GDT
 */
        .code32
        .globl  _start
_start:
        mov     %ds, %eax
        mov     %ax, %es                        # reads the descriptor in guest memory
        push    $0x2a
        pop     %eax
        out     %al, $0xf4                      # success
        hlt
