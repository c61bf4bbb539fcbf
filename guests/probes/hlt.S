/*
 * mode: long
 * ring: 0
 * expect: hlt
 * proves: HLT leaves the guest with KVM_EXIT_HLT when there is no interrupt controller in the kernel
 */
        .code64
        .globl  _start
_start:
        hlt                                     # success is the exit
