/*
 * 22-cpuid: ask the CPU who it is, and find the hypervisor.
 *
 * Mode:        64-bit long mode, ring 0, set up by the host
 * Loaded at:   0x100000
 * At entry:    RIP = 0x100000, RSP = 0x7c00, RFLAGS.IF = 0; 0 to 4 GiB mapped to itself
 * Expected:    leaf 1 says that a hypervisor is present, and leaf 0x40000000 that it is KVM. User space set the
 *              answers once, before the first instruction; CPUID itself is no exit to it. KVM_EXIT_HLT.
 */

        .include "ports.inc"
        .include "print.inc"

        .set    LEAF_VENDOR, 0                  # EAX = highest leaf; EBX, EDX, ECX = twelve letters
        .set    LEAF_FEATURES, 1
        .set    LEAF_HYPERVISOR, 0x40000000     # EBX, ECX, EDX = twelve letters
        .set    LEAF_EXTENDED, 0x80000001       # the features that AMD introduced

        .set    ECX_HYPERVISOR, 31              # bits: leaf 1 ECX, always 0 on bare hardware
        .set    EDX_TSC, 4                      # leaf 1 EDX: the time stamp counter
        .set    EDX_LM, 29                      # leaf 0x80000001 EDX: long mode

        .code64
        .globl  _start
_start:
        mov     $LEAF_FEATURES, %eax
        cpuid                                   # EAX, EBX, ECX, EDX = what leaf EAX says
        bt      $EDX_TSC, %edx                  # the carry flag = that bit
        mov     $tsc, %esi
        call    print_answer

        mov     $LEAF_EXTENDED, %eax
        cpuid
        bt      $EDX_LM, %edx
        mov     $long_mode, %esi
        call    print_answer

        mov     $LEAF_FEATURES, %eax
        cpuid
        bt      $ECX_HYPERVISOR, %ecx
        mov     $hypervisor, %esi
        call    print_answer
        jnc     done                            # without that bit nobody may ask for the leaf of hypervisors

        mov     $LEAF_HYPERVISOR, %eax
        cpuid
        mov     %ebx, signature                 # four letters in each register, the first in the lowest byte
        mov     %ecx, signature + 4
        mov     %edx, signature + 8
        mov     $its_name, %esi
        call    print_string
        mov     $signature, %esi
        call    print_string
        mov     $end_of_line, %esi
        call    print_string
done:
        hlt                                     # done

/* Print the string at RSI, and "yes" if the carry flag is set, else "no". Keeps the flags. Changes RAX, RSI. */
print_answer:
        pushfq
        call    print_string
        mov     $yes, %esi
        testb   $1, (%rsp)                      # the carry flag is bit 0 of RFLAGS
        jnz     1f
        mov     $no, %esi
1:      call    print_string
        popfq
        ret

        define_print_string print_string

tsc:
        .asciz  "time stamp counter: "
long_mode:
        .asciz  "long mode:          "
hypervisor:
        .asciz  "hypervisor:         "
its_name:
        .asciz  "its name:           "
yes:
        .asciz  "yes\n"
no:
        .asciz  "no\n"
end_of_line:
        .asciz  "\n"

        .bss
signature:
        .skip   12 + 1                          # and the zero that ends a string
