/*
 * jump-to-nowhere: a jump to an address that is mapped, to no memory.
 *
 * Mode:        64-bit long mode, ring 0, set up by the host
 * Loaded at:   0x100000
 * At entry:    RIP = 0x100000, RSP = 0x7c00, RFLAGS.IF = 0; 0 to 4 GiB mapped to itself; no IDT
 * Mistake:     a wild pointer: the page tables map all of 4 GiB, and RAM ends long before that.
 * Expected:    KVM_EXIT_INTERNAL_ERROR: nothing can be fetched there, and KVM emulates no devices that
 *              code runs from
 */

        .set    NOWHERE, 0xe0000000             # in the hole for devices: mapped, and nobody is there

        .code64
        .globl  _start
_start:
        mov     $NOWHERE, %ebx
        jmp     *%rbx                           # a fetch from what is not memory
