/*
 * mode: long
 * ring: 0
 * proves: x87 floating-point instructions run in ring 0
 */
        .code64
        .globl  _start
_start:
        mov     %cr0, %rax
        and     $~0x0c, %eax                    # EM and TS off: no #NM
        mov     %rax, %cr0
        fninit
        movl    $0x15, -8(%rsp)
        fildl   -8(%rsp)
        fadd    %st(0), %st(0)                  # 0x15 + 0x15
        fistpl  -8(%rsp)
        mov     -8(%rsp), %eax
        out     %al, $0xf4                      # success if the instruction gave the right answer
        hlt
