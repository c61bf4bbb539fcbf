/*
 * 14-c-kernel, start.S: the few instructions that C cannot be asked for.
 *
 * Mode:        64-bit long mode, ring 0, set up by the host
 * Loaded at:   0x100000 (kernel.ld)
 * At entry:    RIP = _start, RSP = 0x7c00, RFLAGS.IF = 0; 0 to 4 GiB mapped to itself; .bss is zero; no IDT
 * Expected:    kernel_main() prints and returns a value, which goes to the debug-exit port
 */

        .code64
        .section .text.start, "ax"              # kernel.ld puts this first, at 0x100000
        .globl  _start
_start:
        mov     $stack_top, %esp                # a stack of the kernel's own
        cld                                     # C wants the direction flag clear
        call    kernel_main                     # RSP is a multiple of 16 before a call: the System V ABI's rule
        out     %al, $0xf4                      # debug-exit port: end the run with status (AL << 1) | 1
1:      hlt                                     # not reached under pykvm
        jmp     1b

        .bss
        .balign 16
        .skip   16384
stack_top:
