/*
 * 28-scheduler, start.S: the beginning, and the switch from one task to another.
 *
 * Mode:        64-bit long mode, ring 0, set up by the host
 * Loaded at:   0x100000 (kernel.ld)
 * At entry:    RIP = _start, RSP = 0x7c00, RFLAGS.IF = 0; 0 to 4 GiB mapped to itself; .bss is zero; no IDT; the PICs
 *              and the PIT in their reset state
 * Expected:    kernel_main() returns the stack of the first task, which is entered; every tick of the timer enters
 *              another; the run ends with HLT and RFLAGS.IF = 0
 */

        .code64
        .section .text.start, "ax"              # kernel.ld puts this first, at 0x100000
        .globl  _start
_start:
        mov     $boot_stack_top, %esp           # for kernel_main(), and not needed after it
        cld                                     # C wants the direction flag clear
        call    kernel_main                     # RAX = the saved stack pointer of the first task
        jmp     resume

/*
 * The timer's interrupt. The CPU has pushed SS, RSP, RFLAGS, CS and RIP of the task; the rest of it, the general
 * registers, go on top. With that, all there is of a task is on its stack, and one pointer is enough to find it.
 * The order is that of struct saved_state in kernel.c.
 */
        .text
        .globl  timer_interrupt
timer_interrupt:
        push    %rax
        push    %rbx
        push    %rcx
        push    %rdx
        push    %rsi
        push    %rdi
        push    %rbp
        push    %r8
        push    %r9
        push    %r10
        push    %r11
        push    %r12
        push    %r13
        push    %r14
        push    %r15
        mov     %rsp, %rdi                      # here is the task that was running ...
        cld
        call    schedule                        # ... RAX = and here is the one to go on with
resume:
        mov     %rax, %rsp                      # the switch: from here on it is another task's stack
        pop     %r15
        pop     %r14
        pop     %r13
        pop     %r12
        pop     %r11
        pop     %r10
        pop     %r9
        pop     %r8
        pop     %rbp
        pop     %rdi
        pop     %rsi
        pop     %rdx
        pop     %rcx
        pop     %rbx
        pop     %rax
        iretq                                   # RIP, CS, RFLAGS (and with it IF), RSP, SS

        .bss
        .balign 16
        .skip   4096
boot_stack_top:
