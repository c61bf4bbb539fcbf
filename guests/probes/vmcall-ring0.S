/*
 * mode: long
 * ring: 0
 * proves: VMCALL returns (KVM answers an unknown hypercall with -KVM_ENOSYS in RAX); for VT-x's name of it
 */
        .code64
        .globl  _start
_start:
        mov     $-1, %rax                       # no such hypercall
        vmcall
        mov     $0x2a, %al
        out     %al, $0xf4                      # success if the instruction gave the right answer
        hlt
