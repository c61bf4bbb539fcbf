/*
 * mode: long
 * ring: 0
 * expect: shutdown
 * proves: an exception without any IDT ends in KVM_EXIT_SHUTDOWN
 */
        .code64
        .globl  _start
_start:
        ud2                                     # success is the exit
