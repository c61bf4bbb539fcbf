/*
 * mode: long
 * ring: 0
 * proves: reads and writes of 8 bytes reach a memory-mapped device and come back
 */
        .code64
        .globl  _start
_start:
        mov     $0xd0000000, %ebx
        movabs  $0x2a00000000000000, %rax       # the highest byte goes to the scratch register, at offset 7
        mov     %rax, (%rbx)                    # MMIO write of 8 bytes
        mov     (%rbx), %rcx                    # MMIO read of 8 bytes
        shr     $56, %rcx
        mov     %ecx, %eax
        out     %al, $0xf4                      # success if the scratch register kept its value
        hlt
