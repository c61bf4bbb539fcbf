/*
 * mode: long
 * ring: 0
 * proves: SSE instructions run in ring 0
 */
        .code64
        .globl  _start
_start:
        mov     %cr0, %rax
        and     $~0x0c, %eax                    # EM and TS off: no #UD, no #NM
        or      $0x02, %eax                     # MP on
        mov     %rax, %cr0
        mov     %cr4, %rax
        or      $0x600, %eax                    # OSFXSR and OSXMMEXCPT: the system saves the SSE state
        mov     %rax, %cr4
        mov     $0x15, %ecx
        movd    %ecx, %xmm0
        paddd   %xmm0, %xmm0                    # 0x15 + 0x15
        movd    %xmm0, %eax
        out     %al, $0xf4                      # success if the instruction gave the right answer
        hlt
