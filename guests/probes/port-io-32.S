/*
 * mode: long
 * ring: 0
 * proves: ports take accesses of 1, 2 and 4 bytes
 */
        .code64
        .globl  _start
_start:
        mov     $0xe9, %dx
        in      (%dx), %al                      # 1 byte: the debug console
        mov     $0x80, %dx
        out     %ax, (%dx)                      # 2 bytes: the POST port and its neighbour
        out     %eax, (%dx)                     # 4 bytes
        mov     $0x2a, %eax
        out     %al, $0xf4                      # success if the instruction gave the right answer
        hlt
