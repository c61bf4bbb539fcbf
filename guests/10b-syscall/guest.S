/*
 * 10b-syscall: from ring 3 to ring 0 and back by the pair of instructions made for it, syscall and sysret.
 *
 * Mode:        64-bit long mode, ring 0, set up by the host (2 MiB pages, for ring 0 only)
 * Loaded at:   0x100000
 * At entry:    RIP = 0x100000, RSP = 0x7c00, RFLAGS.IF = 0; GDT as in lib/layout.inc; no IDT
 * Expected:    ring 3 makes two system calls that print and one that ends the run, by KVM_EXIT_HLT in ring 0.
 *              Some hosts' KVM leaves the CPU in ring 3 at the syscall (`pykvm doctor --probe` tells): there the guest
 *              crashes at its first system call.
 */

        .include "ports.inc"
        .include "layout.inc"
        .include "print.inc"

        .set    MSR_EFER, 0xc0000080            # Extended Feature Enable Register
        .set    EFER_SCE, 0x01                  # System Call Extensions: without it syscall is #UD
        .set    MSR_STAR, 0xc0000081            # the segments for syscall and sysret
        .set    MSR_LSTAR, 0xc0000082           # where a syscall from 64-bit code goes to
        .set    MSR_SFMASK, 0xc0000084          # the RFLAGS bits that syscall clears
        .set    RFLAGS_IF, 0x200
        .set    RFLAGS_DF, 0x400
        .set    RFLAGS_FIXED, 0x02              # bit 1 of RFLAGS is always 1
        .set    USER, 0x04                      # U/S bit of a page-table entry: ring 3 may use the page

        .set    SYS_PRINT, 0                    # this guest's own system calls; the number goes in RAX
        .set    SYS_EXIT, 1

        .code64
        .globl  _start
_start:
/* 1. Let ring 3 use the 2 MiB page that this code is in, as in 10-ring3. */
        mov     %cr3, %rax                      # the PML4
        orl     $USER, (%rax)
        mov     (%rax), %eax
        and     $0xfffff000, %eax               # the PDPT
        orl     $USER, (%rax)
        mov     (%rax), %eax
        and     $0xfffff000, %eax               # the page directory
        orl     $USER, (%rax)
        mov     %cr3, %rax
        mov     %rax, %cr3                      # forget what the TLB remembers of the old entries

/*
 * 2. Tell the CPU where a system call goes. STAR holds two selectors, of which the others are computed:
 *
 *      63              48 47              32 31       0
 *      SYSRET base        SYSCALL base       32-bit EIP (unused here)
 *      CS = base + 16     CS = base
 *      SS = base + 8      SS = base + 8
 */
        mov     $MSR_EFER, %ecx
        rdmsr
        or      $EFER_SCE, %eax
        wrmsr                                   # EFER: syscall and sysret are allowed
        mov     $MSR_STAR, %ecx
        xor     %eax, %eax
        mov     $USER_CODE32 << 16 | KERNEL_CODE, %edx
        wrmsr                                   # STAR: USER_CODE32, USER_DATA, USER_CODE64 follow each other in the GDT
        mov     $MSR_LSTAR, %ecx
        mov     $system_call, %eax
        xor     %edx, %edx
        wrmsr                                   # LSTAR: the entry point
        mov     $MSR_SFMASK, %ecx
        mov     $RFLAGS_IF | RFLAGS_DF, %eax
        xor     %edx, %edx
        wrmsr                                   # SFMASK: enter with interrupts off and strings going up

/* 3. Down: sysret does not need a stack, only RCX and R11. */
        mov     %rsp, kernel_rsp
        mov     $user_stack_top, %esp
        mov     $user, %ecx                     # RIP
        mov     $RFLAGS_FIXED, %r11d            # RFLAGS
        sysretq                                 # ring 3 begins

/* Ring 3. */
user:
        mov     $SYS_PRINT, %eax
        mov     $first, %edi
        syscall                                 # RCX = RIP, R11 = RFLAGS, RIP = LSTAR, ring 0
        mov     $SYS_PRINT, %eax
        mov     $second, %edi
        syscall
        mov     $SYS_EXIT, %eax
        syscall
        ud2                                     # never reached

/* Ring 0, but on ring 3's stack: syscall, unlike a fault, leaves RSP alone. */
system_call:
        mov     %rsp, user_rsp
        mov     kernel_rsp, %rsp
        cmp     $SYS_PRINT, %eax
        jne     exit
        mov     %rdi, %rsi
        call    print_string                    # keeps RCX and R11, which sysret needs
        mov     user_rsp, %rsp
        sysretq                                 # RIP = RCX, RFLAGS = R11, ring 3
exit:
        mov     $goodbye, %esi
        call    print_string
        hlt                                     # done

        define_print_string print_string

first:
        .asciz  "ring 3: hello by syscall\n"
second:
        .asciz  "ring 3: and once more\n"
goodbye:
        .asciz  "ring 0: ring 3 asked to end\n"

        .bss
        .balign 16
kernel_rsp:
        .skip   8
user_rsp:
        .skip   8
        .skip   512
user_stack_top:
